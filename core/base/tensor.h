#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/dtype.h"

namespace kvcompress {

// What an axis of a tensor means. The numbers are part of the frame format (docs/format.md, "Header").
enum class AxisRole : uint8_t {
  kOther = 0,
  kBatch = 1,
  kLayer = 2,
  kHeads = 3,
  kSeq = 4,
  kHeadDim = 5,
};

// A dense row-major tensor without its values.
struct TensorDesc {
  std::string name;
  DType dtype = DType::kF16;
  std::vector<uint64_t> shape;  // empty: rank 0, one element
  std::vector<AxisRole> axes;   // as long as `shape`
  // Whose the values are, in words of the caller's own (model, layer, layout, chunk): opaque bytes that the tensor's
  // frame carries, at most kMaxFingerprintBytes. Empty: none.
  std::string fingerprint = {};

  bool operator==(const TensorDesc&) const = default;
};

inline constexpr size_t kMaxRank = 8;
inline constexpr size_t kMaxNameBytes = 1024;
inline constexpr size_t kMaxFingerprintBytes = 64;
// Elements of one tensor are at most this, and its bytes a few times as many: sums of a few of them cannot overflow.
inline constexpr uint64_t kMaxTensorElements = uint64_t{1} << 48;

// The product of `shape`. INVALID_ARGUMENT when the rank is above kMaxRank or the product above kMaxTensorElements.
absl::StatusOr<uint64_t> NumElements(const std::vector<uint64_t>& shape);

// Words of a tensor, DTypeSize(dtype) bytes each: its elements or, of elements that have less than a byte, the bytes
// that these fill. INVALID_ARGUMENT also where they do not fill whole ones. Where this text and others speak of a
// tensor's values or elements as what is cut into blocks, it is of words.
absl::StatusOr<uint64_t> NumWords(DType dtype, const std::vector<uint64_t>& shape);

// [batch, heads, seq, head_dim] for a rank-4 tensor named layer_{i}_key or layer_{i}_value (reference-behaviour,
// "Files"), all kOther for every other tensor.
std::vector<AxisRole> DefaultAxes(std::string_view name, size_t rank);

// Layer and kind that a name of the form layer_{i}_key|value tells; layer is -1 for any other name.
struct KvName {
  int64_t layer = -1;
  bool is_key = false;
};
KvName ParseKvName(std::string_view name);

// Checks a description that came from outside: rank, product, one role an axis, a name of 1 to 1024 bytes of UTF-8,
// the fingerprint's length. Returns the number of words.
absl::StatusOr<uint64_t> ValidateTensor(const TensorDesc& desc);

// ABORTED, which is the status of nothing else, for a tensor from a frame whose fingerprint is not `expected`. Empty:
// whatever it is.
absl::Status CheckFingerprint(const TensorDesc& desc, std::string_view expected);

// `status` as a fault of the tensor of this name: its text after "tensor "NAME": ".
absl::Status OfTensor(std::string_view name, const absl::Status& status);

// "layer_0_key F16 [1, 2, 256, 64]", for messages.
std::string DescribeTensor(const TensorDesc& desc);

}  // namespace kvcompress
