#pragma once

#include <array>
#include <limits>
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

// What a tensor is to attention, which says which SNR counts.
enum class TensorKind { kOther, kKey, kValue };
inline constexpr std::array kTensorKinds = {TensorKind::kOther, TensorKind::kKey, TensorKind::kValue};

std::string_view TensorKindName(TensorKind kind);  // "other", "key", "value"

TensorKind KindOf(std::string_view name);  // by ParseKvName

// Of SNRs: infinity where nothing was lost; never minus infinity: an infinite error reports kMinSnrDb.
inline constexpr double kMinSnrDb = -999.0;
inline constexpr double kInfiniteSnrDb = std::numeric_limits<double>::infinity();

// An SNR for those who cannot tell infinity: empty for it, too.
inline std::optional<double> FiniteSnrDb(std::optional<double> snr_db) {
  return snr_db == kInfiniteSnrDb ? std::nullopt : snr_db;
}

// The figures of one tensor.
struct Quality {
  double rmse = 0;            // sqrt(mean of e^2)
  double mean_abs_error = 0;  // mean of |e|
  // 10 log10(variance / mean of e^2), the variance about the mean. Empty for values without variance, all equal or one
  // alone, that have an error.
  std::optional<double> snr_db = kInfiniteSnrDb;
  // x.x' / (|x| |x'|); 1 without any error; else 0 if either norm is 0, as the reference has it, or |x'| is below
  // 1e-5 |x|, of which the sums tell nothing.
  double cosine_similarity = 1;
  double max_error = 0;  // max |e|
  // 10 log10(token_deviations / token_error_deviations) of ErrorSums: what attention sees of keys. Empty for a tensor
  // without tokens, or whose channels do not vary from token to token.
  std::optional<double> token_snr_db = {};
  double rms = 0;  // sqrt(mean of x^2)
  TensorKind kind = TensorKind::kOther;

  // The SNR that levels and thresholds go by. Softmax does not see what is constant over the tokens: of a key it is the
  // token SNR, of a value snr_db, and of what may be either the lower one; of a key without a token SNR snr_db. Empty
  // where there is none: such a tensor is judged by max_error against rms.
  std::optional<double> JudgedSnrDb() const;
};

Quality QualityOf(const ErrorSums& sums, TensorKind kind = TensorKind::kOther);

QualityLevel LevelOf(const Quality& quality);

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

// A figure with so many digits behind the point; what rounds to zero has no sign, which would be that of noise.
std::string FixedText(double value, int digits);

struct Violation {
  ViolationKind kind;
  std::string text;  // "RMSE 0.1234 > 0.1000"
};

// A tensor without an SNR can violate one threshold only: its max_error must be as far below its rms as min_snr_db
// says.
std::vector<Violation> CheckThresholds(const Quality& quality, const Thresholds& thresholds = {});

// Figures of several tensors together. Tensors without elements count in none of them.
class QualityMerger {
 public:
  void Add(std::string_view name, const ErrorSums& sums);

  // Unweighted means over the tensors of rmse, snr_db, cosine and mean absolute error, and the maximum of max_error
  // (the reference's definition), and the mean of token_snr_db. Infinite SNRs are in no mean: it is over the others,
  // and infinite when there are only such, empty when no tensor has one.
  Quality Mean() const;

  // The figures of all elements as if they were one tensor; of the tokens those of the tensors that have some.
  Quality ElementWeighted() const { return QualityOf(total_); }

  // By the means over the tensors that have an SNR, of the one that each is judged by, and by the worst of the tensors
  // that have none: it can make the level lower, and adds its own violation. Without tensors there is no level.
  std::optional<QualityLevel> Level() const;
  std::vector<Violation> Violations() const;

  // The mean SNR that they go by, as Mean has it; empty when no tensor has one.
  std::optional<double> JudgedSnrDb() const { return judged_.snr_db.Value(); }

  // The tensor of the lowest SNR, of those that tensors are judged by; empty when no tensor lost anything.
  const std::string& worst_tensor() const { return worst_; }

 private:
  // A mean over the SNRs of tensors that have one.
  struct MeanSnr {
    size_t exact = 0;
    size_t finite = 0;
    double sum = 0;

    void Add(std::optional<double> snr_db);
    std::optional<double> Value() const;
  };
  // Sums for unweighted means.
  struct Figures {
    size_t tensors = 0;
    double rmse = 0;
    double mean_abs_error = 0;
    double cosine = 0;
    double max_error = 0;
    MeanSnr snr_db;

    void Add(const Quality& quality, std::optional<double> snr);
    Quality Mean() const;
  };

  // Of the tensors that have an SNR, with the one that each is judged by.
  Quality Judged() const;

  ErrorSums total_;
  Figures all_;
  MeanSnr token_snr_db_;
  Figures judged_;
  bool judged_by_tokens_ = false;  // some of these
  Quality worst_constant_;         // of the tensors without an SNR
  std::string worst_constant_name_;
  std::string worst_;
  double worst_snr_db_ = kInfiniteSnrDb;
};

}  // namespace kvcompress
