#include "server/session/tensor_call.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/base/status_macros.h"
#include "proto/wire/convert.h"
#include "server/session/headers.h"

namespace kvcompress {
namespace {

// The most bytes that are worked on where they came in: some 10 us at the speed of a fast codec.
constexpr size_t kShortBytes = size_t{128} << 10;

void Answer(const TensorReport& report, SessionObserver& observer, v1::CompressTensorResponse& response) {
  ReportCompressed(report, observer, *response.mutable_report());
}
void Answer(const TensorReport& report, SessionObserver& observer, v1::DecompressTensorResponse& response) {
  ToMessage(report.tensor, *response.mutable_header());
  ReportDecompressed(report, observer, *response.mutable_report());
}

absl::Status NoBuffers() { return absl::InvalidArgumentError("buffers are for output of streams"); }

}  // namespace

absl::Status CompressTensorWork::Prepare(const v1::CompressHeader& header, const SessionOptions& options) {
  if (Direction::ToBuffers(header)) return NoBuffers();
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, CompressHeaders().Read(header, options.default_codec));
  KVC_ASSIGN_OR_RETURN(compressor_, TensorCompressor::Create(std::move(job.tensor), job.codec, options.limits));
  return absl::OkStatus();
}

absl::StatusOr<Buffer> CompressTensorWork::Run(std::span<const ByteSpan> values, TensorReport& report) {
  Buffer frame(static_cast<size_t>(max_output_bytes()));
  const absl::StatusOr<size_t> size = values.size() == 1
                                          ? compressor_->Compress(values[0], frame.span(), &report.sums)
                                          : compressor_->CompressPieces(values, frame.span(), &report.sums);
  KVC_ASSIGN_OR_RETURN(report.frame_bytes, size);
  frame.Resize(static_cast<size_t>(report.frame_bytes));
  report.tensor = compressor_->tensor();
  report.codec = compressor_->codec();
  report.codec_name = chain().codec_name();
  report.elements = compressor_->header().elements;
  report.tensor_bytes = compressor_->tensor_bytes();
  return frame;
}

absl::Status DecompressTensorWork::Prepare(const v1::DecompressHeader& header, const SessionOptions& options) {
  name_ = header.name();
  if (Direction::ToBuffers(header)) return NoBuffers();
  KVC_RETURN_IF_ERROR(CheckName(header));
  decompressor_ = TensorDecompressor(options.limits);
  return absl::OkStatus();
}

absl::StatusOr<Buffer> DecompressTensorWork::Run(std::span<const ByteSpan> frames, TensorReport& report) {
  const ByteSpan frame = frames[0];
  Buffer values(static_cast<size_t>(max_output_bytes()));
  if (const absl::Status status = decompressor_.Decompress(frame, values.span()).status(); !status.ok()) {
    return OfTensor(name_, status);
  }
  const FrameHeader& header = decompressor_.header();
  report.tensor = header.tensor;
  report.tensor.name = name_;
  report.codec = header.codec;
  report.codec_name = chain().codec_name();
  report.elements = header.elements;
  report.tensor_bytes = header.tensor_bytes();
  report.frame_bytes = frame.size();
  return values;
}

template <typename Work>
absl::Status TensorCall<Work>::Start(const Request& request, std::vector<Slice> input, const SessionOptions& options,
                                     Admission::Ticket& ticket) {
  pieces_ = std::move(input);
  KVC_RETURN_IF_ERROR(ticket.Count(work_.Prepare(request.header(), options)));
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

template <typename Work>
bool TensorCall<Work>::is_short() const {
  return work_.chain().is_fast() && std::max(input_bytes_, work_.max_output_bytes()) <= kShortBytes;
}

template <typename Work>
absl::StatusOr<Slice> TensorCall<Work>::Run(SessionObserver& observer, Response& response) {
  const auto start = std::chrono::steady_clock::now();
  KVC_ASSIGN_OR_RETURN(Buffer output, work_.Run(input_, report_));
  report_.codec_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Answer(report_, observer, response);
  totals_ = {1, report_.tensor_bytes, report_.frame_bytes};
  return Slice::Of(std::move(output));
}

template class TensorCall<CompressTensorWork>;
template class TensorCall<DecompressTensorWork>;

}  // namespace kvcompress
