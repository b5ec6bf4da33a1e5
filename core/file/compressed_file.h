#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"
#include "core/frame/frame.h"
#include "core/safetensors/safetensors.h"

// A compressed file (docs/format.md, "Compressed files"): a safetensors file that holds, for each tensor and under its
// name, one U8 entry with the tensor's frame. Its metadata is the input's and the keys below. The header is canonical,
// byte for byte what SerializeHeader writes, and has its own checksum, so that a flipped bit in a name is refused like
// one in a frame.
namespace kvcompress {

inline constexpr std::string_view kFileVersion = "1";

inline constexpr std::string_view kReservedPrefix = "kvcompress.";
inline constexpr std::string_view kVersionKey = "kvcompress.version";
inline constexpr std::string_view kCodecKey = "kvcompress.codec";  // canonical spec, or "profile"
inline constexpr std::string_view kHadMetadataKey =
    "kvcompress.had_metadata";  // "1" or "0": no metadata is not empty metadata
inline constexpr std::string_view kHeaderChecksumKey = "kvcompress.header_xxh3";  // 16 hex digits

bool IsCompressedFile(const safetensors::Header& header);

// The header of a compressed file of at least `min_bytes`. `metadata` is the input's.
absl::StatusOr<std::string> SerializeCompressedHeader(const std::vector<safetensors::Entry>& entries,
                                                      const std::map<std::string, std::string>& metadata,
                                                      bool had_metadata, std::string_view codec, uint64_t min_bytes);

struct CompressedTensor {
  std::string name;
  uint64_t offset = 0;  // of its frame in the file
  uint64_t bytes = 0;
  FrameHeader frame;  // with the tensor's name
};

struct CompressedFile {
  std::string codec;
  std::vector<CompressedTensor> tensors;
  std::map<std::string, std::string> metadata;  // the input's
  bool had_metadata = false;
};

// Checks `header`, which was read from `file`, and the headers of all frames. INVALID_ARGUMENT for a file that is not a
// compressed one, UNIMPLEMENTED for versions that this build does not know, DATA_LOSS for damage.
absl::StatusOr<CompressedFile> ReadCompressedFile(const ByteSource& file, const safetensors::Header& header);

}  // namespace kvcompress
