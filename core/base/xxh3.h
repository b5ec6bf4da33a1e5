#pragma once

// XXH3 with the instruction set that the CPU has: two to four times the speed of the baseline's. Not for installed
// headers.
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#else
#define XXH_INLINE_ALL
#include <xxhash.h>
#endif
