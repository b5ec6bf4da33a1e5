#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "server/session/session.h"
#include "tests/server/session/session_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// Sessions whose input or output is in shared memory, and what is copied on the way.
namespace kvcompress {
namespace {

using testing::Data;
using testing::Distribution;
using testing::FakeRegion;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::kBlock;
using testing::MakeValues;
using testing::StatusIs;

using Bytes = std::vector<std::byte>;
using CompressDriver = testing::Driver<CompressSession>;
using DecompressDriver = testing::Driver<DecompressSession>;

v1::SharedMemoryRange Range(uint64_t region, uint64_t offset, uint64_t size) {
  v1::SharedMemoryRange range;
  range.set_region(region);
  range.set_offset(offset);
  range.set_byte_size(size);
  return range;
}

v1::CompressRequest Header(const std::string& name, uint64_t elements, const std::string& codec, bool to_buffers) {
  v1::CompressRequest request;
  v1::Tensor& tensor = *request.mutable_header()->mutable_tensor();
  tensor.set_name(name);
  tensor.set_dtype(v1::DTYPE_F16);
  tensor.add_shape(elements);
  request.mutable_header()->set_codec(codec);
  request.mutable_header()->set_frame_to_buffer(to_buffers);
  return request;
}

v1::CompressRequest SharedData(const v1::SharedMemoryRange& range) {
  v1::CompressRequest request;
  *request.mutable_shared_data() = range;
  return request;
}

v1::CompressRequest FrameBuffer(const v1::SharedMemoryRange& range) {
  v1::CompressRequest request;
  *request.mutable_frame_buffer() = range;
  return request;
}

class SharedMemorySessionTest : public ::testing::Test {
 protected:
  SharedMemorySessionTest() {
    input_id_ = table_.Add(input_);
    output_id_ = table_.Add(output_);
  }

  SessionOptions Options() const { return {.limits = {}, .window_bytes = DefaultWindowBytes(2), .regions = &table_}; }

  absl::Status Compress(const std::vector<v1::CompressRequest>& requests) {
    CompressDriver driver(pool_, admission_, Options());
    const absl::Status status = driver.Run(requests);
    responses_ = std::move(driver.responses);
    return status;
  }

  // The frame as a stream of bytes gives it.
  std::string Expected(ByteSpan values, const std::string& codec) {
    EXPECT_THAT(Compress({Header("t", values.size() / 2, codec, false), Data(values)}), IsOk());
    std::string frame;
    for (const auto& response : responses_) frame += response.frame();
    return frame;
  }

  // What stands in the ranges that the responses tell of, up to each tensor's report.
  std::vector<std::string> BufferedFrames() const {
    std::vector<std::string> frames(1);
    for (const auto& response : responses_) {
      EXPECT_FALSE(response.has_frame());
      if (response.has_tensor()) frames.emplace_back();
      if (!response.has_shared_frame()) continue;
      const v1::SharedMemoryRange& range = response.shared_frame();
      EXPECT_EQ(range.region(), output_id_);
      frames.back() += AsText(ByteSpan(output_->storage).subspan(range.offset(), range.byte_size()));
    }
    frames.pop_back();
    return frames;
  }

  uint64_t Released() const {
    uint64_t released = 0;
    for (const auto& response : responses_) {
      if (response.payload_case() != v1::CompressResponse::kInputReleased) continue;
      EXPECT_GT(response.input_released(), released);
      released = response.input_released();
    }
    return released;
  }

  v1::TensorReport Report() const {
    for (const auto& response : responses_) {
      if (response.has_tensor()) return response.tensor();
    }
    ADD_FAILURE() << "no report";
    return {};
  }

  ByteSpan PutInput(const Bytes& values) {
    std::copy(values.begin(), values.end(), input_->storage.begin());
    return ByteSpan(input_->storage).first(values.size());
  }

  ThreadPool pool_{2};
  Admission admission_{{.memory_budget = uint64_t{1} << 30, .max_streams = 8}};
  RegionTable table_;
  std::shared_ptr<FakeRegion> input_ = std::make_shared<FakeRegion>(8 << 20);
  std::shared_ptr<FakeRegion> output_ = std::make_shared<FakeRegion>(8 << 20);
  uint64_t input_id_ = 0;
  uint64_t output_id_ = 0;
  std::vector<v1::CompressResponse> responses_;
};

TEST_F(SharedMemorySessionTest, FramesAreThoseOfAStreamOfBytes) {
  const Bytes values = MakeValues(DType::kF16, 1'000'001, Distribution::kOutliers);
  const uint64_t size = values.size();
  PutInput(values);
  for (const char* codec : {"int4(group=64)", "raw", "raw|zstd", "sparse(ratio=0.5)|int4", "clamp|int8"}) {
    SCOPED_TRACE(codec);
    const std::string expected = Expected(values, codec);
    ASSERT_THAT(Compress({Header("t", size / 2, codec, true), FrameBuffer(Range(output_id_, 4096, 4 << 20)),
                          SharedData(Range(input_id_, 0, 1'000'001)),
                          SharedData(Range(input_id_, 1'000'001, size - 1'000'001))}),
                IsOk());
    EXPECT_EQ(BufferedFrames().at(0), expected);
    EXPECT_EQ(Released(), size);
    EXPECT_EQ(Report().frame_bytes(), expected.size());
    EXPECT_TRUE(responses_.back().has_stream());
  }
}

TEST_F(SharedMemorySessionTest, ValuesAreNotCopiedWhereTheCodecBearsChanges) {
  const Bytes values = MakeValues(DType::kF16, 4 * kDefaultBlockElements, Distribution::kGaussian);
  PutInput(values);
  const auto copied = [&](const char* codec) {
    EXPECT_THAT(
        Compress({Header("t", values.size() / 2, codec, false), SharedData(Range(input_id_, 0, values.size()))}),
        IsOk());
    return Report().copied_bytes();
  };
  EXPECT_EQ(copied("int4"), 0u);
  EXPECT_EQ(copied("int8"), 0u);
  EXPECT_EQ(copied("raw"), 0u);
  EXPECT_EQ(copied("clamp|int4"), values.size());
}

TEST_F(SharedMemorySessionTest, BytesOfAStreamAreCopiedOnlyWhereTheCodecNeedsABlockInOnePiece) {
  const Bytes values = MakeValues(DType::kF16, 4 * kDefaultBlockElements, Distribution::kGaussian);
  const auto copied = [&](const char* codec, size_t chunk) {
    std::vector<v1::CompressRequest> requests = {Header("t", values.size() / 2, codec, false)};
    for (size_t at = 0; at < values.size(); at += chunk) {
      requests.push_back(Data(ByteSpan(values).subspan(at, std::min(chunk, values.size() - at))));
    }
    EXPECT_THAT(Compress(requests), IsOk());
    return Report().copied_bytes();
  };
  EXPECT_EQ(copied("raw", values.size()), 0u);
  EXPECT_EQ(copied("raw", kBlock), 0u);
  EXPECT_EQ(copied("raw", kBlock / 2), values.size());
  EXPECT_EQ(copied("raw", 3 * kBlock / 2), kBlock);  // one block in four lies in two messages
  EXPECT_EQ(copied("int4", kBlock / 2), 0u);
  EXPECT_EQ(copied("int4", 65'531), 0u);
  EXPECT_EQ(copied("int4", 1000), values.size());  // so many pieces that they are gathered as they come
}

TEST_F(SharedMemorySessionTest, SharedAndStreamedBytesMix) {
  const Bytes values = MakeValues(DType::kF16, 300'000, Distribution::kGaussian);
  const ByteSpan shared = PutInput(values);
  const std::string expected = Expected(values, "int4(group=64)");
  ASSERT_THAT(Compress({Header("t", 300'000, "int4", true), SharedData(Range(input_id_, 0, 7)),
                        FrameBuffer(Range(output_id_, 0, 1 << 20)), Data(shared.subspan(7, 100'000)),
                        SharedData(Range(input_id_, 100'007, 0)),
                        SharedData(Range(input_id_, 100'007, values.size() - 100'007))}),
              IsOk());
  EXPECT_EQ(BufferedFrames().at(0), expected);
  EXPECT_EQ(Released(), values.size() - 100'000);
}

TEST_F(SharedMemorySessionTest, OutputFillsBuffersInTheirOrderAndEachFrameBeginsItsOwn) {
  const Bytes values = MakeValues(DType::kF16, 100'000, Distribution::kGaussian);
  PutInput(values);
  const std::string expected = Expected(values, "int4(group=64)");
  ASSERT_LT(expected.size(), 60'000u);
  std::vector<v1::CompressRequest> requests = {
      FrameBuffer(Range(output_id_, 1000, 50'000)),    FrameBuffer(Range(output_id_, 100'000, 20'000)),
      FrameBuffer(Range(output_id_, 500'000, 60'000)), Header("a", 100'000, "int4", true),
      SharedData(Range(input_id_, 0, values.size())),  Header("b", 100'000, "int4", true),
      SharedData(Range(input_id_, 0, values.size()))};
  ASSERT_THAT(Compress(requests), IsOk());
  const std::vector<std::string> frames = BufferedFrames();
  ASSERT_EQ(frames.size(), 2u);
  EXPECT_EQ(frames[0], expected);
  EXPECT_EQ(frames[1], expected);
  EXPECT_EQ(AsText(ByteSpan(output_->storage).subspan(1000, 50'000)), expected.substr(0, 50'000));
  EXPECT_EQ(AsText(ByteSpan(output_->storage).subspan(100'000, expected.size() - 50'000)), expected.substr(50'000));
  EXPECT_EQ(AsText(ByteSpan(output_->storage).subspan(500'000, expected.size())), expected);
  // Nothing outside the buffers.
  EXPECT_EQ(output_->storage[999], std::byte{0});
  EXPECT_EQ(output_->storage[51'000], std::byte{0});
  EXPECT_EQ(output_->storage[500'000 + expected.size()], std::byte{0});
}

TEST_F(SharedMemorySessionTest, OutputWaitsForABufferThatComesAfterTheInput) {
  const Bytes values = MakeValues(DType::kF16, 4'000'000, Distribution::kGaussian);
  PutInput(values);
  const std::string expected = Expected(values, "raw");
  std::vector<v1::CompressRequest> requests = {Header("t", 4'000'000, "raw", true)};
  constexpr size_t kPiece = 200'000;
  for (size_t at = 0; at < values.size(); at += kPiece) requests.push_back(SharedData(Range(input_id_, at, kPiece)));
  requests.push_back(FrameBuffer(Range(output_id_, 0, expected.size())));
  // More than the window holds, so the output must have waited.
  ASSERT_GT(values.size(), 2 * DefaultWindowBytes(2));
  ASSERT_THAT(Compress(requests), IsOk());
  EXPECT_EQ(BufferedFrames().at(0), expected);
}

// Otherwise each buffer would be had only after all before it were full.
TEST_F(SharedMemorySessionTest, BuffersAreReadAheadWhileTheWindowIsFull) {
  PutInput(MakeValues(DType::kF16, 4'000'000, Distribution::kGaussian));
  ASSERT_GT(uint64_t{8'000'000}, 2 * DefaultWindowBytes(2));
  CompressDriver driver(pool_, admission_, Options());
  const std::vector<v1::CompressRequest> requests = {
      Header("t", 4'000'000, "raw", true), FrameBuffer(Range(output_id_, 0, 4'000'000)),
      SharedData(Range(input_id_, 0, 8'000'000)), FrameBuffer(Range(output_id_, 4'000'000, 4'100'000))};
  EXPECT_EQ(driver.PushWhileWanted(requests), requests.size());
  EXPECT_TRUE(driver.session.wants_input());
  driver.session.Cancel();
}

TEST_F(SharedMemorySessionTest, HeadersThatCouldFillTheMemoryWhileTheyWaitAreRefused) {
  EXPECT_THAT(Compress({Header("t", 100, std::string(100'000, 'x'), true)}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("header above the limit")));
}

TEST_F(SharedMemorySessionTest, HeadersThatWaitForTheWindowAreCharged) {
  PutInput(MakeValues(DType::kF16, 1000, Distribution::kGaussian));
  SessionOptions options = Options();
  options.window_bytes = 1;
  CompressDriver driver(pool_, admission_, options);
  v1::CompressRequest next = Header("u", 1000, "", true);
  next.mutable_header()->set_profile(R"({"version": 1, "default": "raw"})" + std::string(60'000, ' '));
  ASSERT_EQ(driver.PushWhileWanted({Header("t", 1000, "raw", true), SharedData(Range(input_id_, 0, 2000))}), 2u);
  while (driver.session.has_next() || !driver.session.waits_for_buffer()) {
    v1::CompressResponse response;
    driver.Pop(response);
  }
  EXPECT_LT(admission_.bytes(), 60'000u);
  ASSERT_EQ(driver.PushWhileWanted({next}), 1u);
  EXPECT_TRUE(driver.Soon([&] { return admission_.bytes() > 60'000; })) << admission_.bytes();
  EXPECT_THAT(driver.Run({FrameBuffer(Range(output_id_, 0, 4 << 20)), SharedData(Range(input_id_, 0, 2000)),
                          FrameBuffer(Range(output_id_, 4 << 20, 4 << 20))}),
              IsOk());
  EXPECT_LT(admission_.bytes(), 60'000u);
}

TEST_F(SharedMemorySessionTest, AStreamThatEndsWithoutABufferForItsOutputFails) {
  PutInput(MakeValues(DType::kF16, 1000, Distribution::kGaussian));
  const v1::CompressRequest header = Header("t", 1000, "int4", true), data = SharedData(Range(input_id_, 0, 2000));
  for (const absl::Status& status :
       {Compress({header, data}), Compress({header, FrameBuffer(Range(output_id_, 0, 100)), data})}) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("needs another buffer")));
    EXPECT_EQ(ReasonOf(status), v1::OUTPUT_BUFFERS_TOO_SMALL);
  }
  for (const auto& response : responses_) EXPECT_FALSE(response.has_tensor());
}

// The fault's turn comes when what was made before it has found a buffer, which still has to be read.
TEST_F(SharedMemorySessionTest, BuffersAreTakenForOutputBeforeAFault) {
  const Bytes values = MakeValues(DType::kF16, 1000, Distribution::kGaussian);
  PutInput(values);
  const std::string expected = Expected(values, "int4(group=64)");
  CompressDriver driver(pool_, admission_, Options());
  ASSERT_EQ(driver.PushWhileWanted({Header("good", 1000, "int4", true), SharedData(Range(input_id_, 0, 2000)),
                                    Header("bad", 1000, "int9", true)}),
            3u);
  while (!driver.session.wants_input()) {
    v1::CompressResponse response;
    if (driver.Pop(response)) {
      EXPECT_EQ(response.payload_case(), v1::CompressResponse::kInputReleased);
    } else {
      ASSERT_FALSE(driver.session.done());
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  driver.session.Push(FrameBuffer(Range(output_id_, 0, 4096)));
  EXPECT_THAT(driver.Run({}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("int9")));
  responses_ = std::move(driver.responses);
  EXPECT_EQ(BufferedFrames().at(0), expected);
}

TEST_F(SharedMemorySessionTest, RangesAreCheckedAgainstTheirRegions) {
  const uint64_t size = input_->storage.size();
  const auto header = Header("t", 8, "int4", true);
  const struct {
    v1::SharedMemoryRange range;
    absl::StatusCode code;
  } cases[] = {
      {Range(0, 0, 16), absl::StatusCode::kNotFound},
      {Range(input_id_ ^ 1, 0, 16), absl::StatusCode::kNotFound},
      {Range(input_id_, size, 16), absl::StatusCode::kInvalidArgument},
      {Range(input_id_, size - 15, 16), absl::StatusCode::kInvalidArgument},
      {Range(input_id_, 8, UINT64_MAX - 7), absl::StatusCode::kInvalidArgument},
      {Range(input_id_, UINT64_MAX, 2), absl::StatusCode::kInvalidArgument},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(Compress({header, SharedData(test.range)}), StatusIs(test.code, HasSubstr("shared memory r")));
    EXPECT_THAT(Compress({header, FrameBuffer(test.range)}), StatusIs(test.code, HasSubstr("shared memory r")));
  }
  EXPECT_THAT(Compress({header, FrameBuffer(Range(input_id_, 0, 0))}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0 bytes")));
  table_.Remove(input_id_);
  const absl::Status unknown = Compress({header, SharedData(Range(input_id_, 0, 16))});
  EXPECT_THAT(unknown, StatusIs(absl::StatusCode::kNotFound, HasSubstr("no shared memory region")));
  EXPECT_EQ(ReasonOf(unknown), v1::SHARED_MEMORY_LOST);

  SessionOptions options = Options();
  options.regions = nullptr;
  CompressDriver driver(pool_, admission_, options);
  const absl::Status off = driver.Run({header, SharedData(Range(output_id_, 0, 16))});
  EXPECT_THAT(off, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not enabled")));
  EXPECT_EQ(ReasonOf(off), v1::SHARED_MEMORY_LOST);
}

TEST_F(SharedMemorySessionTest, NothingOfARegionThatLostMemoryIsReported) {
  PutInput(MakeValues(DType::kF16, 1000, Distribution::kGaussian));
  input_->is_intact = false;
  const absl::Status status = Compress({Header("t", 1000, "int4", false), SharedData(Range(input_id_, 0, 2000))});
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("has lost memory")));
  EXPECT_EQ(ReasonOf(status), v1::SHARED_MEMORY_LOST);
  for (const auto& response : responses_) EXPECT_FALSE(response.has_tensor());
}

TEST_F(SharedMemorySessionTest, AUnregisteredRegionLivesAsLongAsItIsUsed) {
  PutInput(MakeValues(DType::kF16, 100'000, Distribution::kGaussian));
  const std::weak_ptr<FakeRegion> region = input_;
  {
    CompressDriver driver(pool_, admission_, Options());
    driver.PushWhenWanted(Header("t", 100'000, "int4", false));
    driver.PushWhenWanted(SharedData(Range(input_id_, 0, 100'000)));
    table_.Remove(input_id_);
    input_ = nullptr;
    EXPECT_FALSE(region.expired());
    EXPECT_THAT(driver.Run({SharedData(Range(input_id_, 100'000, 100'000))}), IsOk());
  }
  EXPECT_TRUE(region.expired());
}

// What is read may change at any time: whatever comes out is a frame, and nothing is written outside its memory.
TEST_F(SharedMemorySessionTest, ValuesThatChangeMeanwhileMakeSomeFrame) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the race that this test makes is no fault";
#endif
  const Bytes values = MakeValues(DType::kF16, 2'000'000, Distribution::kGaussian);
  const Bytes others = MakeValues(DType::kF16, 2'000'000, Distribution::kOutliers, 7);
  PutInput(values);
  std::atomic<bool> stop = false;
  std::thread scribbler([&] {
    while (!stop) {
      std::memcpy(input_->storage.data(), others.data(), others.size());
      std::memcpy(input_->storage.data(), values.data(), values.size());
    }
  });
  for (const char* codec : {"int4", "int3(group=32)", "int8", "raw|zstd", "sparse(ratio=0.9)|int4", "clamp|int2"}) {
    SCOPED_TRACE(codec);
    EXPECT_THAT(Compress({Header("t", 2'000'000, codec, false), SharedData(Range(input_id_, 0, values.size()))}),
                IsOk());
    v1::DecompressRequest header;
    header.mutable_header()->set_name("t");
    v1::DecompressRequest frame;
    for (const auto& response : responses_) *frame.mutable_frame() += response.frame();
    DecompressDriver driver(pool_, admission_, Options());
    EXPECT_THAT(driver.Run({header, frame}), IsOk());
  }
  stop = true;
  scribbler.join();
}

TEST_F(SharedMemorySessionTest, DecompressTakesFramesFromRegionsAndPutsValuesIntoBuffers) {
  const Bytes values = MakeValues(DType::kF16, 700'000, Distribution::kGaussian);
  const std::string frame = Expected(values, "raw");
  PutInput(Bytes(AsBytes(frame).begin(), AsBytes(frame).end()));
  v1::DecompressRequest header;
  header.mutable_header()->set_name("t");
  header.mutable_header()->set_data_to_buffer(true);
  v1::DecompressRequest input;
  *input.mutable_shared_frame() = Range(input_id_, 0, frame.size());
  v1::DecompressRequest buffers[2];
  *buffers[0].mutable_data_buffer() = Range(output_id_, 64, 1'000'001);
  *buffers[1].mutable_data_buffer() = Range(output_id_, 2'000'000, 1'000'000);
  DecompressDriver driver(pool_, admission_, Options());
  ASSERT_THAT(driver.Run({header, buffers[0], input, buffers[1]}), IsOk());
  Bytes placed;
  uint64_t released = 0;
  for (const auto& response : driver.responses) {
    ASSERT_FALSE(response.has_data());
    if (response.payload_case() == v1::DecompressResponse::kInputReleased) released = response.input_released();
    if (!response.has_shared_data()) continue;
    const ByteSpan piece =
        ByteSpan(output_->storage).subspan(response.shared_data().offset(), response.shared_data().byte_size());
    placed.insert(placed.end(), piece.begin(), piece.end());
  }
  EXPECT_EQ(placed, values);
  EXPECT_EQ(released, frame.size());
  EXPECT_TRUE(driver.responses.front().has_header() || driver.responses[1].has_header());
}

}  // namespace
}  // namespace kvcompress
