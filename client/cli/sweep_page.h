#pragma once

#include <string_view>

namespace kvcompress {

// The page of -sweep, sweep_page.html, around the JSON that it draws.
std::string_view SweepPageBeforeData();
std::string_view SweepPageBehindData();

}  // namespace kvcompress
