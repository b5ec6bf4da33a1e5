#include "server/session/stream_memory.h"

#include <algorithm>

namespace kvcompress {

absl::Status StreamMemory::Reserve(const Footprint& footprint, uint64_t reported) {
  reserved_ = true;
  while (!whole_.empty() && whole_.front().number <= reported) whole_.pop_front();
  if (footprint.whole) whole_.push_back({begun_, footprint.tensor_bytes});
  streamed_bytes_ += footprint.tensor_bytes;
  uint64_t bytes = std::min(streamed_bytes_, window_bytes_ + footprint.block_bytes);
  for (const WholeTensor& tensor : whole_) bytes += tensor.bytes;
  return ticket_.Resize(2 * bytes);
}

void StreamMemory::Release() {
  if (streamed_bytes_ == 0) return;
  whole_.clear();
  streamed_bytes_ = 0;
  ticket_.Resize(0).IgnoreError();  // less is always granted
}

}  // namespace kvcompress
