#include "core/artifact/artifact_store.h"

#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/core/artifact/small_artifact.h"
#include "tests/testing/folder_test.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

namespace fs = std::filesystem;
using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::SmallArtifact;
using ::kvcompress::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

uint64_t SmallBytes() { return SmallArtifact().tensors.size() * SmallArtifact().tensor_bytes(); }

class ArtifactStoreTest : public testing::FolderTest {
 protected:
  // Puts the small artifact of this seed there, and returns its id.
  ArtifactId Put(std::string_view name, uint64_t seed) {
    const auto file = SerializeArtifact(SmallArtifact(seed), "a test");
    EXPECT_THAT(file, IsOk());
    Write(name, AsText(file->bytes));
    return file->id;
  }
  void Write(std::string_view name, std::string_view bytes) {
    std::ofstream(folder_ / name, std::ios::binary | std::ios::trunc) << bytes;
  }

  ArtifactStore::Options Options(uint64_t max_memory_bytes = uint64_t{1} << 30) {
    return {.directory = folder_.string(), .max_memory_bytes = max_memory_bytes, .look_again = {}};
  }
};

TEST_F(ArtifactStoreTest, AnArtifactIsLoadedOnceAndShared) {
  const ArtifactId id = Put("a.kvcal", 0);
  ArtifactStore store(Options());
  const auto first = store.Find(id);
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(**first, SmallArtifact());
  const auto second = store.Find(id);
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(*first, *second);
  EXPECT_EQ(store.figures().loads, 1);
  EXPECT_EQ(store.figures().loaded, 1);
  EXPECT_EQ(store.figures().memory_bytes, SmallBytes());
  // The file's bytes were what the id says; it is not needed any more.
  fs::remove(folder_ / "a.kvcal");
  EXPECT_THAT(store.Find(id), IsOk());
}

TEST_F(ArtifactStoreTest, OneThatIsNotThereIsNamedWithItsPlace) {
  ArtifactStore store(Options());
  const ArtifactId id(32, 'a');
  EXPECT_THAT(store.Find(id), StatusIs(absl::StatusCode::kFailedPrecondition,
                                       AllOf(HasSubstr(id), HasSubstr(folder_.string()), HasSubstr("NAME.kvcal"))));
  EXPECT_EQ(store.figures().failures, 1);
  EXPECT_THAT(store.Find("a"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("32 hex digits")));
  ArtifactStore nowhere({.directory = folder_ / "no"});
  EXPECT_THAT(nowhere.Find(id), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("No such file")));
  EXPECT_THAT(nowhere.ids(), IsEmpty());
}

TEST_F(ArtifactStoreTest, FilesThatComeLaterAreFound) {
  ArtifactStore store(Options());
  EXPECT_THAT(store.ids(), IsEmpty());
  const ArtifactId a = Put("a.kvcal", 1);
  EXPECT_THAT(store.ids(), ElementsAre(a));
  const ArtifactId b = Put("b.kvcal", 2);
  EXPECT_THAT(store.Find(b), IsOk());
  EXPECT_THAT(store.ids(), UnorderedElementsAre(a, b));
  Put("other.txt", 3);
  fs::remove(folder_ / "a.kvcal");
  EXPECT_THAT(store.ids(), ElementsAre(b));
}

TEST_F(ArtifactStoreTest, TheDirectoryIsNotLookedAtAllTheTime) {
  ArtifactStore::Options options = Options();
  options.look_again = std::chrono::hours(1);
  ArtifactStore store(options);
  EXPECT_THAT(store.ids(), IsEmpty());
  const ArtifactId id = Put("a.kvcal", 1);
  EXPECT_THAT(store.Find(id), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(id)));
}

TEST_F(ArtifactStoreTest, AFileThatIsNotWholeIsNotTaken) {
  const auto file = SerializeArtifact(SmallArtifact(), "a test");
  ASSERT_THAT(file, IsOk());
  const std::string_view bytes = AsText(file->bytes);
  ArtifactStore store(Options());
  for (const size_t written : {size_t{0}, size_t{5}, size_t{500}, bytes.size() - 1}) {
    Write("a.kvcal", bytes.substr(0, written));
    EXPECT_THAT(store.ids(), IsEmpty()) << written;
    EXPECT_THAT(store.Find(file->id), StatusIs(absl::StatusCode::kFailedPrecondition,
                                               AllOf(HasSubstr("a.kvcal"), HasSubstr("parse header: "))));
  }
  Write("a.kvcal", bytes);
  EXPECT_THAT(store.Find(file->id), IsOk());
}

TEST_F(ArtifactStoreTest, AFileThatChangesAfterItWasFoundIsNotTaken) {
  const ArtifactId a = Put("a.kvcal", 1);
  ArtifactStore store(Options());
  EXPECT_THAT(store.ids(), ElementsAre(a));
  const ArtifactId b = Put("a.kvcal", 2);
  EXPECT_THAT(store.Find(a), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("has changed")));
  EXPECT_THAT(store.Find(b), IsOk());
  // Of two files with one content the other one serves.
  const ArtifactId c = Put("c.kvcal", 3);
  Put("d.kvcal", 3);
  EXPECT_THAT(store.ids(), UnorderedElementsAre(b, c));
  Put("c.kvcal", 4);
  EXPECT_THAT(store.Find(c), IsOk());
}

TEST_F(ArtifactStoreTest, AFileThatIsNoRightArtifactIsRefusedWithItsFault) {
  Write("plain.kvcal", *safetensors::SerializeHeader({}, {{"format", "pt"}}, true));
  Write("later.kvcal", *safetensors::SerializeHeader({}, {{"kvcompress.artifact", "2"}}, true));
  ArtifactStore store(Options());
  const std::vector<ArtifactId> ids = store.ids();
  ASSERT_EQ(ids.size(), 1);
  EXPECT_THAT(store.Find(ids[0]), StatusIs(absl::StatusCode::kFailedPrecondition,
                                           AllOf(HasSubstr("later.kvcal"), HasSubstr("version \"2\""),
                                                 HasSubstr("plain.kvcal: no artifact"))));
}

TEST_F(ArtifactStoreTest, TheLeastRecentlyUsedGo) {
  const ArtifactId a = Put("a.kvcal", 1);
  const ArtifactId b = Put("b.kvcal", 2);
  const ArtifactId c = Put("c.kvcal", 3);
  ArtifactStore store(Options(2 * SmallBytes()));
  for (const ArtifactId& id : {a, b, a, c}) EXPECT_THAT(store.Find(id), IsOk());
  EXPECT_EQ(store.figures().loaded, 2);
  EXPECT_EQ(store.figures().memory_bytes, 2 * SmallBytes());
  EXPECT_EQ(store.figures().loads, 3);
  EXPECT_THAT(store.Find(a), IsOk());
  EXPECT_EQ(store.figures().loads, 3);
  EXPECT_THAT(store.Find(b), IsOk());
  EXPECT_EQ(store.figures().loads, 4);
}

TEST_F(ArtifactStoreTest, ThoseInUseStay) {
  const ArtifactId a = Put("a.kvcal", 1);
  const ArtifactId b = Put("b.kvcal", 2);
  ArtifactStore store(Options(SmallBytes()));
  {
    const auto used = store.Find(a);
    ASSERT_THAT(used, IsOk());
    EXPECT_THAT(store.Find(b), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("in use")));
    EXPECT_EQ(**used, SmallArtifact(1));
  }
  EXPECT_THAT(store.Find(b), IsOk());
  EXPECT_EQ(store.figures().memory_bytes, SmallBytes());
  ArtifactStore small(Options(SmallBytes() - 1));
  EXPECT_THAT(small.Find(a), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes of memory")));
}

TEST_F(ArtifactStoreTest, ManyThreadsShareOneLoad) {
  std::vector<ArtifactId> ids;
  for (uint64_t seed = 0; seed < 4; ++seed) ids.push_back(Put(absl::StrFormat("%d.kvcal", seed), seed));
  ArtifactStore store(Options());
  std::atomic<size_t> right = 0;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (size_t k = 0; k < 100; ++k) {
        const uint64_t seed = (i + k) % ids.size();
        const auto artifact = store.Find(ids[seed]);
        if (artifact.ok() && (*artifact)->tokens == 12345 + seed) ++right;
        if (k % 10 == 0 && store.ids().size() > ids.size()) right = 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 800);
  EXPECT_EQ(store.figures().loads, ids.size());
}

}  // namespace
}  // namespace kvcompress
