#include "client/python/native/message_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <utility>

#include "kvcompress/v1/kvcompress.pb.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr uint64_t kValues = 300'000;

std::string Header(const std::string& name, const std::string& codec, uint64_t values = kValues) {
  v1::CompressHeader header;
  header.mutable_tensor()->set_name(name);
  header.mutable_tensor()->set_dtype(v1::DTYPE_F32);
  header.mutable_tensor()->add_shape(values);
  header.set_codec(codec);
  return header.SerializeAsString();
}

std::string FrameHeader(const std::string& name) {
  v1::DecompressHeader header;
  header.set_name(name);
  return header.SerializeAsString();
}

std::vector<float> Values(float first) {
  std::vector<float> values(kValues);
  for (size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i % 97);
  return values;
}

ByteSpan BytesOf(const std::vector<float>& values) { return std::as_bytes(std::span(values)); }
StridedSpan<const std::byte> ElementsOf(const std::vector<float>& values) { return StridedSpan(BytesOf(values)); }
MutableByteSpan BytesOf(std::vector<float>& values) { return std::as_writable_bytes(std::span(values)); }

class MessageCodecTest : public ::testing::TestWithParam<size_t> {
 protected:
  MessageCodec codec_{{.threads = GetParam(), .default_codec = "int8", .artifacts = ""}};
  absl::Status status_;
};

INSTANTIATE_TEST_SUITE_P(Threads, MessageCodecTest, ::testing::Values(1, 2, 7));

TEST_P(MessageCodecTest, ValuesWithGapsAreReadInTheirOrder) {
  const std::vector<float> values = Values(1);
  std::vector<float> turned(values.size());  // columns of the same rows
  constexpr uint64_t kRows = 300;
  constexpr uint64_t kColumns = kValues / kRows;
  for (uint64_t i = 0; i < kValues; ++i) turned[i % kColumns * kRows + i / kColumns] = values[i];
  const StridedLevel levels[] = {{kRows, sizeof(float)}, {kColumns, kRows * sizeof(float)}};
  const std::string header = Header("t", "exact");
  std::vector<MessageCodec::Tensor> tensors(5,
                                            {header, {BytesOf(std::as_const(turned)).data(), sizeof(float), levels}});
  tensors[2].values = ElementsOf(values);
  const std::vector<MessageCodec::Made> made = codec_.Compress(tensors, absl::InfiniteFuture(), status_);
  ASSERT_THAT(status_, IsOk());
  for (const MessageCodec::Made& one : made) EXPECT_EQ(AsText(one.frame.span()), AsText(made[2].frame.span()));
}

TEST_P(MessageCodecTest, TensorsComeBack) {
  std::vector<std::vector<float>> values;
  std::vector<std::string> headers;
  for (int i = 0; i < 20; ++i) {
    values.push_back(Values(static_cast<float>(i)));
    headers.push_back(Header("t", "raw"));
  }
  std::vector<MessageCodec::Tensor> tensors;
  for (size_t i = 0; i < values.size(); ++i) tensors.push_back({headers[i], ElementsOf(values[i])});
  const std::vector<MessageCodec::Made> made = codec_.Compress(tensors, absl::InfiniteFuture(), status_);
  ASSERT_THAT(status_, IsOk());
  ASSERT_EQ(made.size(), values.size());

  const std::string header = FrameHeader("t");
  std::vector<std::vector<float>> decoded(values.size(), std::vector<float>(kValues));
  std::vector<MessageCodec::Frame> frames;
  for (size_t i = 0; i < made.size(); ++i) {
    v1::TensorReport report;
    ASSERT_TRUE(report.ParseFromString(made[i].report));
    EXPECT_EQ(report.frame_bytes(), made[i].frame.size());
    frames.push_back({header, made[i].frame.span(), StridedSpan(BytesOf(decoded[i]))});
  }
  const std::vector<std::string> described = codec_.Describe(frames, status_);
  ASSERT_THAT(status_, IsOk());
  ASSERT_EQ(described.size(), frames.size());
  for (const std::string& text : described) {
    v1::Tensor tensor;
    ASSERT_TRUE(tensor.ParseFromString(text));
    EXPECT_EQ(tensor.shape(0), kValues);
  }
  EXPECT_EQ(codec_.Decompress(frames, absl::InfiniteFuture(), status_), frames.size());
  EXPECT_THAT(status_, IsOk());
  EXPECT_EQ(decoded, values);
}

TEST_P(MessageCodecTest, MemoryOfFramesThatWereReadMakesTheSameFrames) {
  const std::vector<float> values = Values(1);
  const std::string whole = Header("t", "raw"), part = Header("t", "int4", kValues / 3);
  const MessageCodec::Tensor large{whole, ElementsOf(values)},
      small{part, StridedSpan(std::as_bytes(std::span(values).first(kValues / 3)))};
  std::vector<std::vector<std::byte>> first;
  for (int round = 0; round < 3; ++round) {
    const std::vector<MessageCodec::Tensor> tensors{large, small, small, large, small};
    std::vector<MessageCodec::Made> made = codec_.Compress(tensors, absl::InfiniteFuture(), status_);
    ASSERT_THAT(status_, IsOk());
    std::vector<std::vector<std::byte>> frames;
    for (const MessageCodec::Made& one : made) {
      frames.emplace_back(one.frame.data(), one.frame.data() + one.frame.size());
    }
    if (round == 0) first = frames;
    EXPECT_EQ(frames, first);
    codec_.Recycle(std::move(made));
  }
}

TEST_P(MessageCodecTest, TheFirstFaultEndsTheCall) {
  const std::vector<float> good = Values(1);
  std::vector<float> bad = good;
  bad[3] = std::numeric_limits<float>::quiet_NaN();
  const std::string header = Header("good", "int8"), wrong = Header("wrong", "int8");
  std::vector<MessageCodec::Tensor> tensors(40, {header, ElementsOf(good)});
  tensors[11] = {wrong, ElementsOf(bad)};
  tensors[12] = {wrong, ElementsOf(bad)};
  EXPECT_EQ(codec_.Compress(tensors, absl::InfiniteFuture(), status_).size(), 11u);
  EXPECT_THAT(status_, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tensor \"wrong\": value 3 is NaN")));

  // A header that is wrong ends it as well, unless a value before it does.
  const std::string unknown = Header("unknown", "int9");
  tensors[20] = {unknown, ElementsOf(good)};
  EXPECT_EQ(codec_.Compress(tensors, absl::InfiniteFuture(), status_).size(), 11u);
  EXPECT_THAT(status_.message(), HasSubstr("value 3 is NaN"));
  tensors[5] = {unknown, ElementsOf(good)};
  EXPECT_EQ(codec_.Compress(tensors, absl::InfiniteFuture(), status_).size(), 5u);
  EXPECT_THAT(status_.message(), HasSubstr("int9"));
}

TEST_P(MessageCodecTest, DamagedFramesAndOutputsThatDoNotFit) {
  const std::vector<float> values = Values(1);
  const std::string header = Header("t", ""), frame_header = FrameHeader("t");
  const MessageCodec::Tensor tensor = {header, ElementsOf(values)};
  std::vector<MessageCodec::Made> made = codec_.Compress({&tensor, 1}, absl::InfiniteFuture(), status_);
  ASSERT_EQ(made.size(), 1u);
  std::vector<float> decoded(kValues), other(kValues);
  Buffer damaged = Buffer::Copy(made[0].frame.span());
  damaged.data()[1000] ^= std::byte{1};
  std::vector<MessageCodec::Frame> frames = {{frame_header, made[0].frame.span(), StridedSpan(BytesOf(decoded))},
                                             {frame_header, damaged.span(), StridedSpan(BytesOf(other))}};
  EXPECT_EQ(codec_.Decompress(frames, absl::InfiniteFuture(), status_), 1u);
  EXPECT_THAT(status_, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor \"t\": frame: block 0")));
  frames[1] = {frame_header, made[0].frame.span(), StridedSpan(BytesOf(other).first(100))};
  EXPECT_EQ(codec_.Decompress(frames, absl::InfiniteFuture(), status_), 1u);
  EXPECT_THAT(status_, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tensor \"t\"")));
  frames[1].frame = {};
  EXPECT_EQ(codec_.Describe(frames, status_).size(), 1u);
  EXPECT_THAT(status_, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor \"t\"")));
}

TEST_P(MessageCodecTest, WhatIsNoMessage) {
  const std::vector<float> values = Values(1);
  const MessageCodec::Tensor tensor = {"\xff\xff", ElementsOf(values)};
  EXPECT_TRUE(codec_.Compress({&tensor, 1}, absl::InfiniteFuture(), status_).empty());
  EXPECT_THAT(status_,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no message of kvcompress.v1.CompressHeader")));
  EXPECT_THAT(codec_.MaxFrameBytes(std::vector<std::string_view>{"\xff"}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no message of")));
}

TEST_P(MessageCodecTest, NothingBeginsAfterTheDeadline) {
  const std::vector<float> values = Values(1);
  const std::string header = Header("t", "raw");
  const std::vector<MessageCodec::Tensor> tensors(10, {header, ElementsOf(values)});
  EXPECT_TRUE(codec_.Compress(tensors, absl::Now() - absl::Seconds(1), status_).empty());
  EXPECT_THAT(status_, StatusIs(absl::StatusCode::kDeadlineExceeded, "deadline exceeded"));
}

TEST_P(MessageCodecTest, ThreadsShareIt) {
  const std::vector<float> values = Values(1);
  const std::string header = Header("t", "int8");
  const std::vector<MessageCodec::Tensor> tensors(10, {header, ElementsOf(values)});
  std::vector<std::thread> threads;
  std::vector<size_t> made(4);
  for (size_t& count : made) {
    threads.emplace_back([&] {
      absl::Status status;
      count = codec_.Compress(tensors, absl::InfiniteFuture(), status).size();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made, std::vector<size_t>(4, tensors.size()));
}

}  // namespace
}  // namespace kvcompress
