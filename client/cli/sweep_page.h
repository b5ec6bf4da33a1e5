#pragma once

#include <string_view>

namespace kvcompress {

// The page of -sweep, sweep_page.html, before and after the JSON that it draws.
std::string_view SweepPageBeforeData();
std::string_view SweepPageAfterData();

}  // namespace kvcompress
