#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/slice.h"
#include "core/output_buffer.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "server/shm/regions.h"
#include "server/shm/strided_bytes.h"

namespace kvcompress {

// Input that is gathered from pieces of a region; `owner` holds the region, and says by its end that it is read.
struct StridedInput {
  StridedBytes bytes;
  std::shared_ptr<const void> owner;
};

// What a stream uses of registered regions: ranges that stand for its input, and buffers for its output. Thread-safe.
// What a region that is not there, or not whole, leads to has the reason SHARED_MEMORY_LOST.
//
// All output passes through Fill, in order, which copies it to the buffers. Where the sizes of the output are known
// ahead, blocks Take their parts of the buffers before they are made: Fill finds them there, and copies nothing.
class StreamRegions final : public OutputBuffers {
 public:
  // `table` may be null: then every range is FAILED_PRECONDITION.
  explicit StreamRegions(const RegionTable* table) : table_(table) {}

  // FAILED_PRECONDITION where no range can be used.
  absl::Status CheckEnabled() const;

  // The bytes of a range of input. NOT_FOUND for an unknown region, INVALID_ARGUMENT past its end.
  absl::StatusOr<Slice> Input(const v1::SharedMemoryRange& range);
  // The same of a range with levels.
  absl::StatusOr<StridedInput> Strided(const v1::SharedMemoryRange& range);
  // How many bytes of input, counted from the first range on, nobody reads any more.
  uint64_t released() const;

  // The errors of Input, and INVALID_ARGUMENT for a range that is empty, in pieces, or of another program's memory.
  absl::Status AddBuffer(const v1::SharedMemoryRange& range);
  bool has_buffer() const;

  // The output of another tensor will follow; `joined`: it shares its last buffer with the tensor after it.
  void BeginTensor(bool joined = false);
  OutputBuffer Take(uint64_t size, bool last) override;

  struct Filled {
    v1::SharedMemoryRange range;
    bool buffer_is_full = false;
  };
  // Moves bytes from the front of `bytes` to the end of what the current buffer holds, as many as it takes, and says
  // where they are; those that lie there already stay. Only while has_buffer(); one thread at a time.
  Filled Fill(std::vector<Slice>& bytes);
  // All output of the tensor has passed. Unless it is joined, what is left of a buffer that is in use stays unused.
  void EndTensor(bool joined = false);

  // FAILED_PRECONDITION once a region that this stream has used lost memory: what was read or written there is void.
  absl::Status Check() const;

 private:
  struct GivenBuffer {
    uint64_t region;
    uint64_t offset;
    MutableByteSpan bytes;
    std::shared_ptr<SharedRegion> owner;
    size_t filled = 0;
    size_t taken = 0;
  };
  // Output that asked for a part of a buffer before there was one.
  struct Debt {
    uint64_t bytes;
    bool last;
  };
  // Which ranges of input are still in use; shared with their slices, which may outlive the stream.
  struct Releases {
    struct Range {
      uint64_t bytes;
      bool released = false;
    };
    void Release(uint64_t number);

    mutable absl::Mutex mutex;
    std::deque<Range> ranges ABSL_GUARDED_BY(mutex);
    uint64_t first ABSL_GUARDED_BY(mutex) = 0;  // number of ranges.front()
    uint64_t bytes ABSL_GUARDED_BY(mutex) = 0;  // of all before it
  };

  absl::StatusOr<std::shared_ptr<SharedRegion>> Use(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What holds the region until it is let go of, which releases that many bytes of input.
  std::shared_ptr<const void> HoldInput(std::shared_ptr<SharedRegion> region, uint64_t bytes);
  absl::StatusOr<MutableByteSpan> Resolve(const v1::SharedMemoryRange& range, std::shared_ptr<SharedRegion>& owner)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PopBuffer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Settle(Debt& debt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const RegionTable* const table_;
  const std::shared_ptr<Releases> releases_ = std::make_shared<Releases>();
  mutable absl::Mutex mutex_;
  std::map<uint64_t, std::shared_ptr<SharedRegion>> used_ ABSL_GUARDED_BY(mutex_);  // by their ids
  std::deque<GivenBuffer> buffers_ ABSL_GUARDED_BY(mutex_);

  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;  // tensors
  uint64_t ended_ ABSL_GUARDED_BY(mutex_) = 0;
  bool joined_ ABSL_GUARDED_BY(mutex_) = false;  // the last tensor that was begun
  // Whether it is known where all output so far will be.
  bool foreseen_ ABSL_GUARDED_BY(mutex_) = true;
  bool all_taken_ ABSL_GUARDED_BY(mutex_) = true;  // of the last tensor that was begun
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;        // index of the buffer that Take takes from
  std::deque<Debt> debts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvcompress
