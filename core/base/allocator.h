#pragma once

namespace kvcompress {

// Tells the C library's allocator to keep what is freed for the next allocation instead of returning it to the kernel.
// Blocks and messages are a few hundred KiB each, made and freed all the time: with glibc's defaults every one of them
// is mapped, faulted in page by page and unmapped again, which costs more than the codec's work on it. For the start of
// main(), before the first thread; no effect where the C library is not glibc.
void KeepFreedMemory();

}  // namespace kvcompress
