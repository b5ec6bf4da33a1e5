#pragma once

#include <algorithm>
#include <optional>
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

// A message on its way into a stream: a header, or bytes.
template <typename Request>
struct Input {
  Request message = {};  // of a header
  std::vector<Slice> bytes = {};
  size_t next = 0;                           // index in `bytes`: the slices before it are taken
  std::optional<StridedInput> strided = {};  // gathered into `bytes` a part at a time
  size_t header_bytes = 0;                   // memory that the header takes
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

  // Takes a header, or bytes up to the end of a block.
  absl::Status TakePart(Input<typename Direction::Request>& input) {
    if (input.taken()) return absl::OkStatus();
    if (input.is_header) return TakeHeader(input);
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
      KVC_RETURN_IF_ERROR(memory_.ticket().Count(Work::AppendPart(stream_, bytes)));
    }
    const size_t after = bytes.bytes.size();
    if (after == 0) {
      bytes.owner = nullptr;
      ++input.next;
    }
    KVC_RETURN_IF_ERROR(Reserve());
    return memory_.Back(before - after + stream_.values_taken() - values_before);
  }

  // A stream that waits for its client holds no memory.
  void ReleaseIfIdle() {
    if (work_.totals().tensors == memory_.begun() && work_.outbox().empty()) memory_.Release();
  }
  // Whose stream it is.
  const std::string& client() { return memory_.ticket().client(); }
  // Gives back what the stream was admitted with.
  void Settle() { memory_.ticket().Settle(); }

 private:
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

  absl::Status TakeHeader(Input<typename Direction::Request>& input) {
    input.header_taken = true;
    if (!input.message.has_header()) return absl::InvalidArgumentError("message without a payload");
    const auto& header = input.message.header();
    const bool to_buffers = Direction::ToBuffers(header);
    outlet_.BeginTensor(to_buffers);
    regions_.BeginTensor();
    KVC_RETURN_IF_ERROR(
        memory_.ticket().Count(work_.Begin(stream_, header, options_, to_buffers ? &regions_ : nullptr)));
    memory_.BeginTensor();
    return Reserve();
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
};

}  // namespace kvcompress
