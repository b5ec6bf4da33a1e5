#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "client/file/file_rotary.h"

// How what is printed tells of a rotary embedding that was undone.
namespace kvcompress {

// For -verbose: a line with its end.
std::string RotaryLine(const RotaryUse& use);

// theta, pairs, dims, offset, start, from (docs/cli.md).
nlohmann::ordered_json RotaryJson(const RotaryUse& use);

}  // namespace kvcompress
