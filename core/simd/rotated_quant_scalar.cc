#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/base/bytes.h"
#include "core/base/half.h"
#include "core/simd/group_quant.h"
#include "core/simd/key_counts.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/value_limits.h"

namespace kvcompress::simd {
namespace {

constexpr uint16_t kBfloat16 = 0x8000;  // in the bits of a scale

// Tiles are so small that std::ldexp would matter.
constexpr float PowerOfTwo(int exponent) { return std::bit_cast<float>(static_cast<uint32_t>(127 + exponent) << 23); }

// As Hadamard's matrix in its natural order; `size` is a power of two.
void Hadamard(float* v, size_t size) {
  for (size_t half = 1; half < size; half *= 2) {
    for (size_t begin = 0; begin < size; begin += 2 * half) {
      for (size_t i = begin; i < begin + half; ++i) {
        const float a = v[i];
        const float b = v[i + half];
        v[i] = a + b;
        v[i + half] = a - b;
      }
    }
  }
}

// Between the two transforms, either way.
void ScaleOverlap(const RotatedRow& row, float* v) {
  for (size_t i = row.second(); i < row.span; ++i) v[i] *= row.overlap * kRotatedSigns[kMaxRotatedRow + i];
}

void Rotate(const RotatedRow& row, float* v) {
  for (size_t i = 0; i < row.length; ++i) v[i] *= kRotatedSigns[i];
  Hadamard(v, row.span);
  if (row.second() == 0) return;
  ScaleOverlap(row, v);
  Hadamard(v + row.second(), row.span);
}

void RotateBack(const RotatedRow& row, float* v) {
  if (row.second() > 0) {
    Hadamard(v + row.second(), row.span);
    ScaleOverlap(row, v);
  }
  Hadamard(v, row.span);
  for (size_t i = 0; i < row.length; ++i) v[i] *= kRotatedSigns[i];
}

float Energy(const float* x, size_t count) {
  float sums[16] = {};
  for (size_t i = 0; i < count; ++i) sums[i % 16] += x[i] * x[i];
  return EnergyOf(sums);
}

// Quantizes a row, which it changes, of magnitudes up to `max_abs`.
uint16_t QuantizeRow(const RotatedRow& row, int bits, float max_abs, float* x, uint8_t* codes) {
  int exponent = 0;
  float energy = Energy(x, row.length);
  if (!(energy >= kMinRotatedEnergy && energy <= kMaxRotatedEnergy)) {
    if (max_abs == 0) {
      std::memset(codes, 0, row.length);
      return 0;
    }
    exponent = std::ilogb(max_abs);
    for (size_t i = 0; i < row.length; ++i) x[i] = std::ldexp(x[i], -exponent);
    energy = Energy(x, row.length);
  }
  const float norm = std::sqrt(energy);
  Rotate(row, x);
  const RotatedLevels levels = LevelsOf(bits);
  const float factor = row.unit / norm;
  int32_t cross = 0;
  int32_t squares = 0;
  for (size_t i = 0; i < row.length; ++i) {
    const auto q = static_cast<int32_t>(std::nearbyint(x[i] * factor));
    size_t magnitude = 0;
    for (int k = 0; k + 1 < levels.magnitudes; ++k) magnitude += std::abs(q) >= levels.bound[static_cast<size_t>(k)];
    const int32_t level = levels.level[magnitude];
    cross += std::abs(q) * level;
    squares += level * level;
    codes[i] = static_cast<uint8_t>(magnitude | (q < 0 ? size_t{1} << (bits - 1) : 0));
  }
  return RotatedScaleBits(std::ldexp(row.ScaleOf(cross, squares, norm), exponent));
}

}  // namespace

RotatedRow::RotatedRow(size_t values) : length(values), span(std::bit_floor(values)) {
  const int log_span = std::countr_zero(span);
  const int k = 6 + log_span / 2;
  root = std::sqrt(static_cast<float>(span * length)) * 1.0001f;
  overlap = static_cast<float>(std::sqrt(1 / static_cast<double>(span)));
  unit = static_cast<float>(kRotatedUnit * std::sqrt(static_cast<double>(length) / static_cast<double>(span)));
  scale_divisor = unit * PowerOfTwo(log_span - k);
  level_unit = PowerOfTwo(-k);
}

uint16_t RotatedScaleBits(float scale) {
  const uint16_t bits = F32ToF16(scale);
  return IsNormalF16(bits) ? bits : kBfloat16 | F32ToBF16(scale);
}

float RotatedScaleOf(uint16_t bits) {
  return (bits & kBfloat16) != 0 ? BF16ToF32(static_cast<uint16_t>(bits ^ kBfloat16)) : F16ToF32(bits);
}

namespace {

// A number that is not negative, rounded to binary32. It is one that no float holds on a thread that has 0 for it, so
// that the bits are made of it.
uint32_t RoundedBits(double number) {
  if (number >= 0x1p-126) return std::bit_cast<uint32_t>(static_cast<float>(number));
  // The sum has the digits of subnormal numbers as its last ones.
  constexpr double kMagic = 0x1p52 * 0x1p-149;
  return static_cast<uint32_t>(std::bit_cast<uint64_t>(number + kMagic) - std::bit_cast<uint64_t>(kMagic));
}

double RoundedNumber(double number) {
  const uint32_t bits = RoundedBits(number);
  return bits >> 23 != 0 ? double{std::bit_cast<float>(bits)} : bits * 0x1p-149;
}

}  // namespace

bool AreSmall(DType dtype, const std::byte* values, size_t count) {
  const uint32_t limit = uint32_t{63} << MantissaBits(dtype);
  return VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    for (size_t i = 0; i < count; i += 5) {
      const uint32_t magnitude = KeyOf(KeyOrder::kMagnitude, LoadLE<Bits>(values + i * sizeof(Bits)));
      if (magnitude >= limit) return false;
      if (magnitude > 0) return LargestBits(dtype, values, count) < limit;
    }
    return false;
  });
}

float ExactEnergy(const float* values, size_t count) {
  // Sums and products of binary32 that binary64 has rounded are as if they were rounded once.
  double sums[16] = {};
  for (size_t i = 0; i < count; ++i) {
    sums[i % 16] = RoundedNumber(sums[i % 16] + RoundedNumber(double{values[i]} * values[i]));
  }
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] = RoundedNumber(sums[i] + sums[i + half]);
  }
  return static_cast<float>(sums[0]);
}

float ExactPower(float value, int exponent) {
  return std::bit_cast<float>(RoundedBits(std::ldexp(double{value}, exponent)));
}

namespace scalar {

bool QuantizeRotated(const RotatedFormat& format, const void* values, size_t count, void* scales, uint8_t* codes,
                     void* decoded) {
  auto* scale_out = static_cast<uint8_t*>(scales);
  for (size_t begin = 0; begin < count; begin += format.row, scale_out += 2) {
    const RotatedRow row(std::min(format.row, count - begin));
    float x[kMaxRotatedRow];  // read once: the values may change meanwhile
    float max_abs = 0;
    for (size_t i = 0; i < row.length; ++i) {
      x[i] = LoadAsF32(format.dtype, values, begin + i);
      if (!(std::abs(x[i]) <= kMaxRotatable)) return false;
      max_abs = std::max(max_abs, std::abs(x[i]));
    }
    const uint16_t scale = QuantizeRow(row, format.bits, max_abs, x, codes + begin);
    std::memcpy(scale_out, &scale, 2);
    if (decoded == nullptr) continue;
    scalar::DequantizeRotated(format, scale_out, codes + begin, row.length,
                              static_cast<uint8_t*>(decoded) + begin * DTypeSize(format.dtype));
  }
  return true;
}

void DequantizeRotated(const RotatedFormat& format, const void* scales, const uint8_t* codes, size_t count,
                       void* values) {
  const auto* scale_in = static_cast<const uint8_t*>(scales);
  const RotatedLevels levels = LevelsOf(format.bits);
  const unsigned sign = 1u << (format.bits - 1);
  const float limit = MaxFinite(format.dtype);
  for (size_t begin = 0; begin < count; begin += format.row, scale_in += 2) {
    const RotatedRow row(std::min(format.row, count - begin));
    uint16_t scale_bits;
    std::memcpy(&scale_bits, scale_in, 2);
    const float scale = RotatedScaleOf(scale_bits);
    float x[kMaxRotatedRow] = {};
    if (scale > 0) {
      for (size_t i = 0; i < row.length; ++i) {
        const unsigned code = codes[begin + i];
        const float level = static_cast<float>(levels.level[code & (sign - 1)]) * row.level_unit;
        x[i] = (code & sign) != 0 ? -level : level;
      }
      RotateBack(row, x);
      for (size_t i = 0; i < row.length; ++i) x[i] = std::clamp(x[i] * scale, -limit, limit);
    }
    for (size_t i = 0; i < row.length; ++i) StoreFromF32(format.dtype, x[i], values, begin + i);
  }
}

}  // namespace scalar
}  // namespace kvcompress::simd
