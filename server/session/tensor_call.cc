#include "server/session/tensor_call.h"

#include <algorithm>

#include "core/frame_plan.h"
#include "proto/wire/convert.h"
#include "proto/wire/headers/headers.h"

namespace kvcompress {
namespace {

absl::Status NoBuffers() { return absl::InvalidArgumentError("buffers are for output of streams"); }

}  // namespace

bool CompressTensorWork::Recall(std::string_view head, const SessionOptions& options) {
  if (options.plans != nullptr) plan_ = options.plans->Find(head);
  return plan_ != nullptr;
}

void CompressTensorWork::Keep(std::string_view head, const SessionOptions& options) const {
  if (options.plans != nullptr) options.plans->Keep(head, plan_);
}

absl::Status CompressTensorWork::Prepare(const v1::CompressHeader& header, const SessionOptions& options) {
  if (Direction::ToBuffers(header)) return NoBuffers();
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, CompressHeaders().Read(header, options.default_codec));
  KVC_ASSIGN_OR_RETURN(TensorCompressor compressor,
                       TensorCompressor::Create(std::move(job.tensor), job.codec, options.limits));
  plan_ = std::make_shared<const CompressPlan>(CompressPlan{std::move(compressor), std::move(job.policy)});
  return absl::OkStatus();
}

absl::StatusOr<Buffer> CompressTensorWork::Run(std::span<const ByteSpan> values, TensorReport& report) {
  Buffer frame(static_cast<size_t>(max_output_bytes()));
  const absl::StatusOr<size_t> size = values.size() == 1
                                          ? compressor().Compress(values[0], frame.span(), &report.sums)
                                          : compressor().CompressPieces(values, frame.span(), &report.sums);
  KVC_ASSIGN_OR_RETURN(report.frame_bytes, size);
  frame.Resize(static_cast<size_t>(report.frame_bytes));
  Describe(compressor().header(), chain(), report);
  report.policy = plan_->policy;
  report.nonfinite_blocks = compressor().FallbackBlocks(frame.span());
  return frame;
}

void CompressTensorWork::Answer(const TensorReport& report, SessionObserver& observer,
                                v1::CompressTensorResponse& response) {
  ReportCompressed(report, observer, *response.mutable_report());
}

absl::Status DecompressTensorWork::Prepare(const v1::DecompressHeader& header, const SessionOptions& options) {
  name_ = header.name();
  fingerprint_ = header.fingerprint();
  if (header.has_frame_bytes()) frame_bytes_ = header.frame_bytes();
  if (Direction::ToBuffers(header)) return NoBuffers();
  KVC_RETURN_IF_ERROR(CheckHeader(header));
  decompressor_ = TensorDecompressor(options.limits);
  return absl::OkStatus();
}

absl::StatusOr<Buffer> DecompressTensorWork::Run(std::span<const ByteSpan> frames, TensorReport& report) {
  const uint64_t came = frames[0].size();
  const uint64_t told = frame_bytes_.value_or(came);
  const ByteSpan frame = frames[0].first(static_cast<size_t>(std::min(came, told)));
  Buffer values(static_cast<size_t>(max_output_bytes()));
  if (const absl::Status status = decompressor_.Decompress(frame, values.span(), fingerprint_).status(); !status.ok()) {
    return OfTensor(name_, status);
  }
  if (told != came) {
    return OfTensor(name_, told > came ? FrameEndsEarly(came, told) : BytesBehindFrame(came - told));
  }
  Describe(decompressor_.header(), chain(), report);
  report.tensor.name = name_;
  report.frame_bytes = frame.size();
  return values;
}

void DecompressTensorWork::Answer(const TensorReport& report, SessionObserver& observer,
                                  v1::DecompressTensorResponse& response) {
  ToMessage(report.tensor, *response.mutable_header());
  ReportDecompressed(report, observer, *response.mutable_report());
}

}  // namespace kvcompress
