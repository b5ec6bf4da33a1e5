#include "core/frame_values.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"

namespace kvcompress {

absl::StatusOr<std::unique_ptr<FrameValues>> FrameValues::Open(const ByteSource& frame, uint64_t max_kept_bytes,
                                                               const Limits& limits) {
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(ByteSpan front, frame.Get(0, std::min<uint64_t>(frame.size(), kMaxHeaderBytes), scratch));
  FrameReader reader;
  KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader.Next(front));
  if (part == FrameReader::Part::kNeedMore) return reader.Truncated();
  KVC_ASSIGN_OR_RETURN(CodecChain chain, ChainOfFrame(reader.header(), limits.environment));
  KVC_RETURN_IF_ERROR(CheckTensorBytes(reader.header().tensor_bytes(), limits));
  std::unique_ptr<FrameValues> values(new FrameValues(frame, max_kept_bytes, reader.header(), std::move(chain)));
  KVC_RETURN_IF_ERROR(values->FindBlocks(reader.bytes_read()));
  return values;
}

absl::Status FrameValues::FindBlocks(uint64_t header_bytes) {
  const uint64_t count = header_.block_count();
  std::vector<std::byte> scratch;
  uint64_t at = header_bytes;
  for (uint64_t index = 0; index < count; ++index) {
    const size_t head_bytes = header_.block_header_bytes();
    if (frame_.size() - at < head_bytes) {
      return absl::DataLossError(absl::StrFormat("frame: cut off before block %d", index));
    }
    KVC_ASSIGN_OR_RETURN(const ByteSpan head, frame_.Get(at, head_bytes, scratch));
    const auto [bytes, checksum] = ReadBlockHeader(header_, head.data());
    const Place place{at + head_bytes, bytes, checksum};
    if (place.bytes > frame_.size() - place.offset ||
        place.bytes > chain_.MaxPayloadBytes(header_.tensor, header_.BlockElements(index))) {
      return absl::DataLossError(absl::StrFormat("frame: block %d: %d bytes are too many", index, place.bytes));
    }
    blocks_.push_back(place);
    at = place.offset + place.bytes;
  }
  if (frame_.size() - at == header_.end_bytes()) return absl::OkStatus();
  return absl::DataLossError("frame: it does not end where its blocks do");
}

absl::StatusOr<ByteSpan> FrameValues::Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const {
  if (offset > size() || count > size() - offset) return absl::OutOfRangeError("read past the end of the values");
  scratch.resize(count);
  const uint64_t block_bytes = header_.block_elements * DTypeSize(header_.tensor.dtype);
  absl::MutexLock lock(&mutex_);
  for (size_t done = 0; done < count;) {
    const uint64_t at = offset + done;
    KVC_ASSIGN_OR_RETURN(const ByteSpan block, Block(at / block_bytes));
    const ByteSpan part = block.subspan(at % block_bytes);
    const size_t taken = std::min(part.size(), count - done);
    std::memcpy(scratch.data() + done, part.data(), taken);
    done += taken;
  }
  return ByteSpan(scratch);
}

absl::StatusOr<ByteSpan> FrameValues::Block(uint64_t index) const {
  for (Kept& kept : kept_) {
    if (kept.index != index) continue;
    kept.last_use = ++uses_;
    return ByteSpan(kept.values);
  }
  const uint64_t bytes = header_.BlockElements(index) * DTypeSize(header_.tensor.dtype);
  Kept fresh;
  uint64_t held = bytes;
  for (const Kept& kept : kept_) held += kept.values.size();
  while (!kept_.empty() && held > max_kept_bytes_) {
    const auto oldest = std::min_element(kept_.begin(), kept_.end(),
                                         [](const Kept& a, const Kept& b) { return a.last_use < b.last_use; });
    held -= oldest->values.size();
    fresh = std::move(*oldest);  // its memory
    kept_.erase(oldest);
  }
  std::vector<std::byte> scratch;
  const Place& place = blocks_[index];
  KVC_ASSIGN_OR_RETURN(const ByteSpan payload, frame_.Get(place.offset, place.bytes, scratch));
  fresh.values.resize(bytes);
  KVC_RETURN_IF_ERROR(DecodeFrameBlock(
      header_, chain_, FrameBlock{.index = index, .checksum = place.checksum, .payload = payload}, fresh.values));
  fresh.index = index;
  fresh.last_use = ++uses_;
  kept_.push_back(std::move(fresh));
  return ByteSpan(kept_.back().values);
}

}  // namespace kvcompress
