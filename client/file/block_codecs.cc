#include "client/file/block_codecs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"

namespace kvcompress {

absl::Status BlockCodecCounter::Add(ByteSpan bytes) {
  while (!bytes.empty() && !settled() && !reader_.done()) {
    KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader_.Next(bytes));
    const FrameHeader& header = reader_.header();
    if (part == FrameReader::Part::kHeader) {
      KVC_ASSIGN_OR_RETURN(chain_, ChainOfFrame(header));
      reader_.set_max_payload_bytes(chain_->MaxPayloadBytes(header.tensor, header.BlockElements(0)));
    } else if (part == FrameReader::Part::kBlock) {
      const FrameBlock& block = reader_.block();
      KVC_ASSIGN_OR_RETURN(const std::string codec,
                           chain_->ChosenCodec(header.tensor, header.BlockElements(block.index), block.payload));
      ++counts_[codec];
    }
  }
  return absl::OkStatus();
}

BlockCodecs BlockCodecCounter::Take() {
  reader_ = FrameReader();
  chain_.reset();
  return std::exchange(counts_, {});
}

absl::StatusOr<BlockCodecs> CountBlockCodecs(const ByteSource& source) {
  constexpr uint64_t kStep = uint64_t{1} << 20;
  BlockCodecCounter counter;
  std::vector<std::byte> scratch;
  for (uint64_t at = 0; at < source.size() && !counter.settled(); at += kStep) {
    const auto count = static_cast<size_t>(std::min(kStep, source.size() - at));
    KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, source.Get(at, count, scratch));
    KVC_RETURN_IF_ERROR(counter.Add(bytes));
  }
  return counter.Take();
}

std::string BlockCodecsText(const BlockCodecs& counts) {
  return absl::StrJoin(counts, ", ", [](std::string* text, const auto& entry) {
    absl::StrAppendFormat(text, "%s x %d", entry.first, entry.second);
  });
}

}  // namespace kvcompress
