#include <gmock/gmock.h>

#include <deque>
#include <numeric>

#include "client/remote/shared_exchange.h"
#include "tests/client/remote/fake_daemon.h"
#include "tests/client/remote/small_jobs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// Small tensors that a client sends together.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::ElementsAre;

constexpr uint32_t kTensors = 5;

class BatchTest : public SmallJobs {
 protected:
  BatchTest() : SmallJobs(kTensors, 200000) {}
  void TearDown() override { daemon_.Stop(); }

  v1::TensorReport ReportOn(size_t i) const {
    return Report(jobs_[i].tensor.name, values_[i].size(), frames_[i].size()).tensor();
  }

  // What a daemon answers to all of the jobs, in messages of `piece` bytes.
  std::vector<v1::CompressResponse> Answers(size_t piece) const {
    std::vector<v1::CompressResponse> answers(1);
    for (size_t i = 0; i < kTensors; ++i) {
      for (size_t at = 0; at < frames_[i].size();) {
        std::string& frame = *answers.back().mutable_frame();
        const std::string part = frames_[i].substr(at, piece - frame.size());
        frame += part;
        at += part.size();
        if (frame.size() == piece) answers.emplace_back();
      }
      // Where a message is full, the report comes with the next.
      *answers.back().add_ended() = ReportOn(i);
    }
    return answers;
  }

  // A daemon that reads all there is and then answers.
  void Serve(std::vector<v1::CompressResponse> answers) {
    daemon_.compress = [this, answers = std::move(answers)](grpc::ServerContext&, CompressCall& call) {
      requests_.emplace_back();
      while (call.Read(&requests_.back())) requests_.emplace_back();
      requests_.pop_back();
      for (const v1::CompressResponse& answer : answers) call.Write(answer);
      return grpc::Status::OK;
    };
  }

  FakeDaemon daemon_;
  std::unique_ptr<CodecClient> client_ = *MakeRemoteClient({.address = daemon_.address()});
  std::vector<v1::CompressRequest> requests_;
  Log output_;
};

TEST_F(BatchTest, HeadersAreOneMessageAndValuesFillTheOthers) {
  Serve(Answers(300000));
  ASSERT_THAT(client_->Compress(jobs_, absl::InfiniteFuture(), output_), IsOk());
  ASSERT_EQ(requests_.size(), 3u);  // of 2 MB
  ASSERT_EQ(requests_[0].batch().headers_size(), static_cast<int>(kTensors));
  std::string sent;
  for (size_t i = 1; i < requests_.size(); ++i) {
    EXPECT_LE(requests_[i].data().size(), size_t{1} << 20);
    sent += requests_[i].data();
  }
  std::string values;
  for (size_t i = 0; i < kTensors; ++i) {
    EXPECT_EQ(requests_[0].batch().headers(static_cast<int>(i)).tensor().name(), jobs_[i].tensor.name);
    values += AsText(values_[i]);
  }
  EXPECT_EQ(sent, values);
}

TEST_F(BatchTest, AnswersMayBeCutAnywhere) {
  const size_t first = frames_[0].size();
  for (const size_t piece : {size_t{1000}, first - 1, first, first + 1, size_t{250000}, size_t{1} << 20}) {
    Serve(Answers(piece));
    output_ = {};
    ASSERT_THAT(client_->Compress(jobs_, absl::InfiniteFuture(), output_), IsOk()) << piece;
    EXPECT_EQ(output_.outputs, frames_) << piece;
    EXPECT_THAT(output_.names, ElementsAre("t0", "t1", "t2", "t3", "t4"));
  }
}

TEST_F(BatchTest, AnswersThatCannotBeAreRefused) {
  const std::string misfit = "its report on tensor \"t0\" does not fit what it sent";
  std::vector<v1::CompressResponse> answer(1);
  answer[0].set_frame(frames_[0]);
  *answer[0].add_ended() = ReportOn(0);
  const auto refused = [&](const std::vector<v1::CompressResponse>& answers, std::string_view text) {
    Serve(answers);
    output_ = {};
    EXPECT_THAT(client_->Compress(jobs_, absl::InfiniteFuture(), output_),
                StatusIs(absl::StatusCode::kInternal, absl::StrFormat("daemon %s: %s", daemon_.address(), text)));
  };
  std::vector<v1::CompressResponse> wrong = answer;
  wrong[0].mutable_ended(0)->set_frame_bytes(frames_[0].size() + 1);
  refused(wrong, misfit);
  wrong[0].mutable_ended(0)->set_frame_bytes(100);
  refused(wrong, "it sent less than a frame");
  wrong = answer;
  *wrong[0].add_ended() = ReportOn(1);
  refused(wrong, "its report on tensor \"t1\" does not fit what it sent");
  wrong = Answers(size_t{1} << 20);
  *wrong.back().add_ended() = ReportOn(4);
  refused(wrong, "it sent more tensors than it was given");
  wrong = Answers(size_t{1} << 20);
  wrong.back().mutable_frame()->push_back('x');
  refused(wrong, "it sent more tensors than it was given");
  // The next frame begins before the report on the first.
  wrong = {FrameBytes(frames_[0] + frames_[1])};
  refused(wrong, "bytes behind a frame's end mark");
}

TEST_F(BatchTest, ValuesComeTogetherToo) {
  daemon_.decompress = [&](grpc::ServerContext&, DecompressCall& call) {
    v1::DecompressRequest request;
    EXPECT_TRUE(call.Read(&request));
    EXPECT_EQ(request.batch().headers_size(), static_cast<int>(kTensors));
    for (size_t i = 0; i < kTensors; ++i) {
      EXPECT_EQ(request.batch().headers(static_cast<int>(i)).frame_bytes(), frames_[i].size());
    }
    std::string sent;
    while (call.Read(&request)) sent += request.frame();
    EXPECT_EQ(sent, frames_[0] + frames_[1] + frames_[2] + frames_[3] + frames_[4]);
    v1::DecompressResponse answer;
    for (size_t i = 0; i < kTensors; ++i) {
      *answer.add_begun() = Header(values_[i].size() / 2).header();
      answer.mutable_begun(answer.begun_size() - 1)->set_name(jobs_[i].tensor.name);
      if (i == 2) {
        // A part of it, and the rest with those that follow.
        answer.mutable_data()->append(AsText(values_[2]).substr(0, 1000));
        call.Write(answer);
        answer.Clear();
        answer.mutable_data()->append(AsText(values_[2]).substr(1000));
      } else {
        answer.mutable_data()->append(AsText(values_[i]));
      }
      *answer.add_ended() = Done(values_[i].size(), frames_[i].size()).tensor();
      answer.mutable_ended(answer.ended_size() - 1)->set_name(jobs_[i].tensor.name);
    }
    call.Write(answer);
    return grpc::Status::OK;
  };
  ASSERT_THAT(client_->Decompress(unpack_, absl::InfiniteFuture(), output_), IsOk());
  EXPECT_THAT(output_.headers, ElementsAre("t0", "t1", "t2", "t3", "t4"));
  ASSERT_EQ(output_.outputs.size(), kTensors);
  for (size_t i = 0; i < kTensors; ++i) EXPECT_EQ(output_.outputs[i], AsText(values_[i]));
}

TEST_F(BatchTest, ADescriptionTooManyIsRefused) {
  daemon_.decompress = [&](grpc::ServerContext&, DecompressCall& call) {
    v1::DecompressRequest request;
    while (call.Read(&request)) {
    }
    v1::DecompressResponse answer;
    *answer.add_begun() = Header(values_[0].size() / 2).header();
    *answer.add_begun() = Header(values_[1].size() / 2).header();
    call.Write(answer);
    return grpc::Status::OK;
  };
  EXPECT_THAT(client_->Decompress(unpack_, absl::InfiniteFuture(), output_),
              StatusIs(absl::StatusCode::kInternal,
                       absl::StrFormat("daemon %s: its messages are out of order", daemon_.address())));
}

TEST_F(BatchTest, AnOlderDaemonGetsTensorsOneByOneAndIsNotAskedTwice) {
  int batches = 0;
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    size_t index = 0;
    uint64_t received = 0;
    while (call.Read(&request)) {
      if (request.has_batch()) {
        ++batches;
        return NoBatches();
      }
      received += request.data().size();
      if (received < values_[index].size()) continue;
      call.Write(FrameBytes(frames_[index]));
      call.Write(Report(jobs_[index].tensor.name, values_[index].size(), frames_[index].size()));
      received = 0;
      ++index;
    }
    return grpc::Status::OK;
  };
  for (int call = 0; call < 3; ++call) {
    output_ = {};
    ASSERT_THAT(client_->Compress(jobs_, absl::InfiniteFuture(), output_), IsOk());
    EXPECT_EQ(output_.outputs, frames_);
  }
  EXPECT_EQ(batches, 1);
}

TEST_F(BatchTest, ANewerDaemonThatTakesOverGetsTensorsTogether) {
  constexpr absl::Duration kPause = absl::Milliseconds(300);
  client_ = *MakeRemoteClient({.address = daemon_.address(), .pause = kPause});
  daemon_.compress = [&](grpc::ServerContext&, CompressCall& call) {
    v1::CompressRequest request;
    call.Read(&request);
    return request.has_batch() ? NoBatches() : grpc::Status(grpc::INVALID_ARGUMENT, "one by one");
  };
  EXPECT_THAT(client_->Compress(jobs_, absl::InfiniteFuture(), output_),
              StatusIs(absl::StatusCode::kInvalidArgument, "one by one"));
  Serve(Answers(size_t{1} << 20));
  absl::SleepFor(kPause);
  ASSERT_THAT(client_->Compress(jobs_, absl::InfiniteFuture(), output_), IsOk());
  EXPECT_EQ(requests_.front().batch().headers_size(), static_cast<int>(kTensors));
  EXPECT_EQ(output_.outputs, frames_);
}

// Large tensors, and those without bytes, have a header of their own; so have those of more headers than a message
// takes.
TEST_F(BatchTest, BatchesAreOfSmallTensors) {
  const std::vector<std::byte> large(5 << 20);
  const MemorySource large_source{ByteSpan(large)}, nothing{ByteSpan()};
  const CompressJob large_job{MakeTensor("large", DType::kF16, {large.size() / 2}), "int4", &large_source};
  const CompressJob empty_job{MakeTensor("empty", DType::kF16, {0}), "int4", &nothing};
  std::vector<CompressJob> jobs = {jobs_[0], jobs_[1], large_job, jobs_[2], empty_job, jobs_[3], jobs_[4]};
  const std::vector<std::byte> two(2);
  const MemorySource two_source{ByteSpan(two)};
  const std::string name(1000, 'n');
  for (int i = 0; i < 100; ++i) jobs.push_back({MakeTensor(name, DType::kF16, {1}), "int4", &two_source});
  SliceReader slices;
  Delivery delivery;
  ByteExchange<CompressReplies> exchange("a", jobs, absl::InfiniteFuture(), output_, delivery, slices, true);
  std::vector<int> headers;
  for (bool last = false; !last;) {
    const auto next = exchange.Next();
    ASSERT_THAT(next, IsOk());
    last = (*next)->last;
    v1::CompressRequest request;
    ASSERT_TRUE(ParseMessage((*next)->message, request));
    if (request.has_header()) headers.push_back(1);
    if (request.has_batch()) headers.push_back(request.batch().headers_size());
    EXPECT_LT(request.ByteSizeLong() - request.data().size(), kMaxHeadBytes);
  }
  ASSERT_GT(headers.size(), 5u);
  EXPECT_EQ(std::vector<int>(headers.begin(), headers.begin() + 4), (std::vector<int>{2, 1, 1, 1}));
  EXPECT_EQ(std::accumulate(headers.begin(), headers.end(), 0), 107);
}

}  // namespace
}  // namespace kvcompress
