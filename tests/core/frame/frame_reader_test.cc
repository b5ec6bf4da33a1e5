#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "core/frame/frame.h"
#include "tests/testing/status_matchers.h"

namespace {

size_t allocated_bytes = 0;

}  // namespace

void* operator new(size_t size) {
  allocated_bytes += size;
  void* memory = std::malloc(size);
  if (memory == nullptr) std::abort();
  return memory;
}
// Inlined without its counterpart, GCC takes the free for a mismatch.
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;
using Part = FrameReader::Part;
using Bytes = std::vector<std::byte>;

struct Parts {
  FrameHeader header;
  std::vector<uint32_t> sizes;
  Bytes bytes;  // up to the end mark
};

// Block i has a payload of i mod 3 bytes.
Parts FrameOfBlocks(uint64_t blocks) {
  Parts parts;
  parts.header.tensor.dtype = DType::kF16;
  parts.header.tensor.shape = {blocks * kBlockElementsMultiple};
  parts.header.tensor.axes = {AxisRole::kOther};
  parts.header.codec = "any";
  parts.header.block_elements = kBlockElementsMultiple;
  parts.bytes = SerializeFrameHeader(parts.header);
  parts.sizes.reserve(blocks);
  for (uint64_t i = 0; i < blocks; ++i) {
    const Bytes payload(i % 3, std::byte{7});
    parts.sizes.push_back(static_cast<uint32_t>(payload.size()));
    parts.bytes.resize(parts.bytes.size() + parts.header.block_header_bytes());
    WriteBlockHeader(parts.header, i, payload,
                     parts.bytes.data() + parts.bytes.size() - parts.header.block_header_bytes());
    parts.bytes.insert(parts.bytes.end(), payload.begin(), payload.end());
  }
  return parts;
}

Bytes WithEnd(const Parts& parts, const std::vector<uint32_t>& sizes) {
  Bytes frame = parts.bytes;
  frame.resize(frame.size() + parts.header.end_bytes());
  WriteFrameEnd(parts.header, sizes, frame.data() + parts.bytes.size());
  return frame;
}

// Reads to the frame's end, `step` bytes at a time.
absl::Status Read(FrameReader& reader, ByteSpan frame, size_t step) {
  for (size_t at = 0; at < frame.size(); at += step) {
    ByteSpan input = frame.subspan(at, std::min(step, frame.size() - at));
    while (!input.empty()) {
      const absl::StatusOr<Part> part = reader.Next(input);
      if (!part.ok()) return part.status();
      if (*part == Part::kHeader) reader.set_max_payload_bytes(2);
    }
  }
  return reader.Truncated();
}

TEST(FrameReaderTest, TakesTheEndInPiecesOfAnySize) {
  for (const uint64_t blocks : {0, 1, 2, 100}) {
    const Parts parts = FrameOfBlocks(blocks);
    const Bytes frame = WithEnd(parts, parts.sizes);
    for (const size_t step : {size_t{1}, size_t{3}, size_t{8}, frame.size()}) {
      FrameReader reader;
      EXPECT_THAT(Read(reader, frame, step), IsOk()) << blocks << " blocks, " << step;
      EXPECT_TRUE(reader.done());
      EXPECT_EQ(reader.bytes_read(), frame.size());
    }
  }
}

// An end with a right checksum of its own that tells of other blocks.
TEST(FrameReaderTest, RefusesAnEndThatDoesNotFitTheBlocks) {
  const auto is_refused = StatusIs(absl::StatusCode::kDataLoss, "frame: end mark does not match the blocks");
  const Parts parts = FrameOfBlocks(5);
  for (size_t i = 0; i < 5; ++i) {
    std::vector<uint32_t> sizes = parts.sizes;
    ++sizes[i];
    FrameReader reader;
    EXPECT_THAT(Read(reader, WithEnd(parts, sizes), 7), is_refused) << i;
  }
  const Bytes frame = WithEnd(parts, parts.sizes);
  for (size_t at = parts.bytes.size(); at < frame.size(); ++at) {
    Bytes damaged = frame;
    damaged[at] ^= std::byte{1};
    FrameReader reader;
    EXPECT_THAT(Read(reader, damaged, 5), is_refused) << at;
  }
}

// Blocks can be far smaller than what a reader would note about each of them.
TEST(FrameReaderTest, HoldsNoMoreForMoreBlocks) {
  const auto bytes_of = [](uint64_t blocks, size_t step) {
    const Parts parts = FrameOfBlocks(blocks);
    const Bytes frame = WithEnd(parts, parts.sizes);
    const size_t before = allocated_bytes;
    FrameReader reader;
    EXPECT_THAT(Read(reader, frame, step), IsOk());
    return allocated_bytes - before;
  };
  ASSERT_GT(bytes_of(10, 100), 0u);
  EXPECT_EQ(bytes_of(100'000, 100), bytes_of(10, 100));
  EXPECT_EQ(bytes_of(100'000, 100'000'000), bytes_of(10, 100'000'000));
}

// A compact frame, whose block has five bytes.
Bytes CompactFrame(FrameHeader header) {
  header.is_compact = true;
  Bytes frame = SerializeFrameHeader(header);
  if (header.elements > 0) {
    const Bytes payload(5, std::byte{7});
    frame.resize(frame.size() + header.block_header_bytes());
    WriteBlockHeader(header, 0, payload, frame.data() + frame.size() - header.block_header_bytes());
    frame.insert(frame.end(), payload.begin(), payload.end());
  }
  frame.resize(frame.size() + header.end_bytes());
  WriteFrameEnd(header, {}, frame.data() + frame.size() - header.end_bytes());
  return frame;
}

FrameHeader HeaderOf(std::vector<uint64_t> shape, std::vector<AxisRole> axes, std::string codec) {
  return {.tensor = {.name = "", .dtype = DType::kBF16, .shape = std::move(shape), .axes = std::move(axes)},
          .codec = std::move(codec)};
}

// Reads to the frame's end, with the checksums of its blocks.
absl::Status ReadAndVerify(FrameReader& reader, ByteSpan frame, size_t step) {
  for (size_t at = 0; at < frame.size(); at += step) {
    ByteSpan input = frame.subspan(at, std::min(step, frame.size() - at));
    while (!input.empty()) {
      const absl::StatusOr<Part> part = reader.Next(input);
      if (!part.ok()) return part.status();
      if (*part == Part::kHeader) reader.set_max_payload_bytes(5);
      if (*part != Part::kBlock) continue;
      const absl::Status verified = VerifyBlock(reader.header(), reader.block());
      if (!verified.ok()) return verified;
    }
  }
  return reader.done() ? absl::OkStatus() : reader.Truncated();
}

TEST(CompactFrameTest, ComesBackWhateverItsHeaderSays) {
  using enum AxisRole;
  const std::vector<FrameHeader> headers = {
      HeaderOf({}, {}, "raw"), HeaderOf({0}, {kOther}, "transform(bits=3)"),
      HeaderOf({1 << 16}, {kSeq},
               "fallback|transform(step=0.25,trellis=false,sinks=false,theta=500000,start=1000)|rans"),
      HeaderOf({1, 8, 16, 128}, {kBatch, kHeads, kSeq, kHeadDim}, "rotated(bits=4,sinks=4,mean=channel,theta=10000)"),
      HeaderOf({1, 2, 1, 2, 1, 2, 1, 2}, {kLayer, kOther, kOther, kHeads, kOther, kSeq, kOther, kHeadDim}, "x000")};
  for (const FrameHeader& plain : headers) {
    for (const std::string& fingerprint :
         {std::string(), std::string(1, '\0'), std::string(kMaxFingerprintBytes, 'f')}) {
      FrameHeader header = plain;
      header.tensor.fingerprint = fingerprint;
      const Bytes frame = CompactFrame(header);
      for (const size_t step : {size_t{1}, size_t{3}, frame.size()}) {
        FrameReader reader;
        ASSERT_THAT(ReadAndVerify(reader, frame, step), IsOk()) << header.codec << ", " << step;
        EXPECT_EQ(reader.bytes_read(), frame.size());
        EXPECT_EQ(reader.header().tensor, header.tensor);
        EXPECT_EQ(reader.header().codec, header.codec);
        EXPECT_TRUE(reader.header().is_compact);
      }
    }
  }
}

class CompactFrameBytesTest : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Fingerprints, CompactFrameBytesTest, ::testing::Values("", "whose"));

TEST_P(CompactFrameBytesTest, NoByteCanChange) {
  FrameHeader header = HeaderOf({16, 128}, {AxisRole::kSeq, AxisRole::kHeadDim}, "transform(bits=3)");
  header.tensor.fingerprint = GetParam();
  const Bytes frame = CompactFrame(header);
  for (size_t at = 0; at < frame.size(); ++at) {
    for (const auto bit : {std::byte{1}, std::byte{0x80}}) {
      Bytes damaged = frame;
      damaged[at] ^= bit;
      FrameReader reader;
      EXPECT_THAT(ReadAndVerify(reader, damaged, 7), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)) << at;
    }
    FrameReader reader;
    EXPECT_THAT(ReadAndVerify(reader, ByteSpan(frame).first(at), 7),
                StatusIs(absl::StatusCode::kDataLoss, ::testing::_))
        << at;
  }
}

// The refusal of a header with a right checksum: of `version`, its flags, and the bytes that follow.
absl::Status HeaderRefusal(int version, int flags, const std::vector<int>& fields) {
  Bytes header = {std::byte{'K'}, std::byte{'V'}, std::byte{'C'}, std::byte{'F'}};
  for (const int byte : {version, flags, 0, 0}) header.push_back(static_cast<std::byte>(byte));
  for (const int field : fields) header.push_back(static_cast<std::byte>(field));
  header[6] = static_cast<std::byte>(header.size() + kChecksumBytes);
  const uint64_t checksum = BlockChecksum({}, 0, header);
  ByteWriter(header).Write(checksum);
  FrameReader reader;
  return ReadAndVerify(reader, header, header.size());
}

// A header with a right checksum that no encoder writes.
TEST(CompactFrameTest, RefusesWhatNoEncoderWrites) {
  const auto refusal = [](const std::vector<int>& fields) { return HeaderRefusal(2, 0, fields); };
  const auto lost = [](const char* what) { return StatusIs(absl::StatusCode::kDataLoss, what); };
  EXPECT_THAT(refusal({1, 1, 1, 0, 'x'}), lost("frame: truncated before block 0 (after 21 bytes)"));
  EXPECT_THAT(refusal({}), lost("frame: header: length does not match its fields"));
  EXPECT_THAT(refusal({1}), lost("frame: header: length does not match its fields"));
  EXPECT_THAT(refusal({1, 1}), lost("frame: header: length does not match its fields"));
  EXPECT_THAT(refusal({1, 1, 0x80, 0, 0, 'x'}), lost("frame: header: length does not match its fields"));
  EXPECT_THAT(refusal({1, 1, 1}), lost("frame: header: length does not match its fields"));
  EXPECT_THAT(refusal({1, 1, 1, 0}), lost("frame: header: codec spec of 0 bytes"));
  EXPECT_THAT(refusal({99, 1, 1, 0, 'x'}), lost("frame: header: unknown dtype"));
  EXPECT_THAT(refusal({1, 9, 1, 0, 'x'}), lost("frame: header: rank above the limit"));
  EXPECT_THAT(refusal({1, 1, 1, 6, 'x'}), lost("frame: header: unknown axis role"));
  EXPECT_THAT(refusal({1, 1, 1, 0x10, 'x'}), lost("frame: header: unknown axis role"));
  EXPECT_THAT(refusal({1, 1, 1, 0, 0xff}), lost("frame: header: codec spec has an unknown word"));
  EXPECT_THAT(refusal({1, 1, 1, 0, 7}), lost("frame: header: codec spec is not printable ASCII"));
  EXPECT_THAT(refusal({1, 1, 0x81, 0x80, 4, 0, 'x'}), lost("frame: header: extents above the limit"));
  EXPECT_THAT(refusal({1, 2, 0x80, 2, 0x81, 2, 0, 'x'}), lost("frame: header: extents above the limit"));
}

TEST(ExtendedFrameTest, RefusesWhatNoEncoderWrites) {
  const auto refusal = [](int flags, const std::vector<int>& fields) { return HeaderRefusal(3, flags, fields); };
  const auto lost = [](const char* what) { return StatusIs(absl::StatusCode::kDataLoss, what); };
  EXPECT_THAT(refusal(3, {1, 'f', 1, 1, 1, 0, 'x'}), lost("frame: truncated before block 0 (after 23 bytes)"));
  EXPECT_THAT(refusal(2, {1, 'f', 1, 0, 1, 0, 128, 0, 0, 0, 'x'}),
              lost("frame: truncated before block 0 (after 27 bytes)"));
  for (const int flags : {0, 1}) {
    EXPECT_THAT(refusal(flags, {1, 'f', 1, 1, 1, 0, 'x'}), lost("frame: header: nothing extends it"));
  }
  for (const int flags : {4, 6, 7, 0x80}) {
    EXPECT_THAT(refusal(flags, {1, 'f', 1, 1, 1, 0, 'x'}),
                StatusIs(absl::StatusCode::kUnimplemented, absl::StrCat("frame: flags ", flags, " are not supported")));
  }
  for (const int version : {1, 2}) {
    EXPECT_THAT(HeaderRefusal(version, 2, {1, 1, 1, 0, 'x'}), lost("frame: header: reserved byte is not zero"));
  }
  std::vector<int> long_one(1 + 65 + 5, 1);
  long_one[0] = 65;
  EXPECT_THAT(refusal(3, long_one), lost("frame: header: fingerprint of 65 bytes"));
  EXPECT_THAT(refusal(3, {0, 1, 1, 1, 0, 'x'}), lost("frame: header: fingerprint of 0 bytes"));
  for (const int flags : {2, 3}) {
    EXPECT_THAT(refusal(flags, {}), lost("frame: header: length does not match its fields"));
    EXPECT_THAT(refusal(flags, {3, 'f', 'f'}), lost("frame: header: length does not match its fields"));
    EXPECT_THAT(refusal(flags, {2, 'f', 'f'}), lost("frame: header: length does not match its fields"));
  }
}

// A reader that is used again does not take over what a frame before said.
TEST(ExtendedFrameTest, AFingerprintIsOneFramesAlone) {
  FrameHeader header = HeaderOf({4}, {AxisRole::kOther}, "transform(bits=3)");
  const Bytes without = CompactFrame(header);
  header.tensor.fingerprint = "whose";
  const Bytes with = CompactFrame(header);
  FrameReader reader;
  ASSERT_THAT(ReadAndVerify(reader, with, 5), IsOk());
  EXPECT_EQ(reader.header().tensor.fingerprint, "whose");
  reader.Restart();
  ASSERT_THAT(ReadAndVerify(reader, without, 5), IsOk());
  EXPECT_EQ(reader.header().tensor.fingerprint, "");
}

}  // namespace
}  // namespace kvcompress
