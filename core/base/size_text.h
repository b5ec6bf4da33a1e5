#pragma once

#include <cstdint>
#include <string>

namespace kvcompress {

// A number of bytes for people, exact and in the largest unit that it fills: "4194304 bytes (4 MiB)", "12 bytes".
std::string SizeText(uint64_t bytes);

}  // namespace kvcompress
