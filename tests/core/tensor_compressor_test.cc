#include "core/tensor_compressor.h"

#include <gmock/gmock.h>

#include <array>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "core/codec/registry.h"
#include "core/compress_stream.h"
#include "core/tensor_decompressor.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using absl::StatusCode;
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

struct OneFrame final : CompressOutput {
  void OnFrame(Slice bytes) override { frame.insert(frame.end(), bytes.bytes.begin(), bytes.bytes.end()); }
  void OnTensor(const TensorReport& done) override { report = done; }
  void OnError(const absl::Status& error) override { ADD_FAILURE() << error; }

  Bytes frame;
  TensorReport report;
};

// What the streams make of the tensor.
OneFrame StreamFrame(const TensorDesc& tensor, std::string_view codec, ByteSpan values) {
  ThreadPool pool(2);
  OneFrame out;
  const MemorySource source(values);
  CompressStream stream(pool, {}, out);
  EXPECT_THAT(stream.Compress(tensor, codec, source, 4), IsOk());
  stream.WaitBelow(1);
  return out;
}

// A frame that is to be good.
Bytes SpanFrame(const TensorDesc& tensor, std::string_view codec, ByteSpan values) {
  const absl::StatusOr<TensorCompressor> compressor = TensorCompressor::Create(tensor, codec);
  EXPECT_THAT(compressor, IsOk());
  Bytes frame(compressor->max_frame_bytes());
  const absl::StatusOr<size_t> size = compressor->Compress(values, frame);
  EXPECT_THAT(size, IsOk());
  frame.resize(size.value_or(0));
  return frame;
}

absl::Status Decode(ByteSpan frame, size_t room = 1 << 20) {
  Bytes values(room);
  return TensorDecompressor().Decompress(frame, values).status();
}

TEST(SpanCodecTest, FramesAndErrorsAreThoseOfTheStreams) {
  constexpr size_t kBlock = kDefaultBlockElements;
  for (const CodecRow* row : AllCodecs()) {
    for (std::string_view codec : row->examples) {
      TensorDecompressor decompressor;
      for (const std::vector<uint64_t>& shape :
           {std::vector<uint64_t>{}, {0}, {1}, {3, 0, 5}, {1, 2, 37, 64}, {kBlock}, {kBlock + 1}, {2, kBlock + 333}}) {
        const DType dtype = shape.size() == 1 ? DType::kF16 : shape.size() == 2 ? DType::kF32 : DType::kBF16;
        TensorDesc tensor = MakeTensor("layer_3_value", dtype, shape);
        if (shape.size() < 4 && !shape.empty()) tensor.axes[0] = AxisRole::kHeads;
        if (!ChainSpec::Parse(codec)->Resolve({}, tensor).ok()) continue;  // rank 0 has no heads
        const Bytes values = MakeValues(dtype, *NumElements(shape), Distribution::kOutliers);
        const OneFrame expected = StreamFrame(tensor, codec, values);
        SCOPED_TRACE(::testing::Message() << codec << ", " << DescribeTensor(tensor));

        const absl::StatusOr<TensorCompressor> compressor = TensorCompressor::Create(tensor, codec);
        ASSERT_THAT(compressor, IsOk());
        EXPECT_EQ(compressor->max_frame_bytes(), *MaxFrameBytes(tensor, codec));
        EXPECT_EQ(compressor->codec(), expected.report.codec);
        // Bytes around the spans show whether anything strays.
        Bytes frame(compressor->max_frame_bytes() + 64, std::byte{0x5a});
        ErrorSums sums{.count = 99, .sum = 99, .rotary = {}};
        const auto room = MutableByteSpan(frame).first(compressor->max_frame_bytes());
        const absl::StatusOr<size_t> size = compressor->Compress(values, room, &sums);
        ASSERT_THAT(size, IsOk());
        EXPECT_EQ(std::memcmp(&sums, &expected.report.sums, sizeof(sums)), 0);
        EXPECT_EQ(Bytes(frame.end() - 64, frame.end()), Bytes(64, std::byte{0x5a}));
        frame.resize(*size);
        ASSERT_EQ(frame, expected.frame);
        EXPECT_EQ(SpanFrame(tensor, codec, values), expected.frame);
        if (compressor->takes_pieces()) {
          const size_t third = values.size() / 3;
          const ByteSpan all = values;
          const std::array<ByteSpan, 3> pieces = {all.first(third), all.subspan(third, third + 1),
                                                  all.subspan(2 * third + 1)};
          Bytes again(compressor->max_frame_bytes());
          ErrorSums own;
          EXPECT_EQ(compressor->CompressPieces(pieces, again, &own).value_or(0), expected.frame.size());
          again.resize(expected.frame.size());
          EXPECT_EQ(again, expected.frame);
          EXPECT_EQ(std::memcmp(&own, &expected.report.sums, sizeof(own)), 0);
        }

        ASSERT_THAT(decompressor.ReadHeader(frame), IsOk());
        EXPECT_EQ(decompressor.header().tensor.dtype, dtype);
        EXPECT_EQ(decompressor.header().tensor.shape, shape);
        EXPECT_EQ(decompressor.header().tensor.axes, tensor.axes);
        EXPECT_EQ(decompressor.header().codec, expected.report.codec);
        ASSERT_EQ(decompressor.header().tensor_bytes(), values.size());
        Bytes back(values.size() + 64, std::byte{0x5a});
        const absl::StatusOr<size_t> written = decompressor.Decompress(frame, back);
        ASSERT_THAT(written, IsOk());
        EXPECT_EQ(*written, values.size());
        EXPECT_EQ(Bytes(back.end() - 64, back.end()), Bytes(64, std::byte{0x5a}));
        // Every other value of memory, which is not touched between them.
        const size_t size_of = DTypeSize(dtype);
        Bytes apart(2 * values.size(), std::byte{0x5a});
        Bytes expected_apart = apart;
        for (size_t at = 0; at < values.size(); at += size_of) {
          std::memcpy(expected_apart.data() + 2 * at, back.data() + at, size_of);
        }
        const StridedLevel level{values.size() / size_of, static_cast<int64_t>(2 * size_of)};
        const StridedSpan<std::byte> spread(apart.data(), size_of, std::span(&level, 1));
        EXPECT_EQ(decompressor.Decompress(frame, spread).value_or(0), values.size());
        EXPECT_EQ(apart, expected_apart);
        ErrorSums decoded;
        simd::MeasureErrors(dtype, values.data(), back.data(), values.size() / DTypeSize(dtype), decoded);
        EXPECT_EQ(decoded.count, sums.count);
        EXPECT_EQ(decoded.max_abs_error, sums.max_abs_error);
        EXPECT_NEAR(decoded.sum_error_squares, sums.sum_error_squares, 1e-6 * sums.sum_error_squares);
      }
    }
  }
}

TEST(SpanCodecTest, OneCompressorServesManyThreads) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {3, kDefaultBlockElements});
  const absl::StatusOr<TensorCompressor> compressor = TensorCompressor::Create(tensor, "int4|zstd(level=1)");
  ASSERT_THAT(compressor, IsOk());
  constexpr size_t kThreads = 4;
  std::vector<Bytes> values, frames(kThreads, Bytes(compressor->max_frame_bytes()));
  for (uint32_t i = 0; i < kThreads; ++i) {
    values.push_back(MakeValues(DType::kF16, 3 * kDefaultBlockElements, Distribution::kOutliers, i));
  }
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { frames[i].resize(compressor->Compress(values[i], frames[i]).value_or(0)); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kThreads; ++i) EXPECT_EQ(frames[i], SpanFrame(tensor, "int4|zstd(level=1)", values[i]));
}

TEST(SpanCodecTest, MistakesOfTheCallerAreNamed) {
  const TensorDesc ten = MakeTensor("ten", DType::kF16, {10});
  EXPECT_THAT(TensorCompressor::Create(ten, "int7"),
              StatusIs(StatusCode::kInvalidArgument,
                       "tensor \"ten\": unknown codec \"int7\" (similar: int2, int3, int4, int5, int6, int8)"));
  EXPECT_THAT(TensorCompressor::Create(ten, "int4", {.max_tensor_bytes = 19}),
              StatusIs(StatusCode::kResourceExhausted, "tensor \"ten\": 20 bytes are above the limit of 19"));
  EXPECT_THAT(TensorCompressor::Create(MakeTensor("", DType::kF16, {10}), "int4"),
              StatusIs(StatusCode::kInvalidArgument, ::testing::_));

  const absl::StatusOr<TensorCompressor> compressor = TensorCompressor::Create(ten, "int4");
  ASSERT_THAT(compressor, IsOk());
  Bytes values(20), frame(compressor->max_frame_bytes());
  EXPECT_THAT(compressor->Compress(ByteSpan(values).first(19), frame),
              StatusIs(StatusCode::kInvalidArgument, "tensor \"ten\": 19 bytes instead of the 20 that its shape says"));
  EXPECT_THAT(compressor->Compress(values, MutableByteSpan(frame).first(10)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tensor \"ten\": room for 10 bytes of a frame that")));
  StoreFromF32(DType::kF16, std::numeric_limits<float>::infinity(), values.data(), 7);
  EXPECT_THAT(compressor->Compress(values, frame),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tensor \"ten\": value 7 is infinity")));

  const Bytes good = SpanFrame(ten, "raw", values);
  EXPECT_THAT(Decode(good, 19),
              StatusIs(StatusCode::kInvalidArgument, "frame: room for 19 bytes of values that take 20"));
  Bytes longer = good;
  longer.push_back(std::byte{0});
  EXPECT_THAT(Decode(longer),
              StatusIs(StatusCode::kInvalidArgument,
                       absl::StrFormat("the frame ends after %d of %d bytes", good.size(), longer.size())));
  TensorDecompressor small({.max_tensor_bytes = 19});
  EXPECT_THAT(small.ReadHeader(good), StatusIs(StatusCode::kResourceExhausted, "20 bytes are above the limit of 19"));
  EXPECT_THAT(small.Decompress(good, values),
              StatusIs(StatusCode::kResourceExhausted, "20 bytes are above the limit of 19"));
}

TEST(SpanCodecTest, ASpecIsWhatItSaysWhateverCameBefore) {
  const TensorDesc tensor = testing::MakeTensor("layer_0_key", DType::kF16, {1, 2, 16, 64});
  for (int round = 0; round < 2; ++round) {
    for (const char* spec : {"int4(group=64)", "int4(group=64)", "int8(group=64)", "raw"}) {
      const absl::StatusOr<TensorCompressor> compressor = TensorCompressor::Create(tensor, spec);
      ASSERT_THAT(compressor, IsOk());
      EXPECT_EQ(compressor->codec(), spec);
      for (int i = 0; i < 2; ++i) {
        EXPECT_TRUE(absl::IsInvalidArgument(TensorCompressor::Create(tensor, "int4(group=63)").status()));
      }
    }
  }
}

TEST(SpanCodecTest, EveryTruncationAndEveryFlippedBitIsDataLoss) {
  const TensorDesc tensor = MakeTensor("t", DType::kBF16, {300});
  const Bytes values = MakeValues(DType::kBF16, 300, Distribution::kGaussian);
  for (const char* codec :
       {"int8(group=32)", "sparse(ratio=0.5)|raw|zstd", "fallback|transform(step=0.5)", "rotated(bits=4)|rans"}) {
    const Bytes frame = SpanFrame(tensor, codec, values);
    for (size_t size = 0; size < frame.size(); ++size) {
      ASSERT_THAT(Decode(ByteSpan(frame).first(size)), StatusIs(StatusCode::kDataLoss, HasSubstr("frame: truncated")));
    }
    TensorDecompressor decompressor;  // one for all: what it keeps of a frame must not help the next
    Bytes back(values.size());
    for (size_t bit = 0; bit < 8 * frame.size(); ++bit) {
      Bytes flipped = frame;
      flipped[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      ASSERT_THAT(decompressor.Decompress(flipped, back), StatusIs(StatusCode::kDataLoss, ::testing::_)) << bit;
      ASSERT_THAT(decompressor.Decompress(frame, back), IsOk());
    }
  }
}

// A frame header that is right in every checksum and yet not an encoder's.
Bytes HeaderBytes(const std::function<void(FrameHeader&)>& spoil) {
  FrameHeader header{.tensor = MakeTensor("t", DType::kF16, {4}), .codec = "int4(group=64)"};
  spoil(header);
  return SerializeFrameHeader(header);
}

TEST(SpanCodecTest, HostileHeadersAreRefusedAndSpoilNothing) {
  TensorDecompressor decompressor;
  Bytes back(64);
  const Bytes no_codec = HeaderBytes([](FrameHeader& h) { h.codec.clear(); });
  EXPECT_THAT(decompressor.Decompress(no_codec, back),
              StatusIs(StatusCode::kDataLoss, "frame: header: codec spec of 0 bytes"));
  const Bytes values = MakeValues(DType::kF16, 4, Distribution::kGaussian);
  const Bytes good = SpanFrame(MakeTensor("t", DType::kF16, {4}), "int4(group=64)", values);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(decompressor.ReadHeader(HeaderBytes([](FrameHeader& h) { h.codec = "int9"; })),
                StatusIs(StatusCode::kUnimplemented,
                         "frame: unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"));
    EXPECT_THAT(decompressor.ReadHeader(HeaderBytes([](FrameHeader& h) { h.codec = "heads(0-:raw)"; })),
                StatusIs(StatusCode::kDataLoss,
                         "frame: heads takes tensors with one heads axis only (the axis roles tell which it is)"));
    EXPECT_THAT(decompressor.ReadHeader(HeaderBytes([](FrameHeader& h) { h.tensor.shape = {uint64_t{1} << 40}; })),
                StatusIs(StatusCode::kResourceExhausted, HasSubstr("above the limit")));
    EXPECT_THAT(decompressor.ReadHeader(HeaderBytes([](FrameHeader& h) { h.block_elements = 100; })),
                StatusIs(StatusCode::kDataLoss, "frame: header: blocks of 100 elements"));
    EXPECT_THAT(decompressor.Decompress(good, back), IsOk());
  }
}

// One decompressor for frames of many chunks: neither the fingerprints nor a refusal spoil the next.
TEST(SpanCodecTest, AFrameOfAnotherFingerprintIsRefusedBeforeAValueIsWritten) {
  TensorDesc tensor = MakeTensor("t", DType::kF16, {300});
  const Bytes values = MakeValues(DType::kF16, 300, Distribution::kGaussian);
  const Bytes none = SpanFrame(tensor, "raw", values);
  tensor.fingerprint = "chunk 1";
  const Bytes one = SpanFrame(tensor, "raw", values);
  tensor.fingerprint = "chunk 2";
  const Bytes two = SpanFrame(tensor, "raw", values);
  EXPECT_EQ(two, StreamFrame(tensor, "raw", values).frame);
  const auto aborted = [](const char* text) { return StatusIs(absl::StatusCode::kAborted, text); };
  TensorDecompressor decompressor;
  const Bytes untouched(values.size(), std::byte{0x55});
  for (int i = 0; i < 2; ++i) {
    Bytes back = untouched;
    EXPECT_THAT(decompressor.Decompress(two, back, "chunk 1"),
                aborted("frame: it has fingerprint 6368756e6b2032, not fingerprint 6368756e6b2031"));
    EXPECT_THAT(decompressor.Decompress(none, back, "chunk 1"),
                aborted("frame: it has none, not fingerprint 6368756e6b2031"));
    EXPECT_THAT(decompressor.ReadHeader(two, "chunk"), StatusIs(absl::StatusCode::kAborted, ::testing::_));
    EXPECT_EQ(back, untouched);
    EXPECT_THAT(decompressor.Decompress(one, back, "chunk 1"), IsOk());
    EXPECT_EQ(back, values);
    EXPECT_EQ(decompressor.header().tensor.fingerprint, "chunk 1");
    EXPECT_THAT(decompressor.Decompress(two, back), IsOk());
    EXPECT_EQ(decompressor.header().tensor.fingerprint, "chunk 2");
    EXPECT_THAT(decompressor.Decompress(none, back), IsOk());
    EXPECT_EQ(decompressor.header().tensor.fingerprint, "");
  }
}

// What is left where values take next to nothing. Of a page 12 bytes are the states of four lanes.
TEST(SpanCodecTest, APageOfSixteenTokensHasFewBytesBesideItsValues) {
  const auto bytes_of = [](const std::vector<uint64_t>& shape, std::string_view codec) {
    const TensorDesc page = MakeTensor("layer_0_key", DType::kF16, shape);
    const Bytes zeros(2 * shape[1] * shape[2] * shape[3]);
    const Bytes frame = SpanFrame(page, codec, zeros);
    EXPECT_EQ(frame, StreamFrame(page, codec, zeros).frame);
    return frame.size();
  };
  constexpr double kByteBits = 8;
  EXPECT_LT(kByteBits * static_cast<double>(bytes_of({1, 8, 16, 128}, "transform(bits=3)")) / 16384, 0.032);
  EXPECT_LT(bytes_of({1, 8, 16, 128}, "transform(bits=3,theta=10000,start=1024)"), 75u);
  EXPECT_LT(bytes_of({1, 1, 16, 128}, "transform(bits=3,theta=10000,start=1024)"), 70u);
}

TEST(SpanCodecTest, FramesAreCompactUpToTheirLimit) {
  const auto is_compact = [](uint64_t values, std::string_view codec) {
    const auto compressor = TensorCompressor::Create(MakeTensor("t", DType::kF16, {values}), codec);
    EXPECT_THAT(compressor, IsOk());
    return compressor->header().is_compact;
  };
  EXPECT_TRUE(is_compact(1 << 16, "transform(bits=3)"));
  EXPECT_TRUE(is_compact(1 << 16, "rotated(bits=4)|zstd"));
  EXPECT_FALSE(is_compact((1 << 16) + 1, "transform(bits=3)"));
  EXPECT_FALSE(is_compact(128, "int4"));
}

// Blocks of plain frames are multiples of 128 values, which sequences of 401 tokens of 17 values reach above 2^16
// alone.
TEST(SpanCodecTest, ACompactFrameHasOneBlockWhateverItsSequences) {
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    const TensorDesc tensor = MakeTensor("layer_0_key", dtype, {2, 4, 401, 17});
    const Bytes values = MakeValues(dtype, 2 * 4 * 401 * 17, Distribution::kGaussian);
    for (const std::string_view codec : {"transform(bits=3)", "transform(snr=20,theta=10000)", "rotated(bits=4)"}) {
      const Bytes frame = SpanFrame(tensor, codec, values);
      EXPECT_THAT(Decode(frame), IsOk()) << codec;
      EXPECT_EQ(frame, StreamFrame(tensor, codec, values).frame) << codec;
    }
  }
}

}  // namespace
}  // namespace kvcompress
