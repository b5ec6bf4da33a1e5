#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/client/codec_client.h"
#include "kvcompress/codec/chain.h"
#include "kvcompress/frame/frame.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"

namespace kvcompress {
namespace {

constexpr uint64_t kMessageBytes = uint64_t{1} << 20;

v1::Tensor ToProto(const TensorDesc& tensor) {
  v1::Tensor proto;
  proto.set_name(tensor.name);
  proto.set_dtype(static_cast<v1::DType>(tensor.dtype));
  proto.mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
  for (AxisRole role : tensor.axes) proto.add_axes(static_cast<v1::AxisRole>(role));
  return proto;
}

absl::StatusOr<TensorDesc> FromProto(const v1::Tensor& proto) {
  const std::optional<DType> dtype = DTypeFromNumber(static_cast<uint8_t>(proto.dtype()));
  if (!dtype || !v1::DType_IsValid(proto.dtype())) return absl::InternalError("it names an unknown data type");
  TensorDesc tensor{proto.name(), *dtype, {proto.shape().begin(), proto.shape().end()}, {}};
  for (const int role : proto.axes()) tensor.axes.push_back(static_cast<AxisRole>(role));
  return tensor;
}

// A report on `tensor`, which has `elements`.
TensorReport FromProto(const v1::TensorReport& proto, const TensorDesc& tensor, uint64_t elements) {
  const v1::ErrorSums& sums = proto.sums();
  return {.tensor = tensor,
          .codec = proto.codec(),
          .codec_name = {},
          .elements = elements,
          .tensor_bytes = proto.tensor_bytes(),
          .frame_bytes = proto.frame_bytes(),
          .sums = {sums.count(), sums.sum(), sums.sum_squares(), sums.sum_error_squares(), sums.sum_abs_error(),
                   sums.sum_cross(), sums.max_abs_error()},
          .codec_seconds = proto.codec_seconds()};
}

// Looks through a frame that comes for `job`: what is kept must be what was asked for, and undamaged.
class FrameCheck {
 public:
  absl::Status Take(const CompressJob& job, ByteSpan bytes) {
    while (!bytes.empty()) {
      if (reader_.done()) return absl::InternalError("bytes behind a frame's end mark");
      KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader_.Next(bytes));
      if (part == FrameReader::Part::kHeader) KVC_RETURN_IF_ERROR(CheckHeader(job));
      if (part == FrameReader::Part::kBlock) KVC_RETURN_IF_ERROR(VerifyBlock(reader_.header(), reader_.TakeBlock()));
    }
    return absl::OkStatus();
  }

  bool done() const { return reader_.done(); }
  uint64_t bytes() const { return reader_.bytes_read(); }

 private:
  absl::Status CheckHeader(const CompressJob& job) {
    TensorDesc expected = job.tensor;
    expected.name.clear();  // a frame has no name
    const FrameHeader& header = reader_.header();
    KVC_ASSIGN_OR_RETURN(const CodecChain chain, CodecChain::Parse(job.codec));
    if (header.tensor != expected || header.codec != chain.spec()) {
      return absl::InternalError("a frame of another tensor or codec than it was asked for");
    }
    reader_.set_max_payload_bytes(chain.MaxPayloadBytes(expected.dtype, header.BlockElements(0)));
    return absl::OkStatus();
  }

  FrameReader reader_;
};

// Sends `source` in messages that `data` of each request gives room for; false when the stream is broken.
template <typename Stream, typename Request>
absl::StatusOr<bool> SendBytes(Stream& stream, const ByteSource& source, std::string* (*data)(Request&)) {
  Request request;
  std::vector<std::byte> scratch;
  for (uint64_t offset = 0; offset < source.size();) {
    KVC_ASSIGN_OR_RETURN(const ByteSpan bytes,
                         source.Get(offset, std::min(kMessageBytes, source.size() - offset), scratch));
    data(request)->assign(AsText(bytes));
    if (!stream.Write(request)) return false;
    offset += bytes.size();
  }
  return true;
}

// Runs both sides of a stream until it ends: `send` on a thread of its own, so that replies are taken while requests
// are still going out. `send` returns false when it could not write, `take` an error to give up.
template <typename Request, typename Response>
absl::Status Exchange(grpc::ClientContext& context, grpc::ClientReaderWriter<Request, Response>& stream,
                      const std::function<absl::StatusOr<bool>()>& send,
                      const std::function<absl::Status(const Response&)>& take, grpc::Status& finished) {
  absl::Status sent;
  std::thread sender([&] {
    const absl::StatusOr<bool> all = send();
    sent = all.status();
    if (!all.ok()) context.TryCancel();
    if (all.ok() && *all) stream.WritesDone();
  });
  absl::Status taken;
  Response response;
  while (stream.Read(&response)) {
    if (!taken.ok()) continue;  // a cancelled call must still be read to its end
    taken = take(response);
    if (!taken.ok()) context.TryCancel();
  }
  sender.join();
  finished = stream.Finish();
  KVC_RETURN_IF_ERROR(taken);
  return sent;
}

class RemoteClient final : public CodecClient {
 public:
  explicit RemoteClient(const RemoteOptions& options) : options_(options) {
    grpc::ChannelArguments arguments;
    // The daemon stands beside us: a proxy for the web is not asked for it.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(options_.address, grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::KvCompression::NewStub(channel_);
  }

  absl::Status Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) override;
  absl::Status Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) override;

 private:
  absl::Status Connect(absl::Time deadline);
  // What a call's end means.
  absl::Status Verdict(const grpc::Status& status, size_t jobs_done, size_t jobs) const;
  absl::Status DaemonFault(absl::StatusCode code, std::string_view what) const {
    return absl::Status(code, absl::StrFormat("daemon %s: %s", options_.address, what));
  }
  absl::Status WrongReply(std::string_view what) const { return DaemonFault(absl::StatusCode::kInternal, what); }
  // Whether a report tells of the job that it must, and of all bytes that came.
  absl::Status CheckReport(const v1::TensorReport& report, std::string_view name, uint64_t tensor_bytes,
                           uint64_t frame_bytes) const;

  const RemoteOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvCompression::Stub> stub_;
};

// Waits for the channel, so that a daemon that is not there is told apart from one that died.
absl::Status RemoteClient::Connect(absl::Time deadline) {
  const absl::Time limit = std::min(deadline, absl::Now() + options_.connect_timeout);
  grpc_connectivity_state state = channel_->GetState(/*try_to_connect=*/true);
  while (state == GRPC_CHANNEL_IDLE || state == GRPC_CHANNEL_CONNECTING) {
    if (!channel_->WaitForStateChange(state, absl::ToChronoTime(limit))) {
      return absl::UnavailableError(absl::StrFormat("connect to %s: no answer", options_.address));
    }
    state = channel_->GetState(true);
  }
  if (state == GRPC_CHANNEL_READY) return absl::OkStatus();
  // Only a call tells why; it fails at once.
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(limit));
  v1::MetricsResponse response;
  const grpc::Status status = stub_->Metrics(&context, v1::MetricsRequest(), &response);
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return absl::OkStatus();
  return absl::UnavailableError(absl::StrFormat("connect to %s: %s", options_.address, status.error_message()));
}

absl::Status RemoteClient::Verdict(const grpc::Status& status, size_t jobs_done, size_t jobs) const {
  if (status.ok()) {
    return jobs_done == jobs ? absl::OkStatus() : WrongReply("it ended the call before it had answered all of it");
  }
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::DATA_LOSS:
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError("deadline exceeded");
    default:
      return DaemonFault(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
}

absl::Status RemoteClient::CheckReport(const v1::TensorReport& report, std::string_view name, uint64_t tensor_bytes,
                                       uint64_t frame_bytes) const {
  if (report.name() == name && report.tensor_bytes() == tensor_bytes && report.frame_bytes() == frame_bytes) {
    return absl::OkStatus();
  }
  return WrongReply(absl::StrFormat("its report on tensor \"%s\" does not fit what it sent", name));
}

absl::Status RemoteClient::Compress(std::span<const CompressJob> jobs, absl::Time deadline, CompressSink& sink) {
  KVC_RETURN_IF_ERROR(Connect(deadline));
  grpc::ClientContext context;
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
  const auto stream = stub_->Compress(&context);

  const auto send = [&]() -> absl::StatusOr<bool> {
    for (const CompressJob& job : jobs) {
      v1::CompressRequest request;
      *request.mutable_header()->mutable_tensor() = ToProto(job.tensor);
      request.mutable_header()->set_codec(job.codec);
      if (!stream->Write(request)) return false;
      KVC_ASSIGN_OR_RETURN(const bool sent,
                           SendBytes(
                               *stream, *job.source, +[](v1::CompressRequest& r) { return r.mutable_data(); }));
      if (!sent) return false;
    }
    return true;
  };

  size_t done = 0;
  FrameCheck frame;
  const auto take = [&](const v1::CompressResponse& response) -> absl::Status {
    if (response.has_stream()) return absl::OkStatus();
    if (done == jobs.size()) return WrongReply("it sent more tensors than it was given");
    if (response.has_tensor()) {
      const CompressJob& job = jobs[done++];
      if (!frame.done()) return WrongReply("it sent less than a frame");
      KVC_RETURN_IF_ERROR(CheckReport(response.tensor(), job.tensor.name, job.source->size(), frame.bytes()));
      frame = FrameCheck();
      return sink.OnTensor(FromProto(response.tensor(), job.tensor, job.source->size() / DTypeSize(job.tensor.dtype)));
    }
    if (const absl::Status status = frame.Take(jobs[done], AsBytes(response.frame())); !status.ok()) {
      return WrongReply(std::string(status.message()));
    }
    return sink.OnFrame(AsBytes(response.frame()));
  };

  grpc::Status finished;
  KVC_RETURN_IF_ERROR((Exchange<v1::CompressRequest, v1::CompressResponse>(context, *stream, send, take, finished)));
  return Verdict(finished, done, jobs.size());
}

absl::Status RemoteClient::Decompress(std::span<const DecompressJob> jobs, absl::Time deadline, DecompressSink& sink) {
  KVC_RETURN_IF_ERROR(Connect(deadline));
  grpc::ClientContext context;
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
  const auto stream = stub_->Decompress(&context);

  const auto send = [&]() -> absl::StatusOr<bool> {
    for (const DecompressJob& job : jobs) {
      v1::DecompressRequest request;
      request.mutable_header()->set_name(job.name);
      if (!stream->Write(request)) return false;
      KVC_ASSIGN_OR_RETURN(const bool sent,
                           SendBytes(
                               *stream, *job.source, +[](v1::DecompressRequest& r) { return r.mutable_frame(); }));
      if (!sent) return false;
    }
    return true;
  };

  size_t done = 0;
  std::optional<TensorDesc> tensor;
  uint64_t expected_bytes = 0;  // of the tensor's values
  uint64_t value_bytes = 0;
  const auto take = [&](const v1::DecompressResponse& response) -> absl::Status {
    if (response.has_stream()) return absl::OkStatus();
    if (done == jobs.size()) return WrongReply("it sent more tensors than it was given");
    if (response.has_header() == tensor.has_value()) return WrongReply("its messages are out of order");
    if (response.has_header()) {
      absl::StatusOr<TensorDesc> desc = FromProto(response.header());
      if (!desc.ok()) return WrongReply(std::string(desc.status().message()));
      KVC_ASSIGN_OR_RETURN(const uint64_t elements, ValidateTensor(*desc));
      expected_bytes = elements * DTypeSize(desc->dtype);
      value_bytes = 0;
      tensor = *std::move(desc);
      return sink.OnHeader(*tensor);
    }
    if (response.has_tensor()) {
      const DecompressJob& job = jobs[done++];
      if (value_bytes != expected_bytes) return WrongReply("it sent fewer values than the tensor has");
      KVC_RETURN_IF_ERROR(CheckReport(response.tensor(), job.name, expected_bytes, job.source->size()));
      const TensorReport report = FromProto(response.tensor(), *tensor, expected_bytes / DTypeSize(tensor->dtype));
      tensor.reset();
      return sink.OnTensor(report);
    }
    value_bytes += response.data().size();
    if (value_bytes > expected_bytes) return WrongReply("it sent more values than the tensor has");
    return sink.OnData(AsBytes(response.data()));
  };

  grpc::Status finished;
  KVC_RETURN_IF_ERROR(
      (Exchange<v1::DecompressRequest, v1::DecompressResponse>(context, *stream, send, take, finished)));
  return Verdict(finished, done, jobs.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<CodecClient>> MakeRemoteClient(const RemoteOptions& options) {
  const size_t colon = options.address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == options.address.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("\"%s\" is not the address of a daemon: use HOST:PORT", options.address));
  }
  return std::make_unique<RemoteClient>(options);
}

}  // namespace kvcompress
