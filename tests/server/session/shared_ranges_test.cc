#include "server/session/shared_ranges.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "tests/testing/status_matchers.h"

// Output in rooms: in order, whether it is copied there or was made there.
namespace kvcompress {
namespace {

using testing::IsOk;

using Bytes = std::vector<std::byte>;

struct FakeRegion final : SharedRegion {
  explicit FakeRegion(size_t size) : storage(size) {}
  MutableByteSpan bytes() const override { return storage; }
  bool intact() const override { return true; }

  mutable Bytes storage;
};

class SharedRangesTest : public ::testing::Test {
 protected:
  SharedRangesTest() { id_ = table_.Add(region_); }

  void AddRoom(uint64_t offset, uint64_t size) {
    v1::SharedMemoryRange range;
    range.set_region(id_);
    range.set_offset(offset);
    range.set_byte_size(size);
    ASSERT_THAT(ranges_.AddRoom(range), IsOk());
  }
  const std::byte* At(uint64_t offset) const { return region_->storage.data() + offset; }

  std::shared_ptr<FakeRegion> region_ = std::make_shared<FakeRegion>(size_t{1} << 20);
  RegionTable table_;
  uint64_t id_ = 0;
  SharedRanges ranges_{&table_};
};

TEST_F(SharedRangesTest, PlacesFollowOneAnotherWithinARoom) {
  AddRoom(100, 50);
  ranges_.BeginTensor();
  EXPECT_EQ(ranges_.Take(20, false).bytes.data(), At(100));
  EXPECT_EQ(ranges_.Take(30, true).bytes.data(), At(120));
}

TEST_F(SharedRangesTest, WhatCrossesTheEndOfARoomHasNoPlaceButIsCounted) {
  AddRoom(100, 50);
  AddRoom(300, 50);
  ranges_.BeginTensor();
  EXPECT_EQ(ranges_.Take(40, false).bytes.data(), At(100));
  EXPECT_TRUE(ranges_.Take(20, false).bytes.empty());
  EXPECT_EQ(ranges_.Take(40, true).bytes.data(), At(310));
}

TEST_F(SharedRangesTest, WhatHadNoRoomYetIsCountedWhenThereIsSome) {
  ranges_.BeginTensor();
  EXPECT_TRUE(ranges_.Take(40, false).bytes.empty());
  EXPECT_TRUE(ranges_.Take(20, false).bytes.empty());
  AddRoom(100, 50);
  EXPECT_TRUE(ranges_.Take(5, false).bytes.empty());
  AddRoom(300, 50);
  EXPECT_EQ(ranges_.Take(5, true).bytes.data(), At(315));
}

TEST_F(SharedRangesTest, ATensorBeginsItsOwnRoom) {
  AddRoom(100, 50);
  AddRoom(300, 50);
  ranges_.BeginTensor();
  EXPECT_EQ(ranges_.Take(40, true).bytes.data(), At(100));
  ranges_.BeginTensor();
  EXPECT_EQ(ranges_.Take(10, true).bytes.data(), At(300));
}

TEST_F(SharedRangesTest, BehindATensorOfUnknownSizeThereAreNoPlacesUntilItHasPassed) {
  AddRoom(100, 50);
  AddRoom(300, 50);
  AddRoom(500, 50);
  ranges_.BeginTensor();  // of unknown size
  ranges_.BeginTensor();
  EXPECT_TRUE(ranges_.Take(10, true).bytes.empty());
  std::vector<Slice> some = {Slice::Of(Buffer(20))};
  ranges_.Fill(some);
  ranges_.EndTensor();
  some = {Slice::Of(Buffer(10))};
  ranges_.Fill(some);
  ranges_.EndTensor();
  ranges_.BeginTensor();
  EXPECT_EQ(ranges_.Take(10, true).bytes.data(), At(500));
}

// Tensors of known and unknown sizes on their way at the same time, rooms that come late, output that passes at any
// time behind: each arrives as it was made.
TEST_F(SharedRangesTest, AnyOrderOfEventsGivesTheSameOutput) {
  struct Made {
    Slice bytes;
    bool last;
  };
  size_t in_place = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](size_t n) { return random() % n; };
    SharedRanges ranges(&table_);
    size_t room_at = 0;
    std::deque<Made> made;
    Bytes expected;
    Bytes seen;
    size_t to_make = 0;  // blocks of the current tensor
    bool known = false;
    size_t tensors = 0;
    const auto begin = [&] {
      ranges.BeginTensor();
      known = below(16) != 0;
      to_make = 1 + below(5);
      ++tensors;
    };
    const auto make = [&] {
      const size_t size = 1 + below(300);
      const bool last = --to_make == 0;
      OutputBuffer given = known ? ranges.Take(size, last) : OutputBuffer{};
      Buffer buffer;
      if (given.bytes.empty()) buffer.Resize(size);
      const MutableByteSpan to = given.bytes.empty() ? buffer.span() : given.bytes;
      ASSERT_EQ(to.size(), size);
      for (std::byte& byte : to) byte = std::byte(random());
      expected.insert(expected.end(), to.begin(), to.end());
      in_place += given.bytes.empty() ? 0 : 1;
      made.push_back({given.bytes.empty() ? Slice::Of(std::move(buffer)) : Slice{given.bytes, given.owner}, last});
    };
    const auto add_room = [&] {
      const size_t size = 1 + below(4000);
      v1::SharedMemoryRange range;
      range.set_region(id_);
      range.set_offset(room_at);
      range.set_byte_size(size);
      ASSERT_THAT(ranges.AddRoom(range), IsOk());
      room_at += size + below(3);
    };
    const auto pass = [&] {
      std::vector<Slice> bytes = {made.front().bytes};
      while (!bytes.empty()) {
        if (!ranges.has_room()) add_room();
        const SharedRanges::Filled filled = ranges.Fill(bytes);
        const std::byte* const at = At(filled.range.offset());
        seen.insert(seen.end(), at, at + filled.range.byte_size());
      }
      if (made.front().last) ranges.EndTensor();
      made.pop_front();
    };
    while (tensors < 20 || to_make > 0 || !made.empty()) {
      const size_t event = below(5);
      if (event == 0 && room_at < region_->storage.size() / 2) add_room();
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
