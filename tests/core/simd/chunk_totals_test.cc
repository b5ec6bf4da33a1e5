// A stretch that is one chunk comes to the same bits as any other.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/simd/token_columns.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Bell;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

StretchTotals GeneralTotals(const ColumnBlock* chunk, const ColumnRange& range) {
  ChannelMoments moments;
  ColumnTotals totals = {};
  moments.Begin(range.end);
  StretchTotals result;
  result.columns = MergeLastColumns(chunk, range, moments, totals);
  totals.Sum(result.of);
  result.between_columns = DeviationsOfMeans(moments, result.columns.sum / result.columns.count);
  return result;
}

std::vector<ColumnBlock> MakeChunk(DType dtype, size_t rows, size_t columns, bool is_decoded) {
  std::mt19937 random(3);
  std::vector<std::byte> x(rows * columns * DTypeSize(dtype)), decoded(x.size());
  std::vector<float> errors(rows * columns);
  for (size_t i = 0; i < rows * columns; ++i) {
    const float value = i % columns % 7 == 0 ? 3 : Bell(random) + static_cast<float>(i % columns);
    errors[i] = Bell(random) / 8;
    StoreFromF32(dtype, value, x.data(), i);
    StoreFromF32(dtype, value - errors[i], decoded.data(), i);
  }
  std::vector<ColumnBlock> chunk(ColumnBlock::CountFor(columns));
  const ErrorSource source = is_decoded ? ErrorSource{decoded.data(), true} : ErrorSource{errors.data(), false};
  AddRows({dtype, x.data(), source, rows, columns}, 0, chunk.data(), 0);
  return chunk;
}

TEST(ChunkTotalsTest, AreThoseOfTheMomentsToTheBit) {
  for (const int64_t target : UsableTargets()) {
    const WithTarget with(target);
    for (const DType dtype : kKernelDTypes) {
      for (const bool is_decoded : {false, true}) {
        for (const size_t rows : {1, 2, 5, 16, 17, 32, 64}) {
          for (const size_t columns : {2, 16, 40, 64, 72, 80, 128, 1023, 1024}) {
            const std::vector<ColumnBlock> chunk = MakeChunk(dtype, rows, columns, is_decoded);
            const ColumnRange range{.begin = 0,
                                    .end = columns,
                                    .rows = static_cast<double>(rows),
                                    .rows_before = 0,
                                    .again = false,
                                    .has_marks = dtype != DType::kF16,
                                    .has_values = is_decoded};
            ASSERT_TRUE(IsOneChunk(range));
            std::vector<double> means;
            const StretchTotals got = TotalsOfChunk(chunk.data(), range, means);
            const StretchTotals want = GeneralTotals(chunk.data(), range);
            EXPECT_GT(want.of[kTotalEnergy], 0);
            EXPECT_EQ(want.columns.max_constant > 0, rows > 1);
            EXPECT_EQ(std::memcmp(&got, &want, sizeof(got)), 0)
                << hwy::TargetName(target) << ' ' << DTypeName(dtype) << ' ' << rows << " x " << columns;
          }
        }
      }
    }
  }
}

TEST(ChunkTotalsTest, AreOfOneChunk) {
  const ColumnRange range{
      .begin = 0, .end = 64, .rows = 32, .rows_before = 0, .again = false, .has_marks = false, .has_values = false};
  const auto with = [range](auto change) {
    ColumnRange changed = range;
    change(changed);
    return IsOneChunk(changed);
  };
  EXPECT_TRUE(IsOneChunk(range));
  EXPECT_TRUE(with([](ColumnRange& r) { r.end = 72; }));
  EXPECT_FALSE(with([](ColumnRange& r) { r.rows = 0; }));
  EXPECT_TRUE(with([](ColumnRange& r) { r.rows = 40; }));
  EXPECT_FALSE(with([](ColumnRange& r) { r.rows_before = 64; }));
  EXPECT_FALSE(with([](ColumnRange& r) { r.again = true; }));
}

}  // namespace
}  // namespace kvcompress::simd
