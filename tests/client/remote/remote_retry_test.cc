#include <atomic>
#include <deque>
#include <thread>

#include "proto/wire/grpc/error_details.h"
#include "tests/client/remote/fake_daemon.h"
#include "tests/client/remote/small_jobs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr size_t kPiece = 10000;  // bytes of output in a message

class RemoteRetryTest : public SmallJobs {
 protected:
  RemoteRetryTest() : SmallJobs(3, 100000) {}
  void TearDown() override { daemon_.Stop(); }

  std::unique_ptr<CodecClient> Client(RetryPolicy retry = {.initial_backoff = absl::Milliseconds(1)}) {
    return *MakeRemoteClient({.address = daemon_.address(),
                              .retry = retry,
                              .on_retry = [this](const RetryEvent& event) { events_.push_back(event); }});
  }

  size_t IndexOf(const std::string& name) const { return static_cast<size_t>(name.back() - '0'); }

  // Answers as a daemon does, up to `pieces` messages of output, and then with `end`.
  grpc::Status Serve(CompressCall& call, size_t pieces = SIZE_MAX, grpc::Status end = grpc::Status::OK) {
    v1::CompressRequest request;
    std::deque<size_t> described;
    uint64_t received = 0;
    while (call.Read(&request)) {
      for (const v1::CompressHeader& header : HeadersOf(request)) {
        described.push_back(IndexOf(header.tensor().name()));
        asked_.push_back(header.tensor().name());
      }
      received += request.data().size();
      for (; !described.empty() && received >= values_[described.front()].size(); described.pop_front()) {
        const size_t index = described.front();
        received -= values_[index].size();
        for (size_t at = 0; at < frames_[index].size(); at += kPiece) {
          if (pieces-- == 0) return end;
          call.Write(FrameBytes(frames_[index].substr(at, kPiece)));
        }
        call.Write(Report(jobs_[index].tensor.name, values_[index].size(), frames_[index].size()));
      }
    }
    return end;
  }

  FakeDaemon daemon_;
  std::vector<std::string> asked_;  // names of the tensors that the daemon was given
  std::vector<RetryEvent> events_;
  Log log_;
};

grpc::Status Unavailable() { return {grpc::UNAVAILABLE, "gone"}; }

TEST_F(RemoteRetryTest, ADaemonThatIsBusyTwiceIsAskedAThirdTime) {
  int calls = 0;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    return ++calls < 3 ? Unavailable() : Serve(call);
  };
  EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_), IsOk());
  EXPECT_EQ(log_.outputs, frames_);
  ASSERT_EQ(events_.size(), 2u);
  EXPECT_EQ(events_[0].attempt, 1);
  EXPECT_EQ(events_[1].attempt, 2);
  EXPECT_THAT(events_[0].status,
              StatusIs(absl::StatusCode::kUnavailable, absl::StrFormat("daemon %s: gone", daemon_.address())));
}

TEST_F(RemoteRetryTest, WaitsGrowUpToALimit) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall&) { return Unavailable(); };
  const RetryPolicy policy = {.max_attempts = 5,
                              .initial_backoff = absl::Milliseconds(2),
                              .multiplier = 2,
                              .max_backoff = absl::Milliseconds(8),
                              .jitter = 0.25};
  EXPECT_THAT(Client(policy)->Compress(jobs_, absl::InfiniteFuture(), log_),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("gone")));
  ASSERT_EQ(events_.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    const absl::Duration middle = absl::Milliseconds(i == 0 ? 2 : i == 1 ? 4 : 8);
    EXPECT_GE(events_[i].delay, middle * 0.75) << i;
    EXPECT_LE(events_[i].delay, middle * 1.25) << i;
  }
}

TEST_F(RemoteRetryTest, AHintInTheTrailerIsWaitedFor) {
  int calls = 0;
  daemon_.compress = [&](grpc::ServerContext& context, CompressCall& call) {
    if (++calls > 1) return Serve(call);
    context.AddTrailingMetadata("grpc-retry-pushback-ms", "30");
    return grpc::Status(grpc::RESOURCE_EXHAUSTED, "full");
  };
  EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_), IsOk());
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_GE(events_[0].delay, absl::Milliseconds(30));
  EXPECT_LE(events_[0].delay, absl::Milliseconds(36));
}

TEST_F(RemoteRetryTest, ADaemonThatAsksForTooMuchIsNotWaitedFor) {
  daemon_.compress = [&](grpc::ServerContext& context, CompressCall&) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms", "30001");
    return grpc::Status(grpc::RESOURCE_EXHAUSTED, "full");
  };
  EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("full")));
  EXPECT_THAT(events_, IsEmpty());
}

TEST_F(RemoteRetryTest, AHintInTheDetailsIsWaitedFor) {
  int calls = 0;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    if (++calls > 1) return Serve(call);
    return MakeStatus(grpc::RESOURCE_EXHAUSTED, "full", {.retry_delay = absl::Milliseconds(20)});
  };
  EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_), IsOk());
  ASSERT_EQ(events_.size(), 1u);
  EXPECT_GE(events_[0].delay, absl::Milliseconds(20));
}

TEST_F(RemoteRetryTest, OtherEndsAreNotRetried) {
  for (const grpc::StatusCode code :
       {grpc::RESOURCE_EXHAUSTED, grpc::INVALID_ARGUMENT, grpc::DATA_LOSS, grpc::INTERNAL, grpc::FAILED_PRECONDITION,
        grpc::UNIMPLEMENTED, grpc::PERMISSION_DENIED, grpc::ABORTED}) {
    int calls = 0;
    daemon_.compress = [&](grpc::ServerContext&, CompressCall&) {
      ++calls;
      return grpc::Status(code, "no");
    };
    EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_),
                StatusIs(static_cast<absl::StatusCode>(code), HasSubstr("no")));
    EXPECT_EQ(calls, 1) << code;
  }
  EXPECT_TRUE(events_.empty());
}

// So gRPC ends calls that meet a server while it shuts down, and those that a proxy ends without a status.
TEST_F(RemoteRetryTest, ACallThatEndsByNobodysWordMetADaemonThatGoes) {
  for (const grpc::StatusCode code : {grpc::CANCELLED, grpc::UNKNOWN}) {
    int calls = 0;
    daemon_.compress = [&](grpc::ServerContext&, CompressCall&) {
      ++calls;
      return grpc::Status(code, "gone");
    };
    EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("gone")));
    EXPECT_GT(calls, 1);
  }
}

TEST_F(RemoteRetryTest, HintsThatAreNoTimesAreNone) {
  for (const char* hint : {"-1", "soon", "", "99999999999999999999"}) {
    daemon_.compress = [&](grpc::ServerContext& context, CompressCall&) {
      context.AddTrailingMetadata("grpc-retry-pushback-ms", hint);
      return grpc::Status(grpc::RESOURCE_EXHAUSTED, "full");
    };
    EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("full")));
  }
  EXPECT_TRUE(events_.empty());
}

TEST_F(RemoteRetryTest, TheSinkSeesEveryByteOnceWhereverTheCallBreaks) {
  const size_t pieces_of_first = (frames_[0].size() + kPiece - 1) / kPiece;
  for (const size_t pieces : {size_t{0}, size_t{1}, pieces_of_first, pieces_of_first + 2}) {
    asked_.clear();
    log_ = {};
    int calls = 0;
    daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
      return ++calls == 1 ? Serve(call, pieces, Unavailable()) : Serve(call);
    };
    EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_), IsOk());
    EXPECT_EQ(log_.outputs, frames_) << pieces;
    EXPECT_THAT(log_.names, ElementsAre("t0", "t1", "t2"));
    EXPECT_EQ(calls, 2);
    // The second call begins with the first tensor that was not reported.
    EXPECT_EQ(asked_[asked_.size() - (pieces < pieces_of_first ? 3 : 2)], pieces < pieces_of_first ? "t0" : "t1");
    EXPECT_EQ(asked_.back(), "t2");
  }
}

TEST_F(RemoteRetryTest, DecodedValuesAreSeenOnceToo) {
  int calls = 0;
  daemon_.decompress = [&](grpc::ServerContext&, DecompressCall& call) {
    v1::DecompressRequest request;
    const bool broken = ++calls == 2;
    uint64_t missing = 0;
    size_t index = 0;
    while (call.Read(&request)) {
      if (request.has_batch()) return NoBatches();
      if (request.has_header()) {
        index = IndexOf(request.header().name());
        missing = frames_[index].size();
      }
      missing -= request.frame().size();
      if (missing > 0) continue;
      v1::DecompressResponse response = Header(values_[index].size() / 2);
      response.mutable_header()->set_name(jobs_[index].tensor.name);
      call.Write(response);
      for (size_t at = 0; at < values_[index].size(); at += kPiece) {
        if (broken && index == 1 && at > 5 * kPiece) return Unavailable();
        call.Write(Data(std::string(AsText(values_[index]).substr(at, kPiece))));
      }
      response = Done(values_[index].size(), frames_[index].size());
      response.mutable_tensor()->set_name(jobs_[index].tensor.name);
      call.Write(response);
    }
    return grpc::Status::OK;
  };
  EXPECT_THAT(Client()->Decompress(unpack_, absl::InfiniteFuture(), log_), IsOk());
  EXPECT_EQ(calls, 3);
  EXPECT_THAT(log_.headers, ElementsAre("t0", "t1", "t2"));
  ASSERT_EQ(log_.outputs.size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(log_.outputs[i], AsText(values_[i]));
}

TEST_F(RemoteRetryTest, OtherBytesOnARetryAreInternal) {
  int calls = 0;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    if (++calls == 1) return Serve(call, 3, Unavailable());
    // A frame of the same shape and codec, undamaged, of other values.
    const auto values = MakeValues(DType::kF16, 100000, Distribution::kGaussian, 99);
    const MemorySource source{ByteSpan(values)};
    Frames frames;
    const CompressJob job{jobs_[0].tensor, "int4", &source};
    EXPECT_THAT(MakeLocalClient(1)->Compress(std::span(&job, 1), absl::InfiniteFuture(), frames), IsOk());
    frames_[0] = frames.frame;
    return Serve(call);
  };
  EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_),
              StatusIs(absl::StatusCode::kInternal,
                       absl::StrFormat("daemon %s: it gave different bytes on a retry", daemon_.address())));
}

TEST_F(RemoteRetryTest, AWaitThatPassesTheDeadlineIsNotBegun) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall&) { return Unavailable(); };
  EXPECT_THAT(Client({.initial_backoff = absl::Hours(1)})->Compress(jobs_, absl::Now() + absl::Seconds(50), log_),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("gone")));
  EXPECT_TRUE(events_.empty());
}

TEST_F(RemoteRetryTest, AStreamThatBreaksBehindItsLastTensorIsWhole) {
  int calls = 0;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    ++calls;
    return Serve(call, SIZE_MAX, Unavailable());
  };
  EXPECT_THAT(Client()->Compress(jobs_, absl::InfiniteFuture(), log_), IsOk());
  EXPECT_EQ(log_.outputs, frames_);
  EXPECT_EQ(calls, 1);
}

TEST_F(RemoteRetryTest, ADaemonThatIsStartedAgainIsFoundAgain) {
  std::atomic<int> calls = 0;
  daemon_.compress = [&](grpc::ServerContext& context, CompressCall& call) {
    if (++calls > 1) return Serve(call);
    Serve(call, 2, grpc::Status::OK);
    while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::OK;
  };
  const auto client = Client();
  std::thread restart([&] {
    while (calls == 0) absl::SleepFor(absl::Milliseconds(1));
    daemon_.Stop();
    absl::SleepFor(absl::Milliseconds(300));
    daemon_.Start();
  });
  EXPECT_THAT(client->Compress(jobs_, absl::InfiniteFuture(), log_), IsOk());
  restart.join();
  EXPECT_EQ(log_.outputs, frames_);
}

}  // namespace
}  // namespace kvcompress
