#pragma once

#include <string>

namespace kvcompress {

// The text of an error, followed by what the user of the command line can do about it where a flag helps. Libraries and
// daemons, which these texts come from, do not know the command line's flags.
std::string WithAdvice(const std::string& error);

}  // namespace kvcompress
