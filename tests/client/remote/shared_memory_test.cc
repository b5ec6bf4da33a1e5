#include "core/base/shared_memory.h"

#include <atomic>
#include <thread>

#include "client/remote/shared_exchange.h"
#include "proto/wire/grpc/error_details.h"
#include "tests/client/remote/fake_daemon.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint64_t kRegion = 7;
constexpr char kOutside[] = "it wrote outside of the buffers that it was given";

// A daemon that offers shared memory and, as a test tells it to, does not keep its promises.
class SharedMemoryTest : public ::testing::Test {
 protected:
  SharedMemoryTest() {
    daemon_.capabilities = [this](v1::CapabilitiesResponse& response) {
      AwaitAnswers();
      ++questions_;
      response.add_transports(v1::TRANSPORT_SHARED_MEMORY);
      response.set_shared_memory_prefix(prefix_);
      return grpc::Status::OK;
    };
    daemon_.shared_memory = [this](SharedMemoryCall& call) { return Register(call); };
  }
  void TearDown() override {
    client_.reset();
    daemon_.Stop();
  }

  // Maps what the client registers, and asks it to prove that it may write it.
  grpc::Status Register(SharedMemoryCall& call) {
    v1::SharedMemoryRequest request;
    while (call.Read(&request)) {
      AwaitAnswers();
      if (request.has_unregister()) ++unregistered_;
      v1::SharedMemoryResponse response;
      if (request.has_status()) response.set_own_key_prefix(own_prefix_);
      if (request.has_register_()) {
        key_ = request.register_().key();
        const auto object = SharedMemory::Open(request.register_().key());
        if (!object.ok()) return {grpc::NOT_FOUND, "no such object"};
        memory_ = *object->Map(0, request.register_().byte_size());
        response.set_challenge("0123456789abcdef");
      }
      if (request.has_confirm()) {
        EXPECT_FALSE(SharedMemory::Open(key_).ok()) << "whoever is killed now leaves it";
        EXPECT_EQ(AsText(memory_.bytes().first(16)), "0123456789abcdef");
        response.add_regions()->set_name(request.confirm().name());
        response.mutable_regions(0)->set_region(kRegion);
      }
      call.Write(response);
    }
    return grpc::Status::OK;
  }

  // Whether questions about memory are answered.
  void SetAnswers(bool answers) {
    absl::MutexLock lock(&mutex_);
    answers_ = answers;
  }
  void AwaitAnswers() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&answers_));
  }

  // Answers tensors that came as ranges, with frames that go to buffers: once it has as many of them as it needs.
  grpc::Status Serve(CompressCall& call, const std::function<void(v1::SharedMemoryRange&)>& twist = {}) {
    v1::CompressRequest request;
    std::vector<v1::SharedMemoryRange> buffers;
    uint64_t taken = 0;
    while (call.Read(&request)) {
      if (request.has_frame_buffer()) buffers.push_back(request.frame_buffer());
      received_ += request.data();
      if (request.has_shared_data()) {
        const v1::SharedMemoryRange& range = request.shared_data();
        if (range.region() == kRegion) received_ += AsText(memory_.bytes().subspan(range.offset(), range.byte_size()));
        taken += range.byte_size();
        v1::CompressResponse response;
        response.set_input_released(taken);
        call.Write(response);
      }
      if (received_.size() < values_.size() || (taken > 0 && buffers.size() < buffers_needed_)) continue;
      if (taken == 0) {
        call.Write(FrameBytes(frame_));
      } else {
        std::ranges::copy(AsBytes(frame_), memory_.bytes().subspan(buffers[0].offset()).begin());
        v1::CompressResponse response;
        *response.mutable_shared_frame() = buffers[0];
        response.mutable_shared_frame()->set_byte_size(frame_.size());
        if (twist) twist(*response.mutable_shared_frame());
        call.Write(response);
      }
      call.Write(Report("t", values_.size(), frame_.size()));
      received_.clear();
    }
    return std::exchange(received_, "").empty() ? grpc::Status::OK : too_few_buffers_;
  }

  absl::Status Compress(ByteSpan values) {
    const MemorySource source(values);
    const CompressJob job{MakeTensor("t", DType::kF16, {values.size() / 2}), "int4", &source};
    frames_ = {};
    return client_->Compress(std::span(&job, 1), absl::Now() + absl::Seconds(60), frames_);
  }

  std::string MakeFrame() const {
    const MemorySource source{ByteSpan(values_)};
    const CompressJob job{MakeTensor("t", DType::kF16, {values_.size() / 2}), "int4", &source};
    Frames frames;
    EXPECT_THAT(MakeLocalClient(1)->Compress(std::span(&job, 1), absl::InfiniteFuture(), frames), IsOk());
    return frames.frame;
  }

  const std::string prefix_ = absl::StrFormat("kvc-client-test-%d-", getpid());
  std::string own_prefix_;
  std::string key_;
  std::atomic<int> questions_ = 0;
  absl::Mutex mutex_;
  bool answers_ ABSL_GUARDED_BY(mutex_) = true;
  std::atomic<int> unregistered_ = 0;
  FakeDaemon daemon_;
  SharedMapping memory_;
  std::string received_;
  size_t buffers_needed_ = 1;
  grpc::Status too_few_buffers_;
  const std::vector<std::byte> values_ = MakeValues(DType::kF16, 700000, Distribution::kGaussian);
  const std::string frame_ = MakeFrame();
  std::unique_ptr<CodecClient> client_ = *MakeRemoteClient({.address = daemon_.address()});
  Frames frames_;
};

TEST_F(SharedMemoryTest, BytesGoThroughChunksAndBuffers) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) { return Serve(call); };
  for (int i = 0; i < 3; ++i) {
    ASSERT_THAT(Compress(values_), IsOk());
    EXPECT_EQ(frames_.frame, frame_);
    EXPECT_EQ(client_->Transport(), "shared memory");
  }
  EXPECT_EQ(questions_, 1);
}

TEST_F(SharedMemoryTest, KeysAreThoseThatTheDaemonRemoves) {
  ASSERT_NE(client_->Allocate(1 << 20), nullptr);
  EXPECT_THAT(key_, StartsWith("/" + prefix_)) << "of a daemon that has none of a stream's own";
  own_prefix_ = prefix_ + "own-";
  client_ = *MakeRemoteClient({.address = daemon_.address()});
  ASSERT_NE(client_->Allocate(1 << 20), nullptr);
  EXPECT_THAT(key_, StartsWith("/" + own_prefix_));
}

TEST_F(SharedMemoryTest, AllocatedMemoryIsReadInPlace) {
  const std::unique_ptr<SharedBuffer> buffer = client_->Allocate(values_.size());
  const SharedMapping whole = std::move(memory_);
  EXPECT_EQ(buffer->bytes().size(), values_.size());
  std::ranges::copy(values_, buffer->bytes().begin());
  EXPECT_TRUE(std::ranges::equal(whole.bytes().first(values_.size()), values_));
  // After the first range it is known that no chunk is needed: they become larger than one.
  std::vector<uint64_t> ranges;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    while (call.Read(&request)) {
      if (request.has_shared_data()) ranges.push_back(request.shared_data().offset());
    }
    return grpc::Status(grpc::INVALID_ARGUMENT, "enough");
  };
  EXPECT_THAT(Compress(buffer->bytes()), StatusIs(absl::StatusCode::kInvalidArgument, "enough"));
  EXPECT_THAT(ranges, ::testing::ElementsAre(0, CallMemory::kChunkBytes));
}

TEST_F(SharedMemoryTest, OutputOutsideOfItsBufferIsRefused) {
  const std::vector<std::function<void(v1::SharedMemoryRange&)>> twists = {
      [](v1::SharedMemoryRange& range) { range.set_offset(range.offset() + 1); },
      [](v1::SharedMemoryRange& range) { range.set_offset(0); },
      [](v1::SharedMemoryRange& range) { range.set_offset(UINT64_MAX - 10); },
      [](v1::SharedMemoryRange& range) { range.set_byte_size(CallMemory::kChunkBytes + 1); },
      [](v1::SharedMemoryRange& range) { range.set_byte_size(UINT64_MAX); },
      [](v1::SharedMemoryRange& range) { range.set_region(kRegion + 1); },
  };
  for (const auto& twist : twists) {
    daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) { return Serve(call, twist); };
    EXPECT_THAT(Compress(values_), StatusIs(absl::StatusCode::kInternal, HasSubstr(kOutside)));
  }
}

TEST_F(SharedMemoryTest, InputThatWasNotGivenCannotBeReleased) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressResponse response;
    response.set_input_released(uint64_t{1} << 40);
    call.Write(response);
    v1::CompressRequest request;
    while (call.Read(&request)) {
    }
    return grpc::Status::OK;
  };
  EXPECT_THAT(Compress(values_),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("it releases input that it was not given")));
}

TEST_F(SharedMemoryTest, WhereItCannotBeHadBytesGoThroughTheConnection) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) { return Serve(call); };
  const std::vector<std::pair<std::function<grpc::Status(SharedMemoryCall&)>, std::string>> lies = {
      {[](SharedMemoryCall&) { return grpc::Status(grpc::PERMISSION_DENIED, "not you"); }, "connection (not you)"},
      {[](SharedMemoryCall& call) {
         v1::SharedMemoryRequest request;
         while (!request.has_confirm() && call.Read(&request)) call.Write(v1::SharedMemoryResponse());
         return grpc::Status::OK;
       },
       "connection (its answer is not about the region that was confirmed)"},
      {[](SharedMemoryCall& call) {
         v1::SharedMemoryRequest request;
         call.Read(&request);
         call.Write(v1::SharedMemoryResponse());
         call.Read(&request);
         v1::SharedMemoryResponse response;
         response.set_challenge(std::string(100, 'x'));
         call.Write(response);
         return grpc::Status::OK;
       },
       "connection"},
  };
  for (const auto& [lie, transport] : lies) {
    daemon_.shared_memory = lie;
    client_ = *MakeRemoteClient({.address = daemon_.address()});
    ASSERT_THAT(Compress(values_), IsOk());
    EXPECT_EQ(frames_.frame, frame_);
    EXPECT_THAT(client_->Transport(), StartsWith(transport));
  }
}

TEST_F(SharedMemoryTest, AnOlderDaemonIsNotAskedTwice) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) { return Serve(call); };
  daemon_.capabilities = [&](v1::CapabilitiesResponse&) {
    ++questions_;
    return grpc::Status(grpc::UNIMPLEMENTED, "");
  };
  for (int i = 0; i < 3; ++i) ASSERT_THAT(Compress(values_), IsOk());
  EXPECT_EQ(questions_, 1);
}

TEST_F(SharedMemoryTest, ADaemonThatForgetsIsAskedAnew) {
  int calls = 0;
  grpc::Status loss;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) { return ++calls % 3 == 1 ? loss : Serve(call); };
  const ErrorDetails lost{.reason = v1::SHARED_MEMORY_LOST};
  int questions = 0;
  for (const grpc::Status& status : {MakeStatus(grpc::NOT_FOUND, "in words that change", lost),
                                     MakeStatus(grpc::FAILED_PRECONDITION, "in words that change", lost),
                                     // As 0.1.0 says it.
                                     grpc::Status(grpc::NOT_FOUND, "no shared memory region 0000000000000007"),
                                     grpc::Status(grpc::FAILED_PRECONDITION, "shared memory is not enabled")}) {
    loss = status;
    ASSERT_THAT(Compress(values_), IsOk());
    EXPECT_EQ(frames_.frame, frame_);
    EXPECT_EQ(client_->Transport(), "connection");
    EXPECT_EQ(questions_, ++questions);
    ASSERT_THAT(Compress(values_), IsOk());
    EXPECT_EQ(client_->Transport(), "shared memory");
    EXPECT_EQ(questions_, questions + 1);
  }
}

// Its code and its sentence are the caller's.
TEST_F(SharedMemoryTest, AReasonOfALaterVersionIsNoLoss) {
  std::string details = MakeStatus(grpc::NOT_FOUND, "", {.reason = v1::SHARED_MEMORY_LOST}).error_details();
  constexpr std::string_view kKnown = "SHARED_MEMORY_LOST", kUnknown = "OF_A_LATER_VERSION";
  details.replace(details.find(kKnown), kKnown.size(), kUnknown);
  for (const auto& [code, text] : {std::pair(grpc::FAILED_PRECONDITION, "shared memory sleeps"),
                                   std::pair(grpc::NOT_FOUND, "the artifact has been archived")}) {
    int calls = 0;
    daemon_.compress = [&, code = code, text = text](grpc::ServerContext&, CompressCall&) {
      ++calls;
      return grpc::Status(code, text, details);
    };
    EXPECT_THAT(Compress(values_), StatusIs(static_cast<absl::StatusCode>(code), HasSubstr(text)));
    EXPECT_EQ(calls, 1);
  }
  EXPECT_EQ(questions_, 1);
}

TEST_F(SharedMemoryTest, OtherFailedPreconditionsAreNoLoss) {
  daemon_.compress = [&](grpc::ServerContext&, CompressCall&) {
    return grpc::Status(grpc::FAILED_PRECONDITION, "there is no artifact 1234");
  };
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(Compress(values_), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no artifact")));
  }
  EXPECT_EQ(questions_, 1);
}

// The call whose client does not know yet is made again, in messages; those that follow are made once. Of a daemon that
// has lost the memory, as another in its place has, nothing is known.
TEST_F(SharedMemoryTest, OutputThatNeedsMoreBuffersThanAreReckonedIsRemembered) {
  int calls = 0;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    return ++calls == 5 ? grpc::Status(grpc::NOT_FOUND, "no shared memory region") : Serve(call);
  };
  buffers_needed_ = 2;
  for (const grpc::Status& status :
       {MakeStatus(grpc::FAILED_PRECONDITION, "in words that change", {.reason = v1::OUTPUT_BUFFERS_TOO_SMALL}),
        // As 0.1.0 says it.
        grpc::Status(grpc::FAILED_PRECONDITION, "the stream was half-closed, but its output needs another room")}) {
    client_ = *MakeRemoteClient({.address = daemon_.address()});
    too_few_buffers_ = status;
    calls = 0;
    for (const int made : {2, 3, 4, 6, 8, 9}) {
      const std::string transport = made == calls + 1 ? "shared memory" : "connection";
      ASSERT_THAT(Compress(values_), IsOk());
      EXPECT_EQ(frames_.frame, frame_);
      EXPECT_EQ(client_->Transport(), transport);
      EXPECT_EQ(calls, made);
    }
  }
}

class SharedMemoryPoolTest : public SharedMemoryTest {
 protected:
  static constexpr absl::Duration kPause = absl::Milliseconds(200);

  std::unique_ptr<RegisteredMemory> Take() { return pool_.Take(absl::InfiniteFuture()); }

  SharedMemoryPool pool_{grpc::CreateChannel(daemon_.address(), grpc::InsecureChannelCredentials()), absl::Seconds(5),
                         kPause};
};

TEST_F(SharedMemoryPoolTest, ARestartIsOneLossHoweverManyCallsMeetIt) {
  std::vector<std::unique_ptr<RegisteredMemory>> taken;
  for (int i = 0; i < 20; ++i) taken.push_back(Take());
  for (const auto& memory : taken) pool_.Forget(*memory);
  EXPECT_THAT(pool_.status(), IsOk());
  for (auto& memory : taken) pool_.PutBack(std::move(memory));
  EXPECT_EQ(questions_, 1);
  EXPECT_NE(Take(), nullptr) << "not one of those that are gone";
  EXPECT_EQ(questions_, 2);
}

TEST_F(SharedMemoryPoolTest, WhatIsLostAgainAndAgainIsLeftAloneForLongerAndLonger) {
  auto memory = Take();
  for (int i = 0; i < 2; ++i) {
    ASSERT_NE(memory, nullptr);
    pool_.Forget(*memory);
    memory = Take();
  }
  ASSERT_NE(memory, nullptr) << "it was started again, perhaps";
  for (absl::Duration pause = kPause / 32; pause <= 2 * kPause; pause *= 2) {
    const absl::Time lost = absl::Now();
    pool_.Forget(*memory);
    EXPECT_THAT(pool_.status(), StatusIs(absl::StatusCode::kUnavailable, "shared memory is lost again and again"));
    while ((memory = Take()) == nullptr) absl::SleepFor(absl::Milliseconds(1));
    EXPECT_GE(absl::Now() - lost, std::min(pause, kPause));
    EXPECT_THAT(pool_.status(), IsOk());
  }
  // A call that goes well ends that.
  pool_.PutBack(std::move(memory));
  pool_.Forget(*Take());
  EXPECT_NE(Take(), nullptr);
}

TEST_F(SharedMemoryTest, AFewLossesAreNoLongPause) {
  SharedMemoryPool pool(grpc::CreateChannel(daemon_.address(), grpc::InsecureChannelCredentials()), absl::Seconds(5));
  for (int i = 0; i < 3; ++i) pool.Forget(*pool.Take(absl::InfiniteFuture()));
  const absl::Time lost = absl::Now();
  while (pool.Take(absl::InfiniteFuture()) == nullptr) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_LT(absl::Now() - lost, absl::Seconds(20));
}

TEST_F(SharedMemoryTest, WhereEachStreamEndsItIsNotAskedForWithoutEnd) {
  for (const auto& end : {grpc::Status(grpc::UNAVAILABLE, "draining"), grpc::Status::OK}) {
    std::atomic<int> streams = 0;
    daemon_.shared_memory = [&](SharedMemoryCall&) {
      ++streams;
      return end;
    };
    SharedMemoryPool pool(grpc::CreateChannel(daemon_.address(), grpc::InsecureChannelCredentials()), absl::Seconds(5));
    for (int i = 0; i < 20; ++i) EXPECT_EQ(pool.Take(absl::InfiniteFuture()), nullptr);
    EXPECT_GE(streams, 3);
    EXPECT_LT(streams, 8);
    EXPECT_THAT(pool.status(), StatusIs(absl::StatusCode::kUnavailable, "shared memory is lost again and again"));
  }
}

TEST_F(SharedMemoryPoolTest, WhereNoDaemonIsNothingIsLost) {
  daemon_.Stop();
  for (int i = 0; i < 20; ++i) EXPECT_EQ(Take(), nullptr);
  EXPECT_THAT(pool_.status(), IsOk());
}

// What a call to a daemon that has stopped leaves does not cost its caller more time.
TEST_F(SharedMemoryPoolTest, MemoryIsGivenBackWithoutWaiting) {
  std::vector<std::unique_ptr<RegisteredMemory>> taken;
  for (int i = 0; i < 3; ++i) taken.push_back(Take());
  SetAnswers(false);
  const absl::Time start = absl::Now();
  taken.clear();
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(500));
  SetAnswers(true);
  EXPECT_NE(Take(), nullptr);
  EXPECT_GE(unregistered_, 3) << "all in front of the question of Take";
  EXPECT_EQ(questions_, 1);
}

// Nobody may ask again for long.
TEST_F(SharedMemoryPoolTest, NothingStaysRegisteredOfManyBuffersThatGoAtOnce) {
  std::vector<std::unique_ptr<SharedBuffer>> buffers;
  for (int i = 0; i < 20; ++i) buffers.push_back(pool_.Allocate(4096));
  buffers.clear();
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (unregistered_ < 20 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(unregistered_, 20);
}

TEST_F(SharedMemoryPoolTest, WhoHasNoTimeDoesNotWaitForOthersAndTakesNothingFromThem) {
  for (const bool link_is_there : {false, true}) {
    EXPECT_EQ(questions_, link_is_there ? 1 : 0);
    SetAnswers(false);
    std::unique_ptr<RegisteredMemory> taken;
    std::thread patient([&] { taken = Take(); });
    absl::SleepFor(absl::Milliseconds(200));
    for (int i = 0; i < 2; ++i) {
      const absl::Time start = absl::Now();
      EXPECT_EQ(pool_.Take(start + absl::Milliseconds(100)), nullptr);
      EXPECT_LT(absl::Now() - start, absl::Milliseconds(600));
    }
    SetAnswers(true);
    patient.join();
    EXPECT_NE(taken, nullptr);
    EXPECT_EQ(questions_, 1);
  }
}

TEST_F(SharedMemoryPoolTest, ARefusalIsNotForEver) {
  int refusals = 0;
  daemon_.shared_memory = [&](SharedMemoryCall& call) {
    return ++refusals > 1 ? Register(call) : grpc::Status(grpc::RESOURCE_EXHAUSTED, "too many calls");
  };
  EXPECT_EQ(Take(), nullptr);
  EXPECT_EQ(Take(), nullptr);
  EXPECT_THAT(pool_.status(), StatusIs(absl::StatusCode::kResourceExhausted, "too many calls"));
  EXPECT_EQ(refusals, 1);
  absl::SleepFor(kPause);
  EXPECT_NE(Take(), nullptr);
}

}  // namespace
}  // namespace kvcompress
