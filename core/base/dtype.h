#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <type_traits>

namespace kvcompress {

// Element types of a tensor. The numbers are part of the frame format (docs/format.md, "Header").
//
// Values are sign, exponent and mantissa, from the highest bit down: what codecs may change and figures are made of.
// All other types are opaque: their tensors are carried bit for bit.
enum class DType : uint8_t {
  kF16 = 1,     // IEEE 754 binary16
  kBF16 = 2,    // the upper half of a binary32
  kF32 = 3,     // IEEE 754 binary32
  kF8E4M3 = 4,  // without infinities; 7f and ff are NaN
  kF8E5M2 = 5,  // the upper half of a binary16
  // Opaque.
  kU8 = 6,
  kI8 = 7,
  kU16 = 8,
  kI16 = 9,
  kU32 = 10,
  kI32 = 11,
  kU64 = 12,
  kI64 = 13,
  kBool = 14,
  kF64 = 15,
  kC64 = 16,  // two binary32
  kF8E8M0 = 17,
  kF4 = 18,
  kF6E2M3 = 19,
  kF6E3M2 = 20,
  kF8E4M3Fnuz = 21,
  kF8E5M2Fnuz = 22,
};

inline constexpr std::array kAllDTypes = {
    DType::kF16,    DType::kBF16,   DType::kF32,        DType::kF8E4M3,     DType::kF8E5M2, DType::kU8,
    DType::kI8,     DType::kU16,    DType::kI16,        DType::kU32,        DType::kI32,    DType::kU64,
    DType::kI64,    DType::kBool,   DType::kF64,        DType::kC64,        DType::kF8E8M0, DType::kF4,
    DType::kF6E2M3, DType::kF6E3M2, DType::kF8E4M3Fnuz, DType::kF8E5M2Fnuz,
};
// Those whose values codecs may change.
inline constexpr std::array kValueDTypes = {DType::kF16, DType::kBF16, DType::kF32, DType::kF8E4M3, DType::kF8E5M2};
// Those that kernels compute with; the values of the F8 types are all F16's (core/base/half.h, WidenF8).
inline constexpr std::array kKernelDTypes = {DType::kF16, DType::kBF16, DType::kF32};

// Calls visit with a dtype of kKernelDTypes as a constant, of type std::integral_constant<DType, ...>.
template <typename Visit>
constexpr decltype(auto) VisitDType(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::kF16: return visit(std::integral_constant<DType, DType::kF16>());
    case DType::kBF16: return visit(std::integral_constant<DType, DType::kBF16>());
    case DType::kF32: return visit(std::integral_constant<DType, DType::kF32>());
    default: std::abort();  // what comes from outside is checked before a kernel is called
  }
}

// What there is to know of a type.
struct DTypeTraits {
  std::string_view name;  // that safetensors uses
  unsigned bits = 0;      // of one element
  unsigned mantissa_bits = 0;
  float max_finite = 0;  // 0: opaque
};
constexpr DTypeTraits TraitsOf(DType dtype) {
  switch (dtype) {
    case DType::kF16: return {"F16", 16, 10, 0x1.ffcp15f};
    case DType::kBF16: return {"BF16", 16, 7, 0x1.fep127f};
    case DType::kF32: return {"F32", 32, 23, 0x1.fffffep127f};
    case DType::kF8E4M3: return {"F8_E4M3", 8, 3, 448};
    case DType::kF8E5M2: return {"F8_E5M2", 8, 2, 57344};
    case DType::kU8: return {"U8", 8};
    case DType::kI8: return {"I8", 8};
    case DType::kU16: return {"U16", 16};
    case DType::kI16: return {"I16", 16};
    case DType::kU32: return {"U32", 32};
    case DType::kI32: return {"I32", 32};
    case DType::kU64: return {"U64", 64};
    case DType::kI64: return {"I64", 64};
    case DType::kBool: return {"BOOL", 8};
    case DType::kF64: return {"F64", 64};
    case DType::kC64: return {"C64", 64};
    case DType::kF8E8M0: return {"F8_E8M0", 8};
    case DType::kF4: return {"F4", 4};
    case DType::kF6E2M3: return {"F6_E2M3", 6};
    case DType::kF6E3M2: return {"F6_E3M2", 6};
    case DType::kF8E4M3Fnuz: return {"F8_E4M3FNUZ", 8};
    case DType::kF8E5M2Fnuz: return {"F8_E5M2FNUZ", 8};
  }
  return {"?"};
}

constexpr std::string_view DTypeName(DType dtype) { return TraitsOf(dtype).name; }
constexpr unsigned ElementBits(DType dtype) { return TraitsOf(dtype).bits; }
constexpr unsigned MantissaBits(DType dtype) { return TraitsOf(dtype).mantissa_bits; }
constexpr float MaxFinite(DType dtype) { return TraitsOf(dtype).max_finite; }
constexpr bool IsOpaque(DType dtype) { return MaxFinite(dtype) == 0; }
constexpr bool IsF8(DType dtype) { return dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2; }

// Bytes of a word, the unit that tensors are cut in: an element or, of elements that have less than a byte, a byte of
// several (NumWords of core/base/tensor.h).
constexpr size_t DTypeSize(DType dtype) { return (ElementBits(dtype) + 7) / 8; }
inline constexpr size_t kMaxDTypeSize = 8;

// The largest magnitude, as an element's bits, that is no NaN: an infinity's, where the type has any.
constexpr uint32_t InfinityBits(DType dtype) {
  if (dtype == DType::kF8E4M3) return 0x7e;
  const uint32_t magnitude = ~uint32_t{0} >> (33 - 8 * DTypeSize(dtype));
  return magnitude >> MantissaBits(dtype) << MantissaBits(dtype);
}

// The unsigned integer of an element's size.
uint8_t UnsignedOfSize(std::integral_constant<size_t, 1>);
uint16_t UnsignedOfSize(std::integral_constant<size_t, 2>);
uint32_t UnsignedOfSize(std::integral_constant<size_t, 4>);
template <DType kT>
using DTypeBits = decltype(UnsignedOfSize(std::integral_constant<size_t, DTypeSize(kT)>()));

// Calls visit with a 0 of the unsigned integer of a word's size; for a word of 8 bytes, of its halves' size.
template <typename Visit>
constexpr decltype(auto) VisitBits(DType dtype, Visit&& visit) {
  switch (DTypeSize(dtype)) {
    case 1: return visit(uint8_t{0});
    case 2: return visit(uint16_t{0});
    default: return visit(uint32_t{0});
  }
}

std::optional<DType> DTypeFromName(std::string_view name);
std::optional<DType> DTypeFromNumber(uint8_t number);

}  // namespace kvcompress
