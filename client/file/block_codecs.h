#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/codec/chain.h"
#include "core/frame/frame.h"

namespace kvcompress {

// A frame's number of blocks by tensor codec, where its chain chooses one for each block; empty for any other chain.
using BlockCodecs = std::map<std::string, uint64_t>;

// Counts blocks of frames as their bytes pass by, one frame after another, without decoding. Errors are FrameReader's.
class BlockCodecCounter {
 public:
  // The next bytes of the current frame.
  absl::Status Add(ByteSpan bytes);
  // Whether Add may be left out for the rest of this frame.
  bool settled() const { return chain_.has_value() && !chain_->chooses(); }
  // Ends the frame and returns its counts.
  BlockCodecs Take();

 private:
  FrameReader reader_;
  std::optional<CodecChain> chain_;
  BlockCodecs counts_;
};

// Counts the blocks of the one frame in `source`.
absl::StatusOr<BlockCodecs> CountBlockCodecs(const ByteSource& source);

// "int4(group=64) x 12, raw x 1"
std::string BlockCodecsText(const BlockCodecs& counts);

}  // namespace kvcompress
