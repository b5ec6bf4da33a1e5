#include <gmock/gmock.h>

#include "tests/client/remote/fake_daemon.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class RemoteClientTest : public ::testing::Test {
 protected:
  void TearDown() override { daemon_.Stop(); }

  absl::Status Compress(absl::Duration timeout = absl::InfiniteDuration()) {
    const CompressJob job{MakeTensor("t", DType::kF16, {values_.size() / 2}), "int4", &source_};
    return (*client_)->Compress(std::span(&job, 1), absl::Now() + timeout, frames_);
  }

  absl::Status Decompress() {
    const DecompressJob job{"t", &source_};
    return (*client_)->Decompress(std::span(&job, 1), absl::InfiniteFuture(), decoded_);
  }

  // What a right daemon makes of the values.
  std::string MakeFrame(std::string codec) const {
    const CompressJob job{MakeTensor("t", DType::kF16, {values_.size() / 2}), std::move(codec), &source_};
    Frames frames;
    EXPECT_THAT(MakeLocalClient(1)->Compress(std::span(&job, 1), absl::InfiniteFuture(), frames), IsOk());
    return frames.frame;
  }

  std::string Daemon(std::string_view text) const { return absl::StrFormat("daemon %s: %s", daemon_.address(), text); }

  FakeDaemon daemon_;
  absl::StatusOr<std::unique_ptr<CodecClient>> client_ = MakeRemoteClient({.address = daemon_.address()});
  std::vector<std::byte> values_ = MakeValues(DType::kF16, 1000000, Distribution::kGaussian);
  MemorySource source_{ByteSpan(values_)};
  const std::string frame_ = MakeFrame("int4");
  Frames frames_;
  Values decoded_;
};

TEST_F(RemoteClientTest, SendsTheTensorInMessagesOfAtMostOneMebibyte) {
  std::string received;
  v1::CompressHeader header;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    while (call.Read(&request)) {
      if (request.has_header()) header = request.header();
      EXPECT_LE(request.data().size(), size_t{1} << 20);
      received += request.data();
    }
    call.Write(FrameBytes(frame_.substr(0, 100)));
    call.Write(FrameBytes(frame_.substr(100)));
    call.Write(Report("t", values_.size(), frame_.size()));
    v1::CompressResponse end;
    end.mutable_stream();
    call.Write(end);
    return grpc::Status::OK;
  };
  ASSERT_THAT(Compress(), IsOk());
  EXPECT_EQ(received, AsText(values_));
  EXPECT_EQ(header.tensor().name(), "t");
  EXPECT_EQ(header.tensor().dtype(), v1::DTYPE_F16);
  EXPECT_EQ(header.codec(), "int4");
  EXPECT_EQ(frames_.frame, frame_);
  ASSERT_EQ(frames_.reports.size(), 1u);
  EXPECT_EQ(frames_.reports[0].copied_bytes, 12345u);
  const ErrorSums& sums = frames_.reports[0].sums;
  EXPECT_EQ(sums.count, 1u);
  EXPECT_EQ(sums.sum, 2);
  EXPECT_EQ(sums.sum_squares, 3);
  EXPECT_EQ(sums.sum_deviations, 4);
  EXPECT_EQ(sums.sum_error_squares, 5);
  EXPECT_EQ(sums.sum_abs_error, 6);
  EXPECT_EQ(sums.sum_cross, 7);
  EXPECT_EQ(sums.max_abs_error, 0.25);
}

TEST_F(RemoteClientTest, RepliesThatCannotBeAreRefused) {
  const uint64_t size = values_.size();
  const std::string misfit = "its report on tensor \"t\" does not fit what it sent";
  const std::string other = "a frame of another tensor or codec than it was asked for";
  std::string damaged = frame_;
  damaged[1000] ^= 1;
  const std::vector<std::pair<std::vector<v1::CompressResponse>, std::string>> cases = {
      {{}, "it ended the call before it had answered all of it"},
      {{FrameBytes(frame_)}, "it ended the call before it had answered all of it"},
      {{FrameBytes(frame_), Report("t", size, frame_.size() + 1)}, misfit},
      {{FrameBytes(frame_), Report("u", size, frame_.size())}, misfit},
      {{FrameBytes(frame_), Report("t", size - 2, frame_.size())}, misfit},
      {{FrameBytes(frame_), Report("t", size, frame_.size()), FrameBytes("d")},
       "it sent more tensors than it was given"},
      {{FrameBytes(frame_), FrameBytes("d")}, "bytes behind a frame's end mark"},
      {{FrameBytes(frame_.substr(0, 1000)), Report("t", size, 1000)}, "it sent less than a frame"},
      {{FrameBytes(MakeFrame("int4(group=32)"))}, other},
      {{FrameBytes(MakeFrame("raw"))}, other},
      {{FrameBytes(damaged)}, "frame: block 0: checksum mismatch"},
  };
  for (const auto& [responses, text] : cases) {
    daemon_.compress = [&responses = responses](grpc::ServerContext&, CompressCall& call) {
      for (const v1::CompressResponse& response : responses) call.Write(response);
      v1::CompressRequest request;
      while (call.Read(&request)) {
      }
      return grpc::Status::OK;
    };
    EXPECT_THAT(Compress(), StatusIs(absl::StatusCode::kInternal, Daemon(text)));
  }
}

TEST_F(RemoteClientTest, DecodedRepliesThatCannotBeAreRefused) {
  const uint64_t size = values_.size();
  v1::DecompressResponse unknown_axis = Header(2);
  unknown_axis.mutable_header()->set_axes(0, static_cast<v1::AxisRole>(9));
  v1::DecompressResponse too_many_axes = Header(2);
  too_many_axes.mutable_header()->add_axes(v1::AXIS_ROLE_OTHER);
  const std::vector<std::pair<std::vector<v1::DecompressResponse>, std::string>> cases = {
      {{}, "it ended the call before it had answered all of it"},
      {{Data("ab")}, "its messages are out of order"},
      {{Header(2), Header(2)}, "its messages are out of order"},
      {{Header(2), Data("abc"), Done(4, size)}, "it sent fewer values than the tensor has"},
      {{Header(2), Data("abcde")}, "it sent more values than the tensor has"},
      {{Header(2), Data("abcd"), Done(4, size - 1)}, "its report on tensor \"t\" does not fit what it sent"},
      {{Header(2), Data("abcd"), Done(4, size), Header(2)}, "it sent more tensors than it was given"},
      {{Header(2, v1::DTYPE_UNSPECIFIED)}, "tensor \"t\": no dtype"},
      {{Header(2, static_cast<v1::DType>(99))}, "tensor \"t\": unknown dtype 99"},
      {{Header(2, static_cast<v1::DType>(257))}, "tensor \"t\": unknown dtype 257"},
      {{unknown_axis}, "tensor \"t\": unknown axis role 9"},
      {{too_many_axes}, "tensor \"t\": 2 axis roles for rank 1"},
  };
  for (const auto& [responses, text] : cases) {
    daemon_.decompress = [&responses = responses](grpc::ServerContext&, DecompressCall& call) {
      for (const v1::DecompressResponse& response : responses) call.Write(response);
      v1::DecompressRequest request;
      while (call.Read(&request)) {
      }
      return grpc::Status::OK;
    };
    EXPECT_THAT(Decompress(), StatusIs(absl::StatusCode::kInternal, Daemon(text)));
  }
}

// As one that is older than they are: it leaves the field of the fingerprint alone.
TEST_F(RemoteClientTest, ADaemonThatKnowsNoFingerprintsGivesNoValuesForThem) {
  const DecompressJob job{.name = "t", .source = &source_, .fingerprint = "one"};
  const auto decompress = [&](const std::string& fingerprint) {
    v1::DecompressHeader header;
    daemon_.decompress = [&](grpc::ServerContext&, DecompressCall& call) {
      v1::DecompressRequest request;
      while (call.Read(&request)) {
        if (request.has_header()) header = request.header();
      }
      v1::DecompressResponse described = Header(2);
      described.mutable_header()->set_fingerprint(fingerprint);
      for (const auto& response : {described, Data("abcd"), Done(4, values_.size())}) call.Write(response);
      return grpc::Status::OK;
    };
    decoded_ = {};
    const absl::Status status = (*client_)->Decompress(std::span(&job, 1), absl::InfiniteFuture(), decoded_);
    EXPECT_EQ(header.fingerprint(), "one");
    return status;
  };
  EXPECT_THAT(decompress("one"), IsOk());
  EXPECT_EQ(decoded_.values, "abcd");
  for (const char* other : {"", "two"}) {
    EXPECT_THAT(decompress(other), StatusIs(absl::StatusCode::kAborted, HasSubstr("not fingerprint 6f6e65")));
    EXPECT_EQ(decoded_.values, "");
    EXPECT_THAT(decoded_.tensors, ElementsAre());
  }

  CompressJob marked{MakeTensor("t", DType::kF16, {values_.size() / 2}), "int4", &source_};
  marked.tensor.fingerprint = "one";
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    while (call.Read(&request)) {
    }
    call.Write(FrameBytes(frame_));
    return grpc::Status::OK;
  };
  EXPECT_THAT(
      (*client_)->Compress(std::span(&marked, 1), absl::InfiniteFuture(), frames_),
      StatusIs(absl::StatusCode::kInternal, Daemon("a frame of another tensor or codec than it was asked for")));
}

TEST_F(RemoteClientTest, ErrorsOfTheDataKeepTheirTextAndOthersNameTheDaemon) {
  client_ = MakeRemoteClient({.address = daemon_.address(), .retry = {.max_attempts = 1}});
  const auto fault = [&](grpc::StatusCode code) {
    daemon_.compress = [code](grpc::ServerContext&, CompressCall&) { return grpc::Status(code, "text"); };
    return Compress();
  };
  EXPECT_THAT(fault(grpc::INVALID_ARGUMENT), StatusIs(absl::StatusCode::kInvalidArgument, "text"));
  EXPECT_THAT(fault(grpc::DATA_LOSS), StatusIs(absl::StatusCode::kDataLoss, "text"));
  EXPECT_THAT(fault(grpc::ABORTED), StatusIs(absl::StatusCode::kAborted, "text"));
  EXPECT_THAT(fault(grpc::RESOURCE_EXHAUSTED), StatusIs(absl::StatusCode::kResourceExhausted, Daemon("text")));
  EXPECT_THAT(fault(grpc::UNAVAILABLE), StatusIs(absl::StatusCode::kUnavailable, Daemon("text")));
  EXPECT_THAT(fault(grpc::INTERNAL), StatusIs(absl::StatusCode::kInternal, Daemon("text")));
}

TEST_F(RemoteClientTest, ATensorThatCannotBeIsRefusedHere) {
  TensorDesc no_axes = MakeTensor("t", DType::kF16, {values_.size() / 2});
  no_axes.axes.clear();
  const CompressJob job{no_axes, "int4", &source_};
  EXPECT_THAT((*client_)->Compress(std::span(&job, 1), absl::InfiniteFuture(), frames_),
              StatusIs(absl::StatusCode::kInvalidArgument, "tensor \"t\": 0 axis roles for rank 1"));
}

TEST_F(RemoteClientTest, AnErrorOfTheSinkEndsTheCall) {
  daemon_.compress = [&](grpc::ServerContext& context, CompressCall& call) {
    call.Write(FrameBytes(frame_.substr(0, 1000)));
    while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  };
  frames_.fault = absl::DataLossError("the disk is full");
  EXPECT_THAT(Compress(), StatusIs(absl::StatusCode::kDataLoss, "the disk is full"));
}

TEST_F(RemoteClientTest, AnErrorOfTheSourceEndsTheCall) {
  class BadSource final : public ByteSource {
   public:
    uint64_t size() const override { return 2000; }
    absl::StatusOr<ByteSpan> Get(uint64_t, size_t, std::vector<std::byte>&) const override {
      return absl::DataLossError("the file became shorter");
    }
  };
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    while (call.Read(&request)) {
    }
    return grpc::Status::OK;
  };
  const BadSource source;
  const CompressJob job{MakeTensor("t", DType::kF16, {1000}), "int4", &source};
  EXPECT_THAT((*client_)->Compress(std::span(&job, 1), absl::InfiniteFuture(), frames_),
              StatusIs(absl::StatusCode::kDataLoss, "the file became shorter"));
}

TEST_F(RemoteClientTest, ADeadlineEndsACallThatHangs) {
  daemon_.compress = [&](grpc::ServerContext& context, CompressCall&) {
    while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  };
  EXPECT_THAT(Compress(absl::Milliseconds(200)), StatusIs(absl::StatusCode::kDeadlineExceeded, "deadline exceeded"));
}

// gRPC hands a message over in many parts, and none of them knows of the deadline.
TEST_F(RemoteClientTest, ADeadlineEndsACallWhoseSinkIsSlow) {
  class SlowSink final : public CompressSink {
   public:
    absl::Status OnFrame(ByteSpan) override {
      absl::SleepFor(absl::Milliseconds(50));
      return absl::OkStatus();
    }
    absl::Status OnTensor(const TensorReport&) override { return absl::OkStatus(); }
  };
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    while (call.Read(&request)) {
    }
    call.Write(FrameBytes(frame_));
    call.Write(Report("t", values_.size(), frame_.size()));
    return grpc::Status::OK;
  };
  SlowSink sink;
  const CompressJob job{MakeTensor("t", DType::kF16, {values_.size() / 2}), "int4", &source_};
  const absl::Time start = absl::Now();
  EXPECT_THAT((*client_)->Compress(std::span(&job, 1), start + absl::Milliseconds(300), sink),
              StatusIs(absl::StatusCode::kDeadlineExceeded, ::testing::_));
  EXPECT_LT(absl::Now() - start, absl::Seconds(1));
}

TEST_F(RemoteClientTest, ADaemonThatIsNotThereIsNamedAtOnce) {
  const Socket nobody(false);
  client_ = MakeRemoteClient({.address = nobody.address()});
  const absl::Time start = absl::Now();
  EXPECT_THAT(Compress(), StatusIs(absl::StatusCode::kUnavailable,
                                   AllOf(StartsWith(absl::StrFormat("connect to %s: ", nobody.address())),
                                         HasSubstr("Connection refused"))));
  EXPECT_LT(absl::Now() - start, absl::Seconds(4));
}

TEST_F(RemoteClientTest, ADaemonThatIsGoneIsUnavailableWhateverTheDeadline) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall&) { return grpc::Status(grpc::DATA_LOSS, "met"); };
  ASSERT_THAT(Compress(), StatusIs(absl::StatusCode::kDataLoss, "met"));
  daemon_.Stop();
  // The text is that of a connection that is refused; or of the old one, where that was not seen to end before.
  EXPECT_THAT(Compress(absl::Milliseconds(300)), StatusIs(absl::StatusCode::kUnavailable, ::testing::_));
}

TEST_F(RemoteClientTest, AnAddressThatDoesNotAnswerIsGivenUp) {
  const Socket silent(true);  // accepts, and never says a word
  client_ = MakeRemoteClient({.address = silent.address(), .connect_timeout = absl::Milliseconds(300)});
  EXPECT_THAT(Compress(),
              StatusIs(absl::StatusCode::kUnavailable, absl::StrFormat("connect to %s: no answer", silent.address())));
}

TEST_F(RemoteClientTest, AddressesOfTheWrongFormAreRefused) {
  for (const char* address : {"host", ":50051", "host:", ""}) {
    EXPECT_THAT(
        MakeRemoteClient({.address = address}),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 absl::StrFormat("\"%s\" is not the address of a daemon: use HOST:PORT or unix:PATH", address)));
  }
}

}  // namespace
}  // namespace kvcompress
