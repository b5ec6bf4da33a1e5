#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/base/byte_source.h"
#include "core/codec/chain.h"
#include "core/frame/frame.h"
#include "core/tensor_report.h"

namespace kvcompress {

// The values of a frame that lies in a source: a block is decoded when some of it is asked for, and some are kept, so
// that neither frame nor tensor must fit into memory. Of the frame's end only the size is checked.
class FrameValues final : public ByteSource {
 public:
  // `frame` must outlive it. Decoded blocks are kept up to `max_kept_bytes`, the last one in any case; those go that
  // were used least recently. Errors of TensorDecompressor, for what the block headers tell of the whole frame.
  static absl::StatusOr<std::unique_ptr<FrameValues>> Open(const ByteSource& frame, uint64_t max_kept_bytes,
                                                           const Limits& limits = {});

  const FrameHeader& header() const { return header_; }

  uint64_t size() const override { return header_.tensor_bytes(); }
  // Copies into `scratch`. DATA_LOSS, naming the block, where one is damaged.
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override;

 private:
  struct Place {
    uint64_t offset = 0;  // of the payload
    uint32_t bytes = 0;
    uint64_t checksum = 0;
  };
  struct Kept {
    uint64_t index = 0;
    uint64_t last_use = 0;
    std::vector<std::byte> values;
  };

  FrameValues(const ByteSource& frame, uint64_t max_kept_bytes, FrameHeader header, CodecChain chain)
      : frame_(frame), max_kept_bytes_(max_kept_bytes), header_(std::move(header)), chain_(std::move(chain)) {}

  absl::Status FindBlocks(uint64_t header_bytes);
  absl::StatusOr<ByteSpan> Block(uint64_t index) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ByteSource& frame_;
  const uint64_t max_kept_bytes_;
  const FrameHeader header_;
  const CodecChain chain_;
  std::vector<Place> blocks_;

  mutable absl::Mutex mutex_;
  mutable std::vector<Kept> kept_ ABSL_GUARDED_BY(mutex_);
  mutable uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvcompress
