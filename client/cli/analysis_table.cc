#include "client/cli/analysis_table.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/constants_warning.h"
#include "client/cli/printable.h"
#include "client/cli/sample.h"
#include "client/cli/table.h"
#include "core/analysis/analysis.h"
#include "core/base/status_macros.h"
#include "core/file/plain_file.h"
#include "core/quality/quality.h"
#include "core/tensor_compressor.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;
using Rows = std::vector<std::vector<std::string>>;

constexpr std::string_view kReferenceCodec = "int4";
constexpr uint64_t kMaxAnalyzedBytes = uint64_t{256} << 20;

std::string Figure(double value) { return absl::StrFormat("%.4g", value); }
std::string Ratio(double value) { return absl::StrFormat("%.3f", value); }

std::string Decibels(std::optional<double> snr_db) {
  if (!snr_db) return "-";
  return *snr_db == kInfiniteSnrDb ? "exact" : absl::StrFormat("%.1f", *snr_db);
}

// The most significant plane first, as people write bytes.
std::string PlanesText(const std::vector<double>& entropy) {
  return absl::StrJoin(entropy.rbegin(), entropy.rend(), " ",
                       [](std::string* out, double bits) { absl::StrAppendFormat(out, "%.2f", bits); });
}

class Tables {
 public:
  void Add(const std::string& title, const TensorAnalysis& a) {
    std::vector<std::string> row = {title, Figure(a.mean), Figure(a.stddev), Figure(a.min), Figure(a.max)};
    for (const double value : a.abs_percentiles) row.push_back(Figure(value));
    row.push_back(absl::StrFormat("%d", a.elements - a.finite));
    distribution_.push_back(std::move(row));
    coding_.push_back({title, absl::StrFormat("%.3f", a.exponent_entropy), PlanesText(a.plane_entropy),
                       PlanesText(a.delta_entropy), Ratio(a.PlainBound()), Ratio(a.DeltaBound()), Ratio(a.BestBound()),
                       absl::StrFormat("%.2f", a.channel_outlier), absl::StrFormat("%.3f", a.lag1_correlation)});
  }

  // `kept` is null for a tensor that int4 refuses.
  void AddKept(const std::string& title, const ErrorSums* kept) {
    std::vector<std::string> row = {title};
    if (kept == nullptr) {
      row.resize(4, "-");
    } else {
      const Quality quality = QualityOf(*kept);
      const bool has_constant = quality.token_snr_db.has_value();
      row.insert(row.end(), {has_constant ? Figure(kept->max_channel_constant) : "-", Decibels(quality.snr_db),
                             Decibels(quality.token_snr_db)});
    }
    kept_.push_back(std::move(row));
  }

  std::string Text() const {
    const std::vector<bool> ten = {false, true, true, true, true, true, true, true, true, true};
    const std::vector<bool> nine = {false, true, true, true, true, true, true, true, true};
    return "\ndistribution\n" + FormatTable(distribution_, ten) +
           "\ncoding: entropies in bits, planes from the most significant byte, bounds as ratios\n" +
           FormatTable(coding_, nine) +
           "\nwhat int4 would keep: constants of channels as multiples of their deviation, SNR in dB\n" +
           FormatTable(kept_, {false, true, true, true});
  }

 private:
  Rows distribution_ = {{"tensor", "mean", "stddev", "min", "max", "|x| p50", "p90", "p99", "p99.9", "not finite"}};
  Rows coding_ = {{"tensor", "exponent", "planes", "delta planes", "plain bound", "delta bound", "best bound",
                   "channel outlier", "lag-1"}};
  Rows kept_ = {{"tensor", "channel constant", "SNR", "token SNR"}};
};

bool CanAnalyze(const Entry& entry) {
  const absl::StatusOr<TensorDesc> tensor = DescribeEntry(entry);
  return tensor.ok() && ValidateTensor(*tensor).ok() && entry.bytes() > 0;
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

}  // namespace

absl::StatusOr<Analysis> AnalyzeFile(const ByteSource& file, const Header& header, double rope_theta) {
  Header known = header;
  std::erase_if(known.entries, [](const Entry& entry) { return !CanAnalyze(entry); });
  if (known.entries.empty()) return Analysis{};
  KVC_ASSIGN_OR_RETURN(const FileSample sample, SampleFile(file, known, kMaxAnalyzedBytes));
  Tables tables;
  std::vector<std::optional<ErrorSums>> kept;
  std::vector<MeasuredTensor> measured;
  std::vector<std::byte> frame;
  kept.reserve(sample.tensors.size());
  for (const SampledTensor& sampled : sample.tensors) {
    const TensorDesc& tensor = sampled.tensor;
    tables.Add(Printable(tensor.name), AnalyzeTensor(tensor, sampled.values));
    KVC_ASSIGN_OR_RETURN(std::optional<ErrorSums> sums, MeasureInt4(sampled, frame));
    const std::optional<ErrorSums>& own = kept.emplace_back(std::move(sums));
    tables.AddKept(Printable(tensor.name), own ? &*own : nullptr);
    if (own) measured.push_back({tensor.name, kReferenceCodec, *own});
    if (rope_theta <= 0 || !ParseKvName(tensor.name).is_key || !CanUnrotate(tensor)) continue;
    const std::vector<std::byte> unrotated = Unrotate(tensor, sampled.values, rope_theta, sampled.first_rows);
    tables.Add(Printable(tensor.name) + " unrotated", AnalyzeTensor(tensor, unrotated));
  }
  Analysis analysis{.text = tables.Text(), .warnings = ConstantsWarnings(measured)};
  if (!sample.whole()) {
    absl::StrAppendFormat(&analysis.text, "figures of evenly spaced parts of each tensor, %d of %d bytes\n",
                          sample.bytes, sample.file_bytes);
  }
  return analysis;
}

}  // namespace kvcompress
