#include "core/base/half.h"

#include <array>
#include <limits>

namespace kvcompress {
namespace {

// Of an F8 type with `kMantissa` bits of mantissa and the exponent bias `kBias`, whose largest finite value has the
// bits `kLargest`.
template <unsigned kMantissa, unsigned kBias, uint8_t kLargest, uint8_t kNan>
uint8_t F32ToF8(float value, float largest) {
  constexpr unsigned kShift = 23 - kMantissa;
  constexpr uint32_t kExponents = (127 - kBias) << 23;  // between the biases
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | kNan);
  if (magnitude >= std::bit_cast<uint32_t>(largest)) return static_cast<uint8_t>(sign | kLargest);
  if (magnitude < kExponents + (1u << 23)) {
    // Subnormal: adding 2^23 steps leaves the rounded number of steps in the low bits of the sum.
    constexpr float kSteps = std::bit_cast<float>((127 + 1 - kBias - kMantissa + 23) << 23);
    const float shifted = std::bit_cast<float>(magnitude) + kSteps;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kSteps)));
  }
  const uint32_t rounded = magnitude + ((1u << (kShift - 1)) - 1) + ((magnitude >> kShift) & 1u);
  return static_cast<uint8_t>(sign | (rounded - kExponents) >> kShift);
}

template <typename From, typename To, typename Convert>
std::array<To, size_t{std::numeric_limits<From>::max()} + 1> TableOf(Convert convert) {
  std::array<To, size_t{std::numeric_limits<From>::max()} + 1> table;
  for (size_t i = 0; i < table.size(); ++i) table[i] = convert(static_cast<From>(i));
  return table;
}

template <typename From, typename To, typename Table>
void LookUp(const Table& table, const void* from, size_t count, void* to) {
  const auto* in = static_cast<const std::byte*>(from);
  auto* out = static_cast<std::byte*>(to);
  for (size_t i = 0; i < count; ++i) StoreLE<To>(table[LoadLE<From>(in + i * sizeof(From))], out + i * sizeof(To));
}

}  // namespace

uint8_t F32ToF8E4M3(float value) { return F32ToF8<3, 7, 0x7e, 0x7f>(value, MaxFinite(DType::kF8E4M3)); }
uint8_t F32ToF8E5M2(float value) { return F32ToF8<2, 15, 0x7b, 0x7e>(value, MaxFinite(DType::kF8E5M2)); }

void WidenF8(DType dtype, const void* values, size_t count, void* f16) {
  static const auto e4m3 = TableOf<uint8_t, uint16_t>(F8E4M3ToF16);
  static const auto e5m2 = TableOf<uint8_t, uint16_t>(F8E5M2ToF16);
  LookUp<uint8_t, uint16_t>(dtype == DType::kF8E4M3 ? e4m3 : e5m2, values, count, f16);
}

void NarrowToF8(DType dtype, const void* f16, size_t count, void* values) {
  static const auto e4m3 = TableOf<uint16_t, uint8_t>([](uint16_t bits) { return F32ToF8E4M3(F16ToF32(bits)); });
  static const auto e5m2 = TableOf<uint16_t, uint8_t>([](uint16_t bits) { return F32ToF8E5M2(F16ToF32(bits)); });
  LookUp<uint16_t, uint8_t>(dtype == DType::kF8E4M3 ? e4m3 : e5m2, f16, count, values);
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t F32ToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits of the sum.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace kvcompress
