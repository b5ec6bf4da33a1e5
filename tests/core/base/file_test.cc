#include "core/base/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/bytes.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::IsOk;
using testing::StatusIs;
using ::testing::UnorderedElementsAre;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

// Runs the enclosed block without root's right to pass over file modes, which would hide what is tested.
class Unprivileged {
 public:
  Unprivileged() {
    if (was_root_) {
      EXPECT_EQ(seteuid(65534), 0);
    }
  }
  ~Unprivileged() {
    if (was_root_) {
      EXPECT_EQ(seteuid(0), 0);
    }
  }

 private:
  const bool was_root_ = geteuid() == 0;
};

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "kvcompress-file-test-XXXXXX").native();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    ASSERT_EQ(chmod(name.c_str(), 0777), 0);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string Path(std::string_view name) const { return (folder_ / name).native(); }

  std::string Write(std::string_view name, std::string_view text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  std::string Read(std::string_view name) const {
    std::ifstream in(Path(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  static mode_t Mode(const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(stat(path.c_str(), &info), 0);
    return info.st_mode & 07777;
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().native());
    return names;
  }

  fs::path folder_;
};

TEST_F(FileTest, ReadsRanges) {
  auto file = FileSource::Open(Write("in", "0123456789"));
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->size(), 10);
  std::vector<std::byte> scratch;
  EXPECT_EQ(AsText(*(*file)->Get(0, 10, scratch)), "0123456789");
  EXPECT_EQ(AsText(*(*file)->Get(3, 4, scratch)), "3456");
  EXPECT_EQ(AsText(*(*file)->Get(10, 0, scratch)), "");
}

TEST_F(FileTest, RefusesRangesPastTheEnd) {
  const std::string path = Write("in", "0123456789");
  auto file = FileSource::Open(path);
  ASSERT_THAT(file, IsOk());
  std::vector<std::byte> scratch;
  const std::pair<uint64_t, size_t> ranges[] = {{0, 11}, {10, 1}, {11, 0}, {kMax, 1}, {1, kMax}, {kMax, kMax}};
  for (const auto& [offset, count] : ranges) {
    EXPECT_THAT((*file)->Get(offset, count, scratch),
                StatusIs(absl::StatusCode::kOutOfRange, absl::StrCat("read ", path, ": past the end of the file")));
  }
}

TEST_F(FileTest, FileThatShrinksIsDataLoss) {
  const std::string path = Write("in", "0123456789");
  auto file = FileSource::Open(path);
  ASSERT_THAT(file, IsOk());
  ASSERT_EQ(truncate(path.c_str(), 4), 0);
  std::vector<std::byte> scratch;
  EXPECT_THAT((*file)->Get(0, 10, scratch),
              StatusIs(absl::StatusCode::kDataLoss,
                       absl::StrCat("read ", path, ": the file became shorter while it was read")));
  EXPECT_EQ(AsText(*(*file)->Get(0, 4, scratch)), "0123");
}

TEST_F(FileTest, OpenErrors) {
  EXPECT_THAT(
      FileSource::Open(Path("missing")),
      StatusIs(absl::StatusCode::kNotFound, absl::StrCat("open ", Path("missing"), ": no such file or directory")));
  EXPECT_THAT(FileSource::Open(folder_), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                  absl::StrCat("read ", folder_.native(), ": is a directory")));
  const std::string in = Write("in", "x");
  EXPECT_THAT(FileSource::Open(in + "/below"),
              StatusIs(absl::StatusCode::kFailedPrecondition, absl::StrCat("open ", in, "/below: not a directory")));
  ASSERT_EQ(chmod(in.c_str(), 0), 0);
  const Unprivileged unprivileged;
  EXPECT_THAT(FileSource::Open(in),
              StatusIs(absl::StatusCode::kPermissionDenied, absl::StrCat("open ", in, ": permission denied")));
}

TEST_F(FileTest, OpeningAPipeNeitherWaitsNorWorks) {
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0666), 0);
  EXPECT_THAT(FileSource::Open(Path("pipe")), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                       absl::StrCat("open ", Path("pipe"), ": not a regular file")));
  EXPECT_THAT(FileSource::Open("/dev/null"),
              StatusIs(absl::StatusCode::kFailedPrecondition, "open /dev/null: not a regular file"));
}

TEST(SubSourceTest, StaysInItsPart) {
  const MemorySource whole(AsBytes("0123456789"));
  const SubSource part(whole, 2, 5);
  EXPECT_EQ(part.size(), 5);
  std::vector<std::byte> scratch;
  EXPECT_EQ(AsText(*part.Get(0, 5, scratch)), "23456");
  EXPECT_EQ(AsText(*part.Get(4, 1, scratch)), "6");
  EXPECT_EQ(AsText(*part.Get(5, 0, scratch)), "");
  const std::pair<uint64_t, size_t> ranges[] = {{0, 6}, {5, 1}, {6, 0}, {kMax, 1}, {kMax - 1, 2}, {1, kMax}};
  for (const auto& [offset, count] : ranges) {
    EXPECT_THAT(part.Get(offset, count, scratch),
                StatusIs(absl::StatusCode::kOutOfRange, "read past the end of the tensor"));
  }
}

TEST_F(FileTest, AppearsOnlyWithCommit) {
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_THAT(file, IsOk());
  ASSERT_THAT((*file)->WriteAt(5, AsBytes("world")), IsOk());
  (*file)->StartWriteback(10);
  ASSERT_THAT((*file)->WriteAt(0, AsBytes("hello")), IsOk());
  EXPECT_THAT(Names(), ElementsAre(fs::path((*file)->temporary_path()).filename().native()));
  ASSERT_THAT((*file)->Commit(), IsOk());
  EXPECT_THAT(Names(), ElementsAre("out"));
  file->reset();
  EXPECT_EQ(Read("out"), "helloworld");
}

TEST_F(FileTest, WithoutCommitTheOldFileStays) {
  Write("out", "old");
  {
    auto file = AtomicFile::Create(Path("out"));
    ASSERT_THAT(file, IsOk());
    ASSERT_THAT((*file)->WriteAt(0, AsBytes("newer")), IsOk());
    EXPECT_EQ(Read("out"), "old");
  }
  EXPECT_EQ(Read("out"), "old");
  EXPECT_THAT(Names(), ElementsAre("out"));
}

TEST_F(FileTest, ReadsTheOldFileWhileReplacingIt) {
  auto in = FileSource::Open(Write("same", "old"));
  auto out = AtomicFile::Create(Path("same"));
  ASSERT_TRUE(in.ok() && out.ok());
  ASSERT_THAT((*out)->WriteAt(0, AsBytes("newer")), IsOk());
  ASSERT_THAT((*out)->Commit(), IsOk());
  std::vector<std::byte> scratch;
  EXPECT_EQ(AsText(*(*in)->Get(0, 3, scratch)), "old");
  EXPECT_EQ(Read("same"), "newer");
}

TEST_F(FileTest, TakesTheModeOfTheReplacedFileOrTheUmasks) {
  const mode_t umask_before = umask(027);
  ASSERT_EQ(chmod(Write("old", "old").c_str(), 0604), 0);
  for (const auto& [name, mode] : {std::pair("new", 0640), std::pair("old", 0604)}) {
    auto file = AtomicFile::Create(Path(name));
    ASSERT_THAT(file, IsOk());
    ASSERT_THAT((*file)->Commit(), IsOk());
    EXPECT_EQ(Mode(Path(name)), mode) << name;
  }
  umask(umask_before);
}

TEST_F(FileTest, FollowsSymbolicLinks) {
  fs::create_directory(Path("far"));
  Write("far/target", "old");
  fs::create_symlink("far/hop", Path("link"));
  fs::create_symlink("target", Path("far/hop"));
  fs::create_symlink("far/not-yet", Path("dangling"));
  for (const auto& [link, target] : {std::pair("link", "far/target"), std::pair("dangling", "far/not-yet")}) {
    auto file = AtomicFile::Create(Path(link));
    ASSERT_THAT(file, IsOk());
    ASSERT_THAT((*file)->WriteAt(0, AsBytes("new")), IsOk());
    ASSERT_THAT((*file)->Commit(), IsOk());
    EXPECT_TRUE(fs::is_symlink(Path(link)));
    EXPECT_EQ(Read(target), "new");
  }
  EXPECT_THAT(Names(), UnorderedElementsAre("far", "link", "dangling"));

  fs::create_symlink("loop", Path("loop"));
  EXPECT_THAT(AtomicFile::Create(Path("loop")),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       absl::StrCat("open ", Path("loop"), ": too many levels of symbolic links")));
}

TEST_F(FileTest, WorksInTheCurrentFolder) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  {
    auto file = AtomicFile::Create("out");
    ASSERT_THAT(file, IsOk());
    ASSERT_THAT((*file)->WriteAt(0, AsBytes("here")), IsOk());
    EXPECT_THAT((*file)->Commit(), IsOk());
  }
  fs::current_path(before);
  EXPECT_EQ(Read("out"), "here");
}

TEST_F(FileTest, LongestNameFits) {
  const std::string name(255, 'n');
  auto file = AtomicFile::Create(Path(name));
  ASSERT_THAT(file, IsOk());
  EXPECT_THAT((*file)->Commit(), IsOk());
  EXPECT_THAT(Names(), ElementsAre(name));
  EXPECT_THAT(
      AtomicFile::Create(Path(name + "n")),
      StatusIs(absl::StatusCode::kInvalidArgument, absl::StrCat("open ", Path(name + "n"), ": file name too long")));
}

TEST_F(FileTest, CreateErrors) {
  EXPECT_THAT(
      AtomicFile::Create(Path("missing/out")),
      StatusIs(absl::StatusCode::kNotFound, absl::StrCat("open ", Path("missing/out"), ": no such file or directory")));
  EXPECT_THAT(AtomicFile::Create(""), StatusIs(absl::StatusCode::kNotFound, "open : no such file or directory"));
  EXPECT_THAT(AtomicFile::Create(folder_), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                    absl::StrCat("open ", folder_.native(), ": is a directory")));
  EXPECT_THAT(AtomicFile::Create(Path("new/")),
              StatusIs(absl::StatusCode::kFailedPrecondition, absl::StrCat("open ", Path("new/"), ": is a directory")));
  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0666), 0);
  EXPECT_THAT(AtomicFile::Create(Path("pipe")), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                         absl::StrCat("open ", Path("pipe"), ": not a regular file")));
}

TEST_F(FileTest, RespectsPermissions) {
  fs::create_directory(Path("closed"));
  ASSERT_EQ(chmod(Path("closed").c_str(), 0555), 0);
  const std::string protected_file = Write("protected", "old");
  ASSERT_EQ(chmod(protected_file.c_str(), 0444), 0);
  const Unprivileged unprivileged;
  for (const std::string& path : {Path("closed/out"), protected_file}) {
    EXPECT_THAT(AtomicFile::Create(path),
                StatusIs(absl::StatusCode::kPermissionDenied, absl::StrCat("open ", path, ": permission denied")));
  }
}

TEST_F(FileTest, RefusesTheLinkToAnOpenFile) {
  const int fd = open(Write("stdout", "old").c_str(), O_WRONLY);
  ASSERT_GE(fd, 0);
  for (const std::string& path : {absl::StrCat("/proc/self/fd/", fd), absl::StrCat("/dev/fd/", fd)}) {
    EXPECT_THAT(AtomicFile::Create(path),
                StatusIs(absl::StatusCode::kFailedPrecondition, absl::StrCat("open ", path, ": not a regular file")));
  }
  close(fd);
  EXPECT_EQ(Read("stdout"), "old");
}

TEST_F(FileTest, WritesDevicesInPlace) {
  auto null = AtomicFile::Create("/dev/null");
  ASSERT_THAT(null, IsOk());
  EXPECT_EQ((*null)->temporary_path(), "");
  EXPECT_THAT((*null)->WriteAt(1000, AsBytes("text")), IsOk());
  EXPECT_THAT((*null)->Commit(), IsOk());
  null->reset();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));

  auto full = AtomicFile::Create("/dev/full");
  ASSERT_THAT(full, IsOk());
  EXPECT_THAT((*full)->WriteAt(0, AsBytes("text")),
              StatusIs(absl::StatusCode::kResourceExhausted, "write /dev/full: no space left on device"));
}

// A limit on the size of files makes the system write a part, and then refuse the rest, as a full disk does.
TEST_F(FileTest, FailedWriteLeavesTheOldFile) {
  Write("out", "old");
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler_before = signal(SIGXFSZ, SIG_IGN);
  {
    auto file = AtomicFile::Create(Path("out"));
    ASSERT_THAT(file, IsOk());
    const rlimit small = {.rlim_cur = 6, .rlim_max = before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const absl::Status status = (*file)->WriteAt(0, AsBytes("0123456789"));
    const auto written = fs::file_size((*file)->temporary_path());
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_EQ(written, 6);
    EXPECT_THAT(status,
                StatusIs(absl::ErrnoToStatusCode(EFBIG), absl::StrCat("write ", Path("out"), ": file too large")));
  }
  signal(SIGXFSZ, handler_before);
  EXPECT_EQ(Read("out"), "old");
  EXPECT_THAT(Names(), ElementsAre("out"));
}

TEST_F(FileTest, RenameThatFailsIsReported) {
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_THAT(file, IsOk());
  fs::create_directory(Path("out"));
  EXPECT_THAT((*file)->Commit(), StatusIs(absl::StatusCode::kFailedPrecondition,
                                          absl::StrCat("rename ", Path("out"), ": is a directory")));
  file->reset();
  EXPECT_THAT(Names(), ElementsAre("out"));
}

// A process that has begun a file, and will not end it.
class Writer {
 public:
  explicit Writer(const std::string& path) {
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) {
      const auto file = AtomicFile::Create(path);
      const bool begun = file.ok() && (*file)->WriteAt(0, AsBytes("begun")).ok();
      (void)!write(ready[1], &begun, sizeof begun);
      for (;;) pause();
    }
    bool begun = false;
    EXPECT_EQ(read(ready[0], &begun, sizeof begun), ssize_t{sizeof begun});
    EXPECT_TRUE(begun);
    close(ready[0]);
    close(ready[1]);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  pid_t pid_ = 0;
};

TEST_F(FileTest, WhatAKilledProcessLeftGoesWithTheNextFileOfThatName) {
  Writer writer(Path("out"));
  ASSERT_EQ(Names().size(), 1u);
  const std::string left = Names()[0];
  EXPECT_THAT(left, ::testing::StartsWith(".kvcompress-"));
  {  // it lives
    const auto file = AtomicFile::Create(Path("out"));
    ASSERT_THAT(file, IsOk());
    EXPECT_EQ(Names().size(), 2u);
  }
  EXPECT_THAT(Names(), ElementsAre(left));
  writer.Kill();
  {  // of another name
    ASSERT_THAT(AtomicFile::Create(Path("other")), IsOk());
    EXPECT_THAT(Names(), ElementsAre(left));
  }
  std::ofstream(Path(".kvcompress-mine.tmp")) << "not of this program";
  const auto file = AtomicFile::Create(Path("out"));
  ASSERT_THAT(file, IsOk());
  EXPECT_FALSE(fs::exists(Path(left)));
  EXPECT_TRUE(fs::exists(Path(".kvcompress-mine.tmp")));
  ASSERT_THAT((*file)->Commit(), IsOk());
  EXPECT_THAT(Names(), UnorderedElementsAre("out", ".kvcompress-mine.tmp"));
}

TEST_F(FileTest, ManyWritersOfOneNameDoNotTakeEachOthersFiles) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 20; ++k) {
        const auto file = AtomicFile::Create(Path("out"));
        ASSERT_THAT(file, IsOk());
        ASSERT_THAT((*file)->WriteAt(0, AsBytes("whole")), IsOk());
        ASSERT_THAT((*file)->Commit(), IsOk());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Names(), ElementsAre("out"));
}

TEST_F(FileTest, ThreadsWriteDisjointRanges) {
  constexpr size_t kThreads = 4, kPieces = 64, kPiece = 1000;
  auto file = AtomicFile::Create(Path("out"));
  ASSERT_THAT(file, IsOk());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < kPieces; i += kThreads) {
        const std::string piece(kPiece, static_cast<char>('0' + i));
        EXPECT_THAT((*file)->WriteAt(i * kPiece, AsBytes(piece)), IsOk());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_THAT((*file)->Commit(), IsOk());
  std::string expected;
  for (size_t i = 0; i < kPieces; ++i) expected.append(kPiece, static_cast<char>('0' + i));
  EXPECT_EQ(Read("out"), expected);
}

}  // namespace
}  // namespace kvcompress
