#include <gmock/gmock.h>

#include "core/codec/named_chains.h"
#include "core/compress_stream.h"
#include "core/frame_plan.h"
#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// Tensors whose elements are no values to codecs: carried bit for bit, whatever is asked for.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using absl::StatusCode;

using Bytes = std::vector<std::byte>;

struct PassedFrame final : CompressOutput {
  void OnFrame(Slice bytes) override { frame.insert(frame.end(), bytes.bytes.begin(), bytes.bytes.end()); }
  void OnTensor(const TensorReport& done) override { report = done; }
  void OnError(const absl::Status& error) override { ADD_FAILURE() << error; }

  Bytes frame;
  TensorReport report;
};

PassedFrame Compress(const TensorDesc& tensor, std::string_view codec, ByteSpan values) {
  ThreadPool pool(2);
  PassedFrame out;
  const MemorySource source(values);
  CompressStream stream(pool, {}, out);
  EXPECT_THAT(stream.Compress(tensor, codec, source, 4), IsOk());
  stream.WaitBelow(1);
  return out;
}

Bytes Decompress(ByteSpan frame, size_t bytes) {
  Bytes values(bytes);
  EXPECT_THAT(TensorDecompressor().Decompress(frame, values), IsOk());
  return values;
}

// Two blocks of any dtype's words.
Bytes BitsOf(const TensorDesc& tensor) {
  return MakeBits(static_cast<size_t>(*NumWords(tensor.dtype, tensor.shape) * DTypeSize(tensor.dtype)));
}

TEST(OpaqueTest, EveryBitComesBackWhateverIsAskedFor) {
  constexpr std::string_view kSpecs[] = {"int4",
                                         "near-lossless",
                                         "mixed",
                                         "sparse(ratio=0)|planes",
                                         "clamp|quant(bits=3)|rans",
                                         "heads(0:int4,1-:raw)",
                                         "blocknorm"};
  for (const DType dtype : kAllDTypes) {
    if (!IsOpaque(dtype)) continue;
    const TensorDesc tensor = MakeTensor("layer_9_key", dtype, {1, 4, 1500, 48});
    const Bytes values = BitsOf(tensor);
    for (const std::string_view spec : kSpecs) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << spec);
      const PassedFrame out = Compress(tensor, spec, values);
      EXPECT_EQ(Decompress(out.frame, values.size()), values);
      EXPECT_EQ(out.report.codec, kOpaqueChain);
      EXPECT_TRUE(out.report.passed_through);
      EXPECT_EQ(out.report.sums.count, 0u);
      EXPECT_EQ(out.report.tensor_bytes, values.size());
      EXPECT_LE(out.frame.size(), values.size() + 1000);
      EXPECT_LE(out.frame.size(), *MaxFrameBytes(tensor, spec));
    }
  }
}

TEST(OpaqueTest, ALosslessCodecIsObeyed) {
  for (const DType dtype : kAllDTypes) {
    if (!IsOpaque(dtype)) continue;
    const TensorDesc tensor = MakeTensor("t", dtype, {700, 256});
    const Bytes values = BitsOf(tensor);
    for (const std::string_view spec :
         {"raw", "planes(split=auto,delta=auto)|rans", "planes(split=fields,delta=token)", "raw|lz4(level=1)"}) {
      SCOPED_TRACE(::testing::Message() << DTypeName(dtype) << ' ' << spec);
      const PassedFrame out = Compress(tensor, spec, values);
      EXPECT_EQ(out.report.codec, spec);
      EXPECT_TRUE(out.report.passed_through);
      EXPECT_EQ(Decompress(out.frame, values.size()), values);
    }
  }
}

// Positions that count up: what differs from token to token is one byte.
TEST(OpaqueTest, PlanesSeeTheDeltaOfEightByteIntegers) {
  Bytes values(8 * 4096);
  for (uint64_t i = 0; i < 4096; ++i) StoreLE<uint64_t>(1000000 + i, values.data() + 8 * i);
  const PassedFrame out = Compress(MakeTensor("position", DType::kI64, {4096, 1}), "lossless", values);
  EXPECT_LT(out.frame.size(), values.size() / 20);
  EXPECT_EQ(Decompress(out.frame, values.size()), values);
}

TEST(OpaqueTest, TensorsOfNoAndOfOneElement) {
  for (const DType dtype : {DType::kBool, DType::kI64, DType::kF4}) {
    for (const std::vector<uint64_t>& shape : {std::vector<uint64_t>{0, 3}, {2}}) {
      const TensorDesc tensor = MakeTensor("t", dtype, shape);
      const Bytes values = BitsOf(tensor);
      EXPECT_EQ(Decompress(Compress(tensor, "int4", values).frame, values.size()), values);
    }
  }
}

TEST(OpaqueTest, WhatIsNoCodecIsRefusedForThemToo) {
  const TensorDesc tensor = MakeTensor("t", DType::kI64, {8});
  EXPECT_THAT(TensorCompressor::Create(tensor, "int9"),
              StatusIs(StatusCode::kInvalidArgument,
                       "tensor \"t\": unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"));
  const TensorDesc odd = MakeTensor("t", DType::kF6E2M3, {5});
  EXPECT_THAT(TensorCompressor::Create(odd, "raw"),
              StatusIs(StatusCode::kInvalidArgument, "tensor \"t\": F6_E2M3 [5] is not a whole number of bytes"));
}

TEST(OpaqueTest, AFrameWhoseCodecChangesValuesIsDamaged) {
  for (const char* spec : {"int4(group=64)", "sparse(ratio=0)|raw", "quant", "bounded(max_error=1)"}) {
    FrameHeader header{.tensor = MakeTensor("t", DType::kI64, {8}), .codec = ChainSpec::Parse(spec)->text()};
    const Bytes frame = SerializeFrameHeader(header);
    EXPECT_THAT(TensorDecompressor().ReadHeader(frame),
                StatusIs(StatusCode::kDataLoss, ::testing::HasSubstr("I64 is carried bit for bit")));
  }
  FrameHeader odd{.tensor = MakeTensor("t", DType::kF4, {8}), .codec = "raw"};
  odd.tensor.shape = {7};
  EXPECT_THAT(TensorDecompressor().ReadHeader(SerializeFrameHeader(odd)),
              StatusIs(StatusCode::kDataLoss, "frame: header: F4 [7] is not a whole number of bytes"));
}

TEST(OpaqueTest, LimitsCountBytesOfEightByteElements) {
  const TensorDesc tensor = MakeTensor("t", DType::kU64, {8});
  EXPECT_THAT(TensorCompressor::Create(tensor, "raw", {.max_tensor_bytes = 63}),
              StatusIs(StatusCode::kResourceExhausted, "tensor \"t\": 64 bytes are above the limit of 63"));
  EXPECT_THAT(MaxFrameBytes(MakeTensor("t", DType::kU64, {kMaxTensorElements}), "int4"), IsOk());
}

}  // namespace
}  // namespace kvcompress
