#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <utility>

#include "absl/status/status.h"
#include "core/tensor_report.h"
#include "server/session/admission.h"

namespace kvcompress {

// The memory that a stream has asked its admission for. With each tensor it asks for all that the stream may hold: for
// tensors that pass through, up to the window and one block more; for tensors that are held whole, all their bytes.
// Both count twice, for input and for output. Until as much has come it is a promise that gives way to the work of
// others. Headers that wait count besides. One thread at a time.
class StreamMemory {
 public:
  StreamMemory(Admission::Ticket ticket, uint64_t window_bytes)
      : ticket_(std::move(ticket)), window_bytes_(window_bytes) {}

  void BeginTensor() {
    ++begun_;
    reserved_ = false;
  }
  // Tensors that were begun.
  uint64_t begun() const { return begun_; }

  // Whether the current tensor's memory is asked for.
  bool is_reserved() const { return reserved_; }
  // Asks for the current tensor; `reported` of the stream's tensors are done. RESOURCE_EXHAUSTED when the budget does
  // not have it.
  absl::Status Reserve(const Footprint& footprint, uint64_t reported) {
    reserved_ = true;
    for (; !whole_.empty() && whole_.front().number <= reported; whole_.pop_front()) {
      backed_ -= std::min(backed_, 2 * whole_.front().bytes);
    }
    if (footprint.whole) whole_.push_back({begun_, footprint.tensor_bytes});
    streamed_bytes_ += footprint.tensor_bytes;
    uint64_t bytes = std::min(streamed_bytes_, window_bytes_ + footprint.block_bytes);
    for (const WholeTensor& tensor : whole_) bytes += tensor.bytes;
    promised_ = 2 * bytes;
    backed_ = std::min(backed_, promised_);
    return Promise();
  }
  // So many bytes of what it was asked for have come, or will come out of what has. RESOURCE_EXHAUSTED when the promise
  // had to give way, and the budget does not have it any more.
  absl::Status Back(uint64_t bytes) {
    if (backed_ == promised_) return absl::OkStatus();
    backed_ = std::min(backed_ + bytes, promised_);
    return Promise();
  }
  // The headers that wait take so many bytes. RESOURCE_EXHAUSTED when the budget does not have them.
  absl::Status HoldHeaders(uint64_t bytes) {
    return std::exchange(header_bytes_, bytes) == bytes ? absl::OkStatus() : Promise();
  }
  // Gives all of it back but for headers: the stream holds nothing else.
  void Release() {
    if (streamed_bytes_ == 0) return;
    whole_.clear();
    streamed_bytes_ = 0;
    promised_ = 0;
    backed_ = 0;
    Promise().IgnoreError();  // less is always granted
  }

  Admission::Ticket& ticket() { return ticket_; }

 private:
  struct WholeTensor {
    uint64_t number;
    uint64_t bytes;
  };

  absl::Status Promise() { return ticket_.Promise(promised_ + header_bytes_, backed_ + header_bytes_); }

  Admission::Ticket ticket_;
  const uint64_t window_bytes_;
  uint64_t begun_ = 0;
  bool reserved_ = true;
  uint64_t streamed_bytes_ = 0;  // of tensors since the stream last held nothing
  uint64_t promised_ = 0;
  uint64_t backed_ = 0;
  uint64_t header_bytes_ = 0;
  std::deque<WholeTensor> whole_;  // tensors that are held whole until their reports are out
};

}  // namespace kvcompress
