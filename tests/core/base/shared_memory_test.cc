#include "core/base/shared_memory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/base/size_text.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

std::string Key(absl::string_view name) { return absl::StrCat("/kvc-test-", getpid(), "-", name); }

bool Exists(const std::string& key) { return access(absl::StrCat("/dev/shm", key).c_str(), F_OK) == 0; }

TEST(SharedMemoryTest, WhatOneSideWritesTheOtherReads) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("a"), 20000);
  ASSERT_THAT(made, IsOk());
  const absl::StatusOr<SharedMemory> opened = SharedMemory::Open(Key("a"));
  ASSERT_THAT(opened, IsOk());
  EXPECT_EQ(*opened->Size(), 20000u);
  const absl::StatusOr<SharedMapping> whole = made->Map(0, 20000);
  // Within a page, and across its end.
  const absl::StatusOr<SharedMapping> part = opened->Map(5000, 5000);
  ASSERT_THAT(whole, IsOk());
  ASSERT_THAT(part, IsOk());
  EXPECT_THAT(whole->bytes(), Each(std::byte{0}));
  std::ranges::fill(whole->bytes().subspan(5000, 5000), std::byte{7});
  ASSERT_EQ(part->bytes().size(), 5000u);
  EXPECT_THAT(part->bytes(), Each(std::byte{7}));
  part->bytes()[4999] = std::byte{9};
  EXPECT_EQ(whole->bytes()[9999], std::byte{9});
}

TEST(SharedMemoryTest, AnObjectHasAllItsMemoryAndIsItsUsersAlone) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("a"), 1 << 20);
  ASSERT_THAT(made, IsOk());
  struct stat info;
  ASSERT_EQ(stat(absl::StrCat("/dev/shm", Key("a")).c_str(), &info), 0);
  EXPECT_GE(info.st_blocks * 512, 1 << 20);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

// Pages of `bytes` that this process has mapped.
size_t ResidentPages(MutableByteSpan bytes) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  size_t count = 0;
  for (size_t at = 0; at < bytes.size(); at += 4096) {
    uint64_t entry = 0;
    const uintptr_t page = (reinterpret_cast<uintptr_t>(bytes.data()) + at) / 4096;
    EXPECT_EQ(pread(pagemap, &entry, sizeof(entry), static_cast<off_t>(page * sizeof(entry))), 8);
    count += entry >> 63;
  }
  close(pagemap);
  return count;
}

TEST(SharedMemoryTest, PagesOfWhoMadeItAreMappedAtOnceOthersWhenAsked) {
  constexpr size_t kPages = 50;
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("a"), kPages * 4096);
  ASSERT_THAT(made, IsOk());
  EXPECT_EQ(ResidentPages(made->Map(0, kPages * 4096)->bytes()), kPages);
  const absl::StatusOr<SharedMemory> opened = SharedMemory::Open(Key("a"));
  ASSERT_THAT(opened, IsOk());
  EXPECT_TRUE(opened->complete());
  const absl::StatusOr<SharedMapping> mapping = opened->Map(4096, (kPages - 2) * 4096);
  ASSERT_THAT(mapping, IsOk());
  EXPECT_EQ(ResidentPages(mapping->bytes()), 0u);
  MapPagesNow(mapping->bytes());
  EXPECT_EQ(ResidentPages(mapping->bytes()), kPages - 2);
}

TEST(SharedMemoryTest, AnObjectWithHolesIsNotComplete) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("a"), 4096);
  ASSERT_THAT(made, IsOk());
  ASSERT_EQ(truncate(absl::StrCat("/dev/shm", Key("a")).c_str(), 1 << 20), 0);
  EXPECT_FALSE(SharedMemory::Open(Key("a"))->complete());
}

TEST(SharedMemoryTest, TooLittleMemoryIsAnErrorAtOnce) {
  struct statvfs info;
  ASSERT_EQ(statvfs("/dev/shm", &info), 0);
  const uint64_t total = uint64_t{info.f_blocks} * info.f_frsize;
  ASSERT_GT(total, 0u) << "/dev/shm has no limit";
  EXPECT_THAT(SharedMemory::Create(Key("a"), total * 2),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr(absl::StrCat(": no space left on device: /dev/shm has no room for ",
                                              SizeText(total * 2), ": Docker's --shm-size gives more"))));
  EXPECT_FALSE(Exists(Key("a")));
}

TEST(SharedMemoryTest, TheKeyGoesWithItsMakerAndTheMemoryStays) {
  absl::StatusOr<SharedMapping> mapping;
  {
    const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("a"), 4096);
    ASSERT_THAT(made, IsOk());
    { ASSERT_THAT(SharedMemory::Open(Key("a")), IsOk()); }
    EXPECT_TRUE(Exists(Key("a")));
    mapping = made->Map(0, 4096);
    ASSERT_THAT(mapping, IsOk());
    mapping->bytes()[17] = std::byte{3};
  }
  EXPECT_FALSE(Exists(Key("a")));
  EXPECT_EQ(mapping->bytes()[17], std::byte{3});
}

TEST(SharedMemoryTest, OnceUnlinkedAKeyIsFree) {
  absl::StatusOr<SharedMemory> first = SharedMemory::Create(Key("a"), 4096);
  ASSERT_THAT(first, IsOk());
  first->Unlink();
  const absl::StatusOr<SharedMemory> second = SharedMemory::Create(Key("a"), 4096);
  ASSERT_THAT(second, IsOk());
  first->Unlink();
  { const SharedMemory moved = *std::move(first); }
  EXPECT_TRUE(Exists(Key("a")));
}

TEST(SharedMemoryTest, AllKeysOfAPrefixAreRemoved) {
  const absl::StatusOr<SharedMemory> a = SharedMemory::Create(Key("left-a"), 4096);
  const absl::StatusOr<SharedMemory> b = SharedMemory::Create(Key("left-b"), 4096);
  const absl::StatusOr<SharedMemory> other = SharedMemory::Create(Key("other"), 4096);
  RemoveSharedMemory(Key("left-").substr(1));
  EXPECT_FALSE(Exists(Key("left-a")) || Exists(Key("left-b")));
  EXPECT_TRUE(Exists(Key("other")));
}

TEST(SharedMemoryTest, AProcessThatEndsLeavesNoKey) {
  EXPECT_EXIT(
      {
        const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("ends"), 4096);
        if (!made.ok() || !Exists(Key("ends"))) _exit(1);
        SharedMemory::UnlinkAllForGood();
        _exit(Exists(Key("ends")) ? 2 : 0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(SharedMemoryTest, Faults) {
  const absl::StatusOr<SharedMemory> made = SharedMemory::Create(Key("a"), 10000);
  ASSERT_THAT(made, IsOk());
  EXPECT_THAT(SharedMemory::Create(Key("a"), 1), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr(Key("a"))));
  EXPECT_THAT(SharedMemory::Open(Key("none")),
              StatusIs(absl::StatusCode::kNotFound,
                       absl::StrCat("open shared memory ", Key("none"), ": no such file or directory")));
  for (const std::string& key : {std::string(), std::string("/"), std::string("kvc"), std::string("/kvc/a"),
                                 std::string("/.."), std::string("/kvc\0", 5), "/" + std::string(256, 'x')}) {
    EXPECT_THAT(SharedMemory::Open(key), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("key"))) << key;
    EXPECT_THAT(SharedMemory::Create(key, 1), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("key"))) << key;
  }
  EXPECT_THAT(SharedMemory::Create(Key("b"), 0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0 bytes")));
  EXPECT_THAT(SharedMemory::Create(Key("b"), UINT64_MAX), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("")));
  const uint64_t kMax = UINT64_MAX;
  for (const auto& [offset, size] : std::initializer_list<std::pair<uint64_t, uint64_t>>{
           {0, 10001}, {4096, 5905}, {10000, 1}, {0, 0}, {kMax, 1}, {1, kMax}, {4096, kMax - 4095}}) {
    EXPECT_THAT(made->Map(offset, size), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("10000 bytes")))
        << offset << " " << size;
  }
}

}  // namespace
}  // namespace kvcompress
