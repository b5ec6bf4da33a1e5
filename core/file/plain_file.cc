#include "core/file/plain_file.h"

#include "absl/strings/str_format.h"
#include "core/file/compressed_file.h"

namespace kvcompress {

using safetensors::Entry;
using safetensors::Header;

absl::StatusOr<TensorDesc> DescribeEntry(const Entry& entry) {
  const std::optional<DType> dtype = DTypeFromName(entry.dtype);
  if (!dtype) {
    return absl::InvalidArgumentError(
        absl::StrFormat("unsupported data type: %s (tensor \"%s\")", entry.dtype, entry.name));
  }
  return TensorDesc{entry.name, *dtype, entry.shape, DefaultAxes(entry.name, entry.shape.size())};
}

absl::Status CheckPlainMetadata(const Header& header) {
  if (IsCompressedFile(header)) {
    return absl::InvalidArgumentError("input is already a compressed file: decompress it first");
  }
  for (const auto& [key, value] : header.metadata) {
    if (key.starts_with(kReservedPrefix)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("input has the metadata key \"%s\": keys with %s are reserved", key, kReservedPrefix));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
