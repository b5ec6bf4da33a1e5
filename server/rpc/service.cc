#include "server/rpc/service.h"

#include <utility>

#include "core/base/status_macros.h"
#include "proto/wire/grpc/message.h"
#include "server/rpc/call.h"
#include "server/rpc/capabilities.h"

namespace kvcompress {
namespace {

using Clock = CallRecord::Clock;
using RawReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A stream that is not let in.
class Refusal final : public RawReactor {
 public:
  Refusal(grpc::CallbackServerContext* context, std::string_view method, Metrics& metrics, absl::Status status)
      : record_(context, method, metrics), status_(std::move(status)) {
    AddPushback(status_, *context);
    Finish(ToGrpcStatus(status_));
  }

  void OnDone() override {
    record_.End(status_, {});
    delete this;
  }

 private:
  CallRecord record_;
  const absl::Status status_;
};

constexpr size_t kMaxCapabilitiesBytes = size_t{1} << 20;

// Ends a call whose response is there already. gRPC's own reactor does so without another thread.
grpc::ServerUnaryReactor* EndAtOnce(grpc::CallbackServerContext* context, std::string_view method, Metrics& metrics,
                                    const absl::Status& status) {
  CallRecord(context, method, metrics).End(status, {});
  AddPushback(status, *context);
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(status));
  return reactor;
}

// Moves messages between a stream and its session: one read and one write in flight at a time. Pump() does whatever the
// session allows at the moment; every reaction and every wake-up from the pool calls it. The codec's work is the
// pool's; reactions pass on what gRPC has received and what the codec has made, as slices.
//
// The end: when the session is done, which it is after its last job in the pool, and no write is in flight, Pump()
// sends the status. gRPC calls OnDone after all other reactions have returned, and ~Session waits for a pool thread
// that is still on its way out of Pump(), so nothing touches a deleted reactor.
template <typename Traits>
class StreamReactor final : public RawReactor {
 public:
  StreamReactor(grpc::CallbackServerContext* context, std::string_view method, Metrics& metrics, ThreadPool& pool,
                const SessionOptions& options, Admission::Ticket ticket)
      : context_(context),
        metrics_(metrics),
        record_(context, method, metrics),
        session_(pool, options, std::move(ticket), metrics, [this] { Pump(); }) {
    Pump();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      metrics_.OnStage(Metrics::Stage::kRead, SecondsSince(read_start_));
      Take(incoming_);
      incoming_.Clear();
    } else if (context_->IsCancelled()) {
      session_.Cancel();
    } else {
      half_close_ = Clock::now();
      session_.HalfClose();
    }
    reading_ = false;
    Pump();
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      metrics_.OnStage(Metrics::Stage::kWrite, SecondsSince(write_start_));
    } else {
      session_.Cancel();
    }
    writing_ = false;
    Pump();
  }

  void OnCancel() override {
    session_.Cancel();
    Pump();
  }

  void OnDone() override {
    record_.End(session_.status(), session_.totals());
    delete this;
  }

 private:
  void Pump() {
    absl::MutexLock lock(&mutex_);
    again_ = true;
    if (pumping_) return;  // whoever is in there looks again
    pumping_ = true;
    while (std::exchange(again_, false) && !finished_) {
      mutex_.Unlock();
      const bool finished = Step();
      mutex_.Lock();
      finished_ = finished;
    }
    pumping_ = false;
  }

  // Returns whether the status is sent.
  bool Step() {
    if (!writing_) StartNextWrite();
    if (!reading_ && session_.wants_input()) {
      reading_ = true;
      read_start_ = Clock::now();
      this->StartRead(&incoming_);
    }
    if (finishing_) return true;
    if (writing_ || !session_.done()) return false;
    const absl::Status status = session_.status();
    session_.Settle();
    AddPushback(status, *context_);
    this->Finish(ToGrpcStatus(status));
    return true;
  }

  void Take(const grpc::ByteBuffer& message) {
    if (std::optional<std::vector<Slice>> payload = PayloadOf(message, Traits::kRequestBytes)) {
      return session_.Push(*std::move(payload));
    }
    typename Traits::Request request;
    const absl::Status parsed = ParseRequest(message, kMaxHeadBytes, Traits::kRequestBytes, request);
    parsed.ok() ? session_.Push(std::move(request)) : session_.Fail(parsed);
  }

  void StartNextWrite() {
    Outgoing<typename Traits::Response> outgoing;
    if (!session_.Pop(outgoing)) return;
    write_start_ = Clock::now();
    if (!outgoing.bytes.empty()) {
      outgoing_ = PayloadMessage(Traits::kResponseBytes, outgoing.bytes);
    } else if (const absl::Status status = ToBuffer(outgoing.response, outgoing_); !status.ok()) {
      return session_.Fail(status);
    }
    if (outgoing.response.has_stream()) {  // nothing follows but the status, which is OK then
      metrics_.OnStage(Metrics::Stage::kFinish, SecondsSince(half_close_));
      finishing_ = true;
      session_.Settle();
      this->StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
      return;
    }
    writing_ = true;
    // What follows at once goes out together with this; but a first message, with which gRPC sends the initial
    // metadata, would not be done before that has gone out.
    grpc::WriteOptions options;
    if (std::exchange(metadata_sent_, true) && session_.has_next()) options.set_buffer_hint();
    this->StartWrite(&outgoing_, options);
  }

  grpc::CallbackServerContext* const context_;
  Metrics& metrics_;
  CallRecord record_;

  absl::Mutex mutex_;
  bool pumping_ ABSL_GUARDED_BY(mutex_) = false;
  bool again_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;

  // Set by the thread that pumps, cleared by the reaction that ends the operation.
  std::atomic<bool> reading_ = false;
  std::atomic<bool> writing_ = false;
  bool metadata_sent_ = false;
  bool finishing_ = false;  // of the thread that pumps: the last response took the status with it
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;
  Clock::time_point read_start_;
  Clock::time_point write_start_;
  Clock::time_point half_close_;

  Session<Traits> session_;  // last: its destructor waits for calls into the members above
};

}  // namespace

std::string Service::Client(const grpc::CallbackServerContext& context) const {
  return ClientOf(context, !daemon_options_.token_file.empty());
}

template <typename Traits>
RawReactor* Service::Start(grpc::CallbackServerContext* context, std::string_view method) {
  absl::StatusOr<Admission::Ticket> ticket = admission_.AdmitStream(Client(*context));
  if (!ticket.ok()) return new Refusal(context, method, metrics_, ticket.status());
  return new StreamReactor<Traits>(context, method, metrics_, pool_, options_, *std::move(ticket));
}

RawReactor* Service::Compress(grpc::CallbackServerContext* context) {
  return Start<CompressTraits>(context, "Compress");
}

RawReactor* Service::Decompress(grpc::CallbackServerContext* context) {
  return Start<DecompressTraits>(context, "Decompress");
}

grpc::ServerUnaryReactor* Service::CompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return StartCompressTensor(context, request, response, Client(*context), tensor_calls_);
}

grpc::ServerUnaryReactor* Service::DecompressTensor(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  return StartDecompressTensor(context, request, response, Client(*context), tensor_calls_);
}

grpc::ServerUnaryReactor* Service::Metrics(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) {
  const auto answer = [&]() -> absl::Status {
    KVC_RETURN_IF_ERROR(admission_.AdmitCall(Client(*context)));
    v1::MetricsRequest parsed;
    KVC_RETURN_IF_ERROR(ParseRequest(*request, kMaxRequestBytes, 0, parsed));
    return ToBuffer(metrics_.ToMessage(), *response);
  };
  return EndAtOnce(context, "Metrics", metrics_, answer());
}

grpc::ServerUnaryReactor* Service::Capabilities(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  const auto answer = [&]() -> absl::Status {
    KVC_RETURN_IF_ERROR(admission_.AdmitCall(Client(*context)));
    v1::CapabilitiesRequest parsed;
    KVC_RETURN_IF_ERROR(ParseRequest(*request, kMaxCapabilitiesBytes, 0, parsed));
    KVC_ASSIGN_OR_RETURN(const v1::CapabilitiesResponse capabilities, DescribeCapabilities(daemon_options_, parsed));
    return ToBuffer(capabilities, *response);
  };
  return EndAtOnce(context, "Capabilities", metrics_, answer());
}

RawReactor* Service::SharedMemory(grpc::CallbackServerContext* context) {
  return shared_memory_.Start(context, Client(*context));
}

}  // namespace kvcompress
