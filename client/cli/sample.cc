#include "client/cli/sample.h"

#include <algorithm>

#include "core/base/status_macros.h"
#include "core/file/plain_file.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;

// As many as a block of a frame has: codecs never see finer parts of a tensor.
constexpr uint64_t kRunElements = uint64_t{1} << 17;

// How a tensor is cut: `heads` times `tokens` rows of `channels` values, in runs of `rows`.
struct Cut {
  uint64_t heads = 1;
  uint64_t tokens = 1;
  uint64_t channels = 1;
  uint64_t rows = 1;

  uint64_t runs_of_head() const { return tokens / rows; }
  uint64_t runs() const { return heads * runs_of_head(); }
};

Cut CutOf(const TensorDesc& tensor, uint64_t elements, uint64_t run_elements) {
  Cut cut;
  const std::vector<uint64_t>& shape = tensor.shape;
  const bool has_rows = shape.size() >= 2 && shape.back() <= run_elements;
  cut.channels = has_rows ? shape.back() : 1;
  cut.tokens = has_rows ? shape[shape.size() - 2] : elements;
  cut.heads = elements / (cut.tokens * cut.channels);
  cut.rows = std::clamp<uint64_t>(run_elements / cut.channels, 1, cut.tokens);
  return cut;
}

absl::StatusOr<SampledTensor> ReadWhole(const ByteSource& file, uint64_t offset, TensorDesc tensor, uint64_t bytes) {
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan values, file.Get(offset, bytes, scratch));
  SampledTensor sampled{.tensor = std::move(tensor), .values = {}, .first_rows = {}};
  if (values.data() == scratch.data()) {
    sampled.values = std::move(scratch);
  } else {
    sampled.values.assign(values.begin(), values.end());
  }
  return sampled;
}

absl::StatusOr<SampledTensor> ReadRuns(const ByteSource& file, uint64_t offset, TensorDesc tensor, const Cut& cut,
                                       uint64_t take) {
  const size_t row_bytes = cut.channels * DTypeSize(tensor.dtype);
  SampledTensor sampled;
  std::vector<std::byte> scratch;
  for (uint64_t k = 0; k < take; ++k) {
    // The middle of the k-th of `take` equal parts.
    const auto run = static_cast<uint64_t>((static_cast<double>(k) + 0.5) / static_cast<double>(take) *
                                           static_cast<double>(cut.runs()));
    const uint64_t token = run % cut.runs_of_head() * cut.rows;
    const uint64_t row = run / cut.runs_of_head() * cut.tokens + token;
    KVC_ASSIGN_OR_RETURN(const ByteSpan values, file.Get(offset + row * row_bytes, cut.rows * row_bytes, scratch));
    sampled.values.insert(sampled.values.end(), values.begin(), values.end());
    sampled.first_rows.push_back(token);
  }
  std::vector<uint64_t> shape = {take, cut.rows, cut.channels};
  if (tensor.shape.size() == 4) shape.insert(shape.begin(), 1);
  sampled.tensor = {tensor.name, tensor.dtype, shape, DefaultAxes(tensor.name, shape.size())};
  return sampled;
}

}  // namespace

absl::StatusOr<FileSample> SampleFile(const ByteSource& file, const Header& header, uint64_t max_bytes) {
  FileSample sample;
  for (const Entry& entry : header.entries) sample.file_bytes += entry.bytes();
  const double part = static_cast<double>(max_bytes) / static_cast<double>(std::max<uint64_t>(sample.file_bytes, 1));
  const uint64_t share = max_bytes / std::max<uint64_t>(header.entries.size(), 1);
  for (const Entry& entry : header.entries) {
    KVC_ASSIGN_OR_RETURN(TensorDesc tensor, DescribeEntry(entry));
    KVC_ASSIGN_OR_RETURN(const uint64_t elements, ValidateTensor(tensor));
    // Of elements that have less than a byte, the bytes are what can be cut.
    if (ElementBits(tensor.dtype) < 8) tensor = {tensor.name, DType::kU8, {elements}, {AxisRole::kOther}};
    const uint64_t offset = header.data_start + entry.begin;
    if (part >= 1 || elements == 0) {
      KVC_ASSIGN_OR_RETURN(SampledTensor whole, ReadWhole(file, offset, std::move(tensor), entry.bytes()));
      sample.tensors.push_back(std::move(whole));
    } else {
      const uint64_t run_elements = std::clamp<uint64_t>(share / DTypeSize(tensor.dtype), 1, kRunElements);
      const Cut cut = CutOf(tensor, elements, run_elements);
      const auto take =
          static_cast<uint64_t>(part * static_cast<double>(elements) / static_cast<double>(cut.rows * cut.channels));
      KVC_ASSIGN_OR_RETURN(SampledTensor runs,
                           ReadRuns(file, offset, std::move(tensor), cut, std::clamp<uint64_t>(take, 1, cut.runs())));
      sample.tensors.push_back(std::move(runs));
    }
    sample.bytes += sample.tensors.back().values.size();
  }
  return sample;
}

}  // namespace kvcompress
