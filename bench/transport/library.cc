#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "bench/transport/contestant.h"
#include "client/local_client.h"
#include "client/remote/remote_client.h"
#include "core/base/status_macros.h"
#include "core/tensor_compressor.h"

namespace kvcompress::bench {
namespace {

// Counts bytes and throws them away.
class CountingSink final : public CompressSink {
 public:
  explicit CountingSink(Progress* progress) : progress_(progress) {}

  absl::Status OnFrame(ByteSpan bytes) override {
    frame_bytes_ += bytes.size();
    if (progress_ == nullptr) return absl::OkStatus();
    progress_->Add(bytes.size());
    return progress_->stopped() ? absl::CancelledError() : absl::OkStatus();
  }
  absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }

  uint64_t frame_bytes() const { return frame_bytes_; }

 private:
  Progress* const progress_;
  uint64_t frame_bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<CodecClient>> NewClient(const std::string& address, LibraryMode mode) {
  if (mode == LibraryMode::kLocal) return MakeLocalClient(0);
  return MakeRemoteClient({.address = address, .shared_memory = mode != LibraryMode::kConnection});
}

// One tensor from `values`; CANCELLED when `progress` says stop.
absl::Status CompressOne(CodecClient& client, const Workload& workload, ByteSpan values, Progress* progress) {
  const TensorSource source(values, workload.tensor_bytes);
  const CompressJob job = {.tensor = workload.tensor, .codec = kCodec, .source = &source};
  CountingSink sink(progress);
  KVC_RETURN_IF_ERROR(client.Compress({&job, 1}, absl::InfiniteFuture(), sink));
  if (sink.frame_bytes() == workload.frame_bytes) return absl::OkStatus();
  return absl::InternalError("a frame of another size than expected");
}

// One thread a stream, which compresses one tensor a call.
class LibraryStreams final : public Contestant {
 public:
  LibraryStreams(const Workload& workload, std::unique_ptr<CodecClient> client, bool in_place)
      : workload_(workload), client_(std::move(client)), values_(Values()) {
    if (!in_place) return;
    buffer_ = client_->Allocate(kBufferBytes);
    std::memcpy(buffer_->bytes().data(), Values().data(), kBufferBytes);
    values_ = buffer_->bytes();
  }

  absl::Status Run(Progress& progress) override {
    std::vector<absl::Status> results(workload_.streams);
    std::vector<std::thread> threads;
    for (absl::Status& result : results) {
      threads.emplace_back([this, &progress, &result] {
        while (result.ok() && !progress.stopped()) result = CompressOne(*client_, workload_, values_, &progress);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& result : results) {
      if (!absl::IsCancelled(result)) KVC_RETURN_IF_ERROR(result);
    }
    return absl::OkStatus();
  }

 private:
  const Workload workload_;
  const std::unique_ptr<CodecClient> client_;
  std::unique_ptr<SharedBuffer> buffer_;
  ByteSpan values_;
};

class LibraryCaller final : public Caller {
 public:
  LibraryCaller(const Workload& workload, std::unique_ptr<CodecClient> client)
      : workload_(workload), client_(std::move(client)) {}

  absl::Status Call() override { return CompressOne(*client_, workload_, Values(), nullptr); }

 private:
  const Workload workload_;
  const std::unique_ptr<CodecClient> client_;
};

class Embedded final : public Contestant {
 public:
  explicit Embedded(TensorCompressor compressor) : compressor_(std::move(compressor)) {}

  absl::Status Run(Progress& progress) override {
    std::vector<absl::Status> results(std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (absl::Status& result : results) threads.emplace_back([this, &progress, &result] { result = Loop(progress); });
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& result : results) KVC_RETURN_IF_ERROR(result);
    return absl::OkStatus();
  }

 private:
  absl::Status Loop(Progress& progress) const {
    std::vector<std::byte> frame(static_cast<size_t>(compressor_.max_frame_bytes()));
    const size_t bytes = static_cast<size_t>(compressor_.tensor_bytes());
    for (size_t at = 0; !progress.stopped(); at = (at + bytes) % kBufferBytes) {
      ErrorSums sums;
      KVC_ASSIGN_OR_RETURN(const size_t size, compressor_.Compress(Values().subspan(at, bytes), frame, &sums));
      progress.Add(size);
    }
    return absl::OkStatus();
  }

  const TensorCompressor compressor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contestant>> NewLibraryStreams(const Workload& workload, const std::string& address,
                                                              LibraryMode mode) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<CodecClient> client, NewClient(address, mode));
  return std::make_unique<LibraryStreams>(workload, std::move(client), mode == LibraryMode::kSharedMemory);
}

absl::StatusOr<std::unique_ptr<Contestant>> NewEmbedded(const Workload& workload, const std::string&) {
  KVC_ASSIGN_OR_RETURN(const Workload piece, Workload::Make(1, std::min<uint64_t>(workload.tensor_bytes, kBufferBytes),
                                                            workload.message_bytes));
  KVC_ASSIGN_OR_RETURN(TensorCompressor compressor, TensorCompressor::Create(piece.tensor, kCodec));
  return std::make_unique<Embedded>(std::move(compressor));
}

absl::StatusOr<std::unique_ptr<Caller>> NewLibraryCaller(const Workload& workload, const std::string& address,
                                                         LibraryMode mode) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<CodecClient> client, NewClient(address, mode));
  return std::make_unique<LibraryCaller>(workload, std::move(client));
}

}  // namespace kvcompress::bench
