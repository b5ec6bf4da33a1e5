#include "server/session/stream_work.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "proto/wire/convert.h"

namespace kvcompress {

void ReportCompressed(const TensorReport& report, SessionObserver& observer, v1::TensorReport& message) {
  const Quality quality = QualityOf(report.sums, KindOf(report.tensor.name));
  std::vector<Violation> violations = CheckThresholds(quality);
  observer.OnCompressed(report, quality, violations);
  ToMessage(report, quality, std::move(violations), message);
}

void ReportDecompressed(const TensorReport& report, SessionObserver& observer, v1::TensorReport& message) {
  ToMessage(report, message);
  observer.OnDecompressed(report);
}

namespace {

void ToMessage(const StreamTotals& totals, double seconds, v1::StreamReport& message) {
  message.set_tensors(totals.tensors);
  message.set_tensor_bytes(totals.tensor_bytes);
  message.set_frame_bytes(totals.frame_bytes);
  message.set_seconds(seconds);
  message.set_passed_through_tensors(totals.passed_through_tensors);
  message.set_passed_through_bytes(totals.passed_through_bytes);
}

}  // namespace

absl::Status CompressStreamWork::Begin(Stream& stream, const v1::CompressHeader& header, const SessionOptions& options,
                                       OutputBuffers* buffers) {
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, headers_.Read(header, options.default_codec));
  {
    const absl::MutexLock lock(&policies_mutex_);
    policies_.push_back(std::move(job.policy));
  }
  return stream.Begin(std::move(job.tensor), job.codec, buffers);
}

absl::StatusOr<uint64_t> CompressStreamWork::InputBytes(const Stream& stream, const v1::CompressHeader&) {
  const std::optional<Footprint> footprint = stream.footprint();
  return footprint ? footprint->tensor_bytes : 0;
}

void CompressStreamWork::OnFrame(Slice bytes) {
  outbox_.AddBytes(bytes);
  on_change_(Change::kBytes);
}

void CompressStreamWork::OnTensor(const TensorReport& report) {
  v1::CompressResponse response;
  ReportCompressed(report, observer_, *response.mutable_tensor());
  {
    const absl::MutexLock lock(&policies_mutex_);
    response.mutable_tensor()->set_policy(std::move(policies_.front()));
    policies_.pop_front();
  }
  merger_.Add(report.tensor.name, report.sums);
  Finish(report, std::move(response));
}

void CompressStreamWork::SendStreamReport(double seconds) {
  const StreamTotals sums = totals();
  v1::CompressResponse response;
  v1::StreamReport& message = *response.mutable_stream();
  ToMessage(sums, seconds, message);
  if (sums.tensors > 0) {
    const std::optional<QualityLevel> level = merger_.Level();
    const Quality total = merger_.ElementWeighted();
    kvcompress::ToMessage(merger_.Mean(), level, *message.mutable_quality());
    kvcompress::ToMessage(total, level ? std::optional(LevelOf(total)) : level, *message.mutable_element_weighted());
    message.set_worst_tensor(merger_.worst_tensor());
    for (const Violation& violation : merger_.Violations()) message.add_violations(violation.text);
  }
  outbox_.Add(std::move(response));
}

absl::Status DecompressStreamWork::Begin(Stream& stream, const v1::DecompressHeader& header, const SessionOptions&,
                                         OutputBuffers* buffers) {
  KVC_RETURN_IF_ERROR(CheckHeader(header));
  const std::optional<uint64_t> size = header.has_frame_bytes() ? std::optional(header.frame_bytes()) : std::nullopt;
  return stream.Begin(header.name(), buffers, header.fingerprint(), size);
}

absl::StatusOr<uint64_t> DecompressStreamWork::InputBytes(const Stream&, const v1::DecompressHeader& header) {
  if (header.has_frame_bytes()) return header.frame_bytes();
  return absl::InvalidArgumentError(
      absl::StrFormat("tensor \"%s\": a frame in a batch whose size is not told", header.name()));
}

void DecompressStreamWork::OnHeader(const TensorDesc& tensor, uint64_t /*elements*/) {
  v1::DecompressResponse response;
  kvcompress::ToMessage(tensor, *response.mutable_header());
  outbox_.Add(std::move(response));
  on_change_(Change::kEnd);
}

void DecompressStreamWork::OnData(Slice values) {
  outbox_.AddBytes(values);
  on_change_(Change::kBytes);
}

void DecompressStreamWork::OnTensor(const TensorReport& report) {
  v1::DecompressResponse response;
  ReportDecompressed(report, observer_, *response.mutable_tensor());
  Finish(report, std::move(response));
}

void DecompressStreamWork::SendStreamReport(double seconds) {
  v1::DecompressResponse response;
  ToMessage(totals(), seconds, *response.mutable_stream());
  outbox_.Add(std::move(response));
}

}  // namespace kvcompress
