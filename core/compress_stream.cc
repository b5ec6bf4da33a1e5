#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/compressor.h"

namespace kvcompress {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

absl::Status CheckTensorBytes(const TensorDesc& tensor, uint64_t bytes, const Limits& limits) {
  if (bytes <= limits.max_tensor_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrFormat("tensor \"%s\": %d bytes are above the limit of %d", tensor.name,
                                                      bytes, limits.max_tensor_bytes));
}

}  // namespace

struct EncodeTask {
  FrameHeader header;
  std::vector<std::byte> header_bytes;
  CodecChain chain;
  TensorReport report;  // grows as blocks are delivered
  std::vector<uint32_t> payload_sizes;
  const ByteSource* source = nullptr;          // where the workers read blocks; null: blocks are brought to them
  std::unique_ptr<MemorySource> owned_source;  // behind `source` for a tensor that was buffered whole
  Buffer owned_bytes;
  std::once_flag analyzed;
  absl::Status analysis;
  ChainState state;

  size_t width() const { return DTypeSize(header.tensor.dtype); }

  // The first block to come looks at the whole tensor; the others wait for it.
  absl::Status Analyze() {
    std::call_once(analyzed, [this] {
      static const MemorySource kNothing{ByteSpan()};
      const ByteSource& values = source != nullptr ? *source : kNothing;
      auto result = chain.Analyze(header.tensor, values, header.block_elements);
      analysis = result.status();
      if (result.ok()) state = *std::move(result);
    });
    return analysis;
  }
};

namespace {

// A block on its way through the pool.
struct EncodedBlock {
  absl::Status status;
  Buffer bytes;  // block header and payload, with the frame's header in front of the first
  ErrorSums sums;
  size_t payload_bytes = 0;
  double seconds = 0;
};

absl::Status EncodeBlock(EncodeTask& task, uint64_t index, ByteSpan pushed, EncodedBlock& out) {
  const Clock::time_point start = Clock::now();
  KVC_RETURN_IF_ERROR(task.Analyze());
  const FrameHeader& header = task.header;
  const size_t count = header.BlockElements(index);
  const uint64_t first = index * header.block_elements;
  ByteSpan values = pushed;
  if (task.source != nullptr) {
    thread_local std::vector<std::byte> scratch;
    KVC_ASSIGN_OR_RETURN(values, task.source->Get(first * task.width(), count * task.width(), scratch));
  }
  const size_t prefix = index == 0 ? task.header_bytes.size() : 0;
  const size_t end = index + 1 == header.block_count() ? FrameEndBytes(header.block_count()) : 0;
  const size_t bound = task.chain.MaxPayloadBytes(header.tensor.dtype, count);
  out.bytes.Resize(prefix + kBlockHeaderBytes + bound + end);
  std::byte* block = out.bytes.data() + prefix;
  const MutableByteSpan payload{block + kBlockHeaderBytes, bound};
  KVC_ASSIGN_OR_RETURN(out.payload_bytes,
                       task.chain.EncodeBlock({header.tensor, first, count, values}, task.state, payload, &out.sums));
  if (prefix > 0) std::memcpy(out.bytes.data(), task.header_bytes.data(), prefix);
  WriteBlockHeader(header.checksum, index, payload.first(out.payload_bytes), block);
  out.bytes.Resize(prefix + kBlockHeaderBytes + out.payload_bytes);
  out.seconds = SecondsSince(start);
  return absl::OkStatus();
}

void AppendFrameEnd(const EncodeTask& task, Buffer& bytes) {
  const size_t at = bytes.size();
  bytes.Resize(at + FrameEndBytes(task.payload_sizes.size()));
  WriteFrameEnd(task.header.checksum, task.payload_sizes, bytes.data() + at);
}

}  // namespace

absl::StatusOr<std::shared_ptr<EncodeTask>> CompressStream::NewTask(TensorDesc tensor, std::string_view codec) const {
  if (task_ != nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\" begins, but tensor \"%s\" has %d of its %d bytes",
                                                      tensor.name, task_->header.tensor.name, received_,
                                                      task_->report.tensor_bytes));
  }
  auto task = std::make_shared<EncodeTask>();
  KVC_ASSIGN_OR_RETURN(const uint64_t elements, ValidateTensor(tensor));
  const uint64_t bytes = elements * DTypeSize(tensor.dtype);
  KVC_RETURN_IF_ERROR(CheckTensorBytes(tensor, bytes, limits_));
  absl::StatusOr<CodecChain> chain = CodecChain::Parse(codec);
  if (!chain.ok()) return OfTensor(tensor.name, chain.status());
  task->chain = *std::move(chain);
  task->header.tensor = tensor;
  task->header.codec = task->chain.spec();
  task->header_bytes = SerializeFrameHeader(task->header);
  task->report = {.tensor = std::move(tensor),
                  .codec = task->chain.spec(),
                  .codec_name = task->chain.codec_name(),
                  .elements = elements,
                  .tensor_bytes = bytes,
                  .sums = {}};
  return task;
}

absl::Status CompressStream::Begin(TensorDesc tensor, std::string_view codec) {
  KVC_ASSIGN_OR_RETURN(std::shared_ptr<EncodeTask> task, NewTask(std::move(tensor), codec));
  received_ = 0;
  filled_ = 0;
  if (task->header.elements == 0) {
    SubmitEmpty(task);
    return absl::OkStatus();
  }
  task_ = std::move(task);
  return absl::OkStatus();
}

std::optional<Footprint> CompressStream::footprint() const {
  if (task_ == nullptr) return std::nullopt;
  return Footprint{.tensor_bytes = task_->report.tensor_bytes,
                   .block_bytes = task_->header.BlockElements(0) * task_->width(),
                   .whole = task_->chain.needs_tensor()};
}

absl::Status CompressStream::Append(ByteSpan bytes) {
  do {
    KVC_RETURN_IF_ERROR(AppendPart(bytes));
  } while (!bytes.empty());
  return absl::OkStatus();
}

absl::Status CompressStream::AppendPart(ByteSpan& bytes) {
  if (task_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("%d bytes of data outside a tensor", bytes.size()));
  }
  const uint64_t total = task_->report.tensor_bytes;
  if (bytes.size() > total - received_) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor \"%s\": more than the %d bytes that its shape says", task_->header.tensor.name, total));
  }
  const bool whole = task_->chain.needs_tensor();
  const uint64_t index = received_ / task_->width() / task_->header.block_elements;
  const size_t capacity = whole ? static_cast<size_t>(total) : task_->header.BlockElements(index) * task_->width();
  if (pending_.size() != capacity) pending_ = Buffer(capacity);
  const size_t take = std::min(capacity - filled_, bytes.size());
  if (take > 0) std::memcpy(pending_.data() + filled_, bytes.data(), take);
  bytes = bytes.subspan(take);
  filled_ += take;
  received_ += take;
  if (filled_ < capacity) return absl::OkStatus();
  filled_ = 0;
  if (!whole) {
    SubmitBlock(task_, index, std::move(pending_));
    pending_ = Buffer();
  }
  if (received_ == total) EndTensor();
  return absl::OkStatus();
}

void CompressStream::EndTensor() {
  const std::shared_ptr<EncodeTask> task = std::move(task_);
  task_ = nullptr;
  if (!task->chain.needs_tensor()) return;
  task->owned_bytes = std::move(pending_);
  pending_ = Buffer();
  task->owned_source = std::make_unique<MemorySource>(task->owned_bytes.span());
  task->source = task->owned_source.get();
  for (uint64_t i = 0; i < task->header.block_count(); ++i) SubmitBlock(task, i, Buffer());
}

absl::Status CompressStream::Compress(TensorDesc tensor, std::string_view codec, const ByteSource& source,
                                      size_t window) {
  KVC_ASSIGN_OR_RETURN(const std::shared_ptr<EncodeTask> task, NewTask(std::move(tensor), codec));
  if (source.size() != task->report.tensor_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\": %d bytes instead of the %d that its shape says",
                                                      task->header.tensor.name, source.size(),
                                                      task->report.tensor_bytes));
  }
  task->source = &source;
  if (task->header.elements == 0) SubmitEmpty(task);
  for (uint64_t i = 0; i < task->header.block_count() && !cancelled_; ++i) {
    pipeline_.WaitBelow(window);
    SubmitBlock(task, i, Buffer());
  }
  return absl::OkStatus();
}

void CompressStream::SubmitBlock(const std::shared_ptr<EncodeTask>& task, uint64_t index, Buffer values) {
  auto block = std::make_shared<EncodedBlock>();
  const uint64_t value_bytes = task->header.BlockElements(index) * task->width();
  bytes_in_flight_ += value_bytes;
  auto work = [this, task, index, block, values = std::move(values)]() mutable {
    if (cancelled_) return;
    block->status = EncodeBlock(*task, index, values.span(), *block);
    values = Buffer();
  };
  auto deliver = [this, task, index, block, value_bytes] {
    bytes_in_flight_ -= value_bytes;
    if (cancelled_ || failed_) return;
    if (!block->status.ok()) {
      failed_ = true;
      output_.OnError(block->status);
      return;
    }
    TensorReport& report = task->report;
    task->payload_sizes.push_back(static_cast<uint32_t>(block->payload_bytes));
    report.sums.Merge(block->sums);
    report.codec_seconds += block->seconds;
    const bool last = index + 1 == task->header.block_count();
    if (last) AppendFrameEnd(*task, block->bytes);
    report.frame_bytes += block->bytes.size();
    output_.OnFrame(std::move(block->bytes));
    if (last) output_.OnTensor(report);
  };
  pipeline_.Submit(std::move(work), std::move(deliver));
}

void CompressStream::SubmitEmpty(const std::shared_ptr<EncodeTask>& task) {
  auto deliver = [this, task] {
    if (cancelled_ || failed_) return;
    Buffer bytes = Buffer::Copy(task->header_bytes);
    AppendFrameEnd(*task, bytes);
    task->report.frame_bytes = bytes.size();
    output_.OnFrame(std::move(bytes));
    output_.OnTensor(task->report);
  };
  pipeline_.Submit([] {}, std::move(deliver));
}

absl::Status CompressStream::Finish() const {
  if (task_ == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("the stream ends, but tensor \"%s\" has %d of its %d bytes",
                                                    task_->header.tensor.name, received_, task_->report.tensor_bytes));
}

absl::StatusOr<uint64_t> MaxFrameBytes(const TensorDesc& tensor, std::string_view codec) {
  KVC_ASSIGN_OR_RETURN(const CodecChain chain, CodecChain::Parse(codec));
  KVC_ASSIGN_OR_RETURN(const uint64_t elements, ValidateTensor(tensor));
  FrameHeader header{.tensor = tensor, .codec = chain.spec()};
  uint64_t bytes = SerializeFrameHeader(header).size() + FrameEndBytes(header.block_count());
  if (elements == 0) return bytes;
  const uint64_t blocks = header.block_count();
  const uint64_t full = kBlockHeaderBytes + chain.MaxPayloadBytes(tensor.dtype, header.block_elements);
  const uint64_t last = kBlockHeaderBytes + chain.MaxPayloadBytes(tensor.dtype, header.BlockElements(blocks - 1));
  return bytes + (blocks - 1) * full + last;
}

}  // namespace kvcompress
