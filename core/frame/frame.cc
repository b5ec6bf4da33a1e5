#include "core/frame/frame.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
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

}  // namespace

std::vector<std::byte> SerializeFrameHeader(FrameHeader& header) {
  const TensorDesc& tensor = header.tensor;
  const size_t size = kFixedHeaderBytes + 9 * tensor.shape.size() + header.codec.size() + kChecksumBytes;
  std::vector<std::byte> bytes;
  bytes.reserve(size);
  ByteWriter writer(bytes);
  writer.Write(kFrameMagic);
  writer.Write(kFrameVersion);
  writer.Write(uint8_t{0});
  writer.Write(static_cast<uint16_t>(size));
  writer.Write(static_cast<uint8_t>(tensor.dtype));
  writer.Write(static_cast<uint8_t>(tensor.shape.size()));
  writer.Write(static_cast<uint16_t>(header.codec.size()));
  writer.Write(header.block_elements);
  for (uint64_t extent : tensor.shape) writer.Write(extent);
  for (AxisRole role : tensor.axes) writer.Write(static_cast<uint8_t>(role));
  writer.WriteBytes(AsBytes(header.codec));
  header.elements = NumWords(tensor.dtype, tensor.shape).value_or(0);
  header.checksum = Checksum(bytes, 0);
  writer.Write(header.checksum);
  return bytes;
}

uint64_t BlockChecksum(uint64_t header_checksum, uint64_t index, ByteSpan payload) {
  return Checksum(payload, header_checksum + index);
}

void WriteBlockHeader(uint64_t header_checksum, uint64_t index, ByteSpan payload, std::byte* to) {
  StoreLE(static_cast<uint32_t>(payload.size()), to);
  StoreLE(BlockChecksum(header_checksum, index, payload), to + 4);
}

void WriteFrameEnd(uint64_t header_checksum, const std::vector<uint32_t>& payload_sizes, std::byte* to) {
  StoreLE(kFrameEndMagic, to);
  StoreLE(static_cast<uint32_t>(payload_sizes.size()), to + 4);
  std::byte* at = to + 8;
  for (uint32_t size : payload_sizes) {
    StoreLE(size, at);
    at += 4;
  }
  StoreLE(Checksum({to, at}, header_checksum), at);
}

absl::Status VerifyBlock(const FrameHeader& header, const FrameBlock& block) {
  if (BlockChecksum(header.checksum, block.index, block.payload) == block.checksum) return absl::OkStatus();
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
        KVC_RETURN_IF_ERROR(ParseHeader());
        blocks_begun_ = 0;
        end_digest_.Reset(header_.checksum);
        UpdateWith(end_digest_, kFrameEndMagic);
        UpdateWith(end_digest_, static_cast<uint32_t>(header_.block_count()));
        ExpectBlockOrEnd();
        return Part::kHeader;
      case State::kBlockHeader:
        if (!Fill(input, kBlockHeaderBytes)) return Part::kNeedMore;
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
        if (!Fill(input, kChecksumBytes)) return Part::kNeedMore;
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
  end_left_ = FrameEndBytes(blocks_begun_) - kChecksumBytes;
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
  if (header_bytes_ < kFixedHeaderBytes + kChecksumBytes || header_bytes_ > kMaxHeaderBytes) {
    return absl::DataLossError(absl::StrCat("frame: header of ", header_bytes_, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status FrameReader::ParseHeader() {
  const ByteSpan checked = ByteSpan(pending_.data(), header_bytes_ - kChecksumBytes);
  header_.checksum = LoadLE<uint64_t>(checked.data() + checked.size());
  if (Checksum(checked, 0) != header_.checksum) return absl::DataLossError("frame: header checksum mismatch");
  const auto version = std::to_integer<uint8_t>(checked[4]);
  if (version != kFrameVersion) {
    return absl::UnimplementedError(
        absl::StrCat("frame: version ", version, " is not supported, this build reads version ", kFrameVersion));
  }

  // From here on the header is what somebody wrote on purpose, but not necessarily a valid one.
  const auto malformed = [](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("frame: header: ", what));
  };
  if (checked[5] != std::byte{0}) return malformed("reserved byte is not zero");
  const auto dtype = DTypeFromNumber(std::to_integer<uint8_t>(checked[8]));
  if (!dtype) return malformed("unknown dtype");
  header_.tensor.dtype = *dtype;
  const size_t rank = std::to_integer<size_t>(checked[9]);
  if (rank > kMaxRank) return malformed("rank above the limit");
  const size_t codec_bytes = LoadLE<uint16_t>(checked.data() + 10);
  header_.block_elements = LoadLE<uint32_t>(checked.data() + 12);
  if (header_.block_elements == 0 || header_.block_elements % kBlockElementsMultiple != 0 ||
      header_.block_elements > kMaxBlockElements) {
    return malformed(absl::StrCat("blocks of ", header_.block_elements, " elements"));
  }
  if (codec_bytes == 0 || codec_bytes > kMaxCodecBytes)
    return malformed(absl::StrCat("codec spec of ", codec_bytes, " bytes"));
  if (checked.size() != kFixedHeaderBytes + 9 * rank + codec_bytes)
    return malformed("length does not match its fields");

  ByteReader reader(checked.subspan(kFixedHeaderBytes));
  header_.tensor.shape.resize(rank);
  header_.tensor.axes.resize(rank);
  ByteSpan codec;
  bool complete = true;
  for (uint64_t& extent : header_.tensor.shape) complete = complete && reader.Read(extent);
  for (AxisRole& axis : header_.tensor.axes) {
    uint8_t role = 0;
    complete = complete && reader.Read(role);
    if (role > static_cast<uint8_t>(AxisRole::kHeadDim)) return malformed("unknown axis role");
    axis = static_cast<AxisRole>(role);
  }
  if (!complete || !reader.ReadBytes(codec_bytes, codec)) return malformed("length does not match its fields");
  header_.codec = AsText(codec);
  if (!std::all_of(header_.codec.begin(), header_.codec.end(), absl::ascii_isprint)) {
    return malformed("codec spec is not printable ASCII");
  }
  const absl::StatusOr<uint64_t> elements = NumWords(header_.tensor.dtype, header_.tensor.shape);
  if (!elements.ok()) return malformed(elements.status().message());
  header_.elements = *elements;
  return absl::OkStatus();
}

absl::Status FrameReader::ParseBlockHeader() {
  const auto size = LoadLE<uint32_t>(pending_.data());
  if (size > max_payload_bytes_) {
    return absl::DataLossError(absl::StrCat("frame: block ", blocks_begun_, ": payload of ", size,
                                            " bytes is above the codec's bound of ", max_payload_bytes_));
  }
  block_.index = blocks_begun_++;
  block_.checksum = LoadLE<uint64_t>(pending_.data() + 4);
  payload_bytes_ = size;
  UpdateWith(end_digest_, size);
  filled_ = 0;
  return absl::OkStatus();
}

absl::Status FrameReader::ParseEndChecksum() {
  if (end_digest_.value() == end_checksum_ && LoadLE<uint64_t>(pending_.data()) == end_checksum_) {
    return absl::OkStatus();
  }
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
