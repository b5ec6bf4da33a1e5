#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "server/session/session.h"
#include "tests/server/session/session_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// Tensors whose headers come in one message, and whose output goes out together.
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

struct BatchTensor {
  std::string name;
  DType dtype = DType::kF16;
  std::string codec;
  Bytes values;
};

v1::CompressHeader HeaderOfTensor(const BatchTensor& tensor, bool to_buffers = false) {
  v1::CompressHeader header;
  header.mutable_tensor()->set_name(tensor.name);
  header.mutable_tensor()->set_dtype(static_cast<v1::DType>(tensor.dtype));
  header.mutable_tensor()->add_shape(tensor.values.size() / DTypeSize(tensor.dtype));
  header.set_codec(tensor.codec);
  header.set_frame_to_buffer(to_buffers);
  return header;
}

v1::CompressRequest Batch(const std::vector<BatchTensor>& tensors, bool to_buffers = false) {
  v1::CompressRequest request;
  for (const BatchTensor& tensor : tensors)
    *request.mutable_batch()->add_headers() = HeaderOfTensor(tensor, to_buffers);
  return request;
}

Bytes ValuesOf(const std::vector<BatchTensor>& tensors) {
  Bytes values;
  for (const BatchTensor& tensor : tensors) values.insert(values.end(), tensor.values.begin(), tensor.values.end());
  return values;
}

v1::DecompressRequest FramePiece(std::string bytes) {
  v1::DecompressRequest request;
  request.set_frame(std::move(bytes));
  return request;
}

// Of all dtypes' sizes, with codecs that write in place, that need the whole tensor, and whose sizes are not foreseen;
// of one block and of several, and without values.
std::vector<BatchTensor> Mixed() {
  std::vector<BatchTensor> tensors = {
      {"a", DType::kF16, "int4(group=64)", MakeValues(DType::kF16, 70'000, Distribution::kGaussian, 1)},
      {"b", DType::kBF16, "int8(group=32)", MakeValues(DType::kBF16, 300'001, Distribution::kOutliers, 2)},
      {"c", DType::kF32, "", MakeValues(DType::kF32, 3, Distribution::kGaussian, 3)},
      {"none", DType::kF16, "int4", {}},
      {"d", DType::kU8, "int4", testing::MakeBits(1000)},
      {"e", DType::kF16, "raw|zstd(level=1)", MakeValues(DType::kF16, 200'000, Distribution::kGaussian, 4)},
      {"f", DType::kF16, "sparse(ratio=0.5)|int4", MakeValues(DType::kF16, 150'000, Distribution::kGaussian, 5)},
  };
  for (int i = 0; i < 30; ++i) {
    const auto seed = static_cast<uint32_t>(i);
    tensors.push_back({absl::StrFormat("layer_%d_key", i), DType::kF16, "int4(group=64)",
                       MakeValues(DType::kF16, 20'000, Distribution::kGaussian, seed)});
  }
  tensors.push_back({"nothing", DType::kF32, "raw", {}});
  return tensors;
}

class BatchSessionTest : public ::testing::Test {
 protected:
  SessionOptions Options() const {
    return {.limits = {.max_tensor_bytes = 1 << 26}, .window_bytes = DefaultWindowBytes(2), .regions = &table_};
  }

  absl::Status Compress(const std::vector<v1::CompressRequest>& requests) {
    CompressDriver driver(pool_, admission_, Options());
    const absl::Status status = driver.Run(requests);
    responses_ = std::move(driver.responses);
    return status;
  }
  absl::Status Decompress(const std::vector<v1::DecompressRequest>& requests) {
    DecompressDriver driver(pool_, admission_, Options());
    const absl::Status status = driver.Run(requests);
    decoded_ = std::move(driver.responses);
    return status;
  }

  // What a stream makes of each tensor alone.
  std::vector<std::string> FramesOf(const std::vector<BatchTensor>& tensors) {
    std::vector<std::string> frames;
    for (const BatchTensor& tensor : tensors) {
      std::vector<v1::CompressRequest> requests(1);
      *requests[0].mutable_header() = HeaderOfTensor(tensor);
      for (size_t at = 0; at < tensor.values.size(); at += 1 << 20) {
        requests.push_back(
            Data(ByteSpan(tensor.values).subspan(at, std::min(tensor.values.size() - at, size_t{1} << 20))));
      }
      EXPECT_THAT(Compress(requests), IsOk()) << tensor.name;
      std::string& frame = frames.emplace_back();
      for (const auto& response : responses_) frame += response.frame();
    }
    return frames;
  }

  // The output of the tensors that are reported; checks that each message has what its reports say.
  template <typename Response>
  static std::vector<std::string> Outputs(const std::vector<Response>& responses, const auto& bytes_of) {
    std::vector<std::string> outputs;
    std::string current;
    for (const Response& response : responses) {
      EXPECT_FALSE(response.has_tensor());
      std::string bytes = bytes_of(response);
      EXPECT_LE(bytes.size(), kMaxMessageBytes);
      for (const v1::TensorReport& report : response.ended()) {
        const uint64_t size =
            std::is_same_v<Response, v1::CompressResponse> ? report.frame_bytes() : report.tensor_bytes();
        if (size < current.size() || size - current.size() > bytes.size()) {
          ADD_FAILURE() << report.name() << " does not fit";
          return outputs;
        }
        const size_t rest = static_cast<size_t>(size) - current.size();
        outputs.push_back(std::exchange(current, {}) + bytes.substr(0, rest));
        bytes.erase(0, rest);
      }
      current += bytes;
    }
    return outputs;
  }
  std::vector<std::string> Frames() const {
    return Outputs(responses_, [](const v1::CompressResponse& response) { return response.frame(); });
  }
  std::vector<std::string> BufferedFrames() const {
    return Outputs(responses_, [this](const v1::CompressResponse& response) {
      EXPECT_FALSE(response.has_frame());
      const v1::SharedMemoryRange& range = response.shared_frame();
      return std::string(AsText(ByteSpan(output_->storage).subspan(range.offset(), range.byte_size())));
    });
  }

  v1::SharedMemoryRange Range(uint64_t region, uint64_t offset, uint64_t size) const {
    v1::SharedMemoryRange range;
    range.set_region(region);
    range.set_offset(offset);
    range.set_byte_size(size);
    return range;
  }
  std::vector<v1::CompressRequest> SharedBatch(const std::vector<BatchTensor>& tensors, uint64_t buffer_bytes) {
    const Bytes values = ValuesOf(tensors);
    std::copy(values.begin(), values.end(), input_->storage.begin());
    std::vector<v1::CompressRequest> requests = {Batch(tensors, true)};
    for (uint64_t at = 0; at + buffer_bytes <= output_->storage.size(); at += buffer_bytes) {
      *requests.emplace_back().mutable_frame_buffer() = Range(output_id_, at, buffer_bytes);
    }
    *requests.emplace_back().mutable_shared_data() = Range(input_id_, 0, values.size());
    return requests;
  }

  ThreadPool pool_{2};
  Admission admission_{{.memory_budget = uint64_t{1} << 30, .max_streams = 8}};
  RegionTable table_;
  std::shared_ptr<FakeRegion> input_ = std::make_shared<FakeRegion>(8 << 20);
  std::shared_ptr<FakeRegion> output_ = std::make_shared<FakeRegion>(8 << 20);
  const uint64_t input_id_ = table_.Add(input_);
  const uint64_t output_id_ = table_.Add(output_);
  std::vector<v1::CompressResponse> responses_;
  std::vector<v1::DecompressResponse> decoded_;
};

TEST_F(BatchSessionTest, FramesAndReportsAreThoseOfTheTensorsAlone) {
  const std::vector<BatchTensor> tensors = Mixed();
  const std::vector<std::string> frames = FramesOf(tensors);
  const Bytes values = ValuesOf(tensors);
  for (const size_t message : {size_t{1000}, size_t{1} << 20}) {
    std::vector<v1::CompressRequest> requests = {Batch(tensors)};
    for (size_t at = 0; at < values.size(); at += message) {
      requests.push_back(Data(ByteSpan(values).subspan(at, std::min(message, values.size() - at))));
    }
    ASSERT_THAT(Compress(requests), IsOk());
    EXPECT_EQ(Frames(), frames);
    EXPECT_EQ(responses_.back().stream().tensors(), tensors.size());
    size_t reported = 0;
    for (const auto& response : responses_) {
      for (const v1::TensorReport& report : response.ended()) {
        EXPECT_EQ(report.name(), tensors[reported++].name);
        EXPECT_EQ(report.passed_through(), report.name() == "d");
        EXPECT_EQ(report.has_quality(), report.name() != "d") << report.name();
      }
    }
    EXPECT_EQ(reported, tensors.size());
  }
}

TEST_F(BatchSessionTest, ValuesComeBack) {
  const std::vector<BatchTensor> tensors = Mixed();
  const std::vector<std::string> frames = FramesOf(tensors);
  v1::DecompressRequest batch;
  std::vector<v1::DecompressRequest> alone;
  std::string bytes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    v1::DecompressHeader& header = *batch.mutable_batch()->add_headers();
    header.set_name(tensors[i].name);
    *alone.emplace_back().mutable_header() = header;
    alone.push_back(FramePiece(frames[i]));
    header.set_frame_bytes(frames[i].size());
    bytes += frames[i];
  }
  ASSERT_THAT(Decompress(alone), IsOk());
  std::vector<std::string> expected;
  for (const auto& response : decoded_) {
    if (response.has_header()) expected.emplace_back();
    expected.back() += response.data();
  }
  for (const size_t message : {size_t{999}, size_t{1} << 20}) {
    std::vector<v1::DecompressRequest> requests = {batch};
    for (size_t at = 0; at < bytes.size(); at += message) requests.push_back(FramePiece(bytes.substr(at, message)));
    ASSERT_THAT(Decompress(requests), IsOk());
    EXPECT_EQ(Outputs(decoded_, [](const v1::DecompressResponse& response) { return response.data(); }), expected);
    size_t begun = 0;
    size_t ended = 0;
    for (const auto& response : decoded_) {
      for (const v1::Tensor& tensor : response.begun()) EXPECT_EQ(tensor.name(), tensors[begun++].name);
      ended += static_cast<size_t>(response.ended_size());
      EXPECT_GE(begun, ended);
    }
    EXPECT_EQ(begun, tensors.size());
    EXPECT_EQ(ended, tensors.size());
  }
}

TEST_F(BatchSessionTest, OutputSharesBuffers) {
  const std::vector<BatchTensor> tensors = Mixed();
  const std::vector<std::string> frames = FramesOf(tensors);
  for (const uint64_t buffer_bytes : {uint64_t{10'000}, uint64_t{1} << 20}) {
    ASSERT_THAT(Compress(SharedBatch(tensors, buffer_bytes)), IsOk());
    EXPECT_EQ(BufferedFrames(), frames);
    uint64_t at = 0;  // without a gap
    for (const auto& response : responses_) {
      if (!response.has_shared_frame()) continue;
      EXPECT_EQ(response.shared_frame().offset(), at);
      at += response.shared_frame().byte_size();
    }
  }
}

TEST_F(BatchSessionTest, ABatchBeginsItsOwnBuffer) {
  const std::vector<BatchTensor> tensors = {Mixed()[0], Mixed()[7]};
  const std::vector<std::string> frames = FramesOf(tensors);
  std::vector<v1::CompressRequest> requests = SharedBatch(tensors, 1 << 20);
  requests.push_back(requests[0]);
  *requests.emplace_back().mutable_shared_data() = Range(input_id_, 0, ValuesOf(tensors).size());
  ASSERT_THAT(Compress(requests), IsOk());
  EXPECT_EQ(BufferedFrames(), (std::vector<std::string>{frames[0], frames[1], frames[0], frames[1]}));
  std::vector<uint64_t> offsets;
  for (const auto& response : responses_) {
    if (response.has_shared_frame()) offsets.push_back(response.shared_frame().offset() >> 20);
  }
  EXPECT_THAT(std::pair(offsets.front(), offsets.back()), ::testing::Pair(0, 1));
}

// What is made together goes out together: far fewer messages than there are tensors.
TEST_F(BatchSessionTest, ManyTensorsTakeFewMessages) {
  std::vector<BatchTensor> tensors;
  const Bytes values = MakeValues(DType::kF16, 4096, Distribution::kGaussian);
  for (int i = 0; i < 256; ++i) tensors.push_back({absl::StrFormat("t%d", i), DType::kF16, "int4", values});
  const Bytes all = ValuesOf(tensors);
  ASSERT_THAT(Compress({Batch(tensors), Data(ByteSpan(all).first(1 << 20)), Data(ByteSpan(all).subspan(1 << 20))}),
              IsOk());
  EXPECT_EQ(Frames().size(), tensors.size());
  EXPECT_LT(responses_.size(), tensors.size() / 4);
}

TEST_F(BatchSessionTest, ABadTensorInTheMiddleEndsTheStreamAfterThoseBeforeIt) {
  std::vector<BatchTensor> tensors = Mixed();
  const std::vector<std::string> frames = FramesOf(tensors);
  const size_t bad = 9;
  StoreFromF32(DType::kF16, std::numeric_limits<float>::infinity(), tensors[bad].values.data(), 7);
  const Bytes values = ValuesOf(tensors);
  for (int i = 0; i < 10; ++i) {
    EXPECT_THAT(Compress({Batch(tensors), Data(values)}),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("tensor \"layer_2_key\": value 7 is infinity, which int4 cannot hold")));
    EXPECT_EQ(Frames(), std::vector<std::string>(frames.begin(), frames.begin() + bad));
    EXPECT_THAT(Compress(SharedBatch(tensors, 1 << 20)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer_2_key")));
    EXPECT_EQ(BufferedFrames(), std::vector<std::string>(frames.begin(), frames.begin() + bad));
  }
  tensors[bad].codec = "int9";
  EXPECT_THAT(Compress({Batch(tensors), Data(values)}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tensor \"layer_2_key\": unknown codec")));
  EXPECT_EQ(Frames(), std::vector<std::string>(frames.begin(), frames.begin() + bad));
}

TEST_F(BatchSessionTest, FramesThatAreNotWhatTheirHeadersSayAreNamed) {
  const std::vector<BatchTensor> tensors = {Mixed()[0], Mixed()[7], Mixed()[8]};
  const std::vector<std::string> frames = FramesOf(tensors);
  const auto run = [&](std::vector<uint64_t> sizes, const std::string& bytes) {
    v1::DecompressRequest batch;
    for (size_t i = 0; i < sizes.size(); ++i) {
      batch.mutable_batch()->add_headers()->set_name(tensors[i].name);
      batch.mutable_batch()->mutable_headers(static_cast<int>(i))->set_frame_bytes(sizes[i]);
    }
    return Decompress({batch, FramePiece(bytes)});
  };
  const std::string all = frames[0] + frames[1] + frames[2];
  const std::vector<uint64_t> sizes = {frames[0].size(), frames[1].size(), frames[2].size()};
  EXPECT_THAT(run(sizes, all), IsOk());
  EXPECT_THAT(run({sizes[0], sizes[1] - 1, sizes[2]}, all),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor \"layer_0_key\": frame: truncated")));
  for (const uint64_t told : {sizes[1] + 2, std::numeric_limits<uint64_t>::max()}) {
    EXPECT_THAT(
        run({sizes[0], told, sizes[2]}, all),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 absl::StrFormat("tensor \"layer_0_key\": the frame ends after %d of %d bytes", sizes[1], told)));
  }
  EXPECT_THAT(
      run({sizes[0], 0, sizes[2]}, all),
      StatusIs(absl::StatusCode::kDataLoss, "tensor \"layer_0_key\": frame: truncated in its header (after 0 bytes)"));
  v1::DecompressRequest untold;
  untold.mutable_batch()->add_headers()->set_name("t");
  EXPECT_THAT(Decompress({untold, FramePiece(all)}),
              StatusIs(absl::StatusCode::kInvalidArgument, "tensor \"t\": a frame in a batch whose size is not told"));
  EXPECT_THAT(run(sizes, all.substr(0, all.size() - 1)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("layer_1_key")));
  EXPECT_THAT(run(sizes, all + "x"), StatusIs(absl::StatusCode::kInvalidArgument,
                                              "data behind the tensor's last byte, before the next header"));
}

TEST_F(BatchSessionTest, MalformedBatchesAreRefusedWithTheirReason) {
  const auto refused = [&](const std::vector<v1::CompressRequest>& requests, const std::string& text) {
    EXPECT_THAT(Compress(requests), StatusIs(absl::StatusCode::kInvalidArgument, text));
  };
  const std::vector<BatchTensor> two = {{"t", DType::kF16, "", Bytes(4)}, {"u", DType::kF16, "", Bytes(4)}};
  v1::CompressRequest none;
  none.mutable_batch();
  refused({none}, "a batch of 0 tensors, not of 1 to 1024");
  refused({Batch(std::vector<BatchTensor>(1025, two[0]))}, "a batch of 1025 tensors, not of 1 to 1024");
  v1::CompressRequest partly = Batch(two);
  partly.mutable_batch()->mutable_headers(1)->set_frame_to_buffer(true);
  refused({partly}, "a batch whose output goes to buffers in part");
  std::vector<BatchTensor> named(100, two[0]);
  for (BatchTensor& tensor : named) tensor.name = std::string(1000, 'n');
  refused({Batch(named)}, "a header above the limit of 81920 bytes");
  refused({Batch(two), Data(Bytes(9))}, "data behind the tensor's last byte, before the next header");
  refused({Batch(two), Data(Bytes(6))}, "the stream ends, but tensor \"u\" has 2 of its 4 bytes");
  refused({Batch(two), Data(Bytes(2)), Batch(two)}, "tensor \"t\" begins, but tensor \"t\" has 2 of its 4 bytes");
  v1::CompressRequest single;
  *single.mutable_header() = HeaderOfTensor(two[0]);
  refused({Batch(two), Data(Bytes(4)), single}, "tensor \"t\" begins, but tensor \"u\" has 0 of its 4 bytes");
}

TEST_F(BatchSessionTest, SingleTensorsAndBatchesMix) {
  const std::vector<BatchTensor> tensors = {Mixed()[0], Mixed()[7]};
  const std::vector<std::string> frames = FramesOf(tensors);
  v1::CompressRequest single;
  *single.mutable_header() = HeaderOfTensor(tensors[1]);
  ASSERT_THAT(Compress({Batch(tensors), Data(ValuesOf(tensors)), single, Data(tensors[1].values)}), IsOk());
  std::string bytes;
  for (const auto& response : responses_) bytes += response.frame();
  EXPECT_EQ(bytes, frames[0] + frames[1] + frames[1]);
  EXPECT_EQ(responses_[responses_.size() - 3].frame(), frames[1]);
  EXPECT_EQ(responses_[responses_.size() - 2].tensor().name(), tensors[1].name);
}

TEST_F(BatchSessionTest, MemoryIsAskedForTensorByTensor) {
  std::vector<BatchTensor> tensors(40, {"t", DType::kF16, "raw", Bytes(1 << 20)});
  CompressDriver driver(pool_, admission_, Options());
  driver.session.Push(Batch(tensors));
  const uint64_t header_bytes = admission_.bytes() - (uint64_t{2} << 20);
  EXPECT_LT(header_bytes, uint64_t{1} << 16);
  for (size_t i = 0; i < tensors.size(); ++i) {
    driver.PushWhenWanted(Data(Bytes(1 << 20)));
    EXPECT_LE(admission_.bytes(), 2 * (Options().window_bytes + kBlock) + header_bytes);
  }
  EXPECT_THAT(driver.Run({}), IsOk());
}

// They take several times as much as on the wire, and a client may wait with what they are of.
TEST_F(BatchSessionTest, HeadersAreChargedUntilTheLastTensorBegins) {
  const std::vector<BatchTensor> tensors(500, {std::string(100, 'n'), DType::kF16, "raw", Bytes(4)});
  const v1::CompressRequest batch = Batch(tensors);
  const uint64_t header_bytes = batch.ByteSizeLong();
  ASSERT_GT(header_bytes, 50'000u);
  CompressDriver driver(pool_, admission_, Options());
  driver.session.Push(batch);
  EXPECT_GT(admission_.bytes(), header_bytes);
  driver.PushWhenWanted(Data(Bytes(4 * 499 - 1)));
  EXPECT_GT(admission_.bytes(), header_bytes);
  driver.PushWhenWanted(Data(Bytes(1)));
  EXPECT_TRUE(driver.Soon([&] { return admission_.bytes() < 10'000; })) << admission_.bytes();
  driver.PushWhenWanted(Data(Bytes(4)));
  EXPECT_THAT(driver.Run({}), IsOk());

  Admission small({.memory_budget = 50'000, .max_streams = 8});
  CompressDriver refused(pool_, small, Options());
  EXPECT_THAT(refused.Run({batch}), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("50000")));
}

TEST_F(BatchSessionTest, ABatchMayBeCancelledAnywhere) {
  const std::vector<BatchTensor> tensors = Mixed();
  const Bytes values = ValuesOf(tensors);
  for (size_t messages = 0; messages < 20; ++messages) {
    CompressDriver driver(pool_, admission_, Options());
    driver.session.Push(Batch(tensors));
    for (size_t i = 0; i < messages; ++i) driver.PushWhenWanted(Data(ByteSpan(values).subspan(i * 50'000, 50'000)));
    driver.session.Cancel();
    while (!driver.session.done()) driver.signal.Wait();
    EXPECT_THAT(driver.session.status(), StatusIs(absl::StatusCode::kCancelled, "the client has cancelled"));
  }
  EXPECT_EQ(admission_.bytes(), 0u);
}

}  // namespace
}  // namespace kvcompress
