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

// Compact frames are those of small tensors, in one block. Extended frames are like one of these two, and say more of
// themselves: whose they are.
inline constexpr uint8_t kPlainFrameVersion = 1;
inline constexpr uint8_t kCompactFrameVersion = 2;
inline constexpr uint8_t kExtendedFrameVersion = 3;
inline constexpr uint8_t kFrameVersion = kExtendedFrameVersion;  // the newest
inline constexpr uint32_t kFrameMagic = 0x4643564b;              // "KVCF"
inline constexpr uint32_t kFrameEndMagic = 0x4543564b;           // "KVCE"

// Header: an envelope of 8 bytes (magic, version, flags, header length) that every version shares.
inline constexpr size_t kEnvelopeBytes = 8;
inline constexpr size_t kChecksumBytes = 8;
inline constexpr size_t kMaxCodecBytes = 512;
inline constexpr size_t kMaxHeaderBytes =
    16 + 1 + kMaxFingerprintBytes + 9 * kMaxRank + kMaxCodecBytes + kChecksumBytes;
inline constexpr size_t kMaxBlockHeaderBytes = 12;

struct FrameHeader {
  TensorDesc tensor;  // without a name: that belongs to the container
  std::string codec;
  uint32_t block_elements = kDefaultBlockElements;
  bool is_compact = false;  // only where MayBeCompact
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
  size_t block_header_bytes() const { return is_compact ? 7 : kMaxBlockHeaderBytes; }
  size_t end_bytes() const { return is_compact ? 1 : 16 + 4 * static_cast<size_t>(block_count()); }
};

// Whether a compact frame can have a tensor of so many words (NumWords).
bool MayBeCompact(const TensorDesc& tensor, uint64_t words);

// The header's bytes; sets `elements` and `checksum`. The header must be valid (ValidateTensor, a printable spec).
std::vector<std::byte> SerializeFrameHeader(FrameHeader& header);

// Parses a whole header, of at least kEnvelopeBytes and kChecksumBytes; its envelope's magic and length are right.
absl::Status ParseFrameHeader(ByteSpan bytes, FrameHeader& header);

// Checksum of block `index` of the frame with this header: a block that was moved does not match.
uint64_t BlockChecksum(const FrameHeader& header, uint64_t index, ByteSpan payload);

// Writes the header of block `index`, block_header_bytes(), to `to`.
void WriteBlockHeader(const FrameHeader& header, uint64_t index, ByteSpan payload, std::byte* to);

struct BlockHeader {
  uint32_t payload_bytes;
  uint64_t checksum;
};
// Of the block_header_bytes() at `from`.
BlockHeader ReadBlockHeader(const FrameHeader& header, const std::byte* from);

// Writes the end mark, end_bytes(), of a frame whose blocks have these sizes to `to`.
void WriteFrameEnd(const FrameHeader& header, const std::vector<uint32_t>& payload_sizes, std::byte* to);

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
