#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/block_size.h"
#include "core/base/buffer.h"
#include "core/base/digest.h"
#include "core/base/tensor.h"

// The frame: one compressed tensor that describes itself. docs/format.md is normative; the numbers that it freezes are
// here. Everything that is wrong with a frame is DATA_LOSS, except a version that this build does not know
// (UNIMPLEMENTED) and sizes above limits (RESOURCE_EXHAUSTED).
namespace kvcompress {

inline constexpr uint8_t kFrameVersion = 1;
inline constexpr uint32_t kFrameMagic = 0x4643564b;     // "KVCF"
inline constexpr uint32_t kFrameEndMagic = 0x4543564b;  // "KVCE"

// Header: an envelope of 8 bytes (magic, version, reserved, header length) that every version shares.
inline constexpr size_t kEnvelopeBytes = 8;
inline constexpr size_t kFixedHeaderBytes = 16;
inline constexpr size_t kChecksumBytes = 8;
inline constexpr size_t kMaxCodecBytes = 512;
inline constexpr size_t kMaxHeaderBytes = kFixedHeaderBytes + 9 * kMaxRank + kMaxCodecBytes + kChecksumBytes;
inline constexpr size_t kBlockHeaderBytes = 12;
inline constexpr size_t kEndFixedBytes = 16;  // and 4 for each block

struct FrameHeader {
  TensorDesc tensor;  // without a name: that belongs to the container
  std::string codec;
  uint32_t block_elements = kDefaultBlockElements;
  // Filled by parsing.
  uint64_t elements = 0;  // words (NumWords)
  uint64_t checksum = 0;

  uint64_t block_count() const { return (elements + block_elements - 1) / block_elements; }
  uint64_t tensor_bytes() const { return elements * DTypeSize(tensor.dtype); }
  // Elements of block `index`.
  size_t BlockElements(uint64_t index) const {
    const uint64_t left = elements - index * block_elements;
    return static_cast<size_t>(left < block_elements ? left : block_elements);
  }
};

// The header's bytes; sets `elements` and `checksum`. The header must be valid (ValidateTensor, a printable spec).
std::vector<std::byte> SerializeFrameHeader(FrameHeader& header);

// Checksum of block `index` of the frame whose header has `header_checksum`: a block that was moved does not match.
uint64_t BlockChecksum(uint64_t header_checksum, uint64_t index, ByteSpan payload);

// Writes the block header for `payload` to the kBlockHeaderBytes at `to`.
void WriteBlockHeader(uint64_t header_checksum, uint64_t index, ByteSpan payload, std::byte* to);

constexpr size_t FrameEndBytes(uint64_t blocks) { return kEndFixedBytes + 4 * static_cast<size_t>(blocks); }

// Writes the end mark, FrameEndBytes(sizes.size()) bytes, to `to`.
void WriteFrameEnd(uint64_t header_checksum, const std::vector<uint32_t>& payload_sizes, std::byte* to);

// A block as it lies in a frame.
struct FrameBlock {
  uint64_t index = 0;
  uint64_t checksum = 0;  // to be compared, by the one who decodes: VerifyBlock
  ByteSpan payload;
};

absl::Status VerifyBlock(const FrameHeader& header, const FrameBlock& block);

// Cuts a frame that arrives in pieces into its parts, checking all that can be checked without decoding. Holds no more
// than one part, of the end only a digest. A reader that is used again for frames of one shape does not allocate.
class FrameReader {
 public:
  enum class Part { kNeedMore, kHeader, kBlock, kEnd };

  struct Block {
    uint64_t index = 0;
    uint64_t checksum = 0;
    Buffer payload;
  };

  // Takes bytes from the front of `input` until a part is complete or `input` is empty. After kHeader the caller sets
  // the bound of a payload; after kEnd nothing more is taken.
  absl::StatusOr<Part> Next(ByteSpan& input);
  // The next byte is the first of another frame.
  void Restart();

  const FrameHeader& header() const { return header_; }
  void set_max_payload_bytes(size_t bytes) { max_payload_bytes_ = bytes; }
  // The block that kBlock announced, until the next call: in place where the input held its payload in one piece.
  const FrameBlock& block() const { return block_; }
  // The same with a payload of its own.
  Block TakeBlock();
  uint64_t bytes_read() const { return bytes_read_; }
  bool started() const { return bytes_read_ > 0; }
  bool done() const { return state_ == State::kDone; }

  // What is missing, for a frame that ended too early: DATA_LOSS.
  absl::Status Truncated() const;

 private:
  enum class State { kEnvelope, kHeader, kBlockHeader, kPayload, kEnd, kEndChecksum, kDone };

  // Moves bytes into `pending_` until it holds `size`; true when it does.
  bool Fill(ByteSpan& input, size_t size);
  bool FillPayload(ByteSpan& input);
  absl::Status ParseEnvelope();
  absl::Status ParseHeader();
  absl::Status ParseBlockHeader();
  void ExpectBlockOrEnd();
  // Takes bytes of the end up to its checksum; true when it has them all.
  bool DigestEnd(ByteSpan& input);
  absl::Status ParseEndChecksum();

  State state_ = State::kEnvelope;
  Buffer pending_;
  size_t filled_ = 0;
  size_t header_bytes_ = 0;
  size_t max_payload_bytes_ = 0;
  uint64_t bytes_read_ = 0;
  FrameHeader header_;
  FrameBlock block_;
  uint64_t blocks_begun_ = 0;
  size_t payload_bytes_ = 0;  // of the block at hand
  Digest end_digest_;         // of the end: first as the blocks have it, then as it comes
  uint64_t end_checksum_ = 0;
  uint64_t end_left_ = 0;  // bytes to come in front of its checksum
};

}  // namespace kvcompress
