#include "server/rpc/shared_memory_streams.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"
#include "proto/wire/methods.h"
#include "server/rpc/call.h"
#include "server/shm/registration.h"

namespace kvcompress {
namespace {

void AddRegion(const Registration::Region& region, v1::SharedMemoryResponse& response) {
  v1::SharedMemoryRegion& message = *response.add_regions();
  message.set_name(region.name);
  message.set_key(region.key);
  message.set_offset(region.offset);
  message.set_byte_size(region.byte_size);
  message.set_region(region.id);
}

absl::Status Register(const v1::SharedMemoryRegister& request, Registration& registration,
                      v1::SharedMemoryResponse& response) {
  const Registration::Region region = {request.name(), request.key(), request.offset(), request.byte_size()};
  KVC_ASSIGN_OR_RETURN(const Registration::Challenge challenge, registration.Register(region));
  response.set_challenge(std::string(AsText(challenge)));
  AddRegion(region, response);
  return absl::OkStatus();
}

absl::Status RegisterForeign(const v1::SharedMemoryRegister& request, Registration& registration,
                             v1::SharedMemoryResponse& response) {
  const Registration::Region region = {request.name(), request.key(), request.offset(), request.byte_size()};
  KVC_ASSIGN_OR_RETURN(const uint64_t offset, registration.RegisterForeign(region));
  response.set_lock_offset(offset);
  AddRegion(region, response);
  return absl::OkStatus();
}

absl::Status Answer(const v1::SharedMemoryRequest& request, Registration& registration,
                    v1::SharedMemoryResponse& response) {
  const auto add_all = [&response](const absl::StatusOr<std::vector<Registration::Region>>& regions) {
    if (!regions.ok()) return regions.status();
    for (const Registration::Region& region : *regions) AddRegion(region, response);
    return absl::OkStatus();
  };
  switch (request.action_case()) {
    case v1::SharedMemoryRequest::kRegister: return Register(request.register_(), registration, response);
    case v1::SharedMemoryRequest::kRegisterForeign:
      return RegisterForeign(request.register_foreign(), registration, response);
    case v1::SharedMemoryRequest::kConfirm: {
      KVC_ASSIGN_OR_RETURN(const Registration::Region region, registration.Confirm(request.confirm().name()));
      AddRegion(region, response);
      return absl::OkStatus();
    }
    case v1::SharedMemoryRequest::kStatus:
      response.set_own_key_prefix(registration.OwnPrefix());
      return add_all(registration.Status(request.status().name()));
    case v1::SharedMemoryRequest::kUnregister: return add_all(registration.Unregister(request.unregister().name()));
    case v1::SharedMemoryRequest::ACTION_NOT_SET: break;
  }
  return absl::InvalidArgumentError("shared memory request without an action");
}

absl::Status Draining() { return absl::UnavailableError("the server is draining"); }

}  // namespace

// Reads a request, answers it, reads the next. A stop that comes while an answer is made or written waits for that, so
// that the status is the last operation.
class SharedMemoryStreams::Stream final : public Reactor {
 public:
  Stream(SharedMemoryStreams& owner, grpc::CallbackServerContext* context, const std::string& client)
      : owner_(owner),
        context_(context),
        record_(context, MethodName<v1::SharedMemoryRequest>(), owner.metrics_),
        registration_(std::in_place, owner.table_, owner.prefix_, client, owner.foreign_prefix_) {}

  void Begin() { StartRead(&incoming_); }

  void Stop(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (!stop_) stop_ = status;
    }
    FinishIfStopped();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Stop(context_->IsCancelled() ? absl::CancelledError("the client has cancelled") : absl::OkStatus());
    {
      absl::MutexLock lock(&mutex_);
      if (finished_) return;
      answering_ = true;
    }
    const absl::Status status = AnswerIncoming();
    if (status.ok()) return StartWrite(&outgoing_);
    EndAnswer(status);
  }

  void OnWriteDone(bool ok) override {
    EndAnswer(ok ? absl::OkStatus() : absl::CancelledError("the client has cancelled"));
  }

  // The owner's: the client that this stream counts for, once it is admitted.
  std::optional<std::string> counts_for;

  void OnDone() override {
    registration_.reset();
    record_.End(status(), {});
    owner_.Remove(this);  // deletes this
  }

 private:
  absl::Status AnswerIncoming() {
    v1::SharedMemoryRequest request;
    KVC_RETURN_IF_ERROR(ParseRequest(std::exchange(incoming_, {}), kMaxRequestBytes, 0, request));
    v1::SharedMemoryResponse response;
    KVC_RETURN_IF_ERROR(Answer(request, *registration_, response));
    return SerializeMessage(response, outgoing_);
  }

  void EndAnswer(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      answering_ = false;
      if (!status.ok() && !stop_) stop_ = status;
    }
    if (!FinishIfStopped()) StartRead(&incoming_);
  }

  // Whether the stream is over.
  bool FinishIfStopped() {
    {
      absl::MutexLock lock(&mutex_);
      if (finished_) return true;
      if (!stop_ || answering_) return false;
      finished_ = true;
    }
    AddPushback(status(), *context_);
    Finish(ToGrpcStatus(status()));
    return true;
  }

  absl::Status status() {
    absl::MutexLock lock(&mutex_);
    return *stop_;
  }

  SharedMemoryStreams& owner_;
  grpc::CallbackServerContext* const context_;
  CallRecord record_;
  std::optional<Registration> registration_;
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;

  absl::Mutex mutex_;
  bool answering_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> stop_ ABSL_GUARDED_BY(mutex_);  // why the stream is to end
};

SharedMemoryStreams::~SharedMemoryStreams() {
  const auto empty = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return streams_.empty(); };
  absl::MutexLock lock(&mutex_, absl::Condition(&empty));
}

SharedMemoryStreams::Reactor* SharedMemoryStreams::Start(grpc::CallbackServerContext* context,
                                                         const std::string& client) {
  const auto stream = std::make_shared<Stream>(*this, context, client);
  const absl::Status admitted = Admit(stream, client);
  if (admitted.ok()) {
    stream->Begin();
  } else {
    stream->Stop(admitted);
  }
  return stream.get();
}

// A stream that is turned away is kept as well, until its status is sent.
absl::Status SharedMemoryStreams::Admit(const std::shared_ptr<Stream>& stream, const std::string& client) {
  absl::MutexLock lock(&mutex_);
  streams_.emplace(stream.get(), stream);
  if (prefix_.empty()) return absl::FailedPreconditionError("shared memory is not enabled");
  if (closed_ || admission_.draining()) return Reject(RejectReason::kDraining, Draining());
  if (admitted_ >= kMaxStreams) {
    return Reject(RejectReason::kMaxStreams, absl::ResourceExhaustedError(absl::StrFormat(
                                                 "the limit of %d shared memory streams is reached", kMaxStreams)));
  }
  if (const auto count = clients_.find(client); count != clients_.end() && count->second >= kMaxStreamsPerClient) {
    return Reject(RejectReason::kMaxStreamsPerClient,
                  absl::ResourceExhaustedError(absl::StrFormat(
                      "the limit of %d shared memory streams of one client is reached", kMaxStreamsPerClient)));
  }
  KVC_RETURN_IF_ERROR(admission_.AdmitCall(client));
  ++admitted_;
  if (!client.empty()) ++clients_[client];
  stream->counts_for = client;
  return absl::OkStatus();
}

absl::Status SharedMemoryStreams::Reject(RejectReason reason, const absl::Status& status) const {
  metrics_.OnReject(reason);
  return status;
}

void SharedMemoryStreams::Remove(const Stream* stream) {
  absl::MutexLock lock(&mutex_);
  if (stream->counts_for) {
    --admitted_;
    const auto count = clients_.find(*stream->counts_for);
    if (count != clients_.end() && --count->second == 0) clients_.erase(count);
  }
  streams_.erase(stream);
}

void SharedMemoryStreams::Close() {
  std::vector<std::shared_ptr<Stream>> streams;
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    for (const auto& [key, stream] : streams_) streams.push_back(stream);
  }
  for (const std::shared_ptr<Stream>& stream : streams) stream->Stop(Draining());
}

}  // namespace kvcompress
