#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace kvcompress {

// The summary of a sweep for a terminal: a row for each spec that has a name or is on the front of the whole file, the
// smallest first, and a table for each link.
std::string SweepTable(const nlohmann::ordered_json& summary);

}  // namespace kvcompress
