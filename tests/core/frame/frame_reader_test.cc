#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>
#include <new>

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
    parts.bytes.resize(parts.bytes.size() + kBlockHeaderBytes);
    WriteBlockHeader(parts.header.checksum, i, payload, parts.bytes.data() + parts.bytes.size() - kBlockHeaderBytes);
    parts.bytes.insert(parts.bytes.end(), payload.begin(), payload.end());
  }
  return parts;
}

Bytes WithEnd(const Parts& parts, const std::vector<uint32_t>& sizes) {
  Bytes frame = parts.bytes;
  frame.resize(frame.size() + FrameEndBytes(sizes.size()));
  WriteFrameEnd(parts.header.checksum, sizes, frame.data() + parts.bytes.size());
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

}  // namespace
}  // namespace kvcompress
