#include "core/base/dtype.h"

namespace kvcompress {

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF32:
      return "F32";
  }
  return "?";
}

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const DType dtype : kAllDTypes) {
    if (DTypeName(dtype) == name) return dtype;
  }
  return std::nullopt;
}

std::optional<DType> DTypeFromNumber(uint8_t number) {
  if (number < 1 || number > 3) return std::nullopt;
  return static_cast<DType>(number);
}

}  // namespace kvcompress
