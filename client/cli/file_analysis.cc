#include "client/cli/file_analysis.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/cli/constants_warning.h"
#include "client/cli/sample.h"
#include "core/base/status_macros.h"
#include "core/base/tensor.h"
#include "core/file/plain_file.h"
#include "core/tensor_compressor.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;

constexpr std::string_view kReferenceCodec = "int4";
constexpr uint64_t kMaxAnalyzedBytes = uint64_t{256} << 20;

bool CanAnalyze(const Entry& entry) {
  const absl::StatusOr<TensorDesc> tensor = DescribeEntry(entry);
  return tensor.ok() && !IsOpaque(tensor->dtype) && ValidateTensor(*tensor).ok() && entry.bytes() > 0;
}

// The error of int4, of which a warning would speak; empty where it refuses the values.
absl::StatusOr<std::optional<ErrorSums>> MeasureInt4(const SampledTensor& sampled, std::vector<std::byte>& frame) {
  KVC_ASSIGN_OR_RETURN(const TensorCompressor compressor,
                       TensorCompressor::Create(sampled.tensor, kReferenceCodec, kNoLimits));
  frame.resize(std::max<size_t>(frame.size(), compressor.max_frame_bytes()));
  ErrorSums sums;
  const absl::Status status = compressor.Compress(sampled.values, frame, &sums).status();
  if (absl::IsInvalidArgument(status)) return std::nullopt;
  KVC_RETURN_IF_ERROR(status);
  return sums;
}

// The values of one head, of all that lies on the axes before the heads'.
std::vector<std::byte> ValuesOfHead(const TensorDesc& tensor, ByteSpan values, uint64_t head) {
  const size_t rank = tensor.shape.size();
  const uint64_t heads = tensor.shape[rank - 3];
  const size_t stride = tensor.shape[rank - 2] * tensor.shape[rank - 1] * DTypeSize(tensor.dtype);
  std::vector<std::byte> own;
  own.reserve(values.size() / heads);
  for (size_t at = head * stride; at < values.size(); at += heads * stride) {
    const auto begin = values.begin() + static_cast<ptrdiff_t>(at);
    own.insert(own.end(), begin, begin + static_cast<ptrdiff_t>(stride));
  }
  return own;
}

// Adds what a tensor's values are like, with its heads if they are asked for.
void AddRows(const SampledTensor& sampled, const AnalysisOptions& options, std::vector<AnalyzedValues>& rows) {
  const TensorDesc& tensor = sampled.tensor;
  std::optional<std::vector<std::byte>> unrotated;
  if (options.rotary.theta > 0 && ParseKvName(tensor.name).is_key && CanUnrotate(tensor, options.rotary)) {
    unrotated = Unrotate(tensor, sampled.values, options.rotary, sampled.first_rows);
  }
  const auto add = [&](const TensorDesc& part, ByteSpan as_it_is, ByteSpan turned_back, std::optional<uint64_t> head) {
    AnalyzedValues row{.tensor = tensor.name, .dtype = tensor.dtype, .head = head};
    row.figures = AnalyzeTensor(part, as_it_is);
    rows.push_back(row);
    if (!unrotated) return;
    row.unrotated = true;
    row.figures = AnalyzeTensor(part, turned_back);
    row.mean_difference = MeanDifference(part.dtype, as_it_is, turned_back);
    rows.push_back(std::move(row));
  };
  add(tensor, sampled.values, unrotated ? ByteSpan(*unrotated) : ByteSpan(), std::nullopt);
  const size_t rank = tensor.shape.size();
  if (!options.per_head || rank < 3) return;
  TensorDesc part = tensor;
  part.shape[rank - 3] = 1;
  for (uint64_t head = 0; head < tensor.shape[rank - 3]; ++head) {
    const std::vector<std::byte> own = ValuesOfHead(tensor, sampled.values, head);
    add(part, own, unrotated ? ValuesOfHead(tensor, *unrotated, head) : std::vector<std::byte>(), head);
  }
}

}  // namespace

absl::Status CheckRotation(const Header& header, const simd::RotaryEmbedding& rotation) {
  for (const Entry& entry : header.entries) {
    const uint64_t channels = entry.shape.empty() ? 0 : entry.shape.back();
    if (rotation.theta == 0 || channels == 0 || !ParseKvName(entry.name).is_key) continue;
    if (rotation.dims > channels) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "-rope-dims must be at most the head_dim, %d in tensor \"%s\", not %d", channels, entry.name, rotation.dims));
    }
    if (rotation.offset <= channels - rotation.dims && rotation.offset < channels) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("-rope-offset and -rope-dims must be within the head_dim, %d in tensor \"%s\", not %d and %d",
                        channels, entry.name, rotation.offset, rotation.dims));
  }
  return absl::OkStatus();
}

absl::StatusOr<FileAnalysis> AnalyzeFile(const ByteSource& file, const Header& header, const AnalysisOptions& options) {
  Header known = header;
  std::erase_if(known.entries, [](const Entry& entry) { return !CanAnalyze(entry); });
  KVC_RETURN_IF_ERROR(CheckRotation(known, options.rotary));
  FileAnalysis analysis;
  if (known.entries.empty()) return analysis;
  KVC_ASSIGN_OR_RETURN(const FileSample sample, SampleFile(file, known, kMaxAnalyzedBytes));
  analysis.bytes = sample.bytes;
  analysis.tensor_bytes = sample.file_bytes;
  if (options.per_head && !sample.whole()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "-per-head: of a file with more than %d MiB only parts are looked at, which do not keep the heads apart",
        kMaxAnalyzedBytes >> 20));
  }
  std::vector<std::byte> frame;
  std::vector<size_t> measured_rows;
  for (const SampledTensor& sampled : sample.tensors) {
    const size_t own = analysis.rows.size();
    AddRows(sampled, options, analysis.rows);
    KVC_ASSIGN_OR_RETURN(analysis.rows[own].int4, MeasureInt4(sampled, frame));
    if (analysis.rows[own].int4) measured_rows.push_back(own);
  }
  std::vector<MeasuredTensor> measured;
  measured.reserve(measured_rows.size());
  for (const size_t row : measured_rows) {
    measured.push_back({analysis.rows[row].tensor, kReferenceCodec, *analysis.rows[row].int4});
  }
  analysis.warnings = ConstantsWarnings(measured);
  return analysis;
}

}  // namespace kvcompress
