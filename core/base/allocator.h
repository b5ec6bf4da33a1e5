#pragma once

#include "core/base/bytes.h"

namespace kvcompress {

// Tells the C library's allocator to keep what is freed for the next allocation instead of returning it to the kernel.
// Blocks and messages are a few hundred KiB each, made and freed all the time: with glibc's defaults every one of them
// is mapped, faulted in page by page and unmapped again, which costs more than the codec's work on it. For the start of
// main(), before the first thread; no effect where the C library is not glibc.
void KeepFreedMemory();

// For a module of a process that is not ours: has glibc do at once what it does by itself where a chunk of nearly 32
// MiB is freed. From then on chunks up to that size are of the heap, and stay with it. Nothing happens where the
// process has settings of its own, by mallopt or the environment.
void KeepFreedChunks();

// For a chunk that glibc has just mapped, and unmaps when it is freed, as it does with all from 32 MiB: asks the kernel
// for large pages, as faulting in small ones costs more than the codec's work. No effect for smaller chunks, and where
// the kernel has no large pages.
void UseLargePages(MutableByteSpan chunk);

}  // namespace kvcompress
