#pragma once

#include <nanobind/nanobind.h>

namespace kvcompress {

// Adds MessageCall to the module: the classes Channel and Call, and the function end.
void BindCalls(nanobind::module_& module);

}  // namespace kvcompress
