// Rows that are quantized and measured in one pass come to the same bytes and sums as any others.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <span>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "core/simd/token_meter.h"
#include "tests/core/simd/token_bits.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::SameBits;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

using Values = std::vector<std::byte>;

struct QuantizedRows {
  Values scales, codes;
  ErrorSums sums;
  TokenSums tokens;
};

struct RowCase {
  TokenLayout layout;
  uint64_t first;  // index of the first value
  size_t count;
};

// In runs that end after these numbers of groups, one after another, over and over.
QuantizedRows QuantizeInRuns(const GroupQuantFormat& format, const RowCase& rows, const Values& x,
                             std::span<const size_t> run_groups) {
  const size_t size = DTypeSize(format.dtype);
  std::vector<ValueRun> runs;
  for (size_t at = 0, i = 0; at < rows.count; ++i) {
    const size_t n = std::min(run_groups[i % run_groups.size()] * format.group, rows.count - at);
    runs.push_back({x.data() + at * size, n});
    at += n;
  }
  QuantizedRows result;
  result.scales.resize(2 * GroupCount(format.group, rows.count));
  result.codes.resize(PackedBytes(format.bits, format.group, rows.count));
  TokenMeter meter;
  meter.Begin(rows.layout, rows.first);
  EXPECT_TRUE(QuantizeRuns(format, runs, result.scales.data(), result.codes.data(), &result.sums, &meter));
  meter.Take(result.tokens);
  return result;
}

TokenSums MeasureDecodedRows(const GroupQuantFormat& format, const RowCase& rows, const Values& x,
                             const QuantizedRows& from) {
  Values decoded(x.size());
  Dequantize(format, from.scales.data(), from.codes.data(), rows.count, decoded.data());
  TokenMeter meter;
  TokenSums tokens;
  meter.Begin(rows.layout, rows.first);
  MeasureTokens(format.dtype, x.data(), decoded.data(), rows.count, meter);
  meter.Take(tokens);
  return tokens;
}

// Runs of a group end within rows, which no run has whole then, but where a row is a group.
void ExpectSameRows(const GroupQuantFormat& format, const RowCase& rows, const Values& x) {
  const size_t all[] = {rows.count}, single[] = {1}, some[] = {64, 3, 16, 130, 1};
  Values scales(2 * GroupCount(format.group, rows.count)), codes(PackedBytes(format.bits, format.group, rows.count));
  ASSERT_TRUE(scalar::Quantize(format, x.data(), rows.count, scales.data(), codes.data(), nullptr));
  for (const int64_t target : UsableTargets()) {
    const WithTarget with(target);
    SCOPED_TRACE(TargetName());
    const QuantizedRows whole = QuantizeInRuns(format, rows, x, all);
    EXPECT_EQ(whole.scales, scales);
    EXPECT_EQ(whole.codes, codes);
    EXPECT_EQ(whole.sums.count, rows.count);
    EXPECT_TRUE(SameBits(whole.tokens, MeasureDecodedRows(format, rows, x, whole)));
    for (const std::span<const size_t> cut : {std::span<const size_t>(single), std::span<const size_t>(some)}) {
      const QuantizedRows got = QuantizeInRuns(format, rows, x, cut);
      EXPECT_EQ(got.scales, scales);
      EXPECT_EQ(got.codes, codes);
      EXPECT_TRUE(SameBits(got.sums, whole.sums));
      EXPECT_TRUE(SameBits(got.tokens, whole.tokens));
    }
  }
}

// Groups of all magnitudes between usual ones: some are not usual, or are so small that errors are subnormal.
Values MixedRows(DType dtype, size_t count, uint32_t seed) {
  const size_t size = DTypeSize(dtype);
  Values values = testing::MakeValues(dtype, count, Distribution::kGaussian, seed);
  const Values other = testing::MakeMagnitudes(dtype, count, 32, 60000.0f, seed);
  std::mt19937 random(seed);
  for (size_t at = 0; at < count; at += 1 + random() % 20000) {
    const size_t n = std::min<size_t>(1 + random() % 200, count - at) * size;
    std::copy_n(other.begin() + static_cast<ptrdiff_t>(at * size), n,
                values.begin() + static_cast<ptrdiff_t>(at * size));
  }
  return values;
}

TEST(GroupRowsTest, OfAnyShapeAreAsAnyOthers) {
  for (const DType dtype : kKernelDTypes) {
    for (const size_t group : {32, 64, 128}) {
      for (const uint64_t channels : {16, 32, 48, 64, 96, 128, 192, 576, 1024, 4224}) {
        for (const uint64_t tokens : {1, 5, 16, 37, 64, 200}) {
          const RowCase rows{{.tokens = tokens, .channels = channels}, 0, std::max<size_t>(20000, 5 * channels) + 13};
          SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " g" << group << ' ' << tokens << " x " << channels);
          ExpectSameRows({dtype, 4, group}, rows, testing::MakeValues(dtype, rows.count, Distribution::kGaussian, 3));
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(GroupRowsTest, MayBeginAnywhere) {
  const TokenLayout layout{.tokens = 70, .channels = 192};
  for (const DType dtype : kKernelDTypes) {
    for (const uint64_t first : {64, 192, 1000, 192 * 10, 192 * 69, 192 * 69 + 128}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << first);
      const RowCase rows{layout, first, size_t{192} * 200 + 70};
      ExpectSameRows({dtype, 4, 64}, rows, testing::MakeValues(dtype, rows.count, Distribution::kOutliers, 5));
      if (HasFailure()) return;
    }
  }
}

TEST(GroupRowsTest, MayHoldValuesOfAnyKind) {
  const RowCase rows{{.tokens = 100, .channels = 128}, 0, size_t{128} * 400};
  for (const DType dtype : kKernelDTypes) {
    for (const Distribution distribution : testing::kAllDistributions) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << static_cast<int>(distribution));
      ExpectSameRows({dtype, 4, 64}, rows, testing::MakeValues(dtype, rows.count, distribution, 7));
    }
    for (uint32_t seed = 1; seed < 8; ++seed) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << " mixed " << seed);
      ExpectSameRows({dtype, 4, 64}, rows, MixedRows(dtype, rows.count, seed));
    }
    ExpectSameRows({dtype, 4, 32}, rows, testing::MakeMagnitudes(dtype, rows.count, 500, 60000.0f, 3));
    if (HasFailure()) return;
  }
}

TEST(GroupRowsTest, OfAValueThatIsNotFiniteAreRefused) {
  const TokenLayout layout{.tokens = 64, .channels = 128};
  const size_t count = size_t{128} * 64;
  const GroupQuantFormat format{DType::kF16, 4, 64};
  Values scales(2 * GroupCount(64, count)), codes(PackedBytes(4, 64, count));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const size_t at : {size_t{0}, size_t{3000}, size_t{4096}, count - 1}) {
      Values x = testing::MakeValues(DType::kF16, count, Distribution::kGaussian);
      StoreFromF32(DType::kF16, bad, x.data(), at);
      TokenMeter meter;
      ErrorSums sums;
      meter.Begin(layout, 0);
      const ValueRun run{x.data(), count};
      EXPECT_FALSE(QuantizeRuns(format, {&run, 1}, scales.data(), codes.data(), &sums, &meter)) << bad << ' ' << at;
    }
  }
}

}  // namespace
}  // namespace kvcompress::simd
