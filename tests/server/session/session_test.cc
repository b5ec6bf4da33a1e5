#include "server/session/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <thread>

#include "absl/time/clock.h"
#include "core/base/half.h"
#include "tests/server/session/session_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using testing::Data;
using testing::Distribution;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::kBlock;
using testing::MakeValues;
using testing::StatusIs;

using Bytes = std::vector<std::byte>;
using CompressDriver = testing::Driver<CompressSession>;
using DecompressDriver = testing::Driver<DecompressSession>;

constexpr uint64_t kWindow = DefaultWindowBytes(2);

v1::CompressRequest Header(const std::string& name, const std::vector<uint64_t>& shape, const std::string& codec = "",
                           v1::DType dtype = v1::DTYPE_F16) {
  v1::CompressRequest request;
  v1::Tensor& tensor = *request.mutable_header()->mutable_tensor();
  tensor.set_name(name);
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Assign(shape.begin(), shape.end());
  request.mutable_header()->set_codec(codec);
  return request;
}

v1::CompressRequest ProfileHeader(const std::string& name, const std::vector<uint64_t>& shape,
                                  const std::string& profile) {
  v1::CompressRequest request = Header(name, shape);
  request.mutable_header()->set_profile(profile);
  return request;
}

v1::CompressRequest Data(size_t bytes) { return Data(Bytes(bytes)); }

v1::DecompressRequest FrameHeaderOf(const std::string& name) {
  v1::DecompressRequest request;
  request.mutable_header()->set_name(name);
  return request;
}

v1::DecompressRequest FrameData(const std::string& bytes) {
  v1::DecompressRequest request;
  request.set_frame(bytes);
  return request;
}

void AppendChunks(std::vector<v1::CompressRequest>& requests, ByteSpan bytes, size_t chunk) {
  for (size_t at = 0; at < bytes.size(); at += chunk) {
    requests.push_back(Data(bytes.subspan(at, std::min(chunk, bytes.size() - at))));
  }
}

// What kind of response each is, in a letter: h(eader), f(rame) or d(ata), t(ensor report), s(tream report); repeated
// frames and data once.
std::string Shape(const std::vector<v1::CompressResponse>& responses) {
  std::string shape;
  for (const auto& response : responses) {
    const char letter = response.has_frame() ? 'f' : response.has_tensor() ? 't' : response.has_stream() ? 's' : '?';
    if (letter != 'f' || !shape.ends_with('f')) shape += letter;
  }
  return shape;
}

std::string FrameOf(const std::vector<v1::CompressResponse>& responses) {
  std::string frame;
  for (const auto& response : responses) frame += response.frame();
  return frame;
}

class SessionTest : public ::testing::Test {
 protected:
  SessionOptions Options() const { return {.limits = {.max_tensor_bytes = 1 << 26}, .window_bytes = kWindow}; }

  absl::Status Compress(const std::vector<v1::CompressRequest>& requests,
                        std::vector<v1::CompressResponse>* responses = nullptr) {
    CompressDriver driver(pool_, admission_, Options());
    const absl::Status status = driver.Run(requests);
    if (responses != nullptr) *responses = std::move(driver.responses);
    return status;
  }

  std::string MakeFrame(DType dtype, ByteSpan values, const std::string& codec) {
    std::vector<v1::CompressRequest> requests = {
        Header("t", {values.size() / DTypeSize(dtype)}, codec, static_cast<v1::DType>(dtype))};
    AppendChunks(requests, values, 1 << 20);
    std::vector<v1::CompressResponse> responses;
    EXPECT_THAT(Compress(requests, &responses), IsOk());
    return FrameOf(responses);
  }

  absl::Status Decompress(const std::vector<v1::DecompressRequest>& requests,
                          std::vector<v1::DecompressResponse>* responses = nullptr) {
    DecompressDriver driver(pool_, admission_, Options());
    const absl::Status status = driver.Run(requests);
    if (responses != nullptr) *responses = std::move(driver.responses);
    return status;
  }

  absl::Status InvalidArgument(const std::string& text) { return absl::InvalidArgumentError(text); }

  ThreadPool pool_{2};
  Admission admission_{{.memory_budget = uint64_t{1} << 30, .max_streams = 8}};
};

TEST_F(SessionTest, BytesDoNotDependOnTheSizeOfTheMessages) {
  const Bytes values = MakeValues(DType::kF16, 300'001, Distribution::kOutliers);
  const std::string expected = MakeFrame(DType::kF16, values, "int4(group=64)");
  for (size_t chunk : {size_t{61}, size_t{4096}, size_t{65537}, size_t{1} << 22}) {
    std::vector<v1::CompressRequest> requests = {Header("t", {300'001}, "int4(group=64)")};
    AppendChunks(requests, values, chunk);
    std::vector<v1::CompressResponse> responses;
    ASSERT_THAT(Compress(requests, &responses), IsOk());
    EXPECT_EQ(FrameOf(responses), expected) << chunk;
  }
}

TEST_F(SessionTest, DecompressGivesTheTensorBack) {
  const Bytes values = testing::MakeBits(700'000);
  const std::string frame = MakeFrame(DType::kBF16, values, "raw");
  for (size_t chunk : {size_t{1013}, size_t{1} << 22}) {
    std::vector<v1::DecompressRequest> requests = {FrameHeaderOf("renamed")};
    for (size_t at = 0; at < frame.size(); at += chunk) requests.push_back(FrameData(frame.substr(at, chunk)));
    std::vector<v1::DecompressResponse> responses;
    ASSERT_THAT(Decompress(requests, &responses), IsOk());
    ASSERT_TRUE(responses.front().has_header());
    EXPECT_EQ(responses.front().header().name(), "renamed");
    EXPECT_EQ(responses.front().header().dtype(), v1::DTYPE_BF16);
    EXPECT_THAT(responses.front().header().shape(), ElementsAre(350'000));
    EXPECT_THAT(responses.front().header().axes(), ElementsAre(v1::AXIS_ROLE_OTHER));
    std::string data;
    for (const auto& response : responses) data += response.data();
    EXPECT_EQ(data, AsText(values));
    const v1::TensorReport& report = responses[responses.size() - 2].tensor();
    EXPECT_EQ(report.name(), "renamed");
    EXPECT_EQ(report.codec(), "raw");
    EXPECT_EQ(report.tensor_bytes(), 700'000u);
    EXPECT_EQ(report.frame_bytes(), frame.size());
    EXPECT_FALSE(report.has_quality());
    EXPECT_EQ(responses.back().stream().tensors(), 1u);
    EXPECT_EQ(responses.back().stream().tensor_bytes(), 700'000u);
    EXPECT_FALSE(responses.back().stream().has_quality());
  }
}

TEST_F(SessionTest, ReportsFollowTheirTensorsAndMergeAtTheEnd) {
  const Bytes a = MakeValues(DType::kF32, 1000, Distribution::kGaussian, 1);
  const Bytes b = MakeValues(DType::kF32, 3000, Distribution::kOutliers, 2);
  CompressDriver driver(pool_, admission_, Options());
  ASSERT_THAT(driver.Run({Header("a", {1000}, "int4", v1::DTYPE_F32), Data(a), Header("empty", {4, 0}, "raw"),
                          Header("b", {3000}, "", v1::DTYPE_F32), Data(b), Header("one", {}, "raw"), Data(2)}),
              IsOk());
  ASSERT_EQ(Shape(driver.responses), "ftftftfts");
  EXPECT_EQ(driver.observer.compressed, 4);
  std::vector<v1::TensorReport> reports;
  for (const auto& response : driver.responses) {
    if (response.has_tensor()) reports.push_back(response.tensor());
  }
  EXPECT_EQ(reports[0].name(), "a");
  EXPECT_EQ(reports[0].codec(), "int4(group=64)");
  EXPECT_EQ(reports[0].elements(), 1000u);
  EXPECT_EQ(reports[0].sums().count(), 1000u);
  EXPECT_EQ(reports[1].elements(), 0u);
  EXPECT_EQ(reports[2].codec(), "int4(group=64)");
  EXPECT_EQ(reports[3].elements(), 1u);
  EXPECT_FALSE(reports[3].quality().has_snr_db());
  EXPECT_EQ(reports[3].quality().level(), "EXCELLENT");

  const v1::StreamReport& stream = driver.responses.back().stream();
  EXPECT_EQ(stream.tensors(), 4u);
  EXPECT_EQ(stream.tensor_bytes(), 4000u + 12000u + 2u);
  EXPECT_EQ(stream.frame_bytes(),
            reports[0].frame_bytes() + reports[1].frame_bytes() + reports[2].frame_bytes() + reports[3].frame_bytes());
  const double rmse = (reports[0].quality().rmse() + reports[2].quality().rmse()) / 3;
  EXPECT_DOUBLE_EQ(stream.quality().rmse(), rmse);
  EXPECT_DOUBLE_EQ(stream.quality().snr_db(), (reports[0].quality().snr_db() + reports[2].quality().snr_db()) / 2);
  EXPECT_EQ(stream.quality().max_error(), reports[2].quality().max_error());
  EXPECT_LT(reports[0].quality().snr_db(), reports[2].quality().snr_db());
  EXPECT_EQ(stream.worst_tensor(), "a");
  EXPECT_THAT(stream.violations(), ::testing::Contains(HasSubstr("MaxError ")));
  EXPECT_THAT(reports[2].violations(), ::testing::Contains(HasSubstr("MaxError ")));
}

TEST_F(SessionTest, AStreamWithoutTensorsIsReported) {
  CompressDriver driver(pool_, admission_, Options());
  ASSERT_THAT(driver.Run({}), IsOk());
  ASSERT_EQ(driver.responses.size(), 1u);
  EXPECT_EQ(driver.responses[0].stream().tensors(), 0u);
  EXPECT_FALSE(driver.responses[0].stream().has_quality());
  EXPECT_EQ(driver.responses[0].stream().seconds(), 0);
  EXPECT_THAT(Decompress({}), IsOk());
}

TEST_F(SessionTest, AProfileGivesEachTensorItsCodec) {
  const std::string one = R"({"version": 1, "default": "int8", "rules": [{"layers": [0, 1], "codec": "raw"}]})";
  const std::string other = R"({"version": 1, "default": "int3"})";
  std::vector<v1::CompressRequest> requests;
  for (const auto& header : {ProfileHeader("layer_0_key", {9}, one), ProfileHeader("layer_2_key", {9}, one),
                             Header("layer_0_key", {9}), ProfileHeader("layer_1_key", {9}, one),
                             ProfileHeader("layer_1_key", {9}, other), ProfileHeader("layer_1_key", {9}, one)}) {
    requests.push_back(header);
    requests.push_back(Data(18));
  }
  std::vector<v1::CompressResponse> responses;
  ASSERT_THAT(Compress(requests, &responses), IsOk());
  std::vector<std::string> codecs;
  for (const auto& response : responses) {
    if (response.has_tensor()) codecs.push_back(response.tensor().codec());
  }
  EXPECT_THAT(codecs, ElementsAre("raw", "int8(group=64)", "int4(group=64)", "raw", "int3(group=64)", "raw"));
}

TEST_F(SessionTest, AProfileMayHave64KiB) {
  std::string profile = R"({"version": 1, "default": "raw"})";
  profile.append(kMaxProfileBytes - profile.size(), ' ');
  EXPECT_THAT(Compress({ProfileHeader("t", {2}, profile), Data(4)}), IsOk());
  EXPECT_THAT(Compress({ProfileHeader("t", {2}, profile + " "), Data(4)}),
              StatusIs(absl::StatusCode::kInvalidArgument, "profile of 65537 bytes is above the limit of 65536"));
}

TEST_F(SessionTest, AProfileOfRanksIsForACodecWithAnArtifact) {
  const std::string config = R"({"per_layer_head": {"0/0": {"enabled": true, "rank": 8}}})";
  const auto fault = [&](const std::string& codec) {
    v1::CompressRequest request = ProfileHeader("layer_0_key", {1, 1, 2, 64}, config);
    request.mutable_header()->set_codec(codec);
    return std::string(Compress({request, Data(256)}).message());
  };
  EXPECT_THAT(fault(""),
              HasSubstr("profile: ranks are of coefficients in an artifact, and \"int4(group=64)\" has none"));
  EXPECT_THAT(fault("raw"),
              HasSubstr("profile: ranks are of coefficients in an artifact, and \"raw\" has none: give, for"));
  EXPECT_EQ(fault("kv(bits=4,artifact=00112233445566778899aabbccddeeff)"),
            "transform: artifact 00112233445566778899aabbccddeeff: this program was given no directory of artifacts");
  v1::CompressRequest other = ProfileHeader("state", {2}, config);
  other.mutable_header()->set_codec("transform(bits=4,artifact=00112233445566778899aabbccddeeff)");
  EXPECT_THAT(Compress({other, Data(4)}), IsOk());
}

TEST_F(SessionTest, MalformedCompressStreamsAreRefusedWithTheirReason) {
  v1::CompressRequest two_codecs = ProfileHeader("t", {2}, R"({"version": 1, "default": "raw"})");
  two_codecs.mutable_header()->set_codec("raw");
  v1::CompressRequest no_tensor;
  no_tensor.mutable_header();
  v1::CompressRequest wrong_axes = Header("t", {2, 2});
  wrong_axes.mutable_header()->mutable_tensor()->add_axes(v1::AXIS_ROLE_SEQ);
  v1::CompressRequest unknown_axis = Header("t", {2});
  unknown_axis.mutable_header()->mutable_tensor()->add_axes(static_cast<v1::AxisRole>(9));
  const uint64_t large = uint64_t{1} << 40;
  const struct {
    std::vector<v1::CompressRequest> requests;
    absl::Status status;
  } cases[] = {
      {{v1::CompressRequest()}, InvalidArgument("message without a payload")},
      {{no_tensor}, InvalidArgument("header without a tensor")},
      {{Data(2)}, InvalidArgument("data before the tensor's header")},
      {{Header("t", {2}), Data(4), Data(2)},
       InvalidArgument("data behind the tensor's last byte, before the next header")},
      {{Header("t", {2}), Data(6)}, InvalidArgument("tensor \"t\": more than the 4 bytes that its shape says")},
      {{Header("t", {2}), Data(2), Data(4)},
       InvalidArgument("tensor \"t\": more than the 4 bytes that its shape says")},
      {{Header("t", {2}), Data(2)}, InvalidArgument("the stream ends, but tensor \"t\" has 2 of its 4 bytes")},
      {{Header("t", {2})}, InvalidArgument("the stream ends, but tensor \"t\" has 0 of its 4 bytes")},
      {{Header("t", {2}), Data(1), Header("u", {2})},
       InvalidArgument("tensor \"u\" begins, but tensor \"t\" has 1 of its 4 bytes")},
      {{Header("t", {2}, "", v1::DTYPE_UNSPECIFIED)}, InvalidArgument("tensor \"t\": no dtype")},
      {{Header("t", {2}, "", static_cast<v1::DType>(99))}, InvalidArgument("tensor \"t\": unknown dtype 99")},
      {{wrong_axes}, InvalidArgument("tensor \"t\": 1 axis roles for rank 2")},
      {{unknown_axis}, InvalidArgument("tensor \"t\": unknown axis role 9")},
      {{Header("", {2})}, InvalidArgument("tensor name must be 1 to 1024 bytes of UTF-8")},
      {{Header(std::string(1025, 'n'), {2})}, InvalidArgument("tensor name must be 1 to 1024 bytes of UTF-8")},
      {{Header("t", {1, 1, 1, 1, 1, 1, 1, 1, 1})}, InvalidArgument("tensor \"t\": rank 9 is above the limit of 8")},
      {{Header("t", {large, large})},
       InvalidArgument("tensor \"t\": shape [1099511627776, 1099511627776] has more than 2^48 elements")},
      {{Header("t", {1 << 26})},
       absl::ResourceExhaustedError("tensor \"t\": 134217728 bytes are above the limit of 67108864")},
      {{Header("t", {2}, "int9")},
       InvalidArgument("tensor \"t\": unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)")},
      {{two_codecs}, InvalidArgument("header with a codec and a profile")},
      {{ProfileHeader("t", {2}, "{")}, InvalidArgument("profile: not valid JSON: it ends too early")},
      {{ProfileHeader("t", {2}, R"({"version": 1})")}, InvalidArgument("profile: \"default\" is missing")},
      {{Header("t", {2}, "int4(group=")},
       InvalidArgument("tensor \"t\": codec spec \"int4(group=\": expected a value at character 12")},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(Compress(test.requests), StatusIs(test.status.code(), std::string(test.status.message())));
  }
}

TEST_F(SessionTest, MalformedDecompressStreamsAreRefusedWithTheirReason) {
  const std::string frame = MakeFrame(DType::kF16, Bytes(600'000), "raw");
  std::string flipped = frame;
  flipped[frame.size() / 2] = static_cast<char>(flipped[frame.size() / 2] ^ 1);
  const struct {
    std::vector<v1::DecompressRequest> requests;
    absl::Status status;
  } cases[] = {
      {{v1::DecompressRequest()}, InvalidArgument("message without a payload")},
      {{FrameData("x")}, InvalidArgument("data before the tensor's header")},
      {{FrameHeaderOf("")}, InvalidArgument("tensor name must be 1 to 1024 bytes of UTF-8")},
      {{FrameHeaderOf("t"), FrameData(frame), FrameData("x")},
       InvalidArgument("data behind the tensor's last byte, before the next header")},
      {{FrameHeaderOf("t"), FrameData(frame + "xyz")},
       InvalidArgument("tensor \"t\": 3 bytes behind the frame's end mark")},
      {{FrameHeaderOf("t"), FrameHeaderOf("u")},
       absl::DataLossError("tensor \"t\": frame: truncated in its header (after 0 bytes)")},
      {{FrameHeaderOf("t"), FrameData(frame.substr(0, frame.size() - 1)), FrameHeaderOf("u"), FrameData(frame)},
       absl::DataLossError("tensor \"t\": frame: truncated before its end mark (after 600111 bytes)")},
      {{FrameHeaderOf("t")}, absl::DataLossError("tensor \"t\": frame: truncated in its header (after 0 bytes)")},
      {{FrameHeaderOf("t"), FrameData(frame.substr(0, frame.size() - 1))},
       absl::DataLossError("tensor \"t\": frame: truncated before its end mark (after 600111 bytes)")},
      {{FrameHeaderOf("t"), FrameData(flipped)},
       absl::DataLossError("tensor \"t\": frame: block 1: checksum mismatch")},
      {{FrameHeaderOf("t"), FrameData("not a frame")},
       absl::DataLossError("tensor \"t\": frame: bad magic, this is not a kvcompress frame")},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(Decompress(test.requests), StatusIs(test.status.code(), std::string(test.status.message())));
  }
}

// Although the stream stays open, as that of a client does that has buffers to give.
TEST_F(SessionTest, AFrameThatIsCutOffEndsTheStreamOnceItsSizeHasCome) {
  const std::string frame = MakeFrame(DType::kF16, Bytes(600'000), "raw");
  for (const size_t size : {size_t{0}, size_t{5}, size_t{300'000}, frame.size() - 1}) {
    v1::DecompressRequest header = FrameHeaderOf("t");
    header.mutable_header()->set_frame_bytes(size);
    DecompressDriver driver(pool_, admission_, Options());
    driver.session.Push(header);
    if (size > 0) driver.PushWhenWanted(FrameData(frame.substr(0, size)));
    ASSERT_TRUE(driver.Soon([&] { return driver.session.done(); })) << size;
    EXPECT_THAT(driver.session.status(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("frame: truncated")));
  }
}

TEST_F(SessionTest, WhatIsNotAMessageEndsTheStreamBehindWhatCameBefore) {
  CompressDriver driver(pool_, admission_, Options());
  driver.session.Push(Header("t", {2}));
  driver.session.Push(Data(4));
  driver.session.Fail(InvalidArgument("message cannot be parsed"));
  EXPECT_THAT(driver.Run({}), StatusIs(absl::StatusCode::kInvalidArgument, "message cannot be parsed"));
  EXPECT_EQ(Shape(driver.responses), "ft");
}

// The fault that comes first in the stream decides, however the threads run.
TEST_F(SessionTest, TheFirstFaultInTheStreamIsItsStatus) {
  Bytes bad = MakeValues(DType::kF16, 2 * kDefaultBlockElements, Distribution::kGaussian);
  StoreFromF32(DType::kF16, std::numeric_limits<float>::infinity(), bad.data(), 70'000);
  for (int i = 0; i < 20; ++i) {
    std::vector<v1::CompressResponse> responses;
    EXPECT_THAT(
        Compress({Header("good", {2}), Data(4), Header("bad", {2 * kDefaultBlockElements}), Data(bad),
                  Header("next", {1}), Data(64)},
                 &responses),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 "tensor \"bad\": value 70000 is infinity, which int4 cannot hold (on_nonfinite=lossless stores "
                 "its block as it is; clamp|int4(group=64) makes it finite)"));
    EXPECT_EQ(Shape(responses), "ft");
  }
}

TEST_F(SessionTest, NoMessageIsLargerThanAMiB) {
  const Bytes values = testing::MakeBits(5 << 20);
  CompressDriver driver(pool_, admission_, {.limits = {}, .window_bytes = 64 << 20});
  std::vector<v1::CompressRequest> requests = {Header("t", {values.size() / 4}, "raw", v1::DTYPE_F32)};
  AppendChunks(requests, values, 4 << 20);
  ASSERT_EQ(driver.PushWhileWanted(requests), requests.size());
  driver.session.HalfClose();
  // Nobody takes responses until all are there, so the blocks of 512 KiB share messages.
  while (driver.observer.compressed == 0) driver.signal.Wait();
  ASSERT_THAT(driver.Run({}), IsOk());
  ASSERT_EQ(Shape(driver.responses), "fts");
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(driver.responses[i].frame().size(), kMaxMessageBytes) << i;
  EXPECT_EQ(driver.responses.size(), 8u);
  EXPECT_EQ(driver.responses[6].tensor().frame_bytes(), FrameOf(driver.responses).size());
}

TEST_F(SessionTest, AWindowOfOneByteLetsBlockAfterBlockThrough) {
  const Bytes values = MakeValues(DType::kF16, 4 * kDefaultBlockElements, Distribution::kGaussian);
  const std::string frame = MakeFrame(DType::kF16, values, "int4");
  std::vector<v1::CompressRequest> requests = {Header("t", {4 * kDefaultBlockElements}, "int4")};
  AppendChunks(requests, values, kBlock);
  for (int i = 0; i < 100; ++i) {
    CompressDriver driver(pool_, admission_, {.limits = {}, .window_bytes = 1});
    ASSERT_THAT(driver.Run(requests), IsOk());
    ASSERT_EQ(FrameOf(driver.responses), frame);
    DecompressDriver back(pool_, admission_, {.limits = {}, .window_bytes = 1});
    ASSERT_THAT(back.Run({FrameHeaderOf("t"), FrameData(frame), FrameHeaderOf("u"), FrameData(frame)}), IsOk());
  }
}

TEST_F(SessionTest, AClientThatTakesNothingStopsTheInput) {
  const Bytes megabyte = testing::MakeBits(1 << 20);
  std::vector<v1::CompressRequest> requests = {Header("t", {8 << 20}, "raw")};
  for (int i = 0; i < 16; ++i) requests.push_back(Data(megabyte));
  CompressDriver driver(pool_, admission_, Options());
  const size_t pushed = driver.PushWhileWanted(requests);
  EXPECT_LT(pushed, 8u);  // the window is 3 MiB
  EXPECT_FALSE(driver.session.wants_input());
  EXPECT_LT(driver.session.held_bytes(), kWindow + 2 * kBlock);
  // It goes on as soon as somebody takes.
  requests.erase(requests.begin(), requests.begin() + static_cast<ptrdiff_t>(pushed));
  EXPECT_THAT(driver.Run(requests), IsOk());
  EXPECT_EQ(Shape(driver.responses), "fts");
}

TEST_F(SessionTest, AFrameThatGrowsAThousandTimesDoesNotFillTheMemory) {
  const std::string frame = MakeFrame(DType::kF32, Bytes(64 << 20), "raw|zstd(level=3)");
  ASSERT_LT(frame.size(), size_t{64} << 10);
  DecompressDriver driver(pool_, admission_, Options());
  ASSERT_EQ(driver.PushWhileWanted({FrameHeaderOf("t"), FrameData(frame)}), 2u);
  // The message is taken no further than the window goes.
  while (driver.session.held_bytes() < kWindow) driver.signal.Wait();
  EXPECT_LT(driver.session.held_bytes(), kWindow + 3 * kBlock);
  ASSERT_THAT(driver.Run({}), IsOk());
  uint64_t bytes = 0;
  for (const auto& response : driver.responses) bytes += response.data().size();
  EXPECT_EQ(bytes, uint64_t{64} << 20);
}

TEST_F(SessionTest, ManyTensorsWithoutElementsStopTheInputToo) {
  const std::vector<v1::CompressRequest> requests(100'000, Header("t", {0}));
  CompressDriver driver(pool_, admission_, Options());
  EXPECT_LT(driver.PushWhileWanted(requests), 2 * kWindow / kItemOverheadBytes);
}

TEST_F(SessionTest, CancelDropsEverythingAndEndsSoon) {
  for (int i = 0; i < 20; ++i) {
    {
      CompressDriver driver(pool_, admission_, Options());
      driver.session.Push(Header("t", {10'000'000}));
      driver.session.Push(Data(2'000'000));
      EXPECT_GT(admission_.bytes(), 0u);
      driver.session.Cancel();
      while (!driver.session.done()) driver.signal.Wait();
      EXPECT_THAT(driver.session.status(), StatusIs(absl::StatusCode::kCancelled, "the client has cancelled"));
      v1::CompressResponse response;
      EXPECT_FALSE(driver.Pop(response));
      EXPECT_FALSE(driver.session.wants_input());
      driver.session.Push(Data(2));  // what was on its way
      EXPECT_TRUE(driver.session.done());
    }
    EXPECT_EQ(admission_.bytes(), 0u);
    EXPECT_EQ(admission_.streams(), 0u);
  }
}

TEST_F(SessionTest, ShortBlocksThatAreHeldWaitForTheThreadThatBroughtThem) {
  const auto nothing_comes = [](auto& driver) {
    absl::SleepFor(absl::Milliseconds(20));
    return driver.session.is_working() && !driver.session.has_next();
  };
  const Bytes values(2 * kBlock);
  CompressDriver encoding(pool_, admission_, Options());
  encoding.session.Push(Header("t", {kBlock}));
  encoding.session.PushAndHold({Slice::Of(Buffer::Copy(values))});
  EXPECT_TRUE(nothing_comes(encoding));
  encoding.session.WorkOnHeld();
  EXPECT_TRUE(encoding.session.has_next());
  EXPECT_FALSE(encoding.session.is_working());

  DecompressDriver decoding(pool_, admission_, Options());
  decoding.session.Push(FrameHeaderOf("t"));
  const std::string frame = MakeFrame(DType::kF16, values, "int4(group=64)");
  constexpr size_t kHead = 4096;
  constexpr size_t kEnd = 64;  // with it comes more than blocks, which is the pool's
  decoding.session.Push({Slice::Of(Buffer::Copy(AsBytes(frame).first(kHead)))});
  ASSERT_TRUE(decoding.Soon([&] { return !decoding.session.is_working(); }));
  for (v1::DecompressResponse header; decoding.Pop(header);) {
  }
  decoding.session.PushAndHold({Slice::Of(Buffer::Copy(AsBytes(frame).subspan(kHead, frame.size() - kHead - kEnd)))});
  EXPECT_TRUE(nothing_comes(decoding));
  decoding.session.WorkOnHeld();
  EXPECT_FALSE(decoding.session.is_working());

  // What takes longer is the pool's at once.
  for (const auto& [dtype, codec] :
       {std::pair(v1::DTYPE_F16, "raw|cabac"), std::pair(v1::DTYPE_F32, "int4(group=64)")}) {
    CompressDriver slow(pool_, admission_, Options());
    slow.session.Push(Header("t", {2 * kBlock / (dtype == v1::DTYPE_F32 ? 4 : 2)}, codec, dtype));
    slow.session.PushAndHold({Slice::Of(Buffer::Copy(values))});
    EXPECT_TRUE(slow.Soon([&] { return !slow.session.is_working(); })) << codec;
    slow.session.WorkOnHeld();
  }
}

// Plays gRPC's threads: each in turn brings a message, and then works on what it held while the next one brings
// another.
class Receivers {
 public:
  Receivers(CompressSession& session, ByteSpan bytes, size_t chunk) : session_(session), bytes_(bytes), chunk_(chunk) {
    for (std::thread& thread : threads_) thread = std::thread([this] { Receive(); });
  }
  ~Receivers() {
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Receive() {
    while (BringMessage()) session_.WorkOnHeld();
  }
  bool BringMessage() {
    absl::MutexLock lock(&mutex_);
    while (!session_.wants_input()) {
      if (session_.done() || !session_.status().ok()) return false;
      absl::SleepFor(absl::Microseconds(20));
    }
    if (bytes_.empty()) {
      if (!std::exchange(closed_, true)) session_.HalfClose();
      return false;
    }
    const ByteSpan piece = bytes_.first(std::min(chunk_, bytes_.size()));
    bytes_ = bytes_.subspan(piece.size());
    session_.PushAndHold({Slice::Of(Buffer::Copy(piece))});
    return true;
  }

  CompressSession& session_;
  absl::Mutex mutex_;
  ByteSpan bytes_ ABSL_GUARDED_BY(mutex_);
  const size_t chunk_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::array<std::thread, 3> threads_;
};

TEST_F(SessionTest, BlocksComeInOrderWhateverThreadTheyAreEncodedOn) {
  const Bytes values = MakeValues(DType::kF16, 5'000'000, Distribution::kGaussian);
  for (const std::string codec : {"int4(group=64)", "int4(group=64)|lz4"}) {
    const std::string expected = MakeFrame(DType::kF16, values, codec);
    CompressDriver driver(pool_, admission_, Options());
    driver.session.Push(Header("t", {5'000'000}, codec));
    {
      const Receivers receivers(driver.session, values, (1 << 20) - 6);
      while (!driver.session.done()) {
        v1::CompressResponse response;
        if (driver.Pop(response)) {
          driver.responses.push_back(std::move(response));
        } else if (!driver.session.done()) {
          driver.signal.Wait();
        }
      }
    }
    EXPECT_THAT(driver.session.status(), IsOk());
    EXPECT_EQ(Shape(driver.responses), "fts");
    EXPECT_EQ(FrameOf(driver.responses), expected);
  }
}

TEST_F(SessionTest, CancelWhileBlocksAreEncodedWhereTheyCame) {
  const Bytes values(40'000'000);
  for (int i = 0; i < 20; ++i) {
    {
      CompressDriver driver(pool_, admission_, Options());
      driver.session.Push(Header("t", {20'000'000}));
      const Receivers receivers(driver.session, values, 1 << 20);
      for (int taken = 0; taken < i % 3;) {
        v1::CompressResponse response;
        taken += driver.Pop(response) ? 1 : 0;
      }
      driver.session.Cancel();
      while (!driver.session.done()) driver.signal.Wait();
      EXPECT_THAT(driver.session.status(), StatusIs(absl::StatusCode::kCancelled, "the client has cancelled"));
    }
    EXPECT_EQ(admission_.bytes(), 0u);
  }
}

TEST_F(SessionTest, ASessionMayBeDestroyedAtAnyTime) {
  for (int i = 0; i < 20; ++i) {
    CompressDriver driver(pool_, admission_, Options());
    driver.session.Push(Header("t", {10'000'000}));
    driver.session.Push(Data(1'000'000));
    if (i % 2 == 0) driver.session.HalfClose();
  }
  EXPECT_EQ(admission_.streams(), 0u);
}

TEST_F(SessionTest, MemoryIsAskedForTensorByTensorAndGivenBackWhenIdle) {
  CompressDriver driver(pool_, admission_, Options());
  EXPECT_EQ(admission_.bytes(), 0u);
  driver.session.Push(Header("small", {1000}));
  EXPECT_EQ(admission_.bytes(), 2u * 2000);
  driver.session.Push(Data(2000));
  driver.session.Push(Header("large", {30'000'000}));
  const auto holds = [&](uint64_t bytes) { return driver.Soon([&] { return admission_.bytes() == bytes; }); };
  EXPECT_TRUE(holds(2 * (kWindow + kBlock))) << admission_.bytes();
  for (int i = 0; i < 60; ++i) driver.PushWhenWanted(Data(1'000'000));
  EXPECT_TRUE(holds(0)) << admission_.bytes();
  driver.session.Push(Header("whole", {10'000'000}, "sparse(ratio=0.5)|int4"));
  EXPECT_TRUE(holds(2 * (kWindow + kBlock + 20'000'000))) << admission_.bytes();
}

TEST_F(SessionTest, FramesAskForMemoryOnceTheirHeaderIsKnown) {
  const std::string frame = MakeFrame(DType::kF16, Bytes(20'000'000), "int4");
  DecompressDriver driver(pool_, admission_, Options());
  driver.session.Push(FrameHeaderOf("t"));
  driver.session.Push(FrameData(frame.substr(0, 40)));
  EXPECT_EQ(admission_.bytes(), 0u);
  driver.session.Push(FrameData(frame.substr(40, 40)));
  EXPECT_EQ(admission_.bytes(), 2 * (kWindow + kBlock));
}

TEST_F(SessionTest, AHeaderAloneKeepsNobodyOutAndWhatCameDoes) {
  Admission admission({.memory_budget = 100'000, .max_streams = 2});
  Admission::Ticket other = *admission.AdmitStream();
  CompressDriver driver(pool_, admission, Options());
  driver.session.Push(Header("a", {20'000}));
  EXPECT_EQ(admission.bytes(), 80'000u);
  ASSERT_THAT(other.Resize(100'000), IsOk());
  ASSERT_THAT(other.Resize(0), IsOk());
  driver.session.Push(Data(10'000));
  EXPECT_EQ(admission.bytes(), 80'000u);
  EXPECT_FALSE(other.Resize(80'001).ok());
  EXPECT_THAT(other.Resize(80'000), IsOk());
  driver.session.Push(Data(2'000));
  driver.session.HalfClose();
  while (!driver.session.done()) driver.signal.Wait();
  EXPECT_THAT(driver.session.status(),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       "the stream needs 80000 bytes (78.12 KiB) of memory, other streams hold 80000 bytes (78.12 KiB) "
                       "of the --memory-budget of 100000 bytes (97.66 KiB)"));
}

TEST_F(SessionTest, OverTheBudgetIsAnErrorBehindWhatCameBefore) {
  Admission admission({.memory_budget = 20'000, .max_streams = 2});
  Admission::Ticket other = *admission.AdmitStream();
  ASSERT_THAT(other.Resize(15'000), IsOk());
  {
    CompressDriver driver(pool_, admission, Options());
    const absl::Status status = driver.Run({Header("a", {1000}), Data(2000), Header("b", {4000}), Data(8000)});
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted,
                                 ::testing::AnyOf(
                                     "the stream needs 16000 bytes (15.62 KiB) of memory, other streams hold 15000 "
                                     "bytes (14.65 KiB) of the --memory-budget of 20000 bytes (19.53 KiB)",
                                     // the first tensor may still be on its way out
                                     "the stream needs 20000 bytes (19.53 KiB) of memory, other streams hold 15000 "
                                     "bytes (14.65 KiB) of the --memory-budget of 20000 bytes (19.53 KiB)")));
    EXPECT_EQ(std::string(status.GetPayload(absl::string_view(kRetryPushbackUrl.data(), kRetryPushbackUrl.size()))
                              .value_or(absl::Cord())),
              "100");
    EXPECT_EQ(Shape(driver.responses), "ft");
  }
  CompressDriver driver(pool_, admission, Options());
  const absl::Status status = driver.Run({Header("c", {10'000}), Data(20'000)});
  EXPECT_THAT(
      status,
      StatusIs(
          absl::StatusCode::kResourceExhausted,
          "the stream needs 40000 bytes (39.06 KiB) of memory, the whole --memory-budget is 20000 bytes (19.53 KiB)"));
  EXPECT_FALSE(status.GetPayload(absl::string_view(kRetryPushbackUrl.data(), kRetryPushbackUrl.size())).has_value());
}

TEST_F(SessionTest, AFrameOfAnotherFingerprintEndsTheStreamAfterThoseBeforeIt) {
  const Bytes values = MakeValues(DType::kF16, 1000, Distribution::kGaussian);
  const auto frame_of = [&](const std::string& fingerprint) {
    v1::CompressRequest header = Header("t", {1000}, "raw");
    header.mutable_header()->mutable_tensor()->set_fingerprint(fingerprint);
    std::vector<v1::CompressResponse> responses;
    EXPECT_THAT(Compress({header, Data(values)}, &responses), IsOk());
    EXPECT_EQ(responses[responses.size() - 2].tensor().fingerprint(), fingerprint);
    return FrameOf(responses);
  };
  const auto expecting = [&](const std::string& fingerprint) {
    v1::DecompressRequest header = FrameHeaderOf("t");
    header.mutable_header()->set_fingerprint(fingerprint);
    return header;
  };
  const std::string one = frame_of("one");
  for (const std::string& wrong : {frame_of("two"), frame_of("")}) {
    std::vector<v1::DecompressResponse> responses;
    EXPECT_THAT(Decompress({expecting("one"), FrameData(one), expecting("one"), FrameData(wrong)}, &responses),
                StatusIs(absl::StatusCode::kAborted, HasSubstr("not fingerprint 6f6e65")));
    int reports = 0;
    for (const v1::DecompressResponse& response : responses) {
      reports += response.has_tensor() ? 1 : 0;
      const std::string of = response.has_header() ? response.header().fingerprint() : "one";
      EXPECT_EQ(of, "one");
    }
    EXPECT_LE(reports, 1);
    EXPECT_THAT(Decompress({FrameHeaderOf("t"), FrameData(wrong)}), IsOk());
  }
  EXPECT_THAT(Decompress({expecting(std::string(65, 'x'))}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("of which there are at most 64")));
}

}  // namespace
}  // namespace kvcompress
