#include <gmock/gmock.h>
#include <hwy/highway.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "core/simd/uniform_quant.h"
#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Distribution;
using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::MakeValues;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

constexpr auto kAfter = Guarded::Against::kPageAfter;
constexpr auto kBefore = Guarded::Against::kPageBefore;

// Layouts that `count` values can have: runs and columns, shorter and longer than vectors.
std::vector<CellLayout> Layouts(size_t count) {
  std::vector<CellLayout> layouts;
  for (const size_t run : {size_t{1}, size_t{15}, size_t{32}, size_t{64}, size_t{80}, size_t{4096}, count}) {
    layouts.push_back({.row = count, .run = run});
  }
  layouts.push_back({.row = 80, .run = 64});
  layouts.push_back({.row = 129, .run = 32});
  for (const size_t row : {1, 5, 16, 33, 64, 80}) {
    if (row <= count) layouts.push_back({.row = row, .run = row, .stretch = row % 2 == 0 ? size_t{4} : size_t{32}});
  }
  return layouts;
}

class UniformTargetsTest : public ::testing::TestWithParam<std::tuple<int64_t, DType>> {
 protected:
  int64_t target() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  // Everything between guard pages, with the target and with the definition.
  void ExpectSame(const UniformFormat& format, const CellLayout& layout, ByteSpan bytes, Guarded::Against against) {
    const size_t width = DTypeSize(format.dtype);
    const size_t count = bytes.size() / width;
    const size_t cells = layout.cells(count);
    const Guarded values(bytes.data(), bytes.size(), against);
    std::vector<uint8_t> min(cells * width), max(cells * width), high(count), low(count), decoded(bytes.size());
    std::vector<uint16_t> scale_bits(cells);
    std::vector<float> scales(cells), offsets(cells);
    scalar::CellRanges(format.dtype, layout, values.data(), count, min.data(), max.data());
    ASSERT_TRUE(scalar::CellScales(format, min.data(), max.data(), cells, scale_bits.data()));
    const DType scale_type = format.dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
    for (size_t i = 0; i < cells; ++i) {
      scales[i] = LoadAsF32(scale_type, scale_bits.data(), i);
      offsets[i] = LoadAsF32(format.dtype, min.data(), i);
    }
    const float* used_offsets = format.symmetric ? nullptr : offsets.data();
    scalar::UniformQuantize(format, layout, values.data(), count, scales.data(), used_offsets,
                            {high.data(), low.data()});
    scalar::UniformDequantize(format, layout, {high.data(), low.data()}, count, scales.data(), used_offsets,
                              decoded.data());

    const WithTarget with(target());
    Guarded got_min(min.size(), against), got_max(max.size(), against), got_high(count, against);
    Guarded got_low(format.bits > 8 ? count : 0, against), got(bytes.size(), against);
    CellRanges(format.dtype, layout, values.data(), count, got_min.data(), got_max.data());
    ASSERT_TRUE(std::ranges::equal(got_min.bytes(), min));
    ASSERT_TRUE(std::ranges::equal(got_max.bytes(), max));
    Guarded got_scales(2 * cells, against);
    auto* got_scale_bits = reinterpret_cast<uint16_t*>(got_scales.data());
    ASSERT_TRUE(CellScales(format, min.data(), max.data(), cells, got_scale_bits));
    ASSERT_EQ(std::vector<uint16_t>(got_scale_bits, got_scale_bits + cells), scale_bits);
    std::vector<float> got_wide(cells);
    WidenScales(format.dtype, scale_bits.data(), cells, got_wide.data());
    ASSERT_EQ(got_wide, scales);
    WidenValues(format.dtype, min.data(), cells, got_wide.data());
    ASSERT_EQ(got_wide, offsets);
    UniformQuantize(format, layout, values.data(), count, scales.data(), used_offsets,
                    {got_high.data(), got_low.data()});
    ASSERT_TRUE(std::ranges::equal(got_high.bytes(), high));
    if (format.bits > 8) {
      ASSERT_TRUE(std::ranges::equal(got_low.bytes(), low));
    }
    UniformDequantize(format, layout, {got_high.data(), got_low.data()}, count, scales.data(), used_offsets,
                      got.data());
    ASSERT_TRUE(std::ranges::equal(got.bytes(), decoded));
    if (layout.stretch == 0) {
      std::vector<float> energies(cells), got_energies(cells);
      scalar::CellEnergies(format.dtype, layout, values.data(), count, energies.data());
      CellEnergies(format.dtype, layout, values.data(), count, got_energies.data());
      ASSERT_EQ(got_energies, energies);
    }
  }
};

TEST_P(UniformTargetsTest, SameBytesForEveryLayoutAndFormat) {
  for (const Distribution distribution : testing::kAllDistributions) {
    for (const size_t count : {1, 15, 16, 31, 33, 150, 1027}) {
      const auto values = MakeValues(dtype(), count, distribution, static_cast<uint32_t>(count));
      for (const CellLayout& layout : Layouts(count)) {
        for (const int bits : {2, 4, 7, 8, 9, 10, 12}) {
          for (const bool symmetric : {true, false}) {
            SCOPED_TRACE(::testing::Message()
                         << count << " values, row " << layout.row << ", run " << layout.run << ", stretch "
                         << layout.stretch << ", " << bits << " bits, symmetric " << symmetric);
            ExpectSame({dtype(), bits, symmetric}, layout, values, bits % 2 == 0 ? kAfter : kBefore);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Halves of steps at magnitudes from subnormal to the largest, and the largest values there are.
TEST_P(UniformTargetsTest, SameBytesForTiesAtEveryMagnitude) {
  std::mt19937 random(5);
  constexpr size_t kRun = 64;
  for (const int bits : {2, 3, 8, 11}) {
    for (const bool symmetric : {true, false}) {
      const UniformFormat format = {dtype(), bits, symmetric};
      std::vector<std::byte> values(kRun * 300 * DTypeSize(dtype()));
      for (size_t i = 0; i < kRun * 300; ++i) {
        const auto cell = static_cast<int>(i / kRun);
        const float step = std::ldexp(static_cast<float>(1 + cell % 7), cell - 150);
        const float value = static_cast<float>(static_cast<int>(random() % 4096) - 2048) * 0.5f * step;
        const float limit = format.max_magnitude();
        StoreFromF32(dtype(), std::fmin(std::fmax(value, -limit), limit), values.data(), i);
      }
      if (dtype() == DType::kBF16 && !symmetric) continue;  // rounding to BF16 leaves the limit
      ExpectSame(format, {.row = kRun * 300, .run = kRun}, values, kAfter);
      if (HasFatalFailure()) return;
    }
  }
}

// Cells of any magnitude, runs and columns, with subnormal values beside others.
TEST_P(UniformTargetsTest, SameBytesForSubnormalValues) {
  for (const int bits : {2, 4, 8, 11}) {
    for (const bool symmetric : {true, false}) {
      const UniformFormat format = {dtype(), bits, symmetric};
      const float largest = std::fmin(0x1p120f, MaxFinite(dtype()));
      for (const size_t run : {1, 16, 80}) {
        const auto values = testing::MakeMagnitudes(dtype(), 80 * 40, run, largest, static_cast<uint32_t>(bits));
        for (const CellLayout& layout : Layouts(80 * 40)) {
          ExpectSame(format, layout, values, kAfter);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Codes that no encoder writes.
TEST_P(UniformTargetsTest, ScalesOfZeroGiveTheSameZeroForAnyCode) {
  const WithTarget with(target());
  constexpr size_t kCount = 64;
  std::vector<uint8_t> codes(kCount);
  for (size_t i = 0; i < kCount; ++i) codes[i] = static_cast<uint8_t>(5 * i);
  const std::vector<float> scales(kCount);
  for (const size_t run : {size_t{1}, size_t{7}, size_t{16}, kCount}) {
    std::vector<std::byte> values(kCount * DTypeSize(dtype()), std::byte{0xff});
    UniformDequantize({dtype(), 8, true}, {.row = kCount, .run = run}, {codes.data(), nullptr}, kCount, scales.data(),
                      nullptr, values.data());
    EXPECT_THAT(values, ::testing::Each(std::byte{0})) << run;
  }
}

TEST_P(UniformTargetsTest, RangesThatAreNotFiniteAreRefused) {
  const WithTarget with(target());
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr size_t kCount = 17 * 48;
  for (const float bad : {kInf, -kInf, std::nanf(""), -std::nanf("")}) {
    for (const size_t at : {0, 31, 47, 48, 200, 815}) {
      auto values = MakeValues(dtype(), kCount, Distribution::kGaussian);
      StoreFromF32(dtype(), bad, values.data(), at);
      for (const CellLayout& layout : {CellLayout{.row = kCount, .run = kCount}, CellLayout{.row = kCount, .run = 48},
                                       CellLayout{.row = 48, .run = 48, .stretch = 4}}) {
        const size_t cells = layout.cells(kCount);
        std::vector<uint8_t> min(cells * DTypeSize(dtype())), max(min.size());
        std::vector<uint16_t> scales(cells);
        CellRanges(dtype(), layout, values.data(), kCount, min.data(), max.data());
        for (const bool symmetric : {true, false}) {
          EXPECT_FALSE(CellScales({dtype(), 4, symmetric}, min.data(), max.data(), cells, scales.data()))
              << bad << " at " << at << ", run " << layout.run;
        }
      }
    }
  }
}

// The scale is never below range / codes, so that no code has to be cut off; and it is the least of its type.
TEST_P(UniformTargetsTest, ScalesAreTheLeastThatReach) {
  const WithTarget with(target());
  std::mt19937 random(3);
  const DType scale_type = dtype() == DType::kF16 ? DType::kF16 : DType::kBF16;
  for (const int bits : {2, 5, 10, 12}) {
    const UniformFormat format = {dtype(), bits, true};
    std::vector<uint8_t> min(500 * DTypeSize(dtype())), max(min.size());
    for (size_t i = 0; i < 500; ++i) {
      const float value = std::ldexp(static_cast<float>(1 + random() % 2047), static_cast<int>(i % 37) - 24);
      StoreFromF32(dtype(), std::fmin(value, 65504.0f), max.data(), i);
      StoreFromF32(dtype(), -0.25f * std::fmin(value, 65504.0f), min.data(), i);
    }
    std::vector<uint16_t> scales(500);
    ASSERT_TRUE(CellScales(format, min.data(), max.data(), 500, scales.data()));
    for (size_t i = 0; i < 500; ++i) {
      const float exact = LoadAsF32(dtype(), max.data(), i) / static_cast<float>(format.max_code());
      EXPECT_GE(LoadAsF32(scale_type, scales.data(), i), exact);
      const auto below = static_cast<uint16_t>(scales[i] - 1);
      EXPECT_LT(LoadAsF32(scale_type, &below, 0), exact);
    }
  }
}

TEST_P(UniformTargetsTest, PackedCodesComeBack) {
  const WithTarget with(target());
  for (int bits = 1; bits <= 7; ++bits) {
    for (const size_t count : {0, 1, 8, 9, 127, 128, 129, 400, 1280}) {
      const auto random = testing::MakeBits(count, 9);
      std::vector<uint8_t> codes(count);
      for (size_t i = 0; i < count; ++i) codes[i] = std::to_integer<uint8_t>(random[i]) >> (8 - bits);
      const Guarded in(codes.data(), count, kAfter);
      Guarded packed(PackedCodeBytes(bits, count), kAfter), got(count, kAfter);
      PackCodes(bits, in.data(), count, packed.data());
      EXPECT_EQ(packed.size(), (count / 128 * 128 + (count % 128 + 7) / 8 * 8) * static_cast<size_t>(bits) / 8);
      UnpackCodes(bits, packed.data(), count, got.data());
      EXPECT_TRUE(std::ranges::equal(got.bytes(), codes)) << bits << " bits, " << count << " codes";
      // The definition: each group of 128 as one group of intN.
      for (size_t first = 0; first < count; first += 128) {
        std::vector<uint8_t> slots((std::min<size_t>(128, count - first) + 7) / 8 * 8);
        std::copy_n(codes.begin() + static_cast<ptrdiff_t>(first), std::min<size_t>(128, count - first), slots.begin());
        std::vector<uint8_t> want(slots.size() / 8 * static_cast<size_t>(bits));
        scalar::PackGroup(bits, slots.data(), slots.size(), want.data());
        const auto at = packed.bytes().subspan(first / 8 * static_cast<size_t>(bits), want.size());
        EXPECT_TRUE(std::ranges::equal(at, want)) << bits << " bits, " << count << " codes";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, UniformTargetsTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()),
                                            ::testing::Values(DType::kF16, DType::kBF16, DType::kF32)),
                         [](const auto& param) {
                           return std::string(hwy::TargetName(std::get<0>(param.param))) + "_" +
                                  std::string(DTypeName(std::get<1>(param.param)));
                         });

}  // namespace
}  // namespace kvcompress::simd
