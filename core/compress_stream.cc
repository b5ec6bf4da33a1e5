#include "core/compress_stream.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <mutex>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"
#include "core/simd/token_sums.h"

namespace kvcompress {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

struct EncodeTask : FramePlan {
  explicit EncodeTask(FramePlan plan) : FramePlan(std::move(plan)) { tokens.Begin(TokenLayoutOf(header.tensor)); }

  TensorReport report;  // grows as blocks are delivered
  TokenTotals tokens;   // likewise
  std::vector<uint32_t> payload_sizes;
  OutputBuffers* buffers = nullptr;            // for blocks of known sizes; null: they are allocated
  const ByteSource* source = nullptr;          // where the workers read blocks; null: blocks are brought to them
  std::unique_ptr<MemorySource> owned_source;  // what `source` is for a tensor that was buffered whole
  Buffer owned_bytes;
  std::once_flag analyzed;
  absl::Status analysis;
  ChainState state;

  size_t width() const { return DTypeSize(header.tensor.dtype); }

  // The most that a block of `count` values holds of sequences which it does not have whole.
  uint64_t TokenBytes(size_t count) const {
    const TokenLayout layout = TokenLayoutOf(header.tensor);
    if (!layout.has_tokens() || header.block_count() == 1) return 0;
    return std::min<uint64_t>(2 * layout.channels, count) * kMomentPlanes * sizeof(double);
  }

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
  BlockOutput output;  // all that the block adds to the frame
  size_t size = 0;     // block header and payload, with the frame's header in front of the first
  ErrorSums sums;
  TokenSums tokens;
  size_t payload_bytes = 0;
  bool fell_back = false;
  uint64_t copied_bytes = 0;
  double seconds = 0;
};

// More pieces of a block than this are copied as they come: what holds on to them takes memory, too. gRPC receives into
// pieces of 64 KiB, and cuts them at message boundaries.
constexpr size_t kMaxPieces = kMaxBlockPieces;

// Whether the codec may read the pieces where they are: values that someone else may write meanwhile only if it bears
// that.
bool MayReadInPlace(const BlockInput& input, const CodecChain& chain) {
  const auto changing = [](const Slice& piece) { return piece.changing; };
  return chain.tolerates_changing_values() || std::none_of(input.pieces.begin(), input.pieces.end(), changing);
}

// The values in one place: where they are, or gathered into memory of this thread's.
ByteSpan Contiguous(const BlockInput& input, const CodecChain& chain, uint64_t& copied_bytes) {
  const std::vector<Slice>& pieces = input.pieces;
  if (pieces.empty()) return input.copy.span();
  if (pieces.size() == 1 && MayReadInPlace(input, chain)) return pieces[0].bytes;
  thread_local Buffer gathered;
  Gather(pieces, gathered);
  copied_bytes += gathered.size();
  return gathered.span();
}

absl::Status EncodeBlock(EncodeTask& task, uint64_t index, const BlockInput& input, EncodedBlock& out) {
  const Clock::time_point start = Clock::now();
  KVC_RETURN_IF_ERROR(task.Analyze());
  const FrameHeader& header = task.header;
  const size_t count = header.BlockElements(index);
  BlockValues values;
  std::array<ByteSpan, kMaxPieces> pieces;
  if (input.pieces.size() > 1 && task.chain.takes_pieces() && MayReadInPlace(input, task.chain)) {
    const auto bytes = [](const Slice& piece) { return piece.bytes; };
    std::transform(input.pieces.begin(), input.pieces.end(), pieces.begin(), bytes);
    values.pieces = std::span(pieces).first(input.pieces.size());
  } else if (task.source != nullptr) {
    thread_local std::vector<std::byte> scratch;
    const uint64_t first = index * header.block_elements;
    KVC_ASSIGN_OR_RETURN(values.whole, task.source->Get(first * task.width(), count * task.width(), scratch));
  } else {
    values.whole = Contiguous(input, task.chain, out.copied_bytes);
  }
  const size_t prefix = index == 0 ? task.header_bytes.size() : 0;
  const size_t end = index + 1 == header.block_count() ? header.end_bytes() : 0;
  const size_t bound = header.block_header_bytes() + task.chain.MaxPayloadBytes(header.tensor, count);
  const MutableByteSpan bytes = out.output.Allocate(prefix + bound + end);
  if (prefix > 0) std::memcpy(bytes.data(), task.header_bytes.data(), prefix);
  const MutableByteSpan room = bytes.subspan(prefix, bound);
  KVC_ASSIGN_OR_RETURN(const size_t size,
                       EncodeFrameBlock(header, task.chain, task.state, index, values, room, &out.sums, &out.tokens));
  out.payload_bytes = size - header.block_header_bytes();
  out.fell_back = task.chain.FellBack(room.subspan(header.block_header_bytes(), out.payload_bytes));
  out.size = prefix + size;
  if (task.buffers != nullptr && size != bound) return absl::InternalError("a block's size is not what was foreseen");
  // What waits for the client to take it is charged with its size: it should not take much more.
  if (out.size < bound / 2) out.copied_bytes += out.output.Shrink(out.size);
  out.seconds = SecondsSince(start);
  return absl::OkStatus();
}

void AppendFrameEnd(const EncodeTask& task, EncodedBlock& block) {
  const size_t end = task.header.end_bytes();
  const MutableByteSpan bytes = block.output.Allocate(block.size + end);
  WriteFrameEnd(task.header, task.payload_sizes, bytes.data() + block.size);
  block.size += end;
}

}  // namespace

absl::StatusOr<std::shared_ptr<EncodeTask>> CompressStream::NewTask(TensorDesc tensor, std::string_view codec) const {
  if (task_ != nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor \"%s\" begins, but tensor \"%s\" has %d of its %d bytes",
                                                      tensor.name, task_->header.tensor.name, received_,
                                                      task_->report.tensor_bytes));
  }
  KVC_ASSIGN_OR_RETURN(FramePlan plan, PlanFrame(std::move(tensor), codec, limits_));
  auto task = std::make_shared<EncodeTask>(std::move(plan));
  Describe(task->header, task->chain, task->report);
  return task;
}

absl::Status CompressStream::Begin(TensorDesc tensor, std::string_view codec, OutputBuffers* buffers) {
  KVC_ASSIGN_OR_RETURN(std::shared_ptr<EncodeTask> task, NewTask(std::move(tensor), codec));
  if (task->chain.encodes_in_place()) task->buffers = buffers;
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
  Slice copy = Slice::Of(Buffer::Copy(bytes));
  pending_.copied_bytes += bytes.size();
  do {
    KVC_RETURN_IF_ERROR(AppendPart(copy));
  } while (!copy.bytes.empty());
  return absl::OkStatus();
}

absl::Status CompressStream::AppendPart(Slice& bytes) {
  const size_t size = bytes.bytes.size();
  if (task_ == nullptr) return absl::InvalidArgumentError(absl::StrFormat("%d bytes of data outside a tensor", size));
  const uint64_t total = task_->report.tensor_bytes;
  if (size > total - received_) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor \"%s\": more than the %d bytes that its shape says", task_->header.tensor.name, total));
  }
  const bool whole = task_->chain.needs_tensor();
  const uint64_t index = received_ / task_->width() / task_->header.block_elements;
  const size_t capacity = whole ? static_cast<size_t>(total) : task_->header.BlockElements(index) * task_->width();
  const size_t take = std::min(capacity - filled_, size);
  if (take > 0) Take(bytes.Sub(0, take), capacity);
  bytes.bytes = bytes.bytes.subspan(take);
  filled_ += take;
  received_ += take;
  taken_ += take;
  if (filled_ < capacity) return absl::OkStatus();
  filled_ = 0;
  if (!whole) SubmitBlock(task_, index, std::exchange(pending_, {}));
  if (received_ == total) EndTensor();
  return absl::OkStatus();
}

// Adds to the pending block, whose size is `capacity`.
void CompressStream::Take(Slice piece, size_t capacity) {
  const bool copying = pending_.copy.size() > 0;
  if (!copying && !task_->chain.needs_tensor() && pending_.pieces.size() < kMaxPieces) {
    if (pending_.pieces.empty() && filled_ == 0 && piece.bytes.size() < capacity) pending_.pieces.reserve(8);
    pending_.pieces.push_back(std::move(piece));
    return;
  }
  size_t at = filled_;
  if (!copying) {
    pending_.copy.Resize(capacity);
    at = 0;
  }
  pending_.pieces.push_back(std::move(piece));
  for (const Slice& from : pending_.pieces) {
    std::memcpy(pending_.copy.data() + at, from.bytes.data(), from.bytes.size());
    at += from.bytes.size();
    pending_.copied_bytes += from.bytes.size();
  }
  pending_.pieces.clear();
}

void CompressStream::EndTensor() {
  const std::shared_ptr<EncodeTask> task = std::move(task_);
  task_ = nullptr;
  if (!task->chain.needs_tensor()) return;
  task->owned_bytes = std::move(pending_.copy);
  task->owned_source = std::make_unique<MemorySource>(task->owned_bytes.span());
  task->source = task->owned_source.get();
  task->report.copied_bytes = pending_.copied_bytes;
  pending_ = {};
  for (uint64_t i = 0; i < task->header.block_count(); ++i) SubmitBlock(task, i, {});
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
    SubmitBlock(task, i, {});
  }
  return absl::OkStatus();
}

void CompressStream::SubmitBlock(const std::shared_ptr<EncodeTask>& task, uint64_t index, BlockInput input) {
  auto block = std::make_shared<EncodedBlock>();
  const size_t count = task->header.BlockElements(index);
  const uint64_t held_bytes = count * task->width() + task->TokenBytes(count);
  if (task->buffers != nullptr) {
    const bool last = index + 1 == task->header.block_count();
    block->output.set_buffer(task->buffers->Take(task->BlockBytes(index), last));
  }
  bytes_in_flight_ += held_bytes;
  auto work = [this, task, index, block, input = std::move(input)]() mutable {
    block->copied_bytes = input.copied_bytes;
    if (!cancelled_) block->status = EncodeBlock(*task, index, input, *block);
    input = {};  // its owners learn that it is read no more before the block comes out
  };
  auto deliver = [this, task, index, block, held_bytes] {
    bytes_in_flight_ -= held_bytes;
    if (cancelled_ || failed_) return;
    if (!block->status.ok()) {
      failed_ = true;
      output_.OnError(block->status);
      return;
    }
    TensorReport& report = task->report;
    task->payload_sizes.push_back(static_cast<uint32_t>(block->payload_bytes));
    report.sums.Merge(block->sums);
    task->tokens.Merge(block->tokens);
    report.nonfinite_blocks += block->fell_back ? 1 : 0;
    report.codec_seconds += block->seconds;
    report.copied_bytes += block->copied_bytes;
    const bool last = index + 1 == task->header.block_count();
    if (last) {
      AppendFrameEnd(*task, *block);
      task->tokens.AddTo(report.sums);
    }
    report.frame_bytes += block->size;
    output_.OnFrame(block->output.Take(block->size));
    if (last) output_.OnTensor(report);
  };
  const bool came = task->source == nullptr;
  if (came && holds_ && task->chain.IsShort(count * task->width()))
    return pipeline_.Hold(std::move(work), std::move(deliver));
  pipeline_.Submit(std::move(work), std::move(deliver));
}

void CompressStream::SubmitEmpty(const std::shared_ptr<EncodeTask>& task) {
  auto deliver = [this, task] {
    if (cancelled_ || failed_) return;
    EncodedBlock frame;
    frame.size = task->header_bytes.size();
    std::memcpy(frame.output.Allocate(frame.size).data(), task->header_bytes.data(), frame.size);
    AppendFrameEnd(*task, frame);
    task->report.frame_bytes = frame.size;
    output_.OnFrame(frame.output.Take(frame.size));
    output_.OnTensor(task->report);
  };
  pipeline_.Submit([] {}, std::move(deliver));
}

absl::Status CompressStream::Finish() const {
  if (task_ == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("the stream ends, but tensor \"%s\" has %d of its %d bytes",
                                                    task_->header.tensor.name, received_, task_->report.tensor_bytes));
}

}  // namespace kvcompress
