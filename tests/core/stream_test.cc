#include <gmock/gmock.h>

#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "absl/strings/str_format.h"
#include "core/compress_stream.h"
#include "core/decompress_stream.h"
#include "core/frame_plan.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;

using Bytes = std::vector<std::byte>;

struct Frames final : CompressOutput {
  void OnFrame(Slice bytes) override { current.insert(current.end(), bytes.bytes.begin(), bytes.bytes.end()); }
  void OnTensor(const TensorReport& report) override {
    EXPECT_EQ(report.frame_bytes, current.size());
    frames.push_back(std::move(current));
    current.clear();
    reports.push_back(report);
  }
  void OnError(const absl::Status& error) override { errors.push_back(error); }

  Bytes current;
  std::vector<Bytes> frames;
  std::vector<TensorReport> reports;
  std::vector<absl::Status> errors;
};

struct Tensors final : DecompressOutput {
  void OnHeader(const TensorDesc& tensor, uint64_t) override { headers.push_back(tensor); }
  void OnData(Slice bytes) override { current.insert(current.end(), bytes.bytes.begin(), bytes.bytes.end()); }
  void OnTensor(const TensorReport& report) override {
    values.push_back(std::move(current));
    current.clear();
    reports.push_back(report);
  }
  void OnError(const absl::Status& error) override { errors.push_back(error); }

  Bytes current;
  std::vector<TensorDesc> headers;
  std::vector<Bytes> values;
  std::vector<TensorReport> reports;
  std::vector<absl::Status> errors;
};

Bytes CompressWhole(ThreadPool& pool, const TensorDesc& tensor, std::string_view codec, ByteSpan values) {
  Frames out;
  CompressStream stream(pool, {}, out);
  const MemorySource source(values);
  EXPECT_THAT(stream.Compress(tensor, codec, source, 4), IsOk());
  stream.WaitBelow(1);
  EXPECT_THAT(out.errors, ::testing::IsEmpty());
  return out.frames.empty() ? Bytes() : out.frames[0];
}

// The first error of decompressing `frame` in pieces of `piece` bytes, wherever it comes up.
absl::Status Decompress(ThreadPool& pool, ByteSpan frame, Tensors& out, size_t piece = 1000,
                        std::string_view fingerprint = "", std::optional<uint64_t> frame_bytes = std::nullopt) {
  DecompressStream stream(pool, {}, out);
  absl::Status status = stream.Begin("t", nullptr, fingerprint, frame_bytes);
  for (size_t at = 0; at < frame.size() && status.ok(); at += piece) {
    status = stream.Append(frame.subspan(at, std::min(piece, frame.size() - at)));
  }
  if (status.ok()) status = stream.Finish();
  stream.WaitBelow(1);
  return !out.errors.empty() ? out.errors[0] : status;
}

class CompressorTest : public ::testing::Test {
 protected:
  ThreadPool pool_{3};
};

TEST_F(CompressorTest, PushedAndPulledTensorsGiveTheSameBytesOnAnyNumberOfThreads) {
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {2, 3, 1000, 64});
  const Bytes values = MakeValues(DType::kF16, 2 * 3 * 1000 * 64, Distribution::kOutliers);
  for (const char* codec : {"int4", "sparse(ratio=0.5)|int4", "raw|zstd"}) {
    const Bytes expected = CompressWhole(pool_, tensor, codec, values);
    for (size_t threads : {1, 2, 5}) {
      ThreadPool pool(threads);
      EXPECT_EQ(CompressWhole(pool, tensor, codec, values), expected);
      for (size_t piece : {size_t{4099}, size_t{1} << 20}) {
        Frames out;
        CompressStream stream(pool, {}, out);
        ASSERT_THAT(stream.Begin(tensor, codec), IsOk());
        for (size_t at = 0; at < values.size(); at += piece) {
          ASSERT_THAT(stream.Append(ByteSpan(values).subspan(at, std::min(piece, values.size() - at))), IsOk());
        }
        EXPECT_FALSE(stream.in_tensor());
        stream.WaitBelow(1);
        ASSERT_EQ(out.frames.size(), 1u);
        EXPECT_EQ(out.frames[0], expected);
      }
    }
  }
}

TEST_F(CompressorTest, ReportsDoNotDependOnTheNumberOfThreads) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {1 << 20});
  const Bytes values = MakeValues(DType::kF16, 1 << 20, Distribution::kOutliers);
  const MemorySource source{ByteSpan(values)};
  std::vector<ErrorSums> sums;
  for (size_t threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    Frames out;
    CompressStream stream(pool, {}, out);
    ASSERT_THAT(stream.Compress(tensor, "int4", source, 4), IsOk());
    stream.WaitBelow(1);
    sums.push_back(out.reports.at(0).sums);
  }
  for (const ErrorSums& other : sums) EXPECT_EQ(std::memcmp(&other, &sums[0], sizeof(ErrorSums)), 0);
}

TEST_F(CompressorTest, ShapesOfEveryKindComeBack) {
  for (const std::vector<uint64_t>& shape :
       {std::vector<uint64_t>{}, {0}, {1}, {3, 0, 5}, {1, 2, 3, 4, 5, 6, 7, 1}, {131072}, {131073}, {2, 131072}}) {
    for (DType dtype : kKernelDTypes) {
      const TensorDesc tensor = MakeTensor("t", dtype, shape);
      const Bytes values = MakeValues(dtype, *NumElements(shape), Distribution::kGaussian);
      const Bytes frame = CompressWhole(pool_, tensor, "raw", values);
      EXPECT_EQ(frame.size(), *MaxFrameBytes(tensor, "raw"));
      for (size_t piece : {size_t{1}, size_t{100}, frame.size()}) {
        if (piece == 1 && frame.size() > 5000) continue;
        Tensors out;
        ASSERT_THAT(Decompress(pool_, frame, out, piece), IsOk());
        EXPECT_THAT(out.headers, ::testing::ElementsAre(tensor));
        ASSERT_EQ(out.values.size(), 1u);
        EXPECT_EQ(out.values[0], values);
        EXPECT_EQ(out.reports[0].frame_bytes, frame.size());
      }
    }
  }
}

TEST_F(CompressorTest, ManyTensorsAStreamKeepTheirOrder) {
  Frames out;
  CompressStream stream(pool_, {}, out);
  std::vector<Bytes> all;
  for (size_t i = 0; i < 40; ++i) {
    const size_t count = i * i * 97 % 300000;
    all.push_back(MakeValues(DType::kF16, count, Distribution::kGaussian, static_cast<uint32_t>(i)));
    ASSERT_THAT(stream.Begin(MakeTensor(absl::StrFormat("t%d", i), DType::kF16, {count}), "raw"), IsOk());
    if (count > 0) {
      ASSERT_THAT(stream.Append(all.back()), IsOk());
    }
  }
  ASSERT_THAT(stream.Finish(), IsOk());
  stream.WaitBelow(1);
  ASSERT_EQ(out.frames.size(), 40u);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(out.reports[i].tensor.name, absl::StrFormat("t%d", i));
    Tensors back;
    ASSERT_THAT(Decompress(pool_, out.frames[i], back), IsOk());
    EXPECT_EQ(back.values[0], all[i]);
  }
}

TEST_F(CompressorTest, EveryFlippedBitIsDataLoss) {
  // Two blocks, so that tables and orders matter; the first block is long, so its payload is sampled.
  const TensorDesc tensor = MakeTensor("layer_0_key", DType::kF16, {1, 2, 1025, 64});
  const Bytes values = MakeValues(DType::kF16, 2 * 1025 * 64, Distribution::kGaussian);
  for (const auto& [codec, step] : {std::pair{"int4", 997}, {"raw|zstd", 2999}}) {
    const Bytes frame = CompressWhole(pool_, tensor, codec, values);
    for (size_t bit = 0; bit<8 * frame.size(); bit += bit> 8 * 300 && bit + 8 * 400 < 8 * frame.size() ? step : 1) {
      Bytes flipped = frame;
      flipped[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      Tensors out;
      const absl::Status status = Decompress(pool_, flipped, out, 1 << 16);
      ASSERT_TRUE(absl::IsDataLoss(status)) << "bit " << bit << " of " << 8 * frame.size() << ": " << status;
      EXPECT_TRUE(out.values.empty());
    }
  }
}

TEST_F(CompressorTest, EveryTruncationAndEveryTailIsRefused) {
  const Bytes values = MakeValues(DType::kBF16, 300, Distribution::kGaussian);
  const Bytes frame = CompressWhole(pool_, MakeTensor("t", DType::kBF16, {300}), "int8(group=32)", values);
  for (size_t size = 0; size < frame.size(); ++size) {
    Tensors out;
    EXPECT_THAT(Decompress(pool_, ByteSpan(frame).first(size), out),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor \"t\": frame: truncated")));
  }
  for (const size_t tail : {1, 3'000'000}) {
    Bytes longer = frame;
    longer.resize(frame.size() + tail);
    Tensors out;
    EXPECT_THAT(Decompress(pool_, longer, out, 1000, "", longer.size()),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         absl::StrFormat("tensor \"t\": the frame ends after %d of %d bytes", frame.size(),
                                         frame.size() + tail)));
  }
}

TEST_F(CompressorTest, BlocksCannotBeSwapped) {
  const size_t count = 2 * kDefaultBlockElements;
  const Bytes values = MakeValues(DType::kF16, count, Distribution::kGaussian);
  Bytes frame = CompressWhole(pool_, MakeTensor("t", DType::kF16, {count}), "int4", values);
  FrameHeader header{.tensor = MakeTensor("t", DType::kF16, {count}), .codec = "int4(group=64)"};
  const size_t start = SerializeFrameHeader(header).size();
  const size_t block = (frame.size() - start - header.end_bytes()) / 2;
  std::swap_ranges(frame.begin() + static_cast<ptrdiff_t>(start), frame.begin() + static_cast<ptrdiff_t>(start + block),
                   frame.begin() + static_cast<ptrdiff_t>(start + block));
  Tensors out;
  EXPECT_THAT(Decompress(pool_, frame, out),
              StatusIs(absl::StatusCode::kDataLoss, "tensor \"t\": frame: block 0: checksum mismatch"));
}

TEST_F(CompressorTest, MistakesOfTheCallerAreNamed) {
  const auto stream_with = [&](const std::function<absl::Status(CompressStream&)>& use) {
    Frames out;
    Limits limits{.max_tensor_bytes = 1000};
    CompressStream stream(pool_, limits, out);
    return use(stream);
  };
  const TensorDesc ten = MakeTensor("ten", DType::kF16, {10});
  const Bytes bytes(21);
  using absl::StatusCode;
  EXPECT_THAT(stream_with([&](CompressStream& s) { return s.Append(bytes); }),
              StatusIs(StatusCode::kInvalidArgument, "21 bytes of data outside a tensor"));
  EXPECT_THAT(stream_with([&](CompressStream& s) {
                s.Begin(ten, "int4").IgnoreError();
                return s.Append(bytes);
              }),
              StatusIs(StatusCode::kInvalidArgument, "tensor \"ten\": more than the 20 bytes that its shape says"));
  EXPECT_THAT(stream_with([&](CompressStream& s) {
                s.Begin(ten, "int4").IgnoreError();
                s.Append(ByteSpan(bytes).first(7)).IgnoreError();
                return s.Finish();
              }),
              StatusIs(StatusCode::kInvalidArgument, "the stream ends, but tensor \"ten\" has 7 of its 20 bytes"));
  EXPECT_THAT(
      stream_with([&](CompressStream& s) {
        s.Begin(ten, "int4").IgnoreError();
        return s.Begin(MakeTensor("two", DType::kF16, {1}), "int4");
      }),
      StatusIs(StatusCode::kInvalidArgument, "tensor \"two\" begins, but tensor \"ten\" has 0 of its 20 bytes"));
  EXPECT_THAT(stream_with([&](CompressStream& s) { return s.Begin(ten, "int7"); }),
              StatusIs(StatusCode::kInvalidArgument,
                       "tensor \"ten\": unknown codec \"int7\" (similar: int2, int3, int4, int5, int6, int8)"));
  EXPECT_THAT(stream_with([&](CompressStream& s) { return s.Begin(MakeTensor("big", DType::kF16, {501}), "int4"); }),
              StatusIs(StatusCode::kResourceExhausted, "tensor \"big\": 1002 bytes are above the limit of 1000"));
  EXPECT_THAT(stream_with([&](CompressStream& s) {
                return s.Begin(MakeTensor("huge", DType::kF16, {uint64_t{1} << 40, uint64_t{1} << 40}), "int4");
              }),
              StatusIs(StatusCode::kInvalidArgument,
                       "tensor \"huge\": shape [1099511627776, 1099511627776] has more than 2^48 elements"));
  EXPECT_THAT(stream_with([&](CompressStream& s) { return s.Compress(ten, "int4", MemorySource(ByteSpan(bytes)), 1); }),
              StatusIs(StatusCode::kInvalidArgument, "tensor \"ten\": 21 bytes instead of the 20 that its shape says"));
}

TEST_F(CompressorTest, PartsOfATensorEndWithItsBlocks) {
  constexpr size_t kBlock = kDefaultBlockElements * 2;
  const size_t bytes = 2 * kBlock + 600;
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {bytes / 2});
  const Bytes values(bytes);
  Frames out;
  CompressStream stream(pool_, {}, out);
  EXPECT_FALSE(stream.footprint().has_value());
  ASSERT_THAT(stream.Begin(tensor, "raw"), IsOk());
  ASSERT_TRUE(stream.footprint().has_value());
  EXPECT_EQ(stream.footprint()->tensor_bytes, bytes);
  EXPECT_EQ(stream.footprint()->block_bytes, kBlock);
  EXPECT_FALSE(stream.footprint()->whole);
  Slice rest{values, nullptr};
  for (size_t left : {kBlock + 600, size_t{600}, size_t{0}}) {
    ASSERT_THAT(stream.AppendPart(rest), IsOk());
    EXPECT_EQ(rest.bytes.size(), left);
  }
  EXPECT_FALSE(stream.footprint().has_value());
  ASSERT_THAT(stream.Begin(tensor, "sparse|raw"), IsOk());
  EXPECT_TRUE(stream.footprint()->whole);
  stream.WaitBelow(1);
  EXPECT_EQ(stream.bytes_in_flight(), 0u);
}

// Cut anywhere, within values and groups, too.
TEST_F(CompressorTest, PiecesThatAreHeldGiveTheFrameAndTheErrorsOfOnePiece) {
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    const size_t count = kDefaultBlockElements + 12'345;
    const TensorDesc tensor = MakeTensor("t", dtype, {count});
    const Bytes values = testing::MakeValues(dtype, count, testing::Distribution::kOutliers);
    for (const char* spec : {"int4(group=64)", "int3(group=128)", "int8(group=32)|zstd", "raw", "clamp|int4"}) {
      for (const size_t piece : {values.size(), size_t{65'531}, size_t{40'000}, size_t{10'001}, size_t{777}}) {
        SCOPED_TRACE(std::string(spec) + ", " + std::to_string(piece));
        Frames whole;
        Frames cut;
        CompressStream one(pool_, {}, whole);
        CompressStream many(pool_, {}, cut);
        ASSERT_THAT(one.Begin(tensor, spec), IsOk());
        ASSERT_THAT(one.Append(values), IsOk());
        ASSERT_THAT(many.Begin(tensor, spec), IsOk());
        for (size_t at = 0; at < values.size(); at += piece) {
          Slice slice{ByteSpan(values).subspan(at, std::min(piece, values.size() - at)), nullptr};
          while (!slice.bytes.empty()) ASSERT_THAT(many.AppendPart(slice), IsOk());
        }
        one.WaitBelow(1);
        many.WaitBelow(1);
        EXPECT_TRUE(cut.frames.at(0) == whole.frames.at(0));
        EXPECT_EQ(std::memcmp(&cut.reports.at(0).sums, &whole.reports.at(0).sums, sizeof(ErrorSums)), 0);
      }
    }
  }
}

TEST_F(CompressorTest, AFaultInPiecesNamesItsValue) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {200});
  Bytes values = testing::MakeValues(DType::kF16, 200, testing::Distribution::kGaussian);
  values[2 * 150] = std::byte{0};
  values[2 * 150 + 1] = std::byte{0x7e};
  Frames out;
  CompressStream stream(pool_, {}, out);
  ASSERT_THAT(stream.Begin(tensor, "int4"), IsOk());
  for (const size_t at : {0, 133, 266}) {
    Slice slice{ByteSpan(values).subspan(at, std::min<size_t>(133, values.size() - at)), nullptr};
    while (!slice.bytes.empty()) ASSERT_THAT(stream.AppendPart(slice), IsOk());
  }
  Slice last{ByteSpan(values).subspan(399), nullptr};
  ASSERT_THAT(stream.AppendPart(last), IsOk());
  stream.WaitBelow(1);
  EXPECT_THAT(out.errors.at(0), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("value 150 is NaN")));
}

TEST_F(CompressorTest, PartsOfAFrameAreItsHeaderItsBlocksAndItsEnd) {
  const size_t count = 2 * kDefaultBlockElements + 1;
  const Bytes frame = CompressWhole(pool_, MakeTensor("t", DType::kF32, {count}), "raw", Bytes(count * 4));
  Tensors out;
  DecompressStream stream(pool_, {}, out);
  ASSERT_THAT(stream.Begin("t"), IsOk());
  EXPECT_FALSE(stream.footprint().has_value());
  ByteSpan rest(frame);
  ASSERT_THAT(stream.AppendPart(rest), IsOk());
  ASSERT_TRUE(stream.footprint().has_value());
  EXPECT_EQ(stream.footprint()->tensor_bytes, count * 4);
  EXPECT_EQ(stream.footprint()->block_bytes, kDefaultBlockElements * 4u);
  size_t parts = 1;
  for (; stream.in_tensor(); ++parts) ASSERT_THAT(stream.AppendPart(rest), IsOk());
  EXPECT_EQ(parts, 1 + 3 + 1u);
  EXPECT_TRUE(rest.empty());
  stream.WaitBelow(1);
  EXPECT_EQ(stream.bytes_in_flight(), 0u);
  EXPECT_EQ(out.values.at(0), Bytes(count * 4));
}

TEST_F(CompressorTest, FlushComesBehindEverythingAndAfterCancelToo) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {1 << 20});
  const Bytes values(2 << 20);
  for (bool cancel : {false, true}) {
    Frames out;
    size_t frames_before = 0;
    bool flushed = false;
    CompressStream stream(pool_, {}, out);
    ASSERT_THAT(stream.Begin(tensor, "int4"), IsOk());
    ASSERT_THAT(stream.Append(ByteSpan(values).first(values.size() - 2)), IsOk());
    if (cancel) stream.Cancel();
    ASSERT_THAT(stream.Append(ByteSpan(values).last(2)), IsOk());
    stream.Flush([&] {
      frames_before = out.frames.size();
      flushed = true;
    });
    stream.WaitBelow(1);
    EXPECT_TRUE(flushed);
    EXPECT_EQ(frames_before, cancel ? 0u : 1u);
    EXPECT_EQ(stream.bytes_in_flight(), 0u);
  }
}

TEST_F(CompressorTest, ABadValueEndsTheStreamOnceAndNamesItself) {
  const size_t count = 3 * kDefaultBlockElements;
  Bytes values = MakeValues(DType::kF32, count, Distribution::kGaussian);
  StoreFromF32(DType::kF32, std::numeric_limits<float>::quiet_NaN(), values.data(), 200000);
  Frames out;
  const MemorySource source{ByteSpan(values)};
  const MemorySource nothing{ByteSpan()};
  CompressStream stream(pool_, {}, out);
  ASSERT_THAT(stream.Compress(MakeTensor("t", DType::kF32, {count}), "int4", source, 2), IsOk());
  ASSERT_THAT(stream.Compress(MakeTensor("u", DType::kF32, {0}), "int4", nothing, 2), IsOk());
  stream.WaitBelow(1);
  ASSERT_EQ(out.errors.size(), 1u);
  EXPECT_THAT(out.errors[0], StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("value 200000 is NaN")));
  EXPECT_THAT(out.frames, ::testing::IsEmpty());
}

TEST_F(CompressorTest, HostileHeadersAreRefused) {
  // Headers with a right checksum, as somebody would write them on purpose.
  const auto refusal = [&](const std::function<void(FrameHeader&)>& spoil, const std::function<void(Bytes&)>& patch) {
    FrameHeader header{.tensor = MakeTensor("", DType::kF16, {4}), .codec = "int4(group=64)"};
    spoil(header);
    Bytes bytes = SerializeFrameHeader(header);
    patch(bytes);
    // The checksum again: of a header without blocks and spec it is what an honest writer of the patched bytes
    // computes.
    bytes.resize(bytes.size() - kChecksumBytes);
    const uint64_t checksum = BlockChecksum({}, 0, bytes);
    ByteWriter(bytes).Write(checksum);
    Tensors out;
    return Decompress(pool_, bytes, out);
  };
  const auto nothing = [](auto&) {};
  using absl::StatusCode;
  EXPECT_THAT(refusal([](FrameHeader& h) { h.codec = "int9"; }, nothing),
              StatusIs(StatusCode::kUnimplemented,
                       "tensor \"t\": frame: unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"));
  EXPECT_THAT(refusal(nothing, [](Bytes& b) { b[4] = std::byte{4}; }),
              StatusIs(StatusCode::kUnimplemented,
                       "tensor \"t\": frame: version 4 is not supported, this build reads versions 1 to 3"));
  EXPECT_THAT(refusal(nothing, [](Bytes& b) { b[5] = std::byte{1}; }),
              StatusIs(StatusCode::kDataLoss, "tensor \"t\": frame: header: reserved byte is not zero"));
  EXPECT_THAT(refusal(nothing, [](Bytes& b) { b[8] = std::byte{23}; }),
              StatusIs(StatusCode::kDataLoss, "tensor \"t\": frame: header: unknown dtype"));
  EXPECT_THAT(refusal(nothing, [](Bytes& b) { b[9] = std::byte{9}; }),
              StatusIs(StatusCode::kDataLoss, "tensor \"t\": frame: header: rank above the limit"));
  EXPECT_THAT(refusal([](FrameHeader& h) { h.block_elements = 100; }, nothing),
              StatusIs(StatusCode::kDataLoss, "tensor \"t\": frame: header: blocks of 100 elements"));
  EXPECT_THAT(refusal([](FrameHeader& h) { h.block_elements = 1u << 30; }, nothing),
              StatusIs(StatusCode::kDataLoss, "tensor \"t\": frame: header: blocks of 1073741824 elements"));
  EXPECT_THAT(refusal([](FrameHeader& h) { h.tensor.shape[0] = uint64_t{1} << 60; }, nothing),
              StatusIs(StatusCode::kDataLoss,
                       "tensor \"t\": frame: header: shape [1152921504606846976] has more than 2^48 elements"));
  EXPECT_THAT(
      refusal([](FrameHeader& h) { h.tensor.shape[0] = uint64_t{1} << 40; }, nothing),
      StatusIs(StatusCode::kResourceExhausted, "tensor \"t\": 2199023255552 bytes are above the limit of 68719476736"));
  EXPECT_THAT(refusal(nothing, [](Bytes& b) { b[24] = std::byte{77}; }),
              StatusIs(StatusCode::kDataLoss, "tensor \"t\": frame: header: unknown axis role"));
}

TEST_F(CompressorTest, AFrameOfAnotherFingerprintIsRefusedBeforeAnythingComesOut) {
  const std::string longest(kMaxFingerprintBytes, '\xee');
  for (const std::string_view codec : {"int4", "transform(bits=4)"}) {
    for (const std::string& fingerprint : {std::string(1, '\0'), std::string("layer 7"), longest}) {
      TensorDesc tensor = MakeTensor("t", DType::kF16, {1000});
      const Bytes values = MakeValues(DType::kF16, 1000, Distribution::kGaussian);
      const Bytes plain = CompressWhole(pool_, tensor, codec, values);
      tensor.fingerprint = fingerprint;
      const Bytes frame = CompressWhole(pool_, tensor, codec, values);
      EXPECT_EQ(frame.size(), plain.size() + 1 + fingerprint.size()) << codec;

      Tensors unmarked;
      ASSERT_THAT(Decompress(pool_, plain, unmarked), IsOk());
      for (const std::string& expected : {std::string(), fingerprint}) {
        Tensors right;
        EXPECT_THAT(Decompress(pool_, frame, right, 1000, expected), IsOk()) << codec;
        EXPECT_THAT(right.headers, ::testing::ElementsAre(tensor));
        EXPECT_EQ(right.values, unmarked.values);
      }
      const std::vector<std::pair<ByteSpan, std::string>> refused = {
          {frame, "layer 8"}, {frame, fingerprint + "x"}, {frame, fingerprint.substr(1) + "x"}, {plain, fingerprint}};
      for (const auto& [bytes, expected] : refused) {
        Tensors wrong;
        EXPECT_THAT(Decompress(pool_, bytes, wrong, 1000, expected),
                    StatusIs(absl::StatusCode::kAborted, HasSubstr("not fingerprint ")));
        EXPECT_THAT(wrong.headers, ::testing::IsEmpty());
        EXPECT_THAT(wrong.current, ::testing::IsEmpty());
      }
    }
  }
}

TEST_F(CompressorTest, AFingerprintThatIsTooLongIsRefused) {
  TensorDesc tensor = MakeTensor("t", DType::kF16, {4});
  tensor.fingerprint = std::string(kMaxFingerprintBytes + 1, 'x');
  Frames out;
  CompressStream stream(pool_, {}, out);
  EXPECT_THAT(stream.Begin(tensor, "int4"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "tensor \"t\": a fingerprint of 65 bytes, of which there are at most 64"));
}

TEST_F(CompressorTest, CancelStopsWithoutFurtherOutput) {
  const size_t count = 64 * kDefaultBlockElements;
  const Bytes values(count * 2);
  Frames out;
  CompressStream stream(pool_, {}, out);
  ASSERT_THAT(stream.Begin(MakeTensor("t", DType::kF16, {count}), "int4"), IsOk());
  ASSERT_THAT(stream.Append(ByteSpan(values).first(values.size() - 2)), IsOk());
  stream.Cancel();
  ASSERT_THAT(stream.Append(ByteSpan(values).last(2)), IsOk());
  stream.WaitBelow(1);
  EXPECT_THAT(out.frames, ::testing::IsEmpty());
  EXPECT_THAT(out.errors, ::testing::IsEmpty());
}

}  // namespace
}  // namespace kvcompress
