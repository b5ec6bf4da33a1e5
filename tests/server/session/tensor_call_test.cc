#include "server/session/tensor_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "proto/wire/convert.h"
#include "tests/server/session/session_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using testing::Distribution;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::MakeTensor;
using testing::MakeValues;
using testing::StatusIs;

using Bytes = std::vector<std::byte>;

v1::CompressTensorRequest ToCompress(uint64_t elements, std::string codec) {
  v1::CompressTensorRequest request;
  *request.mutable_header() = MakeHeader(MakeTensor("t", DType::kF16, {elements}), std::move(codec), false);
  return request;
}

v1::DecompressTensorRequest ToDecompress(std::string name, std::string fingerprint = "") {
  v1::DecompressTensorRequest request;
  *request.mutable_header() = MakeHeader(std::move(name), false, std::move(fingerprint));
  return request;
}

// `bytes` in slices of `piece` bytes.
std::vector<Slice> Pieces(ByteSpan bytes, size_t piece) {
  std::vector<Slice> pieces;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    pieces.push_back(Slice::Of(Buffer::Copy(bytes.subspan(at, std::min(piece, bytes.size() - at)))));
  }
  return pieces;
}

class TensorCallTest : public ::testing::Test {
 protected:
  // The output of a whole call.
  template <typename Call>
  absl::StatusOr<std::string> Run(Call& call, const typename Call::Request& request, std::vector<Slice> input,
                                  typename Call::Response& response) {
    KVC_RETURN_IF_ERROR(call.Start(request, std::move(input), options_, ticket_));
    KVC_ASSIGN_OR_RETURN(const Slice output, call.Run(observer_, response));
    return std::string(AsText(output.bytes));
  }

  absl::StatusOr<std::string> Compress(const std::string& codec, size_t piece, v1::CompressTensorResponse& response) {
    CompressTensorCall call;
    return Run(call, ToCompress(values_.size() / 2, codec), Pieces(values_, piece), response);
  }

  const Bytes values_ = MakeValues(DType::kF16, 5000, Distribution::kOutliers);
  SessionOptions options_ = {.limits = {.max_tensor_bytes = 1 << 20}};
  Admission admission_{{.memory_budget = 1 << 20}};
  Admission::Ticket ticket_ = *admission_.AdmitStream();
  testing::NullObserver observer_;
};

TEST_F(TensorCallTest, AFrameAndItsValuesAreThoseOfTheCodec) {
  const absl::StatusOr<TensorCompressor> compressor =
      TensorCompressor::Create(MakeTensor("t", DType::kF16, {5000}), "int4");
  Bytes expected(compressor->max_frame_bytes());
  ErrorSums sums;
  ASSERT_THAT(compressor->Compress(values_, expected, &sums), IsOk());
  CompressTensorCall compress;
  v1::CompressTensorResponse compressed;
  const absl::StatusOr<std::string> frame = Run(compress, ToCompress(5000, ""), Pieces(values_, 10'000), compressed);
  ASSERT_THAT(frame, IsOk());
  EXPECT_EQ(*frame, AsText(expected));
  EXPECT_TRUE(compressed.frame().empty()) << "its bytes go beside it";
  EXPECT_EQ(compressed.report().name(), "t");
  EXPECT_EQ(compressed.report().codec(), "int4(group=64)");
  EXPECT_EQ(compressed.report().elements(), 5000u);
  EXPECT_EQ(compressed.report().frame_bytes(), expected.size());
  EXPECT_EQ(compressed.report().sums().sum_error_squares(), sums.sum_error_squares);
  EXPECT_DOUBLE_EQ(compressed.report().quality().max_error(), sums.max_abs_error);
  EXPECT_EQ(compress.totals().tensors, 1u);
  EXPECT_EQ(compress.totals().tensor_bytes, 10'000u);
  EXPECT_EQ(observer_.compressed, 1);

  DecompressTensorCall decompress;
  v1::DecompressTensorResponse decompressed;
  const absl::StatusOr<std::string> values = Run(decompress, ToDecompress("u"), Pieces(expected, 100), decompressed);
  ASSERT_THAT(values, IsOk());
  TensorDecompressor decompressor;
  Bytes decoded(10'000);
  ASSERT_THAT(decompressor.Decompress(expected, decoded), IsOk());
  EXPECT_EQ(*values, AsText(decoded));
  EXPECT_EQ(decompressed.header().name(), "u");
  EXPECT_THAT(decompressed.header().shape(), ElementsAre(5000));
  EXPECT_EQ(decompressed.report().name(), "u");
  EXPECT_EQ(decompressed.report().frame_bytes(), expected.size());
  EXPECT_FALSE(decompressed.report().has_quality());
  EXPECT_EQ(decompressed.report().copied_bytes(), expected.size()) << "a frame is needed in one piece";
  EXPECT_EQ(observer_.decompressed, 1);
}

TEST_F(TensorCallTest, PiecesAreCopiedOnlyForCodecsThatNeedThemInOne) {
  const auto copied = [&](const char* codec, size_t piece) {
    v1::CompressTensorResponse response;
    EXPECT_THAT(Compress(codec, piece, response), IsOk());
    return response.report().copied_bytes();
  };
  EXPECT_EQ(copied("raw", values_.size()), 0u);
  EXPECT_EQ(copied("raw", 999), values_.size());
  EXPECT_EQ(copied("int4", 999), 0u);
  for (const char* joins : {"bounded(min_snr=30)", "transform(step=0.25)", "rotated(bits=4,mean=channel)"}) {
    EXPECT_EQ(copied(joins, 999), values_.size()) << joins;
  }
  EXPECT_EQ(copied("int4", 7), values_.size()) << "too many pieces";
}

TEST_F(TensorCallTest, ARequestLikeOneBeforeIsRecalledAndAnsweredAlike) {
  CompressPlans plans;
  options_.plans = &plans;
  v1::CompressTensorRequest request = ToCompress(5000, "");
  request.mutable_header()->set_profile(R"({"version": 1, "default": "int8", "others": "int8"})");
  const std::string head = request.SerializeAsString();
  std::vector<std::string> frames, reports;
  for (const bool is_known : {false, true, true}) {
    CompressTensorCall call;
    EXPECT_EQ(call.Recall(head, options_), is_known);
    v1::CompressTensorResponse response;
    const absl::StatusOr<std::string> frame =
        Run(call, is_known ? v1::CompressTensorRequest() : request, Pieces(values_, 10'000), response);
    ASSERT_THAT(frame, IsOk());
    call.Keep(head, options_);
    EXPECT_FALSE(response.report().policy().empty());
    response.mutable_report()->clear_codec_seconds();
    frames.push_back(*frame);
    reports.push_back(response.SerializeAsString());
  }
  EXPECT_THAT(frames, ::testing::Each(frames[0]));
  EXPECT_THAT(reports, ::testing::Each(reports[0]));
  EXPECT_FALSE(CompressTensorCall().Recall(ToCompress(4999, "").SerializeAsString(), options_));
  CompressTensorCall call;
  ASSERT_TRUE(call.Recall(head, options_));
  EXPECT_EQ(call.Start({}, Pieces(ByteSpan(values_).first(9998), 10'000), options_, ticket_).code(),
            absl::StatusCode::kOk);
  v1::CompressTensorResponse response;
  EXPECT_EQ(call.Run(observer_, response).status().code(), absl::StatusCode::kInvalidArgument) << "too few bytes";
}

TEST_F(TensorCallTest, OnlyPlansOfShortHeadersAndFastCodecsAreKept) {
  CompressPlans plans;
  options_.plans = &plans;
  const auto is_kept = [&](const std::string& head, std::string codec) {
    CompressTensorCall call;
    EXPECT_THAT(call.Start(ToCompress(5000, std::move(codec)), Pieces(values_, 10'000), options_, ticket_), IsOk());
    call.Keep(head, options_);
    return CompressTensorCall().Recall(head, options_);
  };
  EXPECT_TRUE(is_kept(std::string(CompressPlans::kMaxBytes, 'x'), "int4"));
  EXPECT_FALSE(is_kept(std::string(CompressPlans::kMaxBytes + 1, 'x'), "int4"));
  EXPECT_FALSE(is_kept("a", "int4|zstd"));
  EXPECT_FALSE(DecompressTensorCall().Recall("a", options_));
}

TEST_F(TensorCallTest, ATensorWithoutElementsNeedsNoInput) {
  CompressTensorCall call;
  v1::CompressTensorResponse response;
  const absl::StatusOr<std::string> frame = Run(call, ToCompress(0, "raw"), {}, response);
  ASSERT_THAT(frame, IsOk());
  EXPECT_EQ(response.report().frame_bytes(), frame->size());
}

TEST_F(TensorCallTest, AFrameOfAnotherFingerprintIsRefusedBeforeMemoryIsTakenForIt) {
  v1::CompressTensorRequest request = ToCompress(5000, "raw");
  request.mutable_header()->mutable_tensor()->set_fingerprint("layer 1");
  CompressTensorCall compress;
  v1::CompressTensorResponse compressed;
  const absl::StatusOr<std::string> frame = Run(compress, request, Pieces(values_, 10'000), compressed);
  ASSERT_THAT(frame, IsOk());
  EXPECT_EQ(compressed.report().fingerprint(), "layer 1");

  for (const char* expected : {"", "layer 1"}) {
    DecompressTensorCall call;
    v1::DecompressTensorResponse response;
    EXPECT_THAT(Run(call, ToDecompress("t", expected), Pieces(AsBytes(*frame), 999), response), IsOk());
    EXPECT_EQ(response.header().fingerprint(), "layer 1");
    EXPECT_EQ(response.report().fingerprint(), "layer 1");
  }
  DecompressTensorCall call;
  EXPECT_THAT(call.Start(ToDecompress("t", "layer 2"), Pieces(AsBytes(*frame), 999), options_, ticket_),
              StatusIs(absl::StatusCode::kAborted,
                       "tensor \"t\": frame: it has fingerprint 6c617965722031, not fingerprint 6c617965722032"));

  request.mutable_header()->mutable_tensor()->set_fingerprint(std::string(65, 'x'));
  const auto too_long = StatusIs(absl::StatusCode::kInvalidArgument,
                                 "tensor \"t\": a fingerprint of 65 bytes, of which there are at most 64");
  EXPECT_THAT(CompressTensorCall().Start(request, {}, options_, ticket_), too_long);
  EXPECT_THAT(DecompressTensorCall().Start(ToDecompress("t", std::string(65, 'x')), {}, options_, ticket_), too_long);
}

TEST_F(TensorCallTest, MemoryIsAskedForInputAndOutput) {
  CompressTensorCall call;
  ASSERT_THAT(call.Start(ToCompress(5000, "raw"), Pieces(values_, 10'000), options_, ticket_), IsOk());
  v1::CompressTensorResponse response;
  const absl::StatusOr<Slice> frame = call.Run(observer_, response);
  ASSERT_THAT(frame, IsOk());
  EXPECT_EQ(admission_.bytes(), 10'000 + frame->bytes.size());
  Admission small({.memory_budget = 15'000});
  Admission::Ticket ticket = *small.AdmitStream();
  CompressTensorCall refused;
  EXPECT_THAT(refused.Start(ToCompress(5000, "raw"), Pieces(values_, 10'000), options_, ticket),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       ::testing::HasSubstr("the whole --memory-budget is 15000 bytes (14.65 KiB)")));
}

TEST_F(TensorCallTest, ShortIsWhatIsSmallAndFast) {
  const auto is_short = [&](uint64_t elements, const char* codec) {
    CompressTensorCall call;
    const Bytes values(2 * elements);
    EXPECT_THAT(call.Start(ToCompress(elements, codec), Pieces(values, values.size()), options_, ticket_), IsOk());
    return call.is_short();
  };
  EXPECT_TRUE(is_short(5000, "int4"));
  EXPECT_TRUE(is_short(131'072, "int4"));
  EXPECT_FALSE(is_short(131'136, "int4"));
  EXPECT_FALSE(is_short(5000, "int4|zstd"));
}

TEST_F(TensorCallTest, AFrameOfAnotherSizeThanItsHeaderSaysIsRefused) {
  v1::CompressTensorResponse compressed;
  const absl::StatusOr<std::string> frame = Compress("int4", values_.size(), compressed);
  ASSERT_THAT(frame, IsOk());
  const uint64_t size = frame->size();
  const auto decompress = [&](uint64_t told, const std::string& bytes) {
    v1::DecompressTensorRequest request = ToDecompress("t");
    request.mutable_header()->set_frame_bytes(told);
    DecompressTensorCall call;
    v1::DecompressTensorResponse response;
    return Run(call, request, Pieces(AsBytes(bytes), bytes.size()), response);
  };
  EXPECT_THAT(decompress(size, *frame), IsOk());
  for (const uint64_t told : {size + 1, std::numeric_limits<uint64_t>::max()}) {
    EXPECT_THAT(decompress(told, *frame),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         absl::StrFormat("tensor \"t\": the frame ends after %d of %d bytes", size, told)));
  }
  for (const uint64_t told : {uint64_t{0}, uint64_t{5}, size - 1}) {
    EXPECT_THAT(decompress(told, *frame),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor \"t\": frame: truncated")));
  }
  EXPECT_THAT(decompress(size, *frame + "xyz"),
              StatusIs(absl::StatusCode::kInvalidArgument, "tensor \"t\": 3 bytes behind the frame's end mark"));
  EXPECT_EQ(observer_.decompressed, 1);
}

TEST_F(TensorCallTest, WhatCannotBeIsRefused) {
  const auto refusal = [&](const v1::CompressTensorRequest& request) {
    return CompressTensorCall().Start(request, Pieces(values_, 10'000), options_, ticket_);
  };
  EXPECT_THAT(refusal({}), StatusIs(absl::StatusCode::kInvalidArgument, "header without a tensor"));
  EXPECT_THAT(refusal(ToCompress(5000, "int9")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "tensor \"t\": unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"));
  EXPECT_THAT(
      refusal(ToCompress(1'000'000, "raw")),
      StatusIs(absl::StatusCode::kResourceExhausted, "tensor \"t\": 2000000 bytes are above the limit of 1048576"));
  v1::CompressTensorRequest to_buffer = ToCompress(5000, "raw");
  to_buffer.mutable_header()->set_frame_to_buffer(true);
  EXPECT_THAT(refusal(to_buffer), StatusIs(absl::StatusCode::kInvalidArgument, "buffers are for output of streams"));
  v1::CompressTensorResponse response;
  CompressTensorCall call;
  EXPECT_THAT(Run(call, ToCompress(4999, "raw"), Pieces(values_, 10'000), response),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "tensor \"t\": 10000 bytes instead of the 9998 that its shape says"));
  DecompressTensorCall nameless;
  EXPECT_THAT(nameless.Start(ToDecompress(""), Pieces(values_, 10'000), options_, ticket_),
              StatusIs(absl::StatusCode::kInvalidArgument, "tensor name must be 1 to 1024 bytes of UTF-8"));
  EXPECT_EQ(DecompressTensorCall().Start(ToDecompress("t"), Pieces(values_, 10'000), options_, ticket_).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(observer_.compressed + observer_.decompressed, 0);
}

}  // namespace
}  // namespace kvcompress
