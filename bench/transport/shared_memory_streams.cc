#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "bench/transport/rpc.h"
#include "core/base/shared_memory.h"
#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"

namespace kvcompress::bench {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kMaxRoomBytes = uint64_t{4} << 20;
constexpr uint64_t kBytesAhead = uint64_t{8} << 20;

// How a stream uses its part of the region: it sends tensors ahead of their reports, and has a room for each; the rooms
// of large tensors are filled several times.
struct Layout {
  explicit Layout(const Workload& workload)
      : tensors_ahead(static_cast<size_t>(std::max<uint64_t>(2, kBytesAhead / workload.tensor_bytes))),
        rooms(std::max<size_t>(tensors_ahead + 1, 8)),
        room_bytes((std::min(workload.frame_bytes, kMaxRoomBytes) + kPageBytes - 1) / kPageBytes * kPageBytes) {}
  uint64_t stream_bytes() const { return rooms * room_bytes; }

  size_t tensors_ahead;
  size_t rooms;
  uint64_t room_bytes;
};

// A region that a daemon knows, for as long as this lives.
class Registration {
 public:
  Registration(const std::shared_ptr<grpc::Channel>& channel, SharedMapping mapping)
      : stub_(v1::KvCompression::NewStub(channel)),
        mapping_(std::move(mapping)),
        stream_(stub_->SharedMemory(&context_)) {}
  ~Registration() {
    stream_->WritesDone();
    stream_->Finish().IgnoreError();
  }

  absl::Status Register(const std::string& key) {
    v1::SharedMemoryRequest request;
    request.mutable_register_()->set_name("bench");
    request.mutable_register_()->set_key(key);
    request.mutable_register_()->set_byte_size(mapping_.bytes().size());
    v1::SharedMemoryResponse response;
    KVC_RETURN_IF_ERROR(Ask(request, response));
    std::memcpy(mapping_.bytes().data(), response.challenge().data(),
                std::min<size_t>(response.challenge().size(), 64));
    request.mutable_confirm()->set_name("bench");
    KVC_RETURN_IF_ERROR(Ask(request, response));
    if (response.regions_size() != 1) return absl::InternalError("a response without the region");
    region_ = response.regions(0).region();
    std::memcpy(mapping_.bytes().data(), Values().data(), Values().size());
    return absl::OkStatus();
  }

  uint64_t region() const { return region_; }

 private:
  absl::Status Ask(const v1::SharedMemoryRequest& request, v1::SharedMemoryResponse& response) {
    if (stream_->Write(request) && stream_->Read(&response)) return absl::OkStatus();
    return absl::UnavailableError("shared memory: " + stream_->Finish().error_message());
  }

  grpc::ClientContext context_;
  std::unique_ptr<v1::KvCompression::Stub> stub_;
  SharedMapping mapping_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SharedMemoryRequest, v1::SharedMemoryResponse>> stream_;
  uint64_t region_ = 0;
};

// Sends the ranges of tensors without end, and gives each room again once it is done with.
class RangeStream final : public CompressCall {
 public:
  RangeStream(GenericStub& stub, const Workload& workload, uint64_t region, size_t index, Progress& progress)
      : workload_(workload),
        layout_(workload),
        region_(region),
        rooms_at_(kBufferBytes + index * layout_.stream_bytes()),
        progress_(progress) {
    Prepare(stub, workload);
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < layout_.rooms; ++i) GiveRoom(i);
    for (size_t i = 0; i < layout_.tensors_ahead; ++i) AddTensor();
    Send();
    StartRead(&response_);
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (ok) Send();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    v1::CompressResponse response;
    good_ = good_ && ParseMessage(response_, response);
    {
      absl::MutexLock lock(&mutex_);
      Take(response);
      Send();
    }
    if (!good_) Cancel();
    StartRead(&response_);
  }

  // Whether all frames came, into the rooms, with the size that they must have. After Await.
  bool good() const { return good_; }

 private:
  void Take(const v1::CompressResponse& response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (response.has_shared_frame()) {
      const v1::SharedMemoryRange& range = response.shared_frame();
      const uint64_t begin = range.offset() - rooms_at_;
      const uint64_t end = begin + range.byte_size();
      room_ = static_cast<size_t>(begin / layout_.room_bytes);
      if (range.offset() < rooms_at_ || room_ >= layout_.rooms || end > (room_ + 1) * layout_.room_bytes) good_ = false;
      room_in_use_ = end < (room_ + 1) * layout_.room_bytes;
      if (!room_in_use_) GiveRoom(room_);
      tensor_frame_bytes_ += range.byte_size();
      progress_.Add(range.byte_size());
    } else if (response.has_tensor()) {
      if (std::exchange(tensor_frame_bytes_, 0) != workload_.frame_bytes) good_ = false;
      if (std::exchange(room_in_use_, false)) GiveRoom(room_);
      AddTensor();
    } else if (response.payload_case() != v1::CompressResponse::kInputReleased) {
      good_ = false;
    }
  }

  void GiveRoom(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    v1::CompressRequest request;
    SetRange(rooms_at_ + index * layout_.room_bytes, layout_.room_bytes, *request.mutable_frame_buffer());
    waiting_.push_back(std::move(request));
  }

  void AddTensor() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    v1::CompressRequest request;
    *request.mutable_header() = HeaderOf(workload_);
    request.mutable_header()->set_frame_to_buffer(true);
    waiting_.push_back(request);
    for (uint64_t sent = 0; sent < workload_.tensor_bytes;) {
      const uint64_t bytes = std::min<uint64_t>(workload_.tensor_bytes - sent, kBufferBytes - values_at_);
      SetRange(values_at_, bytes, *request.mutable_shared_data());
      waiting_.push_back(request);
      values_at_ = (values_at_ + bytes) % kBufferBytes;
      sent += bytes;
    }
  }

  void SetRange(uint64_t offset, uint64_t bytes, v1::SharedMemoryRange& range) const {
    range.set_region(region_);
    range.set_offset(offset);
    range.set_byte_size(bytes);
  }

  void Send() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || waiting_.empty()) return;
    writing_ = true;
    SerializeMessage(waiting_.front(), request_).IgnoreError();
    waiting_.pop_front();
    StartWrite(&request_);
  }

  const Workload& workload_;
  const Layout layout_;
  const uint64_t region_;
  const uint64_t rooms_at_;  // in the region
  Progress& progress_;

  absl::Mutex mutex_;
  std::deque<v1::CompressRequest> waiting_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t values_at_ ABSL_GUARDED_BY(mutex_) = 0;
  ByteBuffer request_;
  ByteBuffer response_;
  size_t room_ ABSL_GUARDED_BY(mutex_) = 0;  // that was filled last
  bool room_in_use_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t tensor_frame_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<bool> good_ = true;
};

class SharedMemoryStreams final : public Contestant {
 public:
  SharedMemoryStreams(const Workload& workload, std::vector<std::shared_ptr<grpc::Channel>> channels,
                      std::unique_ptr<Registration> registration)
      : workload_(workload), channels_(std::move(channels)), registration_(std::move(registration)) {}

  absl::Status Run(Progress& progress) override {
    std::vector<std::unique_ptr<GenericStub>> stubs;
    for (const auto& channel : channels_) stubs.push_back(std::make_unique<GenericStub>(channel));
    std::vector<std::unique_ptr<RangeStream>> streams;
    for (size_t i = 0; i < workload_.streams; ++i) {
      streams.push_back(
          std::make_unique<RangeStream>(*stubs[i % stubs.size()], workload_, registration_->region(), i, progress));
    }
    progress.WaitForStop();
    for (const auto& stream : streams) stream->Cancel();
    absl::Status result;
    for (const auto& stream : streams) {
      Keep(stream->Await(), result);
      if (!stream->good()) result = absl::InternalError("frames are not where they must be, or of another size");
    }
    return result;
  }

 private:
  const Workload workload_;
  const std::vector<std::shared_ptr<grpc::Channel>> channels_;
  const std::unique_ptr<Registration> registration_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contestant>> NewSharedMemoryStreams(const Workload& workload,
                                                                   const std::string& address) {
  KVC_ASSIGN_OR_RETURN(std::vector<std::shared_ptr<grpc::Channel>> channels, ConnectAll(workload, address));
  grpc::ClientContext context;
  v1::CapabilitiesResponse capabilities;
  const grpc::Status status = v1::KvCompression::NewStub(channels[0])->Capabilities(&context, {}, &capabilities);
  if (!status.ok()) return absl::UnavailableError("capabilities: " + status.error_message());
  const std::string key = absl::StrFormat("/%sbench-%d", capabilities.shared_memory_prefix(), getpid());
  const uint64_t bytes = kBufferBytes + workload.streams * Layout(workload).stream_bytes();
  KVC_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Create(key, bytes));
  KVC_ASSIGN_OR_RETURN(SharedMapping mapping, memory.Map(0, bytes));
  auto registration = std::make_unique<Registration>(channels[0], std::move(mapping));
  KVC_RETURN_IF_ERROR(registration->Register(key));
  return std::make_unique<SharedMemoryStreams>(workload, std::move(channels), std::move(registration));
}

}  // namespace kvcompress::bench
