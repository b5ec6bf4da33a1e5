#include "server/shm/bus_guard.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/simd/group_quant.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr size_t kPage = 4096;

// This test's own object and a region of it.
class BusGuardTest : public ::testing::Test {
 protected:
  static std::string Key() { return absl::StrCat("/kvc-test-", getpid(), "-bus"); }

  void Make(size_t size) {
    object_.emplace(*SharedMemory::Create(Key(), size));
    region_ = Region(0, size);
  }

  std::shared_ptr<SharedRegion> Region(size_t offset, size_t size) {
    return *GuardMapping(*object_->Map(offset, size));
  }

  static void Truncate(size_t size) {
    ASSERT_EQ(truncate(absl::StrCat("/dev/shm", Key()).c_str(), static_cast<off_t>(size)), 0);
  }

  std::optional<SharedMemory> object_;
  std::shared_ptr<SharedRegion> region_;
};

TEST_F(BusGuardTest, WhatIsCutOffReadsAsZerosAndTheRegionSaysSo) {
  Make(4 * kPage);
  std::ranges::fill(region_->bytes(), std::byte{7});
  EXPECT_TRUE(region_->intact());
  Truncate(kPage);
  EXPECT_TRUE(region_->intact());
  EXPECT_EQ(region_->bytes()[kPage - 1], std::byte{7});
  EXPECT_TRUE(region_->intact());
  EXPECT_EQ(region_->bytes()[2 * kPage], std::byte{0});
  EXPECT_FALSE(region_->intact());
  // A write does not fault; nobody else can read it.
  std::ranges::fill(region_->bytes(), std::byte{9});
  EXPECT_THAT(region_->bytes(), Each(std::byte{9}));
  EXPECT_FALSE(region_->intact());
}

TEST_F(BusGuardTest, ARegionLargerThanOneRepair) {
  constexpr size_t kSize = size_t{8} << 20;
  Make(kSize);
  Truncate(0);
  EXPECT_TRUE(std::ranges::all_of(region_->bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
  EXPECT_FALSE(region_->intact());
}

TEST_F(BusGuardTest, OtherRegionsOfTheObjectAreTheirOwn) {
  Make(4 * kPage);
  const std::shared_ptr<SharedRegion> front = Region(0, kPage);
  const std::shared_ptr<SharedRegion> back = Region(2 * kPage, 2 * kPage);
  Truncate(2 * kPage);
  EXPECT_EQ(back->bytes()[0], std::byte{0});
  EXPECT_FALSE(back->intact());
  EXPECT_TRUE(front->intact());
  EXPECT_TRUE(region_->intact());
}

// Many threads read and write while the object grows and shrinks under them.
TEST_F(BusGuardTest, ThreadsThatReadAndWriteWhileTheObjectIsCutShort) {
  constexpr size_t kPages = 64;
  for (int round = 0; round < 50; ++round) {
    Make(kPages * kPage);
    std::atomic<bool> stop = false;
    std::atomic<int> ready = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const MutableByteSpan bytes = region_->bytes();
        uint64_t sum = 0;
        for (bool once = false; !stop || !once; once = true) {
          for (size_t i = 0; i < bytes.size(); i += 512) {
            const std::atomic_ref<std::byte> byte(bytes[i]);
            if (t % 2 == 0) {
              sum += static_cast<uint64_t>(byte.load(std::memory_order_relaxed));
            } else {
              byte.store(std::byte{0}, std::memory_order_relaxed);
            }
          }
          if (!once) ++ready;
        }
        EXPECT_EQ(sum, 0u);
      });
    }
    while (ready < 4) std::this_thread::yield();
    for (const size_t pages : {kPages / 2, kPages, size_t{0}}) Truncate(pages * kPage);
    while (region_->intact()) std::this_thread::yield();
    stop = true;
    for (std::thread& thread : threads) thread.join();
    region_.reset();
    object_.reset();
  }
}

// The handler of a fault in one region looks at the slots of others, which come and go meanwhile.
TEST_F(BusGuardTest, RegionsComeAndGoWhileOthersFault) {
  Make(16 * kPage);
  std::atomic<bool> stop = false;
  std::thread others([&] {
    while (!stop) {
      const std::shared_ptr<SharedRegion> region = Region(0, kPage);
      region->bytes()[0] = std::byte{1};
      EXPECT_TRUE(region->intact());
    }
  });
  for (int i = 0; i < 2000; ++i) {
    const std::shared_ptr<SharedRegion> region = Region(4 * kPage, 8 * kPage);
    Truncate(4 * kPage);
    EXPECT_EQ(region->bytes()[i % 8 * kPage], std::byte{0});
    EXPECT_FALSE(region->intact());
    Truncate(16 * kPage);
  }
  stop = true;
  others.join();
}

TEST_F(BusGuardTest, KernelsOverMemoryThatVanishes) {
  constexpr size_t kCount = 64 * 1024;
  const simd::GroupQuantFormat format = {.dtype = DType::kF16, .bits = 4, .group = 64};
  std::vector<std::byte> scales(simd::GroupCount(64, kCount) * 2);
  std::vector<std::byte> codes(simd::PackedBytes(4, 64, kCount));
  Make(2 * kCount);
  Truncate(kPage);
  EXPECT_TRUE(simd::Quantize(format, region_->bytes().data(), kCount, scales.data(), codes.data(), nullptr));
  EXPECT_FALSE(region_->intact());
  EXPECT_THAT(codes, Each(std::byte{0}));

  const std::shared_ptr<SharedRegion> output = *GuardMapping([&] {
    Truncate(2 * kCount);
    absl::StatusOr<SharedMapping> mapping = object_->Map(0, 2 * kCount);
    Truncate(kPage);
    return *std::move(mapping);
  }());
  simd::Dequantize(format, scales.data(), codes.data(), kCount, output->bytes().data());
  EXPECT_FALSE(output->intact());
}

TEST_F(BusGuardTest, SlotsAreUsedAgain) {
  Make(kPage);
  for (size_t i = 0; i < 2 * kMaxGuardedMappings; ++i) {
    ASSERT_THAT(GuardMapping(*object_->Map(0, kPage)), IsOk());
  }
}

TEST_F(BusGuardTest, TheNumberOfRegionsIsLimited) {
  Make(kPage);
  std::vector<std::shared_ptr<SharedRegion>> regions;
  while (regions.size() + 1 < kMaxGuardedMappings) regions.push_back(Region(0, kPage));
  EXPECT_THAT(GuardMapping(*object_->Map(0, kPage)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("limit of 4096")));
  regions.pop_back();
  EXPECT_THAT(GuardMapping(*object_->Map(0, kPage)), IsOk());
}

// Touches a page that is gone in a mapping without a guard.
void FaultElsewhere(const SharedMemory& object) {
  const SharedMapping mapping = *object.Map(0, kPage);
  if (truncate(absl::StrCat("/dev/shm", object.key()).c_str(), 0) != 0) std::abort();
  *const_cast<volatile std::byte*>(mapping.bytes().data()) = std::byte{1};
}

// Whether the process was ended by the signal, or by a sanitizer's handler of it.
bool EndedByTheSignal(int status) {
  return WIFSIGNALED(status) ? WTERMSIG(status) == SIGBUS : WIFEXITED(status) && WEXITSTATUS(status) != 0;
}

TEST_F(BusGuardTest, AFaultOfSomebodyElseStillEndsTheProcess) {
  Make(kPage);
  EXPECT_EXIT(FaultElsewhere(*object_), EndedByTheSignal, "");
}

TEST_F(BusGuardTest, ASignalThatWasSentStillEndsTheProcess) {
  Make(kPage);
  EXPECT_EXIT(kill(getpid(), SIGBUS); pause(), EndedByTheSignal, "");
}

// Without the fixture, which would guard a mapping first.
TEST(BusGuardHandlerTest, AHandlerThatWasThereBeforeIsCalled) {
  const SharedMemory object = *SharedMemory::Create(absl::StrCat("/kvc-test-", getpid(), "-handler"), kPage);
  const auto run = [&] {
    signal(SIGBUS, [](int) { _exit(42); });
    const std::shared_ptr<SharedRegion> region = *GuardMapping(*object.Map(0, kPage));
    FaultElsewhere(object);
  };
  EXPECT_EXIT(run(), ::testing::ExitedWithCode(42), "");
}

}  // namespace
}  // namespace kvcompress
