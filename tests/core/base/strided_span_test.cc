#include "core/base/strided_span.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace kvcompress {
namespace {

using Levels = std::vector<StridedLevel>;

// Where the pieces begin, by the definition alone.
std::vector<int64_t> Offsets(const Levels& levels) {
  std::vector<int64_t> offsets = {0};
  for (const auto& [count, stride] : levels) {
    std::vector<int64_t> finer;
    for (const int64_t offset : offsets) {
      for (uint64_t step = 0; step < count; ++step) finer.push_back(offset + static_cast<int64_t>(step) * stride);
    }
    offsets = std::move(finer);
  }
  return offsets;
}

// Pieces apart from one another, axes in any order, backwards too; and how far the first is from the lowest.
Levels AnyLevels(std::mt19937& random, uint64_t piece, int64_t& lowest) {
  Levels levels;
  auto room = static_cast<int64_t>(piece);
  lowest = 0;
  for (size_t axis = random() % 5; axis > 0; --axis) {
    const uint64_t count = 1 + random() % 4;
    const int64_t stride = room + static_cast<int64_t>(random() % 2 * (random() % 9));
    room = static_cast<int64_t>(count) * stride;
    levels.push_back({count, random() % 3 == 0 ? -stride : stride});
    if (levels.back().stride < 0) lowest += static_cast<int64_t>(count - 1) * stride;
  }
  std::ranges::shuffle(levels, random);
  return levels;
}

TEST(StridedSpanTest, WritesAndReadsAnyLayoutInAnyParts) {
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    const uint64_t piece = 1 + random() % 9;
    int64_t first = 0;
    const Levels levels = AnyLevels(random, piece, first);
    const std::vector<int64_t> offsets = Offsets(levels);
    std::string memory(20'000, '.');
    std::string expected = memory;
    std::string values(piece * offsets.size(), '\0');
    for (char& value : values) value = static_cast<char>('a' + random() % 26);
    for (size_t i = 0; i < offsets.size(); ++i) {
      expected.replace(static_cast<size_t>(first + offsets[i]), piece, values, i * piece, piece);
    }
    std::byte* begin = std::as_writable_bytes(std::span(memory)).data() + first;
    StridedSpan<std::byte> to(begin, piece, levels);
    const StridedSpan<const std::byte> from(begin, piece, levels);
    ASSERT_EQ(to.left(), values.size());
    for (ByteSpan rest = AsBytes(values); !rest.empty();) {
      const size_t part = std::min<size_t>(rest.size(), 1 + random() % 40);
      const MutableByteSpan together = to.Together();
      ASSERT_GE(together.size(), 1);
      if (together.size() >= part && random() % 2 == 0) {
        std::memcpy(together.data(), rest.data(), part);
        to.Skip(part);
      } else {
        to.Write(rest.first(part));
      }
      rest = rest.subspan(part);
    }
    ASSERT_EQ(memory, expected);
    EXPECT_EQ(to.left(), 0);
    EXPECT_TRUE(to.Together().empty());
    std::string back(values.size(), '?');
    StridedSpan<const std::byte>(from).Read(std::as_writable_bytes(std::span(back)));
    ASSERT_EQ(back, values);
  }
}

TEST(StridedSpanTest, PiecesThatFollowOneAnotherAreTogether) {
  std::string memory(64, '.');
  std::byte* begin = std::as_writable_bytes(std::span(memory)).data();
  EXPECT_EQ(StridedSpan<std::byte>(begin, 2, Levels{{4, 16}, {8, 2}}).Together().size(), 64);
  EXPECT_EQ(StridedSpan<std::byte>(begin, 2, Levels{{3, 20}, {8, 2}}).Together().size(), 16);
  EXPECT_EQ(StridedSpan<std::byte>(begin, 2, Levels{{1, 999}, {8, 2}, {1, -5}}).Together().size(), 16);
  EXPECT_EQ(StridedSpan(std::as_writable_bytes(std::span(memory))).Together().size(), 64);
}

TEST(StridedSpanTest, NoElements) {
  std::byte byte{};
  EXPECT_EQ(StridedSpan<std::byte>(&byte, 2, Levels{{3, 2}, {0, 2}, {5, 2}}).left(), 0);
  EXPECT_TRUE(StridedSpan<std::byte>(&byte, 2, Levels{{0, 2}, {5, 2}}).Together().empty());
  StridedSpan<std::byte>().Write({});
  EXPECT_EQ(StridedSpan<std::byte>().left(), 0);
}

}  // namespace
}  // namespace kvcompress
