#include "client/remote/jobs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"
#include "core/frame_plan.h"
#include "core/tensor_decompressor.h"

namespace kvcompress {

std::optional<uint64_t> MaxOutputBytes(const CompressJob& job) {
  const absl::StatusOr<uint64_t> bytes = MaxFrameBytes(job.tensor, job.codec);
  return bytes.ok() ? std::optional(*bytes) : std::nullopt;
}

std::optional<uint64_t> MaxDecodedBytes(const ByteSource& frame) {
  std::vector<std::byte> scratch;
  const absl::StatusOr<ByteSpan> front =
      frame.Get(0, static_cast<size_t>(std::min<uint64_t>(kMaxHeaderBytes, frame.size())), scratch);
  if (!front.ok()) return std::nullopt;
  TensorDecompressor decompressor(kNoLimits);
  if (!decompressor.ReadHeader(*front).ok()) return std::nullopt;
  return decompressor.header().tensor_bytes();
}

absl::Status DaemonFault(std::string_view address, absl::StatusCode code, std::string_view what) {
  return absl::Status(code, absl::StrFormat("daemon %s: %s", address, what));
}

absl::Status DaemonReplies::WrongReply(std::string_view what) const {
  return DaemonFault(address_, absl::StatusCode::kInternal, what);
}

absl::Status DaemonReplies::EndJob(const v1::TensorReport& report, std::string_view name, uint64_t tensor_bytes,
                                   uint64_t frame_bytes) {
  if (report.name() != name || report.tensor_bytes() != tensor_bytes || report.frame_bytes() != frame_bytes) {
    return WrongReply(absl::StrFormat("its report on tensor \"%s\" does not fit what it sent", name));
  }
  const absl::Status ended = delivery_.EndJob();
  return ended.ok() ? ended : WrongReply(ended);
}

absl::Status CompressReplies::OnBytes(const CompressJob& job, ByteSpan frame) {
  if (const absl::Status status = Check(job, frame); !status.ok()) return WrongReply(status);
  const absl::StatusOr<ByteSpan> fresh = delivery_.New(frame);
  if (!fresh.ok()) return WrongReply(fresh.status());
  return fresh->empty() ? absl::OkStatus() : sink_.OnFrame(*fresh);
}

// Looks through the frame: what is kept must be what was asked for, and undamaged.
absl::Status CompressReplies::Check(const CompressJob& job, ByteSpan frame) {
  while (!frame.empty()) {
    if (reader_.done()) return absl::InternalError("bytes behind a frame's end mark");
    KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader_.Next(frame));
    if (part == FrameReader::Part::kHeader) KVC_RETURN_IF_ERROR(CheckHeader(job));
    if (part == FrameReader::Part::kBlock) KVC_RETURN_IF_ERROR(VerifyBlock(reader_.header(), reader_.block()));
  }
  return absl::OkStatus();
}

absl::Status CompressReplies::CheckHeader(const CompressJob& job) {
  TensorDesc expected = job.tensor;
  expected.name.clear();  // a frame has no name
  const FrameHeader& header = reader_.header();
  KVC_ASSIGN_OR_RETURN(const FramePlan plan, PlanFrame(job.tensor, job.codec, kNoLimits));
  if (header.tensor != expected || header.codec != plan.header.codec) {
    return absl::InternalError("a frame of another tensor or codec than it was asked for");
  }
  reader_.set_max_payload_bytes(plan.chain.MaxPayloadBytes(expected, header.BlockElements(0)));
  return absl::OkStatus();
}

absl::Status CompressReplies::OnReport(const CompressJob& job, const v1::TensorReport& report) {
  if (!reader_.done()) return WrongReply("it sent less than a frame");
  KVC_RETURN_IF_ERROR(EndJob(report, job.tensor.name, job.source->size(), reader_.bytes_read()));
  reader_ = FrameReader();
  return sink_.OnTensor(FromMessage(report, job.tensor, job.source->size() / DTypeSize(job.tensor.dtype)));
}

absl::Status DecompressReplies::OnHeader(const DecompressJob& job, const v1::Tensor& header) {
  if (tensor_) return WrongReply("its messages are out of order");
  absl::StatusOr<TensorDesc> tensor = FromMessage(header);
  if (!tensor.ok()) return WrongReply(tensor.status());
  const absl::StatusOr<uint64_t> elements = ValidateTensor(*tensor);
  if (!elements.ok()) return WrongReply(elements.status());
  // A daemon that knows nothing of fingerprints has decoded whatever frame this is.
  KVC_RETURN_IF_ERROR(OfTensor(job.name, CheckFingerprint(*tensor, job.fingerprint)));
  expected_bytes_ = *elements * DTypeSize(tensor->dtype);
  value_bytes_ = 0;
  tensor_ = *std::move(tensor);
  const absl::StatusOr<bool> is_new = delivery_.IsNew(*tensor_);
  if (!is_new.ok()) return WrongReply(is_new.status());
  return *is_new ? sink_.OnHeader(*tensor_) : absl::OkStatus();
}

absl::Status DecompressReplies::OnBytes(const DecompressJob&, ByteSpan values) {
  if (!tensor_) return WrongReply("its messages are out of order");
  value_bytes_ += values.size();
  if (value_bytes_ > expected_bytes_) return WrongReply("it sent more values than the tensor has");
  const absl::StatusOr<ByteSpan> fresh = delivery_.New(values);
  if (!fresh.ok()) return WrongReply(fresh.status());
  return fresh->empty() ? absl::OkStatus() : sink_.OnData(*fresh);
}

absl::Status DecompressReplies::OnReport(const DecompressJob& job, const v1::TensorReport& report) {
  if (!tensor_) return WrongReply("its messages are out of order");
  if (value_bytes_ != expected_bytes_) return WrongReply("it sent fewer values than the tensor has");
  KVC_RETURN_IF_ERROR(EndJob(report, job.name, expected_bytes_, job.source->size()));
  TensorDesc tensor = *std::exchange(tensor_, std::nullopt);
  const uint64_t elements = expected_bytes_ / DTypeSize(tensor.dtype);
  return sink_.OnTensor(FromMessage(report, std::move(tensor), elements));
}

}  // namespace kvcompress
