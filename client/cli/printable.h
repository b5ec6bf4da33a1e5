#pragma once

#include <string>
#include <string_view>

namespace kvcompress {

// `text` with everything escaped that a terminal would act upon: control characters (C0, DEL and C1), and bytes that
// are no UTF-8. One line, whatever names of files and tensors stand in it.
std::string OneLine(std::string_view text);

// The same in quotes, as a JSON string.
std::string Printable(std::string_view text);

}  // namespace kvcompress
