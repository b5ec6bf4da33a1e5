#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/tensor_decompressor.h"
#include "proto/wire/direction.h"
#include "server/session/admission.h"
#include "server/session/compress_plans.h"
#include "server/session/options.h"
#include "server/session/stream_work.h"

namespace kvcompress {

// The work on one tensor in each direction, in the order of the calls.
class CompressTensorWork {
 public:
  using Direction = CompressDirection;

  // Takes the plan of a request that begins with these bytes before its tensor, if it is kept: then it is prepared.
  bool Recall(std::string_view head, const SessionOptions& options);
  // Keeps its plan for the next such request.
  void Keep(std::string_view head, const SessionOptions& options) const;
  // Checks everything but the values.
  absl::Status Prepare(const v1::CompressHeader& header, const SessionOptions& options);
  // Whether Run takes the input in pieces, at most kMaxBlockPieces.
  bool takes_pieces() const { return compressor().takes_pieces(); }
  // Reads what the input says of itself.
  absl::Status Open(ByteSpan) { return absl::OkStatus(); }
  const CodecChain& chain() const { return compressor().chain(); }
  uint64_t max_output_bytes() const { return compressor().max_frame_bytes(); }
  // Makes the output, and fills in the report.
  absl::StatusOr<Buffer> Run(std::span<const ByteSpan> values, TensorReport& report);
  static void Answer(const TensorReport& report, SessionObserver& observer, v1::CompressTensorResponse& response);

 private:
  const TensorCompressor& compressor() const { return plan_->compressor; }

  std::shared_ptr<const CompressPlan> plan_;
};

class DecompressTensorWork {
 public:
  using Direction = DecompressDirection;

  static bool Recall(std::string_view, const SessionOptions&) { return false; }
  static void Keep(std::string_view, const SessionOptions&) {}
  absl::Status Prepare(const v1::DecompressHeader& header, const SessionOptions& options);
  bool takes_pieces() const { return false; }
  absl::Status Open(ByteSpan frame) { return OfTensor(name_, decompressor_.ReadHeader(frame, fingerprint_)); }
  const CodecChain& chain() const { return decompressor_.chain(); }
  uint64_t max_output_bytes() const { return decompressor_.header().tensor_bytes(); }
  absl::StatusOr<Buffer> Run(std::span<const ByteSpan> frames, TensorReport& report);
  static void Answer(const TensorReport& report, SessionObserver& observer, v1::DecompressTensorResponse& response);

 private:
  std::string name_;
  std::string fingerprint_;              // that is expected
  std::optional<uint64_t> frame_bytes_;  // that the frame is said to have
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

  // Whether requests before have told what this one has before its tensor, of which `head` is the bytes: then Start
  // looks at no field of it.
  bool Recall(std::string_view head, const SessionOptions& options) {
    return is_recalled_ = work_.Recall(head, options);
  }
  // Lets the next request with this head recall it. After Start.
  void Keep(std::string_view head, const SessionOptions& options) const {
    if (!is_recalled_) work_.Keep(head, options);
  }

  // Takes the request, whose bytes are `input`, and asks for the memory that the rest needs.
  absl::Status Start(const Request& request, std::vector<Slice> input, const SessionOptions& options,
                     Admission::Ticket& ticket) {
    pieces_ = std::move(input);
    if (!is_recalled_) KVC_RETURN_IF_ERROR(ticket.Count(work_.Prepare(request.header(), options)));
    // The input stays as it came only where the codec takes it so.
    const bool as_it_came = work_.takes_pieces() && pieces_.size() <= kMaxBlockPieces;
    if (pieces_.size() > 1 && !as_it_came) {
      Buffer whole;
      Gather(pieces_, whole);
      report_.copied_bytes = whole.size();
      pieces_ = {Slice::Of(std::move(whole))};
    }
    for (const Slice& piece : pieces_) {
      input_.push_back(piece.bytes);
      input_bytes_ += piece.bytes.size();
    }
    if (input_.empty()) input_.emplace_back();
    KVC_RETURN_IF_ERROR(ticket.Count(work_.Open(input_[0])));
    return ticket.Resize(input_bytes_ + work_.max_output_bytes());
  }

  // Whether Run takes less time than the way to another thread.
  bool is_short() const { return work_.chain().IsShort(std::max(input_bytes_, work_.max_output_bytes())); }

  // Returns the output, and fills in the rest of the response. After Start.
  absl::StatusOr<Slice> Run(SessionObserver& observer, Response& response) {
    const auto start = std::chrono::steady_clock::now();
    KVC_ASSIGN_OR_RETURN(Buffer output, work_.Run(input_, report_));
    report_.codec_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    work_.Answer(report_, observer, response);
    totals_ = {.tensors = 1, .tensor_bytes = report_.tensor_bytes, .frame_bytes = report_.frame_bytes};
    return Slice::Of(std::move(output));
  }

  // Of the tensor, once it is done.
  const StreamTotals& totals() const { return totals_; }

 private:
  Work work_;
  bool is_recalled_ = false;
  std::vector<Slice> pieces_;    // of the input
  std::vector<ByteSpan> input_;  // the bytes of pieces_; one of no bytes where there is none
  uint64_t input_bytes_ = 0;
  TensorReport report_;
  StreamTotals totals_;
};

using CompressTensorCall = TensorCall<CompressTensorWork>;
using DecompressTensorCall = TensorCall<DecompressTensorWork>;

}  // namespace kvcompress
