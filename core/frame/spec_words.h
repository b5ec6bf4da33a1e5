#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/base/bytes.h"

// Codec specs as compact headers have them: bytes from 80 up stand for words of many specs (docs/format.md, "Compact
// frames").
namespace kvcompress {

std::string PackSpec(std::string_view spec);

// Nothing for a byte that stands for no word.
std::optional<std::string> UnpackSpec(ByteSpan packed);

}  // namespace kvcompress
