#include "server/rpc/tensor_call.h"

#include <chrono>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "core/base/status_macros.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "proto/wire/convert.h"
#include "proto/wire/grpc/message.h"
#include "server/rpc/call.h"

namespace kvcompress {
namespace {

// The most bytes that a reaction works on itself: some 10 us at the speed of a fast codec.
constexpr size_t kInlineBytes = size_t{128} << 10;

// The two kinds of calls: what they make of a message's head and payload.
class CompressWork {
 public:
  using Request = v1::CompressTensorRequest;
  using Response = v1::CompressTensorResponse;
  static constexpr std::string_view kMethod = "CompressTensor";
  static constexpr uint32_t kRequestBytes = Request::kDataFieldNumber;
  static constexpr uint32_t kResponseBytes = Response::kFrameFieldNumber;

  static std::string* bytes(Request& request) { return request.mutable_data(); }

  // Checks everything but the values.
  absl::Status Prepare(const Request& request, const SessionOptions& options) {
    const v1::CompressHeader& header = request.header();
    if (header.frame_to_buffer()) return absl::InvalidArgumentError("rooms are for output of streams");
    KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, CompressHeaders().Read(header, options.default_codec));
    KVC_ASSIGN_OR_RETURN(compressor_, TensorCompressor::Create(std::move(job.tensor), job.codec, options.limits));
    return absl::OkStatus();
  }
  bool takes_pieces() const { return compressor_->takes_pieces(); }
  absl::Status Open(ByteSpan) { return absl::OkStatus(); }
  bool is_fast() const { return compressor_->chain().is_fast(); }
  uint64_t output_bytes() const { return compressor_->max_frame_bytes(); }

  absl::StatusOr<Buffer> Run(std::span<const ByteSpan> values, TensorReport& report) {
    Buffer frame(static_cast<size_t>(compressor_->max_frame_bytes()));
    const absl::StatusOr<size_t> size = values.size() == 1
                                            ? compressor_->Compress(values[0], frame.span(), &report.sums)
                                            : compressor_->CompressPieces(values, frame.span(), &report.sums);
    KVC_ASSIGN_OR_RETURN(report.frame_bytes, size);
    frame.Resize(static_cast<size_t>(report.frame_bytes));
    report.tensor = compressor_->tensor();
    report.codec = compressor_->codec();
    report.codec_name = compressor_->chain().codec_name();
    report.elements = compressor_->header().elements;
    report.tensor_bytes = compressor_->tensor_bytes();
    return frame;
  }

  static void Report(const TensorReport& report, SessionObserver& observer, Response& response) {
    const Quality quality = QualityOf(report.sums);
    const std::vector<Violation> violations = CheckThresholds(quality);
    ToMessage(report, quality, violations, *response.mutable_report());
    observer.OnCompressed(report, quality, violations);
  }

 private:
  std::optional<TensorCompressor> compressor_;
};

class DecompressWork {
 public:
  using Request = v1::DecompressTensorRequest;
  using Response = v1::DecompressTensorResponse;
  static constexpr std::string_view kMethod = "DecompressTensor";
  static constexpr uint32_t kRequestBytes = Request::kFrameFieldNumber;
  static constexpr uint32_t kResponseBytes = Response::kDataFieldNumber;

  static std::string* bytes(Request& request) { return request.mutable_frame(); }

  absl::Status Prepare(const Request& request, const SessionOptions& options) {
    name_ = request.header().name();
    if (request.header().data_to_buffer()) return absl::InvalidArgumentError("rooms are for output of streams");
    KVC_RETURN_IF_ERROR(ValidateTensor({.name = name_, .shape = {}, .axes = {}}).status());
    decompressor_ = TensorDecompressor(options.limits);
    return absl::OkStatus();
  }
  bool takes_pieces() const { return false; }
  absl::Status Open(ByteSpan frame) { return OfTensor(name_, decompressor_.ReadHeader(frame)); }
  bool is_fast() const { return decompressor_.chain().is_fast(); }
  uint64_t output_bytes() const { return decompressor_.header().tensor_bytes(); }

  absl::StatusOr<Buffer> Run(std::span<const ByteSpan> frames, TensorReport& report) {
    const ByteSpan frame = frames[0];
    Buffer values(static_cast<size_t>(output_bytes()));
    if (const absl::Status status = decompressor_.Decompress(frame, values.span()).status(); !status.ok()) {
      return OfTensor(name_, status);
    }
    const FrameHeader& header = decompressor_.header();
    report.tensor = header.tensor;
    report.tensor.name = name_;
    report.codec = header.codec;
    report.codec_name = decompressor_.chain().codec_name();
    report.elements = header.elements;
    report.tensor_bytes = header.tensor_bytes();
    report.frame_bytes = frame.size();
    return values;
  }

  static void Report(const TensorReport& report, SessionObserver& observer, Response& response) {
    ToMessage(report.tensor, *response.mutable_header());
    ToMessage(report, *response.mutable_report());
    observer.OnDecompressed(report);
  }

 private:
  std::string name_;
  TensorDecompressor decompressor_;
};

// A call without its reactor.
template <typename Work>
class TensorCall {
 public:
  TensorCall(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, Metrics& metrics)
      : context_(context),
        response_(response),
        metrics_(metrics),
        record_(context, Work::kMethod, metrics, LogLevel::kDebug) {}

  // Takes the message, and asks for the memory that the rest needs.
  absl::Status Start(const grpc::ByteBuffer& request, std::string client, const TensorCallEnvironment& environment) {
    KVC_ASSIGN_OR_RETURN(ticket_, environment.admission.AdmitStream(std::move(client)));
    typename Work::Request head;
    KVC_RETURN_IF_ERROR(Take(request, head));
    KVC_RETURN_IF_ERROR(ticket_.Count(work_.Prepare(head, environment.options)));
    Arrange();
    KVC_RETURN_IF_ERROR(ticket_.Count(work_.Open(payload_[0])));
    return ticket_.Resize(payload_bytes_ + work_.output_bytes());
  }

  // Whether Run takes less time than the way to another thread.
  bool is_short() const {
    return work_.is_fast() && std::max<uint64_t>(payload_bytes_, work_.output_bytes()) <= kInlineBytes;
  }

  // Fills the response.
  absl::Status Run() {
    if (context_->IsCancelled()) return absl::CancelledError("the client has cancelled");
    const Clock::time_point start = Clock::now();
    KVC_ASSIGN_OR_RETURN(Buffer output, work_.Run(payload_, report_));
    report_.codec_seconds = std::chrono::duration<double>(Clock::now() - start).count();
    typename Work::Response head;
    Work::Report(report_, metrics_, head);
    totals_ = {1, report_.tensor_bytes, report_.frame_bytes};
    *response_ = PayloadMessage(Work::kResponseBytes, {Slice::Of(std::move(output))}, head.SerializeAsString());
    return absl::OkStatus();
  }

  // The status to finish with. The call counts against no limit of streams any more; the memory of its answer is its
  // own until it is destroyed.
  grpc::Status End(const absl::Status& status) {
    ticket_.SettleStream();
    AddPushback(status, *context_);
    record_.End(status, totals_);
    return ToGrpcStatus(status);
  }

 private:
  using Clock = CallRecord::Clock;

  absl::Status Take(const grpc::ByteBuffer& message, typename Work::Request& head) {
    std::optional<SplitMessage> split = SplitAtPayload(message, Work::kRequestBytes);
    if (split && head.ParseFromString(split->head)) {
      pieces_ = std::move(split->payload);
      return absl::OkStatus();
    }
    KVC_RETURN_IF_ERROR(ParseRequest(message, kMaxHeadBytes, Work::kRequestBytes, head));
    auto owner = std::make_shared<const std::string>(std::move(*Work::bytes(head)));
    pieces_ = {{AsBytes(*owner), owner}};
    return absl::OkStatus();
  }

  // Leaves the payload in one piece, unless the codec takes it as it came.
  void Arrange() {
    const bool as_it_came = work_.takes_pieces() && pieces_.size() <= kMaxBlockPieces;
    if (pieces_.size() > 1 && !as_it_came) {
      Buffer whole;
      Gather(pieces_, whole);
      report_.copied_bytes = whole.size();
      pieces_ = {Slice::Of(std::move(whole))};
    }
    for (const Slice& piece : pieces_) {
      payload_.push_back(piece.bytes);
      payload_bytes_ += piece.bytes.size();
    }
    if (payload_.empty()) payload_.emplace_back();
  }

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  Metrics& metrics_;
  CallRecord record_;
  Admission::Ticket ticket_;
  Work work_;
  std::vector<Slice> pieces_;      // of the payload
  std::vector<ByteSpan> payload_;  // the bytes of pieces_; one of no bytes where there is none
  uint64_t payload_bytes_ = 0;
  TensorReport report_;
  StreamTotals totals_;
};

// A call whose work is a job of the pool.
template <typename Work>
class PooledCall final : public grpc::ServerUnaryReactor {
 public:
  PooledCall(ThreadPool& pool, std::unique_ptr<TensorCall<Work>> call) : call_(std::move(call)), queue_(pool) {
    // Finish may be followed by OnDone on another thread: nothing is touched behind it.
    queue_.Push([this] { this->Finish(call_->End(call_->Run())); });
  }

  void OnDone() override { delete this; }

 private:
  const std::unique_ptr<TensorCall<Work>> call_;
  ThreadPool::Queue queue_;
};

// A call that has ended in the reaction to its message. It stays until gRPC has sent the answer, which it is charged
// for, and then ends without another thread, like gRPC's own reactor for such calls.
template <typename Work>
class InlineCall final : public grpc::ServerUnaryReactor {
 public:
  InlineCall(std::unique_ptr<TensorCall<Work>> call, const absl::Status& status) : call_(std::move(call)) {
    Finish(call_->End(status));
  }

  void OnDone() override { delete this; }

 private:
  bool InternalInlineable() override { return true; }

  const std::unique_ptr<TensorCall<Work>> call_;
};

template <typename Work>
grpc::ServerUnaryReactor* StartCall(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                    grpc::ByteBuffer* response, std::string client,
                                    const TensorCallEnvironment& environment) {
  auto call = std::make_unique<TensorCall<Work>>(context, response, environment.metrics);
  absl::Status status = call->Start(request, std::move(client), environment);
  if (status.ok() && !call->is_short()) return new PooledCall<Work>(environment.pool, std::move(call));
  if (status.ok()) status = call->Run();
  return new InlineCall<Work>(std::move(call), status);
}

}  // namespace

grpc::ServerUnaryReactor* StartCompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response, std::string client,
                                              const TensorCallEnvironment& environment) {
  return StartCall<CompressWork>(context, *request, response, std::move(client), environment);
}

grpc::ServerUnaryReactor* StartDecompressTensor(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response, std::string client,
                                                const TensorCallEnvironment& environment) {
  return StartCall<DecompressWork>(context, *request, response, std::move(client), environment);
}

}  // namespace kvcompress
