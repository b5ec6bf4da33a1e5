#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace kvcompress {

// Element types of a tensor. The numbers are part of the frame format (docs/format.md, "Header").
enum class DType : uint8_t {
  kF16 = 1,   // IEEE 754 binary16
  kBF16 = 2,  // the upper half of a binary32
  kF32 = 3,   // IEEE 754 binary32
};

inline constexpr std::array kAllDTypes = {DType::kF16, DType::kBF16, DType::kF32};

// Bytes of one element.
constexpr size_t DTypeSize(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// The name that safetensors uses: "F16", "BF16", "F32".
std::string_view DTypeName(DType dtype);
std::optional<DType> DTypeFromName(std::string_view name);
std::optional<DType> DTypeFromNumber(uint8_t number);

}  // namespace kvcompress
