#include "core/base/dtype.h"

namespace kvcompress {

std::optional<DType> DTypeFromName(std::string_view name) {
  for (const DType dtype : kAllDTypes) {
    if (DTypeName(dtype) == name) return dtype;
  }
  return std::nullopt;
}

std::optional<DType> DTypeFromNumber(uint8_t number) {
  for (const DType dtype : kAllDTypes) {
    if (static_cast<uint8_t>(dtype) == number) return dtype;
  }
  return std::nullopt;
}

}  // namespace kvcompress
