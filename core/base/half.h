#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

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
  const auto* bytes = static_cast<const unsigned char*>(data);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes + 4 * index, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * index, 2);
  return dtype == DType::kF16 ? F16ToF32(bits) : BF16ToF32(bits);
}

inline void StoreFromF32(DType dtype, float value, void* data, size_t index) {
  auto* bytes = static_cast<unsigned char*>(data);
  if (dtype == DType::kF32) {
    std::memcpy(bytes + 4 * index, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
  std::memcpy(bytes + 2 * index, &bits, 2);
}

// The largest finite value of `dtype`.
constexpr float MaxFinite(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 65504.0f;
    case DType::kBF16:
      return std::bit_cast<float>(0x7f7f0000u);
    case DType::kF32:
      return std::bit_cast<float>(0x7f7fffffu);
  }
  return 0.0f;
}

}  // namespace kvcompress
