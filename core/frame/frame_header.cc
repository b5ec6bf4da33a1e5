#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "core/base/leb128.h"
#include "core/base/status_macros.h"
#include "core/base/xxh3.h"
#include "core/frame/frame.h"
#include "core/frame/spec_words.h"

namespace kvcompress {
namespace {

uint64_t HeaderChecksum(ByteSpan bytes) { return XXH3_64bits_withSeed(bytes.data(), bytes.size(), 0); }

absl::Status Malformed(absl::string_view what) { return absl::DataLossError(absl::StrCat("frame: header: ", what)); }

absl::Status LengthFault() { return Malformed("length does not match its fields"); }

// Axes as a compact header has them: two in a byte, the first one in the low half.
constexpr size_t AxisBytes(size_t rank) { return (rank + 1) / 2; }

// Flags of an extended header.
constexpr uint8_t kCompactFlag = 1;
constexpr uint8_t kFingerprintFlag = 2;

// What stands between magic and length.
struct Envelope {
  uint8_t version = 0;
  uint8_t flags = 0;
};

Envelope EnvelopeOf(const FrameHeader& header) {
  if (!header.tensor.fingerprint.empty()) {
    return {kExtendedFrameVersion, static_cast<uint8_t>(kFingerprintFlag | (header.is_compact ? kCompactFlag : 0))};
  }
  return {header.is_compact ? kCompactFrameVersion : kPlainFrameVersion, 0};
}

// UNIMPLEMENTED for a version or flag that this build does not know. Of a header whose checksum is right.
absl::Status ReadEnvelope(const Envelope& envelope, FrameHeader& header) {
  const bool is_extended = envelope.version == kExtendedFrameVersion;
  if (is_extended && (envelope.flags & ~(kCompactFlag | kFingerprintFlag)) != 0) {
    return absl::UnimplementedError(absl::StrCat("frame: flags ", envelope.flags, " are not supported"));
  }
  if (!is_extended && envelope.version != kPlainFrameVersion && envelope.version != kCompactFrameVersion) {
    return absl::UnimplementedError(absl::StrCat("frame: version ", envelope.version,
                                                 " is not supported, this build reads versions ", kPlainFrameVersion,
                                                 " to ", kFrameVersion));
  }
  if (!is_extended && envelope.flags != 0) return Malformed("reserved byte is not zero");
  if (is_extended && (envelope.flags & kFingerprintFlag) == 0) return Malformed("nothing extends it");
  header.is_compact = envelope.version == kCompactFrameVersion || (envelope.flags & kCompactFlag) != 0;
  return absl::OkStatus();
}

void WriteFingerprint(const TensorDesc& tensor, ByteWriter& writer) {
  writer.Write(static_cast<uint8_t>(tensor.fingerprint.size()));
  writer.WriteBytes(AsBytes(tensor.fingerprint));
}

// Takes it from the front of `fields`.
absl::Status ParseFingerprint(ByteSpan& fields, TensorDesc& tensor) {
  ByteReader reader(fields);
  uint8_t size = 0;
  ByteSpan bytes;
  if (!reader.Read(size) || !reader.ReadBytes(size, bytes)) return LengthFault();
  if (size == 0 || size > kMaxFingerprintBytes) return Malformed(absl::StrCat("fingerprint of ", size, " bytes"));
  tensor.fingerprint = AsText(bytes);
  fields = fields.last(reader.remaining());
  return absl::OkStatus();
}

void WritePlain(const FrameHeader& header, ByteWriter& writer) {
  const TensorDesc& tensor = header.tensor;
  writer.Write(static_cast<uint8_t>(tensor.dtype));
  writer.Write(static_cast<uint8_t>(tensor.shape.size()));
  writer.Write(static_cast<uint16_t>(header.codec.size()));
  writer.Write(header.block_elements);
  for (const uint64_t extent : tensor.shape) writer.Write(extent);
  for (const AxisRole role : tensor.axes) writer.Write(static_cast<uint8_t>(role));
  writer.WriteBytes(AsBytes(header.codec));
}

void WriteCompact(const FrameHeader& header, ByteWriter& writer) {
  const TensorDesc& tensor = header.tensor;
  writer.Write(static_cast<uint8_t>(tensor.dtype));
  writer.Write(static_cast<uint8_t>(tensor.shape.size()));
  for (const uint64_t extent : tensor.shape) {
    std::byte bytes[kMaxLeb128Bytes];
    writer.WriteBytes({bytes, WriteLeb128(extent, bytes)});
  }
  std::byte axes[AxisBytes(kMaxRank)] = {};
  for (size_t i = 0; i < tensor.axes.size(); ++i) {
    axes[i / 2] |= static_cast<std::byte>(static_cast<unsigned>(tensor.axes[i]) << (4 * (i % 2)));
  }
  writer.WriteBytes(ByteSpan(axes).first(AxisBytes(tensor.axes.size())));
  writer.WriteBytes(AsBytes(PackSpec(header.codec)));
}

absl::Status ParseType(ByteReader& reader, TensorDesc& tensor) {
  uint8_t number = 0;
  uint8_t rank = 0;
  if (!reader.Read(number) || !reader.Read(rank)) return LengthFault();
  const auto dtype = DTypeFromNumber(number);
  if (!dtype) return Malformed("unknown dtype");
  if (rank > kMaxRank) return Malformed("rank above the limit");
  tensor.dtype = *dtype;
  tensor.shape.resize(rank);
  tensor.axes.resize(rank);
  return absl::OkStatus();
}

bool ToAxisRole(uint8_t number, AxisRole& axis) {
  axis = static_cast<AxisRole>(number);
  return number <= static_cast<uint8_t>(AxisRole::kHeadDim);
}

// What follows the envelope in a plain header, up to its checksum.
absl::Status ParsePlain(ByteSpan fields, FrameHeader& header) {
  ByteReader reader(fields);
  KVC_RETURN_IF_ERROR(ParseType(reader, header.tensor));
  uint16_t codec_bytes = 0;
  if (!reader.Read(codec_bytes) || !reader.Read(header.block_elements)) return LengthFault();
  if (header.block_elements == 0 || header.block_elements % kBlockElementsMultiple != 0 ||
      header.block_elements > kMaxBlockElements) {
    return Malformed(absl::StrCat("blocks of ", header.block_elements, " elements"));
  }
  if (codec_bytes == 0 || codec_bytes > kMaxCodecBytes) {
    return Malformed(absl::StrCat("codec spec of ", codec_bytes, " bytes"));
  }
  if (reader.remaining() != 9 * header.tensor.shape.size() + codec_bytes) return LengthFault();
  bool complete = true;
  for (uint64_t& extent : header.tensor.shape) complete = complete && reader.Read(extent);
  for (AxisRole& axis : header.tensor.axes) {
    uint8_t role = 0;
    complete = complete && reader.Read(role);
    if (!ToAxisRole(role, axis)) return Malformed("unknown axis role");
  }
  ByteSpan codec;
  if (!complete || !reader.ReadBytes(codec_bytes, codec)) return LengthFault();
  header.codec = AsText(codec);
  return absl::OkStatus();
}

absl::Status ParseCompact(ByteSpan fields, FrameHeader& header) {
  ByteReader reader(fields);
  KVC_RETURN_IF_ERROR(ParseType(reader, header.tensor));
  header.block_elements = kMaxCompactElements;
  const size_t rank = header.tensor.shape.size();
  ByteSpan rest = fields.last(reader.remaining());
  for (uint64_t& extent : header.tensor.shape) {
    if (!ReadLeb128(rest, extent)) return LengthFault();
  }
  if (rest.size() < AxisBytes(rank)) return LengthFault();
  for (size_t i = 0; i < 2 * AxisBytes(rank); ++i) {
    const uint8_t role = std::to_integer<uint8_t>(rest[i / 2]) >> (4 * (i % 2)) & 15;
    if (i < rank ? !ToAxisRole(role, header.tensor.axes[i]) : role != 0) return Malformed("unknown axis role");
  }
  std::optional<std::string> codec = UnpackSpec(rest.subspan(AxisBytes(rank)));
  if (!codec) return Malformed("codec spec has an unknown word");
  if (codec->empty() || codec->size() > kMaxCodecBytes) {
    return Malformed(absl::StrCat("codec spec of ", codec->size(), " bytes"));
  }
  header.codec = *std::move(codec);
  return absl::OkStatus();
}

}  // namespace

std::vector<std::byte> SerializeFrameHeader(FrameHeader& header) {
  std::vector<std::byte> bytes;
  bytes.reserve(kMaxHeaderBytes);
  ByteWriter writer(bytes);
  writer.Write(kFrameMagic);
  const Envelope envelope = EnvelopeOf(header);
  writer.Write(envelope.version);
  writer.Write(envelope.flags);
  writer.Write(uint16_t{0});
  if (!header.tensor.fingerprint.empty()) WriteFingerprint(header.tensor, writer);
  header.is_compact ? WriteCompact(header, writer) : WritePlain(header, writer);
  StoreLE(static_cast<uint16_t>(bytes.size() + kChecksumBytes), bytes.data() + 6);
  header.elements = NumWords(header.tensor.dtype, header.tensor.shape).value_or(0);
  header.checksum = HeaderChecksum(bytes);
  writer.Write(header.checksum);
  return bytes;
}

absl::Status ParseFrameHeader(ByteSpan bytes, FrameHeader& header) {
  const ByteSpan checked = bytes.first(bytes.size() - kChecksumBytes);
  header.checksum = LoadLE<uint64_t>(checked.data() + checked.size());
  if (HeaderChecksum(checked) != header.checksum) return absl::DataLossError("frame: header checksum mismatch");
  // From here on the header is what somebody wrote on purpose, but not necessarily a valid one.
  const Envelope envelope = {std::to_integer<uint8_t>(checked[4]), std::to_integer<uint8_t>(checked[5])};
  KVC_RETURN_IF_ERROR(ReadEnvelope(envelope, header));
  ByteSpan fields = checked.subspan(kEnvelopeBytes);
  header.tensor.fingerprint.clear();
  if ((envelope.flags & kFingerprintFlag) != 0) KVC_RETURN_IF_ERROR(ParseFingerprint(fields, header.tensor));
  KVC_RETURN_IF_ERROR(header.is_compact ? ParseCompact(fields, header) : ParsePlain(fields, header));
  if (!std::all_of(header.codec.begin(), header.codec.end(), absl::ascii_isprint)) {
    return Malformed("codec spec is not printable ASCII");
  }
  const absl::StatusOr<uint64_t> elements = NumWords(header.tensor.dtype, header.tensor.shape);
  if (!elements.ok()) return Malformed(elements.status().message());
  if (header.is_compact && !MayBeCompact(header.tensor, *elements)) return Malformed("extents above the limit");
  header.elements = *elements;
  return absl::OkStatus();
}

}  // namespace kvcompress
