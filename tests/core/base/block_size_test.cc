#include "core/base/block_size.h"

#include <gtest/gtest.h>

namespace kvcompress {
namespace {

TEST(BlockSize, HasWholeUnitsAndIsAllowed) {
  for (const uint32_t limit : {kDefaultBlockElements, kMaxBlockElements}) {
    for (uint64_t unit = 1; unit <= 1024; ++unit) {
      const uint32_t block = BlockOfUnits(unit, limit);
      ASSERT_GT(block, 0u) << unit;
      EXPECT_LE(block, limit) << unit;
      EXPECT_EQ(block % unit, 0u) << unit;
      EXPECT_EQ(block % kBlockElementsMultiple, 0u) << unit;
    }
  }
}

TEST(BlockSize, IsTheLargestOne) {
  EXPECT_EQ(BlockOfUnits(1), kDefaultBlockElements);
  EXPECT_EQ(BlockOfUnits(64), kDefaultBlockElements);
  EXPECT_EQ(BlockOfUnits(80), 204u * 640);
  EXPECT_EQ(BlockOfUnits(576), 113u * 1152);
  EXPECT_EQ(BlockOfUnits(kDefaultBlockElements), kDefaultBlockElements);
  EXPECT_EQ(BlockOfUnits(1023), 1023u * 128);
}

TEST(BlockSize, UnitsThatFitIntoNoBlock) {
  EXPECT_EQ(BlockOfUnits(kDefaultBlockElements + 1), 0u);
  EXPECT_EQ(BlockOfUnits(1025), 0u);
  EXPECT_EQ(BlockOfUnits(1025, kMaxBlockElements), 31u * 128 * 1025);
  EXPECT_EQ(BlockOfUnits(UINT64_MAX), 0u);
}

}  // namespace
}  // namespace kvcompress
