#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

// Scalar conversions between the element types and float: the definition that every kernel must equal bit for bit.
// Narrowing rounds to nearest, ties to even; NaN stays NaN.
namespace kvcompress {

float F16ToF32(uint16_t bits);
uint16_t F32ToF16(float value);

constexpr float BF16ToF32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

constexpr uint16_t F32ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The element at `index` of an array of `dtype`; no alignment is needed.
inline float LoadAsF32(DType dtype, const void* data, size_t index) {
  const auto* from = static_cast<const std::byte*>(data) + index * DTypeSize(dtype);
  switch (dtype) {
    case DType::kF16: return F16ToF32(LoadLE<uint16_t>(from));
    case DType::kBF16: return BF16ToF32(LoadLE<uint16_t>(from));
    case DType::kF32: return std::bit_cast<float>(LoadLE<uint32_t>(from));
  }
  return 0;
}

inline void StoreFromF32(DType dtype, float value, void* data, size_t index) {
  auto* to = static_cast<std::byte*>(data) + index * DTypeSize(dtype);
  switch (dtype) {
    case DType::kF16: return StoreLE(F32ToF16(value), to);
    case DType::kBF16: return StoreLE(F32ToBF16(value), to);
    case DType::kF32: return StoreLE(std::bit_cast<uint32_t>(value), to);
  }
}

// `value` as `dtype` can hold it.
inline float RoundTo(DType dtype, float value) {
  uint32_t bits;
  StoreFromF32(dtype, value, &bits, 0);
  return LoadAsF32(dtype, &bits, 0);
}

}  // namespace kvcompress
