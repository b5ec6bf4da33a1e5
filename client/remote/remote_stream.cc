#include "client/remote/remote_stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "client/remote/older_daemons.h"
#include "proto/wire/grpc/error_details.h"

namespace kvcompress {
namespace {

// The hint of gRFC A6; empty for text that is not a time to wait.
std::optional<absl::Duration> Pushback(const grpc::ClientContext& context) {
  const auto found = context.GetServerTrailingMetadata().find("grpc-retry-pushback-ms");
  int64_t milliseconds;
  if (found == context.GetServerTrailingMetadata().end() ||
      !absl::SimpleAtoi(absl::string_view(found->second.data(), found->second.size()), &milliseconds) ||
      milliseconds < 0) {
    return std::nullopt;
  }
  return absl::Milliseconds(milliseconds);
}

StreamEnd EndOf(const grpc::ClientContext& context, grpc::Status status, absl::Status handler) {
  if (status.ok()) return {std::move(handler), std::move(status), std::nullopt};
  const ErrorDetails details = DetailsOf(status);
  const std::optional<absl::Duration> pushback = Pushback(context);
  const v1::ErrorReason reason =
      details.reason != v1::ERROR_REASON_UNSPECIFIED ? details.reason : ReasonInWords(status);
  return {std::move(handler), std::move(status), pushback ? pushback : details.retry_delay, reason};
}

// The events of one call, which `watch` looks after, where there is one.
class Events {
 public:
  Events(grpc::CompletionQueue& queue, grpc::ClientContext& context) : queue_(queue), context_(context) {}

  // Waits for the next one; false at the queue's end.
  bool Next(CallWatch* watch, void** tag, bool* ok) {
    if (watch == nullptr) return queue_.Next(tag, ok);
    for (;;) {
      if (const absl::Time now = absl::Now(); now >= next_look_) {
        next_look_ = now + kBetweenLooks;
        if (watch->Cancels()) context_.TryCancel();
      }
      const auto next = queue_.AsyncNext(tag, ok, absl::ToChronoTime(next_look_));
      if (next != grpc::CompletionQueue::TIMEOUT) return next == grpc::CompletionQueue::GOT_EVENT;
    }
  }

 private:
  static constexpr absl::Duration kBetweenLooks = absl::Milliseconds(50);

  grpc::CompletionQueue& queue_;
  grpc::ClientContext& context_;
  absl::Time next_look_ = absl::Now() + kBetweenLooks;
};

}  // namespace

class StreamCall::Work {
 public:
  Work(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
       StreamHandler& handler)
      : handler_(handler) {
    if (deadline != absl::InfiniteFuture()) context_.set_deadline(absl::ToChronoTime(deadline));
    context_.set_initial_metadata_corked(true);  // they leave with the first message
    call_ = grpc::GenericStub(channel).PrepareCall(&context_, method, &queue_);
    call_->StartCall(nullptr);
    WriteNext();
    Read();
  }

  ~Work() {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  std::optional<StreamEnd> Run(CallWatch* watch) {
    void* tag;
    bool ok;
    while (!(finished_ && !writing_) && events_.Next(watch, &tag, &ok)) {
      if (tag == &incoming_) {
        OnRead(ok);
        if (ok && watch != nullptr && watch->Pauses()) return std::nullopt;
      } else if (tag == &writing_) {
        writing_ = false;
        if (!ok) writes_ended_ = true;  // the read tells when the call ends
        WriteNext();
      } else {
        finished_ = true;
      }
    }
    return EndOf(context_, std::move(status_), handler_status_);
  }

  void Cancel() { context_.TryCancel(); }

 private:
  void Fail(const absl::Status& status) {
    if (handler_status_.ok()) handler_status_ = status;
    context_.TryCancel();
  }

  // Also after a read: a handler may wait for a reply before it goes on.
  void WriteNext() {
    if (writing_ || writes_ended_ || !handler_status_.ok()) return;
    absl::StatusOr<std::optional<StreamHandler::Outgoing>> next = handler_.Next();
    if (!next.ok()) return Fail(next.status());
    if (!next->has_value()) return;
    grpc::WriteOptions options;
    if ((*next)->followed) options.set_buffer_hint();
    if ((*next)->last) options.set_last_message();
    writes_ended_ = (*next)->last;
    writing_ = true;
    if (!(*next)->message.Valid()) return call_->WritesDone(&writing_);
    call_->Write((*next)->message, options, &writing_);
  }

  void Read() {
    incoming_.Clear();
    call_->Read(&incoming_, &incoming_);
  }

  void OnRead(bool ok) {
    if (ok && handler_status_.ok()) {
      if (const absl::Status status = handler_.Take(incoming_); !status.ok()) Fail(status);
      WriteNext();
    }
    if (ok) return Read();  // a cancelled call, too, is read to its end
    call_->Finish(&status_, &status_);
  }

  StreamHandler& handler_;
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  Events events_{queue_, context_};
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  grpc::ByteBuffer incoming_;
  bool writing_ = false;
  bool writes_ended_ = false;
  bool finished_ = false;
  grpc::Status status_;
  absl::Status handler_status_;
};

StreamCall::StreamCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                       StreamHandler& handler)
    : work_(std::make_unique<Work>(channel, method, deadline, handler)) {}

StreamCall::~StreamCall() = default;

std::optional<StreamEnd> StreamCall::Run(CallWatch* watch) { return work_->Run(watch); }

void StreamCall::Cancel() { work_->Cancel(); }

StreamEnd RunStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                    StreamHandler& handler) {
  return *StreamCall(channel, method, deadline, handler).Run(nullptr);
}

StreamEnd CallUnary(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, absl::Time deadline,
                    const grpc::ByteBuffer& request, grpc::ByteBuffer& response, CallWatch* watch) {
  grpc::ClientContext context;
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
  grpc::CompletionQueue queue;
  const auto call = grpc::GenericStub(channel).PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&response, &status, &status);
  void* tag;
  bool ok;
  Events(queue, context).Next(watch, &tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return EndOf(context, std::move(status), absl::OkStatus());
}

}  // namespace kvcompress
