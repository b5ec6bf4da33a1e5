#include "server/net/file_backed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <thread>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

void Write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

// The value is both files' contents together; "bad" gives none.
absl::StatusOr<std::string> Join(const std::vector<std::string>& contents) {
  if (contents[0] == "bad") return absl::InvalidArgumentError("bad");
  return contents[0] + contents[1];
}

void PassTheSecondBetweenLooks() { std::this_thread::sleep_for(std::chrono::milliseconds(1100)); }

TEST(FileBackedTest, ReadsAgainWhatChangesAndKeepsWhatWasGood) {
  const std::string a = ::testing::TempDir() + "file_backed_a";
  const std::string b = ::testing::TempDir() + "file_backed_b";
  Write(a, "a");
  Write(b, "b");
  const auto backed = FileBacked<std::string>::Load("test", {a, b}, Join);
  ASSERT_THAT(backed, IsOk());
  const std::shared_ptr<const std::string> first = (*backed)->Get();
  EXPECT_EQ(*first, "ab");
  PassTheSecondBetweenLooks();
  EXPECT_EQ((*backed)->Get(), first) << "nothing has changed";

  Write(b, "B");  // of the same size
  PassTheSecondBetweenLooks();
  EXPECT_EQ(*(*backed)->Get(), "aB");
  Write(a, "bad");
  PassTheSecondBetweenLooks();
  EXPECT_EQ(*(*backed)->Get(), "aB");
  std::remove(a.c_str());
  PassTheSecondBetweenLooks();
  EXPECT_EQ(*(*backed)->Get(), "aB");
  Write(a, "A");
  PassTheSecondBetweenLooks();
  EXPECT_EQ(*(*backed)->Get(), "AB");
  EXPECT_EQ(*first, "ab") << "whoever holds a value keeps it";
}

TEST(FileBackedTest, WhatCouldNotBeReadForAWhileIsReadLater) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give up the right to read a file, and take it back";
  const std::string file = ::testing::TempDir() + "file_backed_later";
  Write(file, "a");
  ASSERT_EQ(chmod(file.c_str(), 0600), 0);
  const auto backed = FileBacked<std::string>::Load("test", {file, file}, Join);
  ASSERT_THAT(backed, IsOk());
  Write(file, "b");
  PassTheSecondBetweenLooks();
  ASSERT_EQ(seteuid(65534), 0);
  EXPECT_EQ(*(*backed)->Get(), "aa");
  ASSERT_EQ(seteuid(0), 0);
  PassTheSecondBetweenLooks();
  EXPECT_EQ(*(*backed)->Get(), "bb") << "although the file has not changed since";
}

TEST(FileBackedTest, WhatMayBeHalfWrittenIsLeftForTheNextLook) {
  const std::string file = ::testing::TempDir() + "file_backed_half";
  Write(file, "a");
  const auto backed = FileBacked<std::string>::Load("test", {file, file}, Join);
  ASSERT_THAT(backed, IsOk());
  PassTheSecondBetweenLooks();
  Write(file, "half of ");
  EXPECT_EQ(*(*backed)->Get(), "aa");
  Write(file, "b");
  PassTheSecondBetweenLooks();
  EXPECT_EQ(*(*backed)->Get(), "bb");
}

TEST(FileBackedTest, NothingToBeginWith) {
  const std::string bad = ::testing::TempDir() + "file_backed_bad";
  Write(bad, "bad");
  EXPECT_THAT(FileBacked<std::string>::Load("test", {bad, bad}, Join),
              StatusIs(absl::StatusCode::kInvalidArgument, "bad"));
  EXPECT_THAT(FileBacked<std::string>::Load("test", {bad, "/nowhere"}, Join),
              StatusIs(absl::StatusCode::kNotFound, "test: /nowhere: no such file or directory"));
  EXPECT_THAT(FileBacked<std::string>::Load("test", {::testing::TempDir()}, Join),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("is a directory")));
  Write(bad, std::string((1 << 20) + 1, 'x'));
  EXPECT_THAT(FileBacked<std::string>::Load("test", {bad, bad}, Join),
              StatusIs(absl::StatusCode::kNotFound, "test: " + bad + ": larger than 1 MiB"));
}

}  // namespace
}  // namespace kvcompress
