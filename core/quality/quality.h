#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/simd/error_sums.h"

// Quality of a lossy representation, as the kv-compress command line defines it: figures, levels, thresholds.
namespace kvcompress {

enum class QualityLevel { kExcellent, kGood, kAcceptable, kPoor };
inline constexpr std::array kQualityLevels = {QualityLevel::kExcellent, QualityLevel::kGood, QualityLevel::kAcceptable,
                                              QualityLevel::kPoor};

std::string_view QualityLevelName(QualityLevel level);  // "EXCELLENT", ...

// The figures of one tensor.
struct Quality {
  double rmse = 0;            // sqrt(mean of e^2)
  double mean_abs_error = 0;  // mean of |e|
  // 10 log10(variance / mean of e^2), the variance about the mean; empty (infinite) when there is no error. Minus
  // infinity cannot be: a constant tensor with an error has variance 0 and reports kMinSnrDb.
  std::optional<double> snr_db;
  // x.x' / (|x| |x'|); 0 if either norm is 0, as the reference has it, or |x'| is below 1e-5 |x|, of which the sums
  // tell nothing. 1 for a tensor without elements.
  double cosine_similarity = 1;
  double max_error = 0;  // max |e|
  // 10 log10(token_deviations / token_error_deviations) of ErrorSums: what attention sees of keys. Empty: no error that
  // changes from token to token, no token, or channels that do not vary.
  std::optional<double> token_snr_db = {};
};

inline constexpr double kMinSnrDb = -999.0;

Quality QualityOf(const ErrorSums& sums);

QualityLevel LevelOf(double rmse, std::optional<double> snr_db);
inline QualityLevel LevelOf(const Quality& quality) { return LevelOf(quality.rmse, quality.snr_db); }

struct Thresholds {
  double max_rmse = 0.10;
  double max_error = 0.50;
  double min_cosine = 0.99;
  double min_snr_db = 18.0;
};

enum class ViolationKind { kRmse, kMaxError, kCosine, kSnr };
inline constexpr std::array kViolationKinds = {ViolationKind::kRmse, ViolationKind::kMaxError, ViolationKind::kCosine,
                                               ViolationKind::kSnr};

std::string_view ViolationKindName(ViolationKind kind);  // "rmse", "max_error", "cosine", "snr"

struct Violation {
  ViolationKind kind;
  std::string text;  // "RMSE 0.1234 > 0.1000"
};

std::vector<Violation> CheckThresholds(const Quality& quality, const Thresholds& thresholds = {});

// Figures of several tensors together. Tensors without elements count in none of them.
class QualityMerger {
 public:
  void Add(std::string_view name, const ErrorSums& sums);

  // Unweighted means over the tensors of rmse, snr_db, cosine and mean absolute error, and the maximum of max_error
  // (the reference's definition). Lossless tensors have no finite SNR: the mean is over the others, empty when there
  // are none.
  Quality Mean() const;

  // The figures of all elements as if they were one tensor.
  Quality ElementWeighted() const { return QualityOf(total_); }

  // The tensor of the lowest SNR; empty when no tensor lost anything.
  const std::string& worst_tensor() const { return worst_; }

 private:
  ErrorSums total_;
  size_t tensors_ = 0;
  size_t lossy_ = 0;
  double rmse_ = 0;
  double mean_abs_error_ = 0;
  double snr_db_ = 0;
  double cosine_ = 0;
  std::string worst_;
  double worst_snr_db_ = 0;
};

}  // namespace kvcompress
