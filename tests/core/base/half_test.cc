#include "core/base/half.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace kvcompress {
namespace {

// A binary floating point format, computed by its definition in double arithmetic: slow, and sharing no trick with the
// code under test.
struct Format {
  int exponent_bits;
  int mantissa_bits;

  int min_exponent() const { return 2 - (1 << (exponent_bits - 1)); }
  int max_exponent() const { return (1 << (exponent_bits - 1)) - 1; }
  uint16_t sign(uint16_t bits) const { return bits >> 15; }
  int exponent_field(uint16_t bits) const { return (bits >> mantissa_bits) & ((1 << exponent_bits) - 1); }
  int mantissa(uint16_t bits) const { return bits & ((1 << mantissa_bits) - 1); }
  bool is_nan(uint16_t bits) const { return exponent_field(bits) == (1 << exponent_bits) - 1 && mantissa(bits) != 0; }

  double Value(uint16_t bits) const {
    const int field = exponent_field(bits);
    double magnitude;
    if (field == (1 << exponent_bits) - 1) {
      magnitude = std::numeric_limits<double>::infinity();
    } else if (field == 0) {
      magnitude = std::ldexp(mantissa(bits), min_exponent() - mantissa_bits);
    } else {
      magnitude = std::ldexp((1 << mantissa_bits) + mantissa(bits), field - 1 + min_exponent() - mantissa_bits);
    }
    return sign(bits) ? -magnitude : magnitude;
  }

  // The value of the format that is nearest to `value`, ties to even.
  double Round(double value) const {
    if (value == 0 || std::isinf(value)) return value;
    const int exponent = std::max(std::ilogb(value), min_exponent());
    const int scale = mantissa_bits - exponent;
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, scale)), -scale);
    if (std::fabs(rounded) >= std::ldexp(1.0, max_exponent() + 1)) {
      return std::copysign(std::numeric_limits<double>::infinity(), value);
    }
    return rounded;
  }
};

constexpr Format kHalf{5, 10};
constexpr Format kBFloat{8, 7};

bool SameValue(double a, double b) { return a == b && std::signbit(a) == std::signbit(b); }

template <typename Widen>
void ExpectWidensExactly(const Format& format, Widen widen) {
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const float wide = widen(bits);
    if (format.is_nan(bits)) {
      ASSERT_TRUE(std::isnan(wide)) << std::hex << i;
      ASSERT_EQ(std::signbit(wide), format.sign(bits) != 0) << std::hex << i;
    } else {
      ASSERT_TRUE(SameValue(wide, format.Value(bits))) << std::hex << i;
    }
  }
}

// The floats where rounding can go wrong: every value of the format, every midpoint between two neighbours, and the
// floats next to these; then a sample over all bit patterns of a float.
std::vector<float> RoundingCases(const Format& format) {
  std::vector<float> cases;
  const auto add = [&](float value) {
    cases.push_back(value);
    cases.push_back(std::nextafter(value, std::numeric_limits<float>::infinity()));
    cases.push_back(std::nextafter(value, -std::numeric_limits<float>::infinity()));
  };
  for (uint32_t i = 0; i <= 0xffff; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    if (format.is_nan(bits) || std::isinf(format.Value(bits))) continue;
    add(static_cast<float>(format.Value(bits)));
    // The step upwards in magnitude; above the largest finite value it leads to where infinity begins.
    const int exponent = std::max(format.exponent_field(bits), 1) - 1 + format.min_exponent();
    const double half_step = std::ldexp(0.5, exponent - format.mantissa_bits);
    add(static_cast<float>(format.Value(bits) + (format.sign(bits) ? -half_step : half_step)));
  }
  constexpr uint32_t kStride = 1009;
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += kStride) {
    cases.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  cases.push_back(std::numeric_limits<float>::infinity());
  cases.push_back(-std::numeric_limits<float>::infinity());
  return cases;
}

template <typename Narrow>
void ExpectNarrowsCorrectly(const Format& format, Narrow narrow) {
  for (float value : RoundingCases(format)) {
    const uint16_t bits = narrow(value);
    if (std::isnan(value)) {
      ASSERT_TRUE(format.is_nan(bits)) << std::hexfloat << value;
      ASSERT_EQ(format.sign(bits) != 0, std::signbit(value));
    } else {
      ASSERT_FALSE(format.is_nan(bits)) << std::hexfloat << value;
      ASSERT_TRUE(SameValue(format.Value(bits), format.Round(value))) << std::hexfloat << value << " gave " << bits;
    }
  }
}

TEST(HalfTest, F16WidensExactly) { ExpectWidensExactly(kHalf, F16ToF32); }
TEST(HalfTest, BF16WidensExactly) { ExpectWidensExactly(kBFloat, BF16ToF32); }
TEST(HalfTest, F16RoundsToNearestEven) { ExpectNarrowsCorrectly(kHalf, F32ToF16); }
TEST(HalfTest, BF16RoundsToNearestEven) { ExpectNarrowsCorrectly(kBFloat, F32ToBF16); }

TEST(HalfTest, EveryNaNStaysNaN) {
  // Signalling ones too, and those whose payload is lost by narrowing.
  for (uint32_t payload = 1; payload <= 0x7fffff; ++payload) {
    const float nan = std::bit_cast<float>(0x7f800000u | payload);
    ASSERT_TRUE(kHalf.is_nan(F32ToF16(nan))) << payload;
    ASSERT_TRUE(kBFloat.is_nan(F32ToBF16(nan))) << payload;
  }
}

TEST(HalfTest, KnownBits) {
  EXPECT_EQ(F32ToF16(1.0f), 0x3c00);
  EXPECT_EQ(F32ToF16(-2.0f), 0xc000);
  EXPECT_EQ(F32ToF16(65504.0f), 0x7bff);
  EXPECT_EQ(F32ToF16(65519.996f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);
  EXPECT_EQ(F32ToF16(0x1p-24f), 0x0001);
  EXPECT_EQ(F32ToF16(0x1p-25f), 0x0000);
  EXPECT_EQ(F32ToF16(-0.0f), 0x8000);
  EXPECT_EQ(F32ToBF16(1.0f), 0x3f80);
  EXPECT_EQ(F32ToBF16(0x1.01p0f), 0x3f80);
  EXPECT_EQ(F32ToBF16(0x1.03p0f), 0x3f82);
}

TEST(HalfTest, LoadsAndStoresUnaligned) {
  for (DType dtype : kValueDTypes) {
    std::array<unsigned char, 17> buffer{};
    for (size_t i = 0; i < 4; ++i) StoreFromF32(dtype, static_cast<float>(i) - 1.5f, buffer.data() + 1, i);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(LoadAsF32(dtype, buffer.data() + 1, i), static_cast<float>(i) - 1.5f) << DTypeName(dtype);
    }
  }
}

TEST(HalfTest, MaxFiniteIsTheLastBeforeInfinity) {
  EXPECT_EQ(MaxFinite(DType::kF16), F16ToF32(0x7bff));
  EXPECT_EQ(MaxFinite(DType::kBF16), BF16ToF32(0x7f7f));
  EXPECT_EQ(MaxFinite(DType::kF32), std::numeric_limits<float>::max());
}

// The values of an F8 type by their definition: exponents with a bias, subnormal ones without the leading 1.
double ValueOfF8(DType dtype, unsigned bits) {
  const int mantissa_bits = static_cast<int>(MantissaBits(dtype));
  const int bias = dtype == DType::kF8E4M3 ? 7 : 15;
  const int exponent = static_cast<int>(bits & 0x7fu) >> mantissa_bits;
  const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return bits & 0x80u ? -magnitude : magnitude;
}

TEST(HalfTest, EveryF8HasTheValueOfItsDefinition) {
  for (const DType dtype : {DType::kF8E4M3, DType::kF8E5M2}) {
    for (unsigned bits = 0; bits < 256; ++bits) {
      const auto byte = static_cast<uint8_t>(bits);
      const float value = LoadAsF32(dtype, &byte, 0);
      const unsigned magnitude = bits & 0x7fu;
      if (magnitude > InfinityBits(dtype)) {
        EXPECT_TRUE(std::isnan(value)) << bits;
      } else if (dtype == DType::kF8E5M2 && magnitude == InfinityBits(dtype)) {
        EXPECT_EQ(value, bits & 0x80u ? -INFINITY : INFINITY);
      } else {
        EXPECT_EQ(value, ValueOfF8(dtype, bits)) << bits;
        uint8_t back = 0;
        StoreFromF32(dtype, value, &back, 0);
        EXPECT_EQ(back, bits);
      }
      uint16_t wide = 0;
      WidenF8(dtype, &byte, 1, &wide);
      uint8_t narrow = 0;
      NarrowToF8(dtype, &wide, 1, &narrow);
      EXPECT_EQ(std::isnan(value) ? std::isnan(LoadAsF32(dtype, &narrow, 0)) : narrow == byte || std::isinf(value),
                true)
          << bits;
    }
    EXPECT_EQ(MaxFinite(dtype), ValueOfF8(dtype, dtype == DType::kF8E4M3 ? 0x7e : 0x7b));
  }
}

// Between each two neighbours: the nearer one, in the middle the one with an even last bit; beyond the largest, that.
TEST(HalfTest, F8RoundsToNearestEvenAndSaturates) {
  for (const DType dtype : {DType::kF8E4M3, DType::kF8E5M2}) {
    const unsigned largest = dtype == DType::kF8E4M3 ? 0x7e : 0x7b;
    const auto rounded = [&](double value) {
      uint8_t bits = 0;
      StoreFromF32(dtype, static_cast<float>(value), &bits, 0);
      return unsigned{bits};
    };
    for (unsigned bits = 0; bits < largest; ++bits) {
      const double low = ValueOfF8(dtype, bits);
      const double high = ValueOfF8(dtype, bits + 1);
      const double middle = (low + high) / 2;
      EXPECT_EQ(rounded(middle), bits + bits % 2);
      EXPECT_EQ(rounded(-middle), 0x80u + bits + bits % 2);
      EXPECT_EQ(rounded(std::nextafterf(static_cast<float>(middle), 0)), bits);
      EXPECT_EQ(rounded(std::nextafterf(static_cast<float>(middle), INFINITY)), bits + 1);
    }
    for (const double beyond : {1.0001 * MaxFinite(dtype), 1e30, double{INFINITY}}) {
      EXPECT_EQ(rounded(beyond), largest);
      EXPECT_EQ(rounded(-beyond), 0x80u + largest);
    }
    EXPECT_EQ(rounded(NAN) & 0x7fu, dtype == DType::kF8E4M3 ? 0x7fu : 0x7eu);
    EXPECT_EQ(rounded(-0.0), 0x80u);
  }
}

}  // namespace
}  // namespace kvcompress
