#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "core/base/slice.h"
#include "core/base/status_macros.h"
#include "server/session/options.h"
#include "server/session/outlet.h"
#include "server/session/stream_memory.h"
#include "server/session/stream_regions.h"
#include "server/session/stream_work.h"

namespace kvcompress {

// A message on its way into a stream: one or more headers, or bytes.
template <typename Request>
struct Input {
  Request message = {};  // of headers
  std::vector<Slice> bytes = {};
  size_t next = 0;                           // index in `bytes`: the slices before it are taken
  std::optional<StridedInput> strided = {};  // gathered into `bytes` a part at a time
  size_t header_bytes = 0;                   // memory that the headers take
  // What the input is stays as it is, because others read it while one thread takes the input.
  bool is_header = false;
  bool is_shared = false;  // the bytes are a range of a region
  bool header_taken = false;

  bool taken() const {
    return is_header ? header_taken : next == bytes.size() && (!strided || strided->bytes.left() == 0);
  }
};

// Puts the input of a session into its stream, and asks for the memory that each tensor needs. One thread at a time.
template <typename Work>
class Feeder {
 public:
  using Direction = typename Work::Direction;
  using Stream = typename Work::Stream;

  // `stream` need not be constructed yet.
  Feeder(const SessionOptions& options, Admission::Ticket ticket, Work& work, Stream& stream, StreamRegions& regions,
         Outlet<Direction>& outlet)
      : options_(options),
        work_(work),
        stream_(stream),
        regions_(regions),
        outlet_(outlet),
        memory_(std::move(ticket), options.window_bytes) {}

  // Takes headers, or bytes up to the end of a block.
  absl::Status TakePart(Input<typename Direction::Request>& input) {
    if (input.taken()) return absl::OkStatus();
    if (input.is_header) return TakeHeaders(input);
    if (input.next == input.bytes.size()) GatherPart(input);
    Slice& bytes = input.bytes[input.next];
    const size_t before = bytes.bytes.size();
    const uint64_t values_before = stream_.values_taken();
    if (before > 0) {
      if (!stream_.in_tensor()) {
        return absl::InvalidArgumentError(memory_.begun() == 0
                                              ? "data before the tensor's header"
                                              : "data behind the tensor's last byte, before the next header");
      }
      KVC_RETURN_IF_ERROR(Append(bytes));
    }
    const size_t after = bytes.bytes.size();
    if (after == 0) {
      bytes.owner = nullptr;
      ++input.next;
    }
    KVC_RETURN_IF_ERROR(Reserve());
    KVC_RETURN_IF_ERROR(memory_.Back(before - after + stream_.values_taken() - values_before));
    return BeginTensors();
  }

  // What waits to be taken has headers of so many bytes. RESOURCE_EXHAUSTED when the budget does not have them.
  absl::Status HoldWaiting(size_t header_bytes) {
    waiting_bytes_ = header_bytes;
    return memory_.HoldHeaders(waiting_bytes_ + batch_bytes_);
  }

  // A stream that waits for its client holds no memory but for headers.
  void ReleaseIfIdle() {
    if (work_.totals().tensors == memory_.begun() && work_.outbox().empty()) memory_.Release();
  }
  // Whose stream it is.
  const std::string& client() { return memory_.ticket().client(); }
  // Gives back what the stream was admitted with.
  void Settle() { memory_.ticket().Settle(); }

 private:
  using Headers = decltype(typename Direction::Request().batch().headers());
  using Header = typename std::remove_cvref_t<Headers>::value_type;

  static void GatherPart(Input<typename Direction::Request>& input) {
    // Whole blocks of any dtype, so that none is put together again.
    constexpr uint64_t kPartBytes = uint64_t{1} << 20;
    Buffer part;
    part.Resize(std::min(kPartBytes, input.strided->bytes.left()));
    input.strided->bytes.Read(part.span());
    if (input.strided->bytes.left() == 0) input.strided->owner = nullptr;
    input.bytes = {Slice::Of(std::move(part))};
    input.next = 0;
  }

  absl::Status TakeHeaders(Input<typename Direction::Request>& input) {
    input.header_taken = true;
    auto& message = input.message;
    if (!message.has_header() && !message.has_batch()) {
      return absl::InvalidArgumentError("message without a payload");
    }
    // A tensor that is not complete refuses those that are to follow it.
    if (stream_.in_tensor()) return Begin(message.has_header() ? message.header() : message.batch().headers(0));
    is_batch_ = message.has_batch();
    headers_.Clear();
    next_ = 0;
    if (is_batch_) {
      headers_.Swap(message.mutable_batch()->mutable_headers());
      batch_bytes_ = input.header_bytes;
    } else {
      headers_.Add(std::move(*message.mutable_header()));
    }
    return BeginTensors();
  }

  // Begins the tensors of the headers up to the first that waits for bytes.
  absl::Status BeginTensors() {
    while (next_ < headers_.size() && !stream_.in_tensor()) {
      const Header& header = headers_[next_++];
      KVC_RETURN_IF_ERROR(Begin(header));
      left_ = UINT64_MAX;
      if (is_batch_) {
        KVC_ASSIGN_OR_RETURN(left_, Work::InputBytes(stream_, header));
      }
    }
    if (next_ == headers_.size() && batch_bytes_ > 0) {
      headers_ = {};  // Clear keeps the memory
      next_ = 0;
      batch_bytes_ = 0;
    }
    return memory_.HoldHeaders(waiting_bytes_ + batch_bytes_);
  }

  absl::Status Begin(const Header& header) {
    const bool to_buffers = Direction::ToBuffers(header);
    const bool joined = is_batch_ && next_ < headers_.size();
    outlet_.BeginTensor({.to_buffers = to_buffers, .in_batch = is_batch_, .joined = joined});
    regions_.BeginTensor(joined);
    KVC_RETURN_IF_ERROR(
        memory_.ticket().Count(work_.Begin(stream_, header, options_, to_buffers ? &regions_ : nullptr)));
    memory_.BeginTensor();
    return Reserve();
  }

  // Takes bytes of the current tensor from the front of `bytes`.
  absl::Status Append(Slice& bytes) {
    const auto size = static_cast<size_t>(std::min<uint64_t>(left_, bytes.bytes.size()));
    Slice part = bytes.Sub(0, size);
    KVC_RETURN_IF_ERROR(memory_.ticket().Count(Work::AppendPart(stream_, part)));
    const size_t taken = size - part.bytes.size();
    bytes.bytes = bytes.bytes.subspan(taken);
    left_ -= taken;
    return left_ > 0 || !stream_.in_tensor() ? absl::OkStatus() : stream_.Finish();
  }

  absl::Status Reserve() {
    if (memory_.is_reserved()) return absl::OkStatus();
    const std::optional<Footprint> footprint = stream_.footprint();
    return footprint ? memory_.Reserve(*footprint, work_.totals().tensors) : absl::OkStatus();
  }

  const SessionOptions& options_;
  Work& work_;
  Stream& stream_;
  StreamRegions& regions_;
  Outlet<Direction>& outlet_;
  StreamMemory memory_;
  std::remove_cvref_t<Headers> headers_;  // of one message
  int next_ = 0;                          // index of the first that is not begun
  bool is_batch_ = false;
  size_t batch_bytes_ = 0;    // memory that they take while they are those of a batch, and not all begun
  size_t waiting_bytes_ = 0;  // that the headers in front of the stream take
  uint64_t left_ = 0;         // bytes of the current tensor's input that are still to come; of a single one, UINT64_MAX
};

}  // namespace kvcompress
