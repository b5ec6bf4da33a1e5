#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <type_traits>

namespace kvcompress {

// Element types of a tensor: sign, exponent and mantissa, from the highest bit down. The numbers are part of the frame
// format (docs/format.md, "Header").
//
// What depends on the type is a switch without default, or comes from VisitDType: a build names every place that a new
// type concerns.
enum class DType : uint8_t {
  kF16 = 1,   // IEEE 754 binary16
  kBF16 = 2,  // the upper half of a binary32
  kF32 = 3,   // IEEE 754 binary32
};

inline constexpr std::array kAllDTypes = {DType::kF16, DType::kBF16, DType::kF32};

// Calls visit with the dtype as a constant, of type std::integral_constant<DType, ...>.
template <typename Visit>
constexpr decltype(auto) VisitDType(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::kF16: return visit(std::integral_constant<DType, DType::kF16>());
    case DType::kBF16: return visit(std::integral_constant<DType, DType::kBF16>());
    case DType::kF32: return visit(std::integral_constant<DType, DType::kF32>());
  }
  std::abort();  // no dtype: what comes from outside is checked by DTypeFromNumber
}

// What there is to know of a type.
struct DTypeTraits {
  std::string_view name;  // that safetensors uses
  size_t size;            // bytes of one element
  unsigned mantissa_bits;
  float max_finite;
};
constexpr DTypeTraits TraitsOf(DType dtype) {
  switch (dtype) {
    case DType::kF16: return {"F16", 2, 10, 0x1.ffcp15f};
    case DType::kBF16: return {"BF16", 2, 7, 0x1.fep127f};
    case DType::kF32: return {"F32", 4, 23, 0x1.fffffep127f};
  }
  return {"?", 0, 0, 0};
}

constexpr std::string_view DTypeName(DType dtype) { return TraitsOf(dtype).name; }
constexpr size_t DTypeSize(DType dtype) { return TraitsOf(dtype).size; }
constexpr unsigned MantissaBits(DType dtype) { return TraitsOf(dtype).mantissa_bits; }
constexpr float MaxFinite(DType dtype) { return TraitsOf(dtype).max_finite; }

// The largest exponent, that of infinities and NaN, where it stands in an element's bits.
constexpr uint32_t InfinityBits(DType dtype) {
  const uint32_t magnitude = ~uint32_t{0} >> (33 - 8 * DTypeSize(dtype));
  return magnitude >> MantissaBits(dtype) << MantissaBits(dtype);
}

// The unsigned integer of an element's size.
uint16_t UnsignedOfSize(std::integral_constant<size_t, 2>);
uint32_t UnsignedOfSize(std::integral_constant<size_t, 4>);
template <DType kT>
using DTypeBits = decltype(UnsignedOfSize(std::integral_constant<size_t, DTypeSize(kT)>()));

std::optional<DType> DTypeFromName(std::string_view name);
std::optional<DType> DTypeFromNumber(uint8_t number);

}  // namespace kvcompress
