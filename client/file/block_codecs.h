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

// How many blocks of a frame have which tensor codec, for a chain that chooses one for each block; empty for any other.
using BlockCodecs = std::map<std::string, uint64_t>;

// Counts them in frames that pass by, one after another, without decoding. Errors are those of a frame's reader.
class BlockCodecCounter {
 public:
  // The next bytes of the current frame.
  absl::Status Add(ByteSpan bytes);
  // Whether Add may be left out for the rest of this frame.
  bool settled() const { return chain_.has_value() && !chain_->chooses(); }
  // Ends the frame.
  BlockCodecs Take();

 private:
  FrameReader reader_;
  std::optional<CodecChain> chain_;
  BlockCodecs counts_;
};

// Of the frame that `source` is.
absl::StatusOr<BlockCodecs> CountBlockCodecs(const ByteSource& source);

// "int4(group=64) x 12, raw x 1"
std::string BlockCodecsText(const BlockCodecs& counts);

}  // namespace kvcompress
