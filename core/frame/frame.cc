#include "core/frame/frame.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/base/xxh3.h"

namespace kvcompress {
namespace {

void UpdateWith(Digest& digest, uint32_t number) {
  std::byte bytes[4];
  StoreLE(number, bytes);
  digest.Update(bytes);
}

uint64_t Checksum(ByteSpan bytes, uint64_t seed) { return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed); }

// What a compact frame has in place of an end mark.
constexpr auto kCompactEnd = std::byte{'E'};

}  // namespace

bool MayBeCompact(const TensorDesc& tensor, uint64_t words) {
  return words <= kMaxCompactElements &&
         std::ranges::all_of(tensor.shape, [](uint64_t extent) { return extent <= kMaxCompactElements; });
}

uint64_t BlockChecksum(const FrameHeader& header, uint64_t index, ByteSpan payload) {
  const uint64_t checksum = Checksum(payload, header.checksum + index);
  return header.is_compact ? static_cast<uint32_t>(checksum) : checksum;
}

void WriteBlockHeader(const FrameHeader& header, uint64_t index, ByteSpan payload, std::byte* to) {
  const uint64_t checksum = BlockChecksum(header, index, payload);
  if (!header.is_compact) {
    StoreLE(static_cast<uint32_t>(payload.size()), to);
    StoreLE(checksum, to + 4);
    return;
  }
  StoreLE(static_cast<uint16_t>(payload.size()), to);
  StoreLE(static_cast<uint8_t>(payload.size() >> 16), to + 2);
  StoreLE(static_cast<uint32_t>(checksum), to + 3);
}

BlockHeader ReadBlockHeader(const FrameHeader& header, const std::byte* from) {
  if (!header.is_compact) return {LoadLE<uint32_t>(from), LoadLE<uint64_t>(from + 4)};
  return {LoadLE<uint16_t>(from) | uint32_t{LoadLE<uint8_t>(from + 2)} << 16, LoadLE<uint32_t>(from + 3)};
}

void WriteFrameEnd(const FrameHeader& header, const std::vector<uint32_t>& payload_sizes, std::byte* to) {
  if (header.is_compact) {
    *to = kCompactEnd;
    return;
  }
  StoreLE(kFrameEndMagic, to);
  StoreLE(static_cast<uint32_t>(payload_sizes.size()), to + 4);
  std::byte* at = to + 8;
  for (uint32_t size : payload_sizes) {
    StoreLE(size, at);
    at += 4;
  }
  StoreLE(Checksum({to, at}, header.checksum), at);
}

absl::Status VerifyBlock(const FrameHeader& header, const FrameBlock& block) {
  if (BlockChecksum(header, block.index, block.payload) == block.checksum) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("frame: block ", block.index, ": checksum mismatch"));
}

absl::StatusOr<FrameReader::Part> FrameReader::Next(ByteSpan& input) {
  while (true) {
    switch (state_) {
      case State::kEnvelope:
        if (!Fill(input, kEnvelopeBytes)) return Part::kNeedMore;
        KVC_RETURN_IF_ERROR(ParseEnvelope());
        state_ = State::kHeader;
        break;
      case State::kHeader:
        if (!Fill(input, header_bytes_)) return Part::kNeedMore;
        KVC_RETURN_IF_ERROR(ParseFrameHeader({pending_.data(), header_bytes_}, header_));
        blocks_begun_ = 0;
        end_digest_.Reset(header_.checksum);
        UpdateWith(end_digest_, kFrameEndMagic);
        UpdateWith(end_digest_, static_cast<uint32_t>(header_.block_count()));
        ExpectBlockOrEnd();
        return Part::kHeader;
      case State::kBlockHeader:
        if (!Fill(input, header_.block_header_bytes())) return Part::kNeedMore;
        KVC_RETURN_IF_ERROR(ParseBlockHeader());
        state_ = State::kPayload;
        break;
      case State::kPayload:
        if (!FillPayload(input)) return Part::kNeedMore;
        ExpectBlockOrEnd();
        return Part::kBlock;
      case State::kEnd:
        if (!DigestEnd(input)) return Part::kNeedMore;
        state_ = State::kEndChecksum;
        break;
      case State::kEndChecksum:
        if (!Fill(input, header_.is_compact ? 1 : kChecksumBytes)) return Part::kNeedMore;
        KVC_RETURN_IF_ERROR(ParseEndChecksum());
        state_ = State::kDone;
        return Part::kEnd;
      case State::kDone: return absl::FailedPreconditionError("frame: read past its end mark");
    }
  }
}

bool FrameReader::Fill(ByteSpan& input, size_t size) {
  if (pending_.size() < size) pending_.Resize(size);
  const size_t take = std::min(size - filled_, input.size());
  if (take > 0) std::memcpy(pending_.data() + filled_, input.data(), take);
  input = input.subspan(take);
  filled_ += take;
  bytes_read_ += take;
  return filled_ == size;
}

bool FrameReader::FillPayload(ByteSpan& input) {
  const size_t size = payload_bytes_;
  if (filled_ == 0 && input.size() >= size) {
    block_.payload = input.first(size);
    input = input.subspan(size);
    bytes_read_ += size;
    return true;
  }
  if (!Fill(input, size)) return false;
  block_.payload = pending_.span().first(size);
  return true;
}

FrameReader::Block FrameReader::TakeBlock() {
  Block taken{.index = block_.index, .checksum = block_.checksum, .payload = {}};
  if (block_.payload.data() == pending_.data()) {
    taken.payload = std::exchange(pending_, Buffer());
    taken.payload.Resize(block_.payload.size());
  } else {
    taken.payload = Buffer::Copy(block_.payload);
  }
  block_.payload = {};
  return taken;
}

void FrameReader::Restart() {
  state_ = State::kEnvelope;
  filled_ = 0;
  bytes_read_ = 0;
}

void FrameReader::ExpectBlockOrEnd() {
  filled_ = 0;
  if (blocks_begun_ < header_.block_count()) {
    state_ = State::kBlockHeader;
    return;
  }
  state_ = State::kEnd;
  end_checksum_ = end_digest_.value();
  end_left_ = header_.is_compact ? 0 : header_.end_bytes() - kChecksumBytes;
  end_digest_.Reset(header_.checksum);
}

bool FrameReader::DigestEnd(ByteSpan& input) {
  const auto take = static_cast<size_t>(std::min<uint64_t>(end_left_, input.size()));
  end_digest_.Update(input.first(take));
  input = input.subspan(take);
  end_left_ -= take;
  bytes_read_ += take;
  return end_left_ == 0;
}

absl::Status FrameReader::ParseEnvelope() {
  const std::byte* at = pending_.data();
  if (LoadLE<uint32_t>(at) != kFrameMagic)
    return absl::DataLossError("frame: bad magic, this is not a kvcompress frame");
  header_bytes_ = LoadLE<uint16_t>(at + 6);
  if (header_bytes_ < kEnvelopeBytes + kChecksumBytes || header_bytes_ > kMaxHeaderBytes) {
    return absl::DataLossError(absl::StrCat("frame: header of ", header_bytes_, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status FrameReader::ParseBlockHeader() {
  const auto [size, checksum] = ReadBlockHeader(header_, pending_.data());
  if (size > max_payload_bytes_) {
    return absl::DataLossError(absl::StrCat("frame: block ", blocks_begun_, ": payload of ", size,
                                            " bytes is above the codec's bound of ", max_payload_bytes_));
  }
  block_.index = blocks_begun_++;
  block_.checksum = checksum;
  payload_bytes_ = size;
  UpdateWith(end_digest_, size);
  filled_ = 0;
  return absl::OkStatus();
}

absl::Status FrameReader::ParseEndChecksum() {
  const bool matches = header_.is_compact
                           ? *pending_.data() == kCompactEnd
                           : end_digest_.value() == end_checksum_ && LoadLE<uint64_t>(pending_.data()) == end_checksum_;
  if (matches) return absl::OkStatus();
  return absl::DataLossError("frame: end mark does not match the blocks");
}

absl::Status FrameReader::Truncated() const {
  const std::string at = absl::StrCat(" (after ", bytes_read_, " bytes)");
  switch (state_) {
    case State::kEnvelope:
    case State::kHeader: return absl::DataLossError(absl::StrCat("frame: truncated in its header", at));
    case State::kBlockHeader:
      return absl::DataLossError(absl::StrCat("frame: truncated before block ", blocks_begun_, at));
    case State::kPayload: return absl::DataLossError(absl::StrCat("frame: truncated in block ", blocks_begun_ - 1, at));
    case State::kEnd:
    case State::kEndChecksum: return absl::DataLossError(absl::StrCat("frame: truncated before its end mark", at));
    case State::kDone: break;
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
