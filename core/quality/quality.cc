#include "core/quality/quality.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace kvcompress {

std::string_view QualityLevelName(QualityLevel level) {
  switch (level) {
    case QualityLevel::kExcellent: return "EXCELLENT";
    case QualityLevel::kGood: return "GOOD";
    case QualityLevel::kAcceptable: return "ACCEPTABLE";
    case QualityLevel::kPoor: return "POOR";
  }
  return "?";
}

std::string_view ViolationKindName(ViolationKind kind) {
  switch (kind) {
    case ViolationKind::kRmse: return "rmse";
    case ViolationKind::kMaxError: return "max_error";
    case ViolationKind::kCosine: return "cosine";
    case ViolationKind::kSnr: return "snr";
  }
  return "?";
}

Quality QualityOf(const ErrorSums& sums) {
  Quality quality;
  if (sums.count == 0) return quality;
  // With x' = x - e: x.x' = x.x - x.e and x'.x' = x.x - 2 x.e + e.e.
  const double cross = sums.sum_squares - sums.sum_cross;
  const double decoded_squares = sums.sum_squares - 2 * sums.sum_cross + sums.sum_error_squares;
  // Of less than this, rounding has left nothing.
  constexpr double kLeastDecoded = 0x1p-33;
  const bool has_norms = sums.sum_squares > 0 && decoded_squares > kLeastDecoded * sums.sum_squares;
  const double cosine = has_norms ? cross / std::sqrt(sums.sum_squares) / std::sqrt(decoded_squares) : 0.0;
  quality.cosine_similarity = std::isfinite(cosine) ? std::clamp(cosine, -1.0, 1.0) : 0.0;
  if (sums.max_abs_error == 0) {
    if (has_norms) quality.cosine_similarity = 1;  // which the square roots may miss by a digit
    return quality;
  }

  const auto n = static_cast<double>(sums.count);
  const double mean_square_error = sums.sum_error_squares / n;
  quality.rmse = std::sqrt(mean_square_error);
  quality.mean_abs_error = sums.sum_abs_error / n;
  quality.max_error = sums.max_abs_error;

  const double snr_db = 10.0 * std::log10(sums.sum_deviations / n / mean_square_error);
  quality.snr_db = std::isnan(snr_db) ? kMinSnrDb : std::max(snr_db, kMinSnrDb);
  if (sums.token_deviations > 0 && sums.token_error_deviations > 0) {
    quality.token_snr_db = 10.0 * std::log10(sums.token_deviations / sums.token_error_deviations);
  }
  return quality;
}

QualityLevel LevelOf(double rmse, std::optional<double> snr_db) {
  const auto reaches = [&](double rmse_below, double snr_above) {
    return rmse < rmse_below && (!snr_db || *snr_db > snr_above);
  };
  if (reaches(0.01, 40)) return QualityLevel::kExcellent;
  if (reaches(0.05, 30)) return QualityLevel::kGood;
  if (reaches(0.10, 18)) return QualityLevel::kAcceptable;
  return QualityLevel::kPoor;
}

std::vector<Violation> CheckThresholds(const Quality& quality, const Thresholds& thresholds) {
  std::vector<Violation> violations;
  // Negated, so that a NaN is a violation.
  if (!(quality.rmse <= thresholds.max_rmse)) {
    violations.push_back(
        {ViolationKind::kRmse, absl::StrFormat("RMSE %.4f > %.4f", quality.rmse, thresholds.max_rmse)});
  }
  if (!(quality.max_error <= thresholds.max_error)) {
    violations.push_back(
        {ViolationKind::kMaxError, absl::StrFormat("MaxError %.4f > %.4f", quality.max_error, thresholds.max_error)});
  }
  if (!(quality.cosine_similarity >= thresholds.min_cosine)) {
    violations.push_back({ViolationKind::kCosine,
                          absl::StrFormat("CosineSim %.4f < %.4f", quality.cosine_similarity, thresholds.min_cosine)});
  }
  if (quality.snr_db && !(*quality.snr_db >= thresholds.min_snr_db)) {
    violations.push_back(
        {ViolationKind::kSnr, absl::StrFormat("SNR %.2fdB < %.2fdB", *quality.snr_db, thresholds.min_snr_db)});
  }
  return violations;
}

void QualityMerger::Add(std::string_view name, const ErrorSums& sums) {
  if (sums.count == 0) return;
  const Quality quality = QualityOf(sums);
  total_.Merge(sums);
  ++tensors_;
  rmse_ += quality.rmse;
  mean_abs_error_ += quality.mean_abs_error;
  cosine_ += quality.cosine_similarity;
  if (!quality.snr_db) return;
  ++lossy_;
  snr_db_ += *quality.snr_db;
  if (worst_.empty() || *quality.snr_db < worst_snr_db_) {
    worst_ = name;
    worst_snr_db_ = *quality.snr_db;
  }
}

Quality QualityMerger::Mean() const {
  Quality mean;
  if (tensors_ == 0) return mean;
  const auto n = static_cast<double>(tensors_);
  mean.rmse = rmse_ / n;
  mean.mean_abs_error = mean_abs_error_ / n;
  mean.cosine_similarity = cosine_ / n;
  mean.max_error = total_.max_abs_error;
  if (lossy_ > 0) mean.snr_db = snr_db_ / static_cast<double>(lossy_);
  return mean;
}

}  // namespace kvcompress
