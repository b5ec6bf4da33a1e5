#pragma once

#include <nanobind/nanobind.h>

namespace kvcompress {

// Adds compress and decompress to the module: whole calls of one tensor or frame, from Python's arguments to its
// result.
void BindPlainCalls(nanobind::module_& module);

}  // namespace kvcompress
