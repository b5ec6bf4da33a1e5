#include "core/base/allocator.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

namespace kvcompress {

void KeepFreedMemory() {
#ifdef __GLIBC__
  constexpr int kMiB = 1 << 20;
  // NOLINTBEGIN(concurrency-mt-unsafe): no thread runs yet
  mallopt(M_MMAP_THRESHOLD, 32 * kMiB);   // the most that glibc takes
  mallopt(M_TRIM_THRESHOLD, 512 * kMiB);  // what the top of a heap may keep
  mallopt(M_TOP_PAD, 16 * kMiB);          // grow in few steps
  // NOLINTEND(concurrency-mt-unsafe)
#endif
}

void KeepFreedChunks() {
#ifdef __GLIBC__
  constexpr size_t kBytes = size_t{31} << 20;
  // NOLINTNEXTLINE(cppcoreguidelines-no-malloc): its allocator is meant
  void* volatile chunk = std::malloc(kBytes);  // is mapped, and never touched
  // NOLINTNEXTLINE(cppcoreguidelines-no-malloc)
  std::free(chunk);
#endif
}

void UseLargePages(MutableByteSpan chunk) {
#ifdef MADV_HUGEPAGE
  constexpr size_t kLeastBytes = size_t{32} << 20;
  if (chunk.size() < kLeastBytes) return;
  void* first_page = chunk.data();
  size_t bytes = chunk.size();
  if (std::align(static_cast<size_t>(sysconf(_SC_PAGESIZE)), 1, first_page, bytes) == nullptr) return;
  (void)madvise(first_page, bytes, MADV_HUGEPAGE);
#endif
}

}  // namespace kvcompress
