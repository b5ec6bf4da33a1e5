#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "proto/wire/direction.h"
#include "server/session/admission.h"
#include "server/session/options.h"
#include "server/session/stream_work.h"

namespace kvcompress {

// The work on one tensor in each direction, in the order of the calls.
class CompressTensorWork {
 public:
  using Direction = CompressDirection;

  // Checks everything but the values.
  absl::Status Prepare(const v1::CompressHeader& header, const SessionOptions& options);
  // Whether Run takes the input in pieces, at most kMaxBlockPieces.
  bool takes_pieces() const { return compressor_->takes_pieces(); }
  // Reads what the input says of itself.
  absl::Status Open(ByteSpan) { return absl::OkStatus(); }
  const CodecChain& chain() const { return compressor_->chain(); }
  uint64_t max_output_bytes() const { return compressor_->max_frame_bytes(); }
  // Makes the output, and fills in the report.
  absl::StatusOr<Buffer> Run(std::span<const ByteSpan> values, TensorReport& report);

 private:
  std::optional<TensorCompressor> compressor_;
};

class DecompressTensorWork {
 public:
  using Direction = DecompressDirection;

  absl::Status Prepare(const v1::DecompressHeader& header, const SessionOptions& options);
  bool takes_pieces() const { return false; }
  absl::Status Open(ByteSpan frame) { return OfTensor(name_, decompressor_.ReadHeader(frame)); }
  const CodecChain& chain() const { return decompressor_.chain(); }
  uint64_t max_output_bytes() const { return decompressor_.header().tensor_bytes(); }
  absl::StatusOr<Buffer> Run(std::span<const ByteSpan> frames, TensorReport& report);

 private:
  std::string name_;
  TensorDecompressor decompressor_;
};

// A call for one tensor, without a transport: the input comes and the output goes as slices, and the thread that calls
// does the work.
template <typename Work>
class TensorCall {
 public:
  using Direction = typename Work::Direction;
  using Request = typename Direction::TensorRequest;
  using Response = typename Direction::TensorResponse;

  // Takes the request, whose bytes are `input`, and asks for the memory that the rest needs.
  absl::Status Start(const Request& request, std::vector<Slice> input, const SessionOptions& options,
                     Admission::Ticket& ticket);

  // Whether Run takes less time than the way to another thread.
  bool is_short() const;

  // Returns the output, and fills in the rest of the response. After Start.
  absl::StatusOr<Slice> Run(SessionObserver& observer, Response& response);

  // Of the tensor, once it is done.
  const StreamTotals& totals() const { return totals_; }

 private:
  Work work_;
  std::vector<Slice> pieces_;    // of the input
  std::vector<ByteSpan> input_;  // the bytes of pieces_; one of no bytes where there is none
  uint64_t input_bytes_ = 0;
  TensorReport report_;
  StreamTotals totals_;
};

extern template class TensorCall<CompressTensorWork>;
extern template class TensorCall<DecompressTensorWork>;

using CompressTensorCall = TensorCall<CompressTensorWork>;
using DecompressTensorCall = TensorCall<DecompressTensorWork>;

}  // namespace kvcompress
