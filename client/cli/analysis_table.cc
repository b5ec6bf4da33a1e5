#include "client/cli/analysis_table.h"

#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/printable.h"
#include "client/cli/table.h"
#include "core/quality/quality.h"

namespace kvcompress {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string Figure(double value) { return absl::StrFormat("%.4g", value); }
std::string Ratio(double value) { return absl::StrFormat("%.3f", value); }

std::string Decibels(std::optional<double> snr_db) {
  if (!snr_db) return "-";
  return *snr_db == kInfiniteSnrDb ? "exact" : FixedText(*snr_db, 1);
}

// The most significant plane first, as people write bytes.
std::string PlanesText(const std::vector<double>& entropy) {
  return absl::StrJoin(entropy.rbegin(), entropy.rend(), " ",
                       [](std::string* out, double bits) { absl::StrAppendFormat(out, "%.2f", bits); });
}

std::string Title(const AnalyzedValues& row) {
  std::string title = Printable(row.tensor);
  if (row.head) absl::StrAppendFormat(&title, " head %d", *row.head);
  return row.unrotated ? title + " unrotated" : title;
}

class Tables {
 public:
  void Add(const AnalyzedValues& row) {
    const std::string title = Title(row);
    AddFigures(title, row.figures);
    if (!row.head && !row.unrotated) AddKept(title, row.int4);
    if (row.unrotated) rotation_.push_back({title, Figure(row.mean_difference)});
    if (row.dtype == DType::kF32 && !row.unrotated) AddCast(title, row.figures);
  }

  std::string Text() const {
    const auto numbers = [](const Rows& rows) {
      std::vector<bool> right(rows[0].size(), true);
      right[0] = false;
      return FormatTable(rows, right);
    };
    std::string text =
        "\ndistribution\n" + numbers(distribution_) +
        "\ncoding: entropies in bits, planes from the most significant byte, bounds as ratios\n" + numbers(coding_) +
        "\nwhat int4 would keep: constants of channels as multiples of their deviation, SNR in dB\n" + numbers(kept_);
    if (rotation_.size() > 1) text += "\nwhat undoing the rotation changes\n" + numbers(rotation_);
    if (cast_.size() > 1) text += "\nwhat a cast of F32 would cost\n" + numbers(cast_);
    return text;
  }

 private:
  void AddFigures(const std::string& title, const TensorAnalysis& a) {
    std::vector<std::string> row = {title, Figure(a.mean), Figure(a.stddev), Figure(a.min), Figure(a.max)};
    for (const double value : a.abs_percentiles) row.push_back(Figure(value));
    row.push_back(absl::StrFormat("%d", a.elements - a.finite));
    distribution_.push_back(std::move(row));
    coding_.push_back({title, absl::StrFormat("%.3f", a.exponent_entropy), PlanesText(a.plane_entropy),
                       PlanesText(a.delta_entropy), Ratio(a.PlainBound()), Ratio(a.DeltaBound()), Ratio(a.BestBound()),
                       absl::StrFormat("%.2f", a.channel_outlier), absl::StrFormat("%.3f", a.lag1_correlation)});
  }

  // `kept` is nothing for a tensor that int4 refuses.
  void AddKept(const std::string& title, const std::optional<ErrorSums>& kept) {
    std::vector<std::string> row = {title};
    if (!kept) {
      row.resize(4, "-");
    } else {
      const Quality quality = QualityOf(*kept);
      const bool has_constant = quality.token_snr_db.has_value();
      row.insert(row.end(), {has_constant ? Figure(kept->max_channel_constant) : "-", Decibels(quality.snr_db),
                             Decibels(quality.token_snr_db)});
    }
    kept_.push_back(std::move(row));
  }

  void AddCast(const std::string& title, const TensorAnalysis& a) {
    cast_.push_back({title, Figure(a.f16_cast.mean_abs), Figure(a.f16_cast.max_abs),
                     absl::StrFormat("%d", a.f16_cast.overflows), Figure(a.bf16_cast.mean_abs),
                     Figure(a.bf16_cast.max_abs)});
  }

  Rows distribution_ = {{"tensor", "mean", "stddev", "min", "max", "|x| p50", "p90", "p99", "p99.9", "not finite"}};
  Rows coding_ = {{"tensor", "exponent", "planes", "delta planes", "plain bound", "delta bound", "best bound",
                   "channel outlier", "lag-1"}};
  Rows kept_ = {{"tensor", "channel constant", "SNR", "token SNR"}};
  Rows rotation_ = {{"tensor", "mean |difference|"}};
  Rows cast_ = {{"tensor", "F16: mean |error|", "max |error|", "too large", "BF16: mean |error|", "max |error|"}};
};

}  // namespace

std::string AnalysisTables(const FileAnalysis& analysis) {
  if (analysis.rows.empty()) return "";
  Tables tables;
  for (const AnalyzedValues& row : analysis.rows) tables.Add(row);
  std::string text = tables.Text();
  if (!analysis.whole()) {
    absl::StrAppendFormat(&text, "figures of evenly spaced parts of each tensor, %d of %d bytes\n", analysis.bytes,
                          analysis.tensor_bytes);
  }
  return text;
}

}  // namespace kvcompress
