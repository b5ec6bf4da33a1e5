#include "server/session/stream_regions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/server/session/session_harness.h"
#include "tests/testing/status_matchers.h"

// Output in buffers: in order, whether it is copied there or was made there.
namespace kvcompress {
namespace {

using testing::FakeRegion;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

using Bytes = std::vector<std::byte>;

class StreamRegionsTest : public ::testing::Test {
 protected:
  StreamRegionsTest() { id_ = table_.Add(region_); }

  void AddBuffer(uint64_t offset, uint64_t size) {
    v1::SharedMemoryRange range;
    range.set_region(id_);
    range.set_offset(offset);
    range.set_byte_size(size);
    ASSERT_THAT(regions_.AddBuffer(range), IsOk());
  }
  const std::byte* At(uint64_t offset) const { return region_->storage.data() + offset; }

  std::shared_ptr<FakeRegion> region_ = std::make_shared<FakeRegion>(size_t{1} << 20);
  RegionTable table_;
  uint64_t id_ = 0;
  StreamRegions regions_{&table_};
};

TEST_F(StreamRegionsTest, PartsFollowOneAnotherWithinABuffer) {
  AddBuffer(100, 50);
  regions_.BeginTensor();
  EXPECT_EQ(regions_.Take(20, false).bytes.data(), At(100));
  EXPECT_EQ(regions_.Take(30, true).bytes.data(), At(120));
}

TEST_F(StreamRegionsTest, WhatCrossesTheEndOfABufferIsNotMadeThereButIsCounted) {
  AddBuffer(100, 50);
  AddBuffer(300, 50);
  regions_.BeginTensor();
  EXPECT_EQ(regions_.Take(40, false).bytes.data(), At(100));
  EXPECT_TRUE(regions_.Take(20, false).bytes.empty());
  EXPECT_EQ(regions_.Take(40, true).bytes.data(), At(310));
}

TEST_F(StreamRegionsTest, WhatHadNoBufferYetIsCountedWhenThereIsOne) {
  regions_.BeginTensor();
  EXPECT_TRUE(regions_.Take(40, false).bytes.empty());
  EXPECT_TRUE(regions_.Take(20, false).bytes.empty());
  AddBuffer(100, 50);
  EXPECT_TRUE(regions_.Take(5, false).bytes.empty());
  AddBuffer(300, 50);
  EXPECT_EQ(regions_.Take(5, true).bytes.data(), At(315));
}

TEST_F(StreamRegionsTest, ATensorBeginsItsOwnBuffer) {
  AddBuffer(100, 50);
  AddBuffer(300, 50);
  regions_.BeginTensor();
  EXPECT_EQ(regions_.Take(40, true).bytes.data(), At(100));
  regions_.BeginTensor();
  EXPECT_EQ(regions_.Take(10, true).bytes.data(), At(300));
}

TEST_F(StreamRegionsTest, AfterATensorOfUnknownSizeNothingIsTakenUntilItHasPassed) {
  AddBuffer(100, 50);
  AddBuffer(300, 50);
  AddBuffer(500, 50);
  regions_.BeginTensor();  // of unknown size
  regions_.BeginTensor();
  EXPECT_TRUE(regions_.Take(10, true).bytes.empty());
  std::vector<Slice> some = {Slice::Of(Buffer(20))};
  regions_.Fill(some);
  regions_.EndTensor();
  some = {Slice::Of(Buffer(10))};
  regions_.Fill(some);
  regions_.EndTensor();
  regions_.BeginTensor();
  EXPECT_EQ(regions_.Take(10, true).bytes.data(), At(500));
}

TEST_F(StreamRegionsTest, AnotherProgramsMemoryTakesNoOutput) {
  region_->writable = false;
  v1::SharedMemoryRange range;
  range.set_region(id_);
  range.set_byte_size(100);
  EXPECT_THAT(regions_.Input(range), IsOk());
  EXPECT_THAT(regions_.AddBuffer(range), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another program's")));
  EXPECT_FALSE(regions_.has_buffer());
}

// Tensors of known and unknown sizes are on their way at the same time, buffers come late, output passes at any later
// time: each arrives as it was made.
TEST_F(StreamRegionsTest, AnyOrderOfEventsGivesTheSameOutput) {
  struct Made {
    Slice bytes;
    bool last;
  };
  size_t in_place = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](size_t n) { return random() % n; };
    StreamRegions regions(&table_);
    size_t buffer_at = 0;
    std::deque<Made> made;
    Bytes expected;
    Bytes seen;
    size_t to_make = 0;  // blocks of the current tensor
    bool known = false;
    size_t tensors = 0;
    const auto begin = [&] {
      regions.BeginTensor();
      known = below(16) != 0;
      to_make = 1 + below(5);
      ++tensors;
    };
    const auto make = [&] {
      const size_t size = 1 + below(300);
      const bool last = --to_make == 0;
      OutputBuffer given = known ? regions.Take(size, last) : OutputBuffer{};
      Buffer buffer;
      if (given.bytes.empty()) buffer.Resize(size);
      const MutableByteSpan to = given.bytes.empty() ? buffer.span() : given.bytes;
      ASSERT_EQ(to.size(), size);
      for (std::byte& byte : to) byte = std::byte(random());
      expected.insert(expected.end(), to.begin(), to.end());
      in_place += given.bytes.empty() ? 0 : 1;
      made.push_back({given.bytes.empty() ? Slice::Of(std::move(buffer)) : Slice{given.bytes, given.owner}, last});
    };
    const auto add_buffer = [&] {
      const size_t size = 1 + below(4000);
      v1::SharedMemoryRange range;
      range.set_region(id_);
      range.set_offset(buffer_at);
      range.set_byte_size(size);
      ASSERT_THAT(regions.AddBuffer(range), IsOk());
      buffer_at += size + below(3);
    };
    const auto pass = [&] {
      std::vector<Slice> bytes = {made.front().bytes};
      while (!bytes.empty()) {
        if (!regions.has_buffer()) add_buffer();
        const StreamRegions::Filled filled = regions.Fill(bytes);
        const std::byte* const at = At(filled.range.offset());
        seen.insert(seen.end(), at, at + filled.range.byte_size());
      }
      if (made.front().last) regions.EndTensor();
      made.pop_front();
    };
    while (tensors < 20 || to_make > 0 || !made.empty()) {
      const size_t event = below(5);
      if (event == 0 && buffer_at < region_->storage.size() / 2) add_buffer();
      if (event == 1 && !made.empty()) pass();
      if (event > 1 && to_make > 0) make();
      if (event > 1 && to_make == 0 && tensors < 20) begin();
      ASSERT_FALSE(HasFatalFailure());
    }
    ASSERT_EQ(seen, expected) << "seed " << seed;
  }
  EXPECT_GT(in_place, 4000);
}

}  // namespace
}  // namespace kvcompress
