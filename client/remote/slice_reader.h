#pragma once

#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "core/base/byte_source.h"
#include "core/base/slice.h"

namespace kvcompress {

// Makes slices of sources: of the source's own memory if it lies in memory, else of memory that it is read into, which
// is used again when nobody holds the slice any more.
class SliceReader {
 public:
  SliceReader() : pool_(std::make_shared<Pool>()) {}

  absl::StatusOr<Slice> Read(const ByteSource& source, uint64_t offset, size_t count);

  // Waits until nobody holds slices of the sources' own memory; false when some still did at `limit`.
  bool WaitUntilReleased(absl::Time limit);

 private:
  using Scratch = std::unique_ptr<std::vector<std::byte>>;

  // Shared with the slices, which may outlive the reader.
  struct Pool {
    absl::Mutex mutex;
    std::vector<Scratch> idle ABSL_GUARDED_BY(mutex);
    bool borrowed ABSL_GUARDED_BY(mutex) = false;  // memory of the sources' own
  };

  std::shared_ptr<Pool> pool_;
  std::shared_ptr<const void> loan_;  // owner of all slices of the sources' own memory
};

}  // namespace kvcompress
