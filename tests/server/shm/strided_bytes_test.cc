#include "server/shm/strided_bytes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

using Levels = std::vector<StridedBytes::Level>;

std::string All(StridedBytes bytes, size_t part = SIZE_MAX) {
  std::string all;
  while (bytes.left() > 0) {
    std::string next(std::min<uint64_t>(part, bytes.left()), '?');
    bytes.Read(std::as_writable_bytes(std::span(next)));
    all += next;
  }
  return all;
}

// By the definition alone.
std::string Expected(const std::string& memory, uint64_t offset, uint64_t piece, const Levels& levels, size_t level) {
  if (level == levels.size()) return memory.substr(offset, piece);
  std::string all;
  for (uint64_t step = 0; step < levels[level].count; ++step) {
    all += Expected(memory, offset + step * levels[level].stride, piece, levels, level + 1);
  }
  return all;
}

TEST(StridedBytesTest, KeysOfAPageOfKeysAndValues) {
  const std::string page = "k0v0k1v1k2v2k3v3";
  EXPECT_EQ(All(*StridedBytes::In(AsBytes(page), 0, 8, {{4, 4}})), "k0k1k2k3");
  EXPECT_EQ(All(*StridedBytes::In(AsBytes(page), 2, 8, {{2, 8}, {2, 4}})), "v0v1v2v3");
  EXPECT_EQ(All(*StridedBytes::In(AsBytes(page), 2, 8, {{2, 4}, {2, 8}})), "v0v2v1v3");
  EXPECT_EQ(All(*StridedBytes::In(AsBytes(page), 0, 16, {{1, 1000}})), page);
  EXPECT_EQ(All(*StridedBytes::In(AsBytes(page), 14, 6, {{3, 0}})), "v3v3v3");
}

TEST(StridedBytesTest, AnyLayoutInAnyParts) {
  std::mt19937 random(1);
  const auto below = [&](uint64_t n) { return random() % n; };
  std::string memory(4000, '\0');
  for (char& byte : memory) byte = static_cast<char>(random());
  size_t layouts = 0;
  while (layouts < 2000) {
    Levels levels;
    uint64_t pieces = 1;
    uint64_t span = 0;
    const uint64_t piece = 1 + below(9);
    uint64_t dense = piece;  // what makes a level one with the next
    for (uint64_t left = 1 + below(5); left > 0; --left) {
      const uint64_t count = 1 + below(4);
      levels.insert(levels.begin(), {count, below(2) == 0 ? dense : below(300)});
      pieces *= count;
      span += (count - 1) * levels[0].stride;
      dense = count * levels[0].stride;
    }
    const uint64_t offset = below(500);
    const absl::StatusOr<StridedBytes> bytes = StridedBytes::In(AsBytes(memory), offset, pieces * piece, levels);
    ASSERT_EQ(bytes.ok(), offset + span + piece <= memory.size());
    if (!bytes.ok()) continue;
    ++layouts;
    EXPECT_EQ(bytes->left(), pieces * piece);
    EXPECT_EQ(All(*bytes, 1 + below(50)), Expected(memory, offset, piece, levels, 0));
  }
}

TEST(StridedBytesTest, TheLastPieceMayEndWithTheMemory) {
  const std::string memory(100, 'm');
  EXPECT_THAT(StridedBytes::In(AsBytes(memory), 10, 20, {{2, 80}}), IsOk());
  EXPECT_THAT(StridedBytes::In(AsBytes(memory), 0, 20, {{2, 45}, {2, 50}}), IsOk()) << "5 + 45 + 50";
}

TEST(StridedBytesTest, Faults) {
  constexpr uint64_t kMax = ~uint64_t{0};
  const std::string memory(100, 'm');
  const Levels many(StridedBytes::kMaxLevels + 1, {1, 1});
  const struct {
    uint64_t offset, size;
    Levels levels;
    std::string text;
  } cases[] = {
      {0, 10, {}, "0 levels: expected 1 to 8"},
      {0, 10, many, "9 levels"},
      {0, 10, {{0, 1}}, "multiple of its number of pieces"},
      {0, 0, {{1, 1}}, "multiple of its number of pieces"},
      {0, 10, {{3, 1}}, "range of 10 bytes: expected a multiple"},
      {0, 10, {{11, 0}}, "multiple of its number of pieces"},
      {0, kMax, {{kMax, 0}, {2, 0}}, "multiple of its number of pieces"},
      {0, 16, {{uint64_t{1} << 32, 0}, {uint64_t{1} << 32, 0}, {16, 0}}, "multiple of its number of pieces"},
      {0, 20, {{2, 91}}, "2 pieces of 10 bytes from 0 on ends behind its region"},
      {11, 20, {{2, 80}}, "behind its region"},
      {0, 40, {{2, 45}, {2, 46}}, "behind its region"},
      {0, 101, {{1, 0}}, "behind its region"},
      {101, 1, {{1, 0}}, "behind its region"},
      {kMax, 2, {{2, 1}}, "behind its region"},
      {0, 4, {{4, kMax}}, "behind its region"},
      {0, 4, {{4, kMax / 3}}, "behind its region"},
      {0, 4, {{2, uint64_t{1} << 63}, {2, uint64_t{1} << 63}}, "behind its region"},
      {0, 3, {{3, uint64_t{1} << 63}}, "behind its region"},
      {0, kMax, {{kMax, 1}}, "behind its region"},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(StridedBytes::In(AsBytes(memory), test.offset, test.size, test.levels),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(test.text)));
  }
}

}  // namespace
}  // namespace kvcompress
