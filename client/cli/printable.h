#pragma once

#include <string>
#include <string_view>

namespace kvcompress {

// `text` as one line, whatever names of files and tensors it quotes: escapes all that a terminal would act upon, which
// is control characters (C0, DEL and C1) and bytes that are not UTF-8.
std::string OneLine(std::string_view text);

// The same in quotes, as a JSON string.
std::string Printable(std::string_view text);

}  // namespace kvcompress
