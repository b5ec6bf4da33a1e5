#include "core/file/compressed_file.h"

#include <xxhash.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;

constexpr std::string_view kBlankChecksum = "0000000000000000";

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrFormat("compressed file is damaged: %s", what));
}

// The header with its checksum, which is computed over the header with a blank checksum.
absl::StatusOr<std::string> SerializeWithChecksum(const std::vector<Entry>& entries,
                                                  std::map<std::string, std::string> metadata, uint64_t min_bytes) {
  const std::string key(kHeaderChecksumKey);
  metadata.insert_or_assign(key, std::string(kBlankChecksum));
  KVC_ASSIGN_OR_RETURN(const std::string blank, SerializeHeader(entries, metadata, true, min_bytes));
  metadata[key] = absl::StrFormat("%016x", XXH3_64bits(blank.data(), blank.size()));
  return SerializeHeader(entries, metadata, true, min_bytes);
}

// Removes one of our values from the metadata and returns it.
std::string TakeValue(std::map<std::string, std::string>& metadata, std::string_view key) {
  auto node = metadata.extract(std::string(key));
  return node.empty() ? std::string() : std::move(node.mapped());
}

absl::Status CheckHeaderBytes(const ByteSource& file, const Header& header) {
  KVC_ASSIGN_OR_RETURN(const std::string expected,
                       SerializeWithChecksum(header.entries, header.metadata, header.data_start));
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan found, file.Get(0, header.data_start, scratch));
  if (AsText(found) != expected) return Damaged("its header does not match the header's checksum");
  return absl::OkStatus();
}

absl::StatusOr<CompressedTensor> ReadFrameHeader(const ByteSource& file, const Header& header, const Entry& entry) {
  if (entry.dtype != "U8" || entry.shape.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("entry is %s of rank %d, but frames are U8 of rank 1", entry.dtype, entry.shape.size()));
  }
  const uint64_t offset = header.data_start + entry.begin;
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(ByteSpan bytes, file.Get(offset, std::min<uint64_t>(entry.bytes(), kMaxHeaderBytes), scratch));
  FrameReader reader;
  KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader.Next(bytes));
  if (part != FrameReader::Part::kHeader) return reader.Truncated();
  CompressedTensor tensor{.name = entry.name, .offset = offset, .bytes = entry.bytes(), .frame = reader.header()};
  tensor.frame.tensor.name = entry.name;
  KVC_RETURN_IF_ERROR(ValidateTensor(tensor.frame.tensor).status());
  return tensor;
}

}  // namespace

bool IsCompressedFile(const Header& header) { return header.metadata.contains(std::string(kVersionKey)); }

absl::StatusOr<std::string> SerializeCompressedHeader(const std::vector<Entry>& entries,
                                                      const std::map<std::string, std::string>& metadata,
                                                      bool had_metadata, std::string_view codec, uint64_t min_bytes) {
  std::map<std::string, std::string> own = metadata;
  own.insert_or_assign(std::string(kVersionKey), std::string(kFileVersion));
  own.insert_or_assign(std::string(kCodecKey), std::string(codec));
  own.insert_or_assign(std::string(kHadMetadataKey), std::string(had_metadata ? "1" : "0"));
  return SerializeWithChecksum(entries, std::move(own), min_bytes);
}

absl::StatusOr<CompressedFile> ReadCompressedFile(const ByteSource& file, const Header& header) {
  if (!IsCompressedFile(header)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("input is not a compressed file: its metadata has no %s", kVersionKey));
  }
  CompressedFile compressed;
  compressed.metadata = header.metadata;
  const std::string version = TakeValue(compressed.metadata, kVersionKey);
  if (version != kFileVersion) {
    return absl::UnimplementedError(absl::StrFormat(
        "compressed file has version \"%s\", and this program reads version %s", version, kFileVersion));
  }
  KVC_RETURN_IF_ERROR(CheckHeaderBytes(file, header));
  TakeValue(compressed.metadata, kHeaderChecksumKey);
  compressed.codec = TakeValue(compressed.metadata, kCodecKey);
  const std::string had_metadata = TakeValue(compressed.metadata, kHadMetadataKey);
  compressed.had_metadata = had_metadata == "1";
  if (!compressed.had_metadata && (had_metadata != "0" || !compressed.metadata.empty())) {
    return Damaged(absl::StrFormat("%s does not fit its metadata", kHadMetadataKey));
  }
  compressed.tensors.reserve(header.entries.size());
  for (const Entry& entry : header.entries) {
    absl::StatusOr<CompressedTensor> tensor = ReadFrameHeader(file, header, entry);
    if (!tensor.ok()) return OfTensor(entry.name, tensor.status());
    compressed.tensors.push_back(*std::move(tensor));
  }
  return compressed;
}

}  // namespace kvcompress
