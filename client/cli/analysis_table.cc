#include "client/cli/analysis_table.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/printable.h"
#include "client/cli/sample.h"
#include "client/cli/table.h"
#include "core/analysis/analysis.h"
#include "core/base/status_macros.h"
#include "core/file/plain_file.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;
using Rows = std::vector<std::vector<std::string>>;

constexpr uint64_t kMaxAnalyzedBytes = uint64_t{256} << 20;

std::string Figure(double value) { return absl::StrFormat("%.4g", value); }
std::string Ratio(double value) { return absl::StrFormat("%.3f", value); }

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

  std::string Text() const {
    const std::vector<bool> ten = {false, true, true, true, true, true, true, true, true, true};
    const std::vector<bool> nine = {false, true, true, true, true, true, true, true, true};
    return "\ndistribution\n" + FormatTable(distribution_, ten) +
           "\ncoding: entropies in bits, planes from the most significant byte, bounds as ratios\n" +
           FormatTable(coding_, nine);
  }

 private:
  Rows distribution_ = {{"tensor", "mean", "stddev", "min", "max", "|x| p50", "p90", "p99", "p99.9", "not finite"}};
  Rows coding_ = {{"tensor", "exponent", "planes", "delta planes", "plain bound", "delta bound", "best bound",
                   "channel outlier", "lag-1"}};
};

bool CanAnalyze(const Entry& entry) {
  const absl::StatusOr<TensorDesc> tensor = DescribeEntry(entry);
  return tensor.ok() && ValidateTensor(*tensor).ok() && entry.bytes() > 0;
}

}  // namespace

absl::StatusOr<std::string> AnalysisTable(const ByteSource& file, const Header& header, double rope_theta) {
  Header known = header;
  std::erase_if(known.entries, [](const Entry& entry) { return !CanAnalyze(entry); });
  if (known.entries.empty()) return std::string();
  KVC_ASSIGN_OR_RETURN(const FileSample sample, SampleFile(file, known, kMaxAnalyzedBytes));
  Tables tables;
  for (const SampledTensor& sampled : sample.tensors) {
    const TensorDesc& tensor = sampled.tensor;
    tables.Add(Printable(tensor.name), AnalyzeTensor(tensor, sampled.values));
    if (rope_theta <= 0 || !ParseKvName(tensor.name).is_key || !CanUnrotate(tensor)) continue;
    const std::vector<std::byte> unrotated = Unrotate(tensor, sampled.values, rope_theta, sampled.first_rows);
    tables.Add(Printable(tensor.name) + " unrotated", AnalyzeTensor(tensor, unrotated));
  }
  std::string text = tables.Text();
  if (!sample.whole()) {
    absl::StrAppendFormat(&text, "figures of evenly spaced parts of each tensor, %d of %d bytes\n", sample.bytes,
                          sample.file_bytes);
  }
  return text;
}

}  // namespace kvcompress
