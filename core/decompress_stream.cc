#include "core/decompress_stream.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"

namespace kvcompress {

struct DecodeTask {
  FrameHeader header;
  CodecChain chain;
  TensorReport report;
};

absl::Status DecompressStream::Begin(std::string_view name, OutputBuffers* buffers, std::string_view fingerprint,
                                     std::optional<uint64_t> frame_bytes) {
  KVC_RETURN_IF_ERROR(Finish());
  name_ = name;
  fingerprint_ = fingerprint;
  frame_bytes_ = frame_bytes;
  buffers_ = buffers;
  reader_ = std::make_unique<FrameReader>();
  return frame_bytes == 0 ? Finish() : absl::OkStatus();
}

absl::Status DecompressStream::Named(const absl::Status& status) const { return OfTensor(name_, status); }

absl::Status DecompressStream::Append(ByteSpan bytes) {
  while (!bytes.empty()) KVC_RETURN_IF_ERROR(AppendPart(bytes));
  return absl::OkStatus();
}

absl::Status DecompressStream::Decompress(std::string_view name, const ByteSource& source, size_t window,
                                          std::string_view fingerprint) {
  constexpr uint64_t kReadBytes = uint64_t{1} << 20;
  KVC_RETURN_IF_ERROR(Begin(name, nullptr, fingerprint, source.size()));
  std::vector<std::byte> scratch;
  for (uint64_t offset = 0; offset < source.size();) {
    KVC_ASSIGN_OR_RETURN(ByteSpan bytes, source.Get(offset, std::min(kReadBytes, source.size() - offset), scratch));
    offset += bytes.size();
    while (!bytes.empty() && !cancelled_) {
      pipeline_.WaitBelow(window);
      KVC_RETURN_IF_ERROR(AppendPart(bytes));
    }
    if (cancelled_) return absl::OkStatus();
  }
  return absl::OkStatus();
}

std::optional<Footprint> DecompressStream::footprint() const {
  if (task_ == nullptr) return std::nullopt;
  return Footprint{.tensor_bytes = task_->report.tensor_bytes,
                   .block_bytes = task_->header.BlockElements(0) * DTypeSize(task_->header.tensor.dtype)};
}

absl::Status DecompressStream::AppendPart(ByteSpan& bytes) {
  if (reader_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("%d bytes of data outside a frame", bytes.size()));
  }
  const uint64_t left = frame_bytes_ ? *frame_bytes_ - reader_->bytes_read() : bytes.size();
  const auto most = static_cast<size_t>(std::min<uint64_t>(left, bytes.size()));
  ByteSpan rest = bytes.first(most);
  const absl::StatusOr<FrameReader::Part> part = reader_->Next(rest);
  const size_t taken = most - rest.size();
  bytes = bytes.subspan(taken);
  if (!part.ok()) return Named(part.status());
  switch (*part) {
    case FrameReader::Part::kNeedMore: break;
    case FrameReader::Part::kHeader:
      if (const absl::Status status = StartTensor(); !status.ok()) return Named(status);
      break;
    case FrameReader::Part::kBlock: SubmitBlock(reader_->TakeBlock()); break;
    case FrameReader::Part::kEnd: {
      if (left > taken) {
        return Named(frame_bytes_ ? FrameEndsEarly(reader_->bytes_read(), *frame_bytes_)
                                  : BytesBehindFrame(left - taken));
      }
      auto deliver = [this, task = std::move(task_), frame_bytes = reader_->bytes_read()] {
        if (cancelled_ || failed_) return;
        task->report.frame_bytes = frame_bytes;
        task->report.copied_bytes = frame_bytes;
        output_.OnTensor(task->report);
      };
      pipeline_.Submit([] {}, std::move(deliver));
      task_ = nullptr;
      reader_ = nullptr;
      break;
    }
  }
  return taken == left && frame_bytes_ ? Finish() : absl::OkStatus();
}

absl::Status DecompressStream::StartTensor() {
  auto task = std::make_shared<DecodeTask>();
  task->header = reader_->header();
  task->header.tensor.name = name_;
  KVC_RETURN_IF_ERROR(CheckFingerprint(task->header.tensor, fingerprint_));
  KVC_ASSIGN_OR_RETURN(task->chain, ChainOfFrame(task->header, limits_.environment));
  KVC_RETURN_IF_ERROR(CheckTensorBytes(task->header.tensor_bytes(), limits_));
  reader_->set_max_payload_bytes(task->chain.MaxPayloadBytes(task->header.tensor, task->header.BlockElements(0)));
  Describe(task->header, task->chain, task->report);
  task_ = task;
  pipeline_.Submit([] {},
                   [this, task] {
                     if (!cancelled_ && !failed_) output_.OnHeader(task->header.tensor, task->header.elements);
                   });
  return absl::OkStatus();
}

void DecompressStream::SubmitBlock(FrameReader::Block encoded) {
  struct Decoded {
    absl::Status status;
    BlockOutput output;  // the values
    double seconds = 0;
  };
  auto decoded = std::make_shared<Decoded>();
  const uint64_t value_bytes = task_->header.BlockElements(encoded.index) * DTypeSize(task_->header.tensor.dtype);
  const bool last = encoded.index + 1 == task_->header.block_count();
  if (buffers_ != nullptr) decoded->output.set_buffer(buffers_->Take(value_bytes, last));
  bytes_in_flight_ += value_bytes;
  taken_ += value_bytes;
  auto work = [this, task = task_, decoded, value_bytes, block = std::move(encoded)]() mutable {
    if (cancelled_) return;
    const auto start = std::chrono::steady_clock::now();
    decoded->status = DecodeFrameBlock(task->header, task->chain, {block.index, block.checksum, block.payload.span()},
                                       decoded->output.Allocate(static_cast<size_t>(value_bytes)));
    block.payload = Buffer();
    decoded->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  auto deliver = [this, task = task_, decoded, value_bytes] {
    bytes_in_flight_ -= value_bytes;
    if (cancelled_ || failed_) return;
    if (!decoded->status.ok()) {
      failed_ = true;
      output_.OnError(OfTensor(task->header.tensor.name, decoded->status));
      return;
    }
    task->report.codec_seconds += decoded->seconds;
    output_.OnData(decoded->output.Take(static_cast<size_t>(value_bytes)));
  };
  if (holds_ && task_->chain.IsShort(value_bytes)) return pipeline_.Hold(std::move(work), std::move(deliver));
  pipeline_.Submit(std::move(work), std::move(deliver));
}

absl::Status DecompressStream::Finish() const {
  if (reader_ == nullptr) return absl::OkStatus();
  return Named(reader_->Truncated());
}

}  // namespace kvcompress
