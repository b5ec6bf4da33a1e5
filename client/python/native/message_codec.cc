#include "client/python/native/message_codec.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/synchronization/blocking_counter.h"
#include "client/deadline.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"
#include "core/quality/quality.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "proto/wire/convert.h"
#include "proto/wire/headers/headers.h"

namespace kvcompress {
namespace {

// Of the memory that is kept for later frames.
constexpr size_t kMostSpareBytes = size_t{64} << 20;

template <typename Message>
absl::StatusOr<Message> Parse(std::string_view bytes) {
  Message message;
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::InvalidArgumentError(absl::StrFormat("no message of %s", message.GetTypeName()));
  }
  return message;
}

// A tensor that is ready to be compressed.
struct Prepared {
  TensorCompressor compressor;
  std::string policy;
};

absl::StatusOr<Prepared> Prepare(CompressHeaders& headers, std::string_view header, const std::string& default_codec,
                                 const Limits& limits) {
  KVC_ASSIGN_OR_RETURN(const auto message, Parse<v1::CompressHeader>(header));
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, headers.Read(message, default_codec));
  KVC_ASSIGN_OR_RETURN(TensorCompressor compressor, TensorCompressor::Create(std::move(job.tensor), job.codec, limits));
  return Prepared{std::move(compressor), std::move(job.policy)};
}

std::string ReportOf(const TensorReport& report) {
  const Quality quality = QualityOf(report.sums, KindOf(report.tensor.name));
  v1::TensorReport message;
  ToMessage(report, quality, CheckThresholds(quality), message);
  return message.SerializeAsString();
}

// All of it: where it stands, or, of what has gaps, in `gathered`.
ByteSpan Together(StridedSpan<const std::byte> values, Buffer& gathered) {
  if (const ByteSpan whole = values.Together(); whole.size() == values.left()) return whole;
  gathered.Resize(static_cast<size_t>(values.left()));
  values.Read(gathered.span());
  return gathered.span();
}

absl::Status Compress(const Prepared& prepared, ByteSpan values, MessageCodec::Made& made) {
  const TensorCompressor& compressor = prepared.compressor;
  const absl::Time start = absl::Now();
  TensorReport report;
  made.frame.Resize(static_cast<size_t>(compressor.max_frame_bytes()));
  KVC_ASSIGN_OR_RETURN(report.frame_bytes, compressor.Compress(values, made.frame.span(), &report.sums));
  made.frame.Resize(static_cast<size_t>(report.frame_bytes));
  Describe(compressor.header(), compressor.chain(), report);
  report.policy = prepared.policy;
  report.nonfinite_blocks = compressor.FallbackBlocks(made.frame.span());
  report.codec_seconds = absl::ToDoubleSeconds(absl::Now() - start);
  made.report = ReportOf(report);
  return absl::OkStatus();
}

// An error of the frame that has this v1::DecompressHeader.
absl::Status OfHeader(std::string_view text, const absl::Status& status) {
  KVC_ASSIGN_OR_RETURN(const auto header, Parse<v1::DecompressHeader>(text));
  return OfTensor(header.name(), status);
}

absl::Status Decompress(TensorDecompressor& decompressor, const MessageCodec::Frame& frame) {
  KVC_ASSIGN_OR_RETURN(const auto header, Parse<v1::DecompressHeader>(frame.header));
  KVC_RETURN_IF_ERROR(CheckHeader(header));
  const absl::Status status = decompressor.Decompress(frame.frame, frame.values, header.fingerprint()).status();
  return status.ok() ? status : OfTensor(header.name(), status);
}

}  // namespace

MessageCodec::MessageCodec(const Options& options) : default_codec_(options.default_codec), pool_(options.threads) {
  if (options.artifacts.empty()) return;
  artifacts_ = std::make_unique<ArtifactStore>(ArtifactStore::Options{.directory = options.artifacts});
  limits_.environment.artifacts = artifacts_.get();
}

// Has each item worked at by a worker of one thread, until one fails. Returns the number of items before the first that
// failed, whose status it sets.
template <typename MakeWorker>
size_t MessageCodec::ForEach(size_t count, absl::Time deadline, absl::Status& status, MakeWorker make_worker) {
  std::atomic<size_t> next = 0;
  std::atomic<size_t> done = count;  // items before the first failure that is known
  absl::Mutex mutex;                 // of `done` and `status` together
  const auto run = [&] {
    auto worker = make_worker();
    for (size_t i = next++; i < done; i = next++) {
      absl::Status failure = CheckDeadline(deadline);
      if (failure.ok()) failure = worker(i);
      if (failure.ok()) continue;
      const absl::MutexLock lock(&mutex);
      if (i >= done) continue;
      done = i;
      status = std::move(failure);
    }
  };
  const size_t threads = std::min(pool_.size(), count);
  if (threads < 2) {
    run();
    return done;
  }
  absl::BlockingCounter left(static_cast<int>(threads));
  std::vector<std::unique_ptr<ThreadPool::Queue>> queues;  // each is worked at by one thread at a time
  for (size_t i = 0; i < threads; ++i) {
    queues.push_back(std::make_unique<ThreadPool::Queue>(pool_));
    queues.back()->Push([&] {
      run();
      left.DecrementCount();
    });
  }
  left.Wait();
  return done;
}

std::vector<MessageCodec::Made> MessageCodec::Compress(std::span<const Tensor> tensors, absl::Time deadline,
                                                       absl::Status& status) {
  // One after another: tensors of a call have one profile, as a rule, which is parsed once.
  CompressHeaders headers;
  std::vector<Prepared> prepared;
  absl::Status header_status;
  for (const Tensor& tensor : tensors) {
    absl::StatusOr<Prepared> ready = Prepare(headers, tensor.header, default_codec_, limits_);
    header_status = ready.status();
    if (!ready.ok()) break;
    prepared.push_back(*std::move(ready));
  }
  std::vector<Made> made(prepared.size());
  status = header_status;
  const size_t done = ForEach(prepared.size(), deadline, status, [&] {
    return [&, gathered = Buffer()](size_t i) mutable {
      made[i].frame = Spare();
      return kvcompress::Compress(prepared[i], Together(tensors[i].values, gathered), made[i]);
    };
  });
  made.resize(done);
  return made;
}

Buffer MessageCodec::Spare() {
  const absl::MutexLock lock(&mutex_);
  if (spare_.empty()) return {};
  Buffer buffer = std::move(spare_.back());
  spare_.pop_back();
  spare_bytes_ -= buffer.capacity();
  buffer.Resize(0);
  return buffer;
}

void MessageCodec::Recycle(std::vector<Made> made) {
  const absl::MutexLock lock(&mutex_);
  for (Made& one : made) {
    if (spare_bytes_ + one.frame.capacity() > kMostSpareBytes) continue;
    spare_bytes_ += one.frame.capacity();
    spare_.push_back(std::move(one.frame));
  }
}

std::vector<std::string> MessageCodec::Describe(std::span<const Frame> frames, absl::Status& status) const {
  std::vector<std::string> described;
  described.reserve(frames.size());
  TensorDecompressor decompressor(limits_);
  v1::Tensor message;
  for (const Frame& frame : frames) {
    status = decompressor.ReadHeader(frame.frame);
    if (!status.ok()) {
      status = OfHeader(frame.header, status);
      break;
    }
    message.Clear();
    ToMessage(decompressor.header().tensor, message);
    described.push_back(message.SerializeAsString());
  }
  return described;
}

size_t MessageCodec::Decompress(std::span<const Frame> frames, absl::Time deadline, absl::Status& status) {
  return ForEach(frames.size(), deadline, status, [&] {
    // Tensors of a model are alike: each thread keeps the chain that the last frame was decoded with.
    return [&frames, decompressor = TensorDecompressor(limits_)](size_t i) mutable {
      return kvcompress::Decompress(decompressor, frames[i]);
    };
  });
}

absl::StatusOr<std::vector<uint64_t>> MessageCodec::MaxFrameBytes(std::span<const std::string_view> headers) const {
  CompressHeaders reader;
  std::vector<uint64_t> bytes;
  for (const std::string_view header : headers) {
    KVC_ASSIGN_OR_RETURN(const Prepared prepared, Prepare(reader, header, default_codec_, limits_));
    bytes.push_back(prepared.compressor.max_frame_bytes());
  }
  return bytes;
}

}  // namespace kvcompress
