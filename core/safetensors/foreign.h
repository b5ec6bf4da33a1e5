#pragma once

#include <string_view>

#include "core/base/bytes.h"

namespace kvcompress::safetensors {

inline constexpr size_t kForeignBytes = 64;  // that ForeignFormat looks at

// What a file is that is no safetensors file, and what to do with it, by its first bytes: "a zip archive ...: ...".
// Empty where they do not tell.
std::string_view ForeignFormat(ByteSpan first_bytes);

}  // namespace kvcompress::safetensors
