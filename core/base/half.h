#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

// Scalar conversions between the types of values and float: the definition that every kernel must equal bit for bit.
// Narrowing rounds to nearest, ties to even; NaN stays NaN. What is beyond the largest finite value of an F8 type
// becomes that value.
namespace kvcompress {

float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);

constexpr float BF16ToF32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

constexpr uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

constexpr uint16_t F8E5M2ToF16(uint8_t bits) { return static_cast<uint16_t>(bits << 8); }

constexpr uint16_t F8E4M3ToF16(uint8_t bits) {
  const unsigned sign = (bits & 0x80u) << 8;
  const unsigned magnitude = bits & 0x7fu;
  if (magnitude == 0x7f) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 8) return static_cast<uint16_t>(sign | ((magnitude << 7) + (8u << 10)));
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  // magnitude * 2^-9: a normal number of binary16.
  const unsigned exponent = static_cast<unsigned>(std::bit_width(magnitude)) - 1;
  return static_cast<uint16_t>(sign | (exponent + 6) << 10 | (magnitude << (10 - exponent) & 0x3ffu));
}

uint8_t F32ToF8E4M3(float value);
uint8_t F32ToF8E5M2(float value);

// `count` values of an F8 type as F16, which holds them all, and back. No alignment is needed.
void WidenF8(DType dtype, const void* values, size_t count, void* f16);
void NarrowToF8(DType dtype, const void* f16, size_t count, void* values);

// The value at `index` of an array of `dtype`, which is not opaque; no alignment is needed.
inline float LoadAsF32(DType dtype, const void* data, size_t index) {
  const auto* from = static_cast<const std::byte*>(data) + index * DTypeSize(dtype);
  switch (dtype) {
    case DType::kF16: return F16ToF32(LoadLE<uint16_t>(from));
    case DType::kBF16: return BF16ToF32(LoadLE<uint16_t>(from));
    case DType::kF32: return std::bit_cast<float>(LoadLE<uint32_t>(from));
    case DType::kF8E4M3: return F16ToF32(F8E4M3ToF16(std::to_integer<uint8_t>(*from)));
    case DType::kF8E5M2: return F16ToF32(F8E5M2ToF16(std::to_integer<uint8_t>(*from)));
    default: return 0;  // opaque
  }
}

inline void StoreFromF32(DType dtype, float value, void* data, size_t index) {
  auto* to = static_cast<std::byte*>(data) + index * DTypeSize(dtype);
  switch (dtype) {
    case DType::kF16: return StoreLE(F32ToF16(value), to);
    case DType::kBF16: return StoreLE(F32ToBF16(value), to);
    case DType::kF32: return StoreLE(std::bit_cast<uint32_t>(value), to);
    case DType::kF8E4M3: return StoreLE(F32ToF8E4M3(value), to);
    case DType::kF8E5M2: return StoreLE(F32ToF8E5M2(value), to);
    default: return;  // opaque
  }
}

// `value` as `dtype` can hold it.
inline float RoundTo(DType dtype, float value) {
  uint32_t bits = 0;
  StoreFromF32(dtype, value, &bits, 0);
  return LoadAsF32(dtype, &bits, 0);
}

}  // namespace kvcompress
