#include "core/base/tensor.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/utf8.h"

namespace kvcompress {

absl::StatusOr<uint64_t> NumElements(const std::vector<uint64_t>& shape) {
  if (shape.size() > kMaxRank) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", shape.size(), " is above the limit of ", kMaxRank));
  }
  // Zero extents first: [2^63, 2^63, 0] has no element, and must not be called too large.
  for (uint64_t extent : shape) {
    if (extent == 0) return 0;
  }
  uint64_t product = 1;
  for (uint64_t extent : shape) {
    if (extent > kMaxTensorElements / product) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape [", absl::StrJoin(shape, ", "), "] has more than 2^48 elements"));
    }
    product *= extent;
  }
  return product;
}

absl::StatusOr<uint64_t> NumWords(DType dtype, const std::vector<uint64_t>& shape) {
  absl::StatusOr<uint64_t> elements = NumElements(shape);
  if (!elements.ok() || ElementBits(dtype) >= 8) return elements;
  const uint64_t bits = *elements * ElementBits(dtype);
  if (bits % 8 == 0) return bits / 8;
  return absl::InvalidArgumentError(
      absl::StrFormat("%s [%s] is not a whole number of bytes", DTypeName(dtype), absl::StrJoin(shape, ", ")));
}

KvName ParseKvName(std::string_view name) {
  KvName result;
  if (!name.starts_with("layer_")) return result;
  const bool is_key = name.ends_with("_key");
  if (!is_key && !name.ends_with("_value")) return result;
  const size_t begin = std::string_view("layer_").size();
  const size_t end = name.rfind('_');
  if (end <= begin || end - begin > 9) return result;
  int64_t layer = 0;
  for (char digit : name.substr(begin, end - begin)) {
    if (digit < '0' || digit > '9') return result;
    layer = 10 * layer + (digit - '0');
  }
  result.layer = layer;
  result.is_key = is_key;
  return result;
}

std::vector<AxisRole> DefaultAxes(std::string_view name, size_t rank) {
  if (rank == 4 && ParseKvName(name).layer >= 0) {
    return {AxisRole::kBatch, AxisRole::kHeads, AxisRole::kSeq, AxisRole::kHeadDim};
  }
  return std::vector<AxisRole>(rank, AxisRole::kOther);
}

absl::StatusOr<uint64_t> ValidateTensor(const TensorDesc& desc) {
  if (desc.name.empty() || desc.name.size() > kMaxNameBytes || !IsUtf8(desc.name)) {
    return absl::InvalidArgumentError("tensor name must be 1 to 1024 bytes of UTF-8");
  }
  if (desc.axes.size() != desc.shape.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor \"%s\": %d axis roles for rank %d", desc.name, desc.axes.size(), desc.shape.size()));
  }
  if (desc.fingerprint.size() > kMaxFingerprintBytes) {
    return OfTensor(desc.name, absl::InvalidArgumentError(
                                   absl::StrFormat("a fingerprint of %d bytes, of which there are at most %d",
                                                   desc.fingerprint.size(), kMaxFingerprintBytes)));
  }
  absl::StatusOr<uint64_t> words = NumWords(desc.dtype, desc.shape);
  if (!words.ok()) return OfTensor(desc.name, words.status());
  return words;
}

absl::Status CheckFingerprint(const TensorDesc& desc, std::string_view expected) {
  if (expected.empty() || desc.fingerprint == expected) return absl::OkStatus();
  const auto text = [](std::string_view fingerprint) {
    return absl::StrCat("fingerprint ", absl::BytesToHexString({fingerprint.data(), fingerprint.size()}));
  };
  return absl::AbortedError(absl::StrFormat(
      "frame: it has %s, not %s", desc.fingerprint.empty() ? "none" : text(desc.fingerprint), text(expected)));
}

absl::Status OfTensor(std::string_view name, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrFormat("tensor \"%s\": %s", name, status.message()));
}

std::string DescribeTensor(const TensorDesc& desc) {
  return absl::StrFormat("%s %s [%s]", desc.name, DTypeName(desc.dtype), absl::StrJoin(desc.shape, ", "));
}

}  // namespace kvcompress
