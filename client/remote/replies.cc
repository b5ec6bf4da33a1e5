#include "client/remote/replies.h"

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"

namespace kvcompress {
namespace {

absl::StatusOr<TensorDesc> FromProto(const v1::Tensor& proto) {
  const std::optional<DType> dtype = DTypeFromNumber(static_cast<uint8_t>(proto.dtype()));
  if (!dtype || !v1::DType_IsValid(proto.dtype())) return absl::InternalError("it names an unknown data type");
  TensorDesc tensor{proto.name(), *dtype, {proto.shape().begin(), proto.shape().end()}, {}};
  for (const int role : proto.axes()) tensor.axes.push_back(static_cast<AxisRole>(role));
  return tensor;
}

// A report on `tensor`, which has `elements`.
TensorReport FromProto(const v1::TensorReport& proto, const TensorDesc& tensor, uint64_t elements) {
  const v1::ErrorSums& sums = proto.sums();
  return {.tensor = tensor,
          .codec = proto.codec(),
          .codec_name = {},
          .elements = elements,
          .tensor_bytes = proto.tensor_bytes(),
          .frame_bytes = proto.frame_bytes(),
          .sums = {sums.count(), sums.sum(), sums.sum_squares(), sums.sum_deviations(), sums.sum_error_squares(),
                   sums.sum_abs_error(), sums.sum_cross(), sums.max_abs_error()},
          .codec_seconds = proto.codec_seconds()};
}

// Whether a report tells of the job that it must, and of all bytes that came.
absl::Status CheckReport(std::string_view address, const v1::TensorReport& report, std::string_view name,
                         uint64_t tensor_bytes, uint64_t frame_bytes) {
  if (report.name() == name && report.tensor_bytes() == tensor_bytes && report.frame_bytes() == frame_bytes) {
    return absl::OkStatus();
  }
  return DaemonFault(address, absl::StatusCode::kInternal,
                     absl::StrFormat("its report on tensor \"%s\" does not fit what it sent", name));
}

}  // namespace

absl::Status DaemonFault(std::string_view address, absl::StatusCode code, std::string_view what) {
  return absl::Status(code, absl::StrFormat("daemon %s: %s", address, what));
}

absl::Status CompressReplies::WrongReply(std::string_view what) const {
  return DaemonFault(address_, absl::StatusCode::kInternal, what);
}

absl::Status CompressReplies::OnBytes(const CompressJob& job, ByteSpan frame) {
  if (const absl::Status status = Check(job, frame); !status.ok()) return WrongReply(std::string(status.message()));
  const absl::StatusOr<ByteSpan> fresh = delivery_.New(frame);
  if (!fresh.ok()) return WrongReply(std::string(fresh.status().message()));
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
  KVC_ASSIGN_OR_RETURN(const CodecChain chain, CodecChain::Parse(job.codec, job.tensor.name));
  if (header.tensor != expected || header.codec != chain.spec()) {
    return absl::InternalError("a frame of another tensor or codec than it was asked for");
  }
  reader_.set_max_payload_bytes(chain.MaxPayloadBytes(expected.dtype, header.BlockElements(0)));
  return absl::OkStatus();
}

absl::Status CompressReplies::OnReport(const CompressJob& job, const v1::TensorReport& report) {
  if (!reader_.done()) return WrongReply("it sent less than a frame");
  KVC_RETURN_IF_ERROR(CheckReport(address_, report, job.tensor.name, job.source->size(), reader_.bytes_read()));
  if (const absl::Status status = delivery_.EndJob(); !status.ok()) return WrongReply(std::string(status.message()));
  reader_ = FrameReader();
  return sink_.OnTensor(FromProto(report, job.tensor, job.source->size() / DTypeSize(job.tensor.dtype)));
}

absl::Status DecompressReplies::WrongReply(std::string_view what) const {
  return DaemonFault(address_, absl::StatusCode::kInternal, what);
}

absl::Status DecompressReplies::OnHeader(const v1::Tensor& header) {
  if (tensor_) return WrongReply("its messages are out of order");
  absl::StatusOr<TensorDesc> tensor = FromProto(header);
  if (!tensor.ok()) return WrongReply(std::string(tensor.status().message()));
  KVC_ASSIGN_OR_RETURN(const uint64_t elements, ValidateTensor(*tensor));
  expected_bytes_ = elements * DTypeSize(tensor->dtype);
  value_bytes_ = 0;
  tensor_ = *std::move(tensor);
  const absl::StatusOr<bool> is_new = delivery_.IsNew(*tensor_);
  if (!is_new.ok()) return WrongReply(std::string(is_new.status().message()));
  return *is_new ? sink_.OnHeader(*tensor_) : absl::OkStatus();
}

absl::Status DecompressReplies::OnBytes(const DecompressJob&, ByteSpan values) {
  if (!tensor_) return WrongReply("its messages are out of order");
  value_bytes_ += values.size();
  if (value_bytes_ > expected_bytes_) return WrongReply("it sent more values than the tensor has");
  const absl::StatusOr<ByteSpan> fresh = delivery_.New(values);
  if (!fresh.ok()) return WrongReply(std::string(fresh.status().message()));
  return fresh->empty() ? absl::OkStatus() : sink_.OnData(*fresh);
}

absl::Status DecompressReplies::OnReport(const DecompressJob& job, const v1::TensorReport& report) {
  if (!tensor_) return WrongReply("its messages are out of order");
  if (value_bytes_ != expected_bytes_) return WrongReply("it sent fewer values than the tensor has");
  KVC_RETURN_IF_ERROR(CheckReport(address_, report, job.name, expected_bytes_, job.source->size()));
  if (const absl::Status status = delivery_.EndJob(); !status.ok()) return WrongReply(std::string(status.message()));
  const TensorDesc tensor = *std::exchange(tensor_, std::nullopt);
  return sink_.OnTensor(FromProto(report, tensor, expected_bytes_ / DTypeSize(tensor.dtype)));
}

}  // namespace kvcompress
