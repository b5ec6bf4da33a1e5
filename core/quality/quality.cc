#include "core/quality/quality.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/tensor.h"

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

std::string_view TensorKindName(TensorKind kind) {
  switch (kind) {
    case TensorKind::kOther: return "other";
    case TensorKind::kKey: return "key";
    case TensorKind::kValue: return "value";
  }
  return "?";
}

TensorKind KindOf(std::string_view name) {
  const KvName parsed = ParseKvName(name);
  if (parsed.layer < 0) return TensorKind::kOther;
  return parsed.is_key ? TensorKind::kKey : TensorKind::kValue;
}

namespace {

// What rounding to binary64 may leave of the deviations of very many equal values, relative to their squares.
constexpr double kLeastVariance = 1e-28;

double SnrDb(double signal, double noise) {
  if (noise == 0) return kInfiniteSnrDb;
  const double snr_db = 10.0 * std::log10(signal / noise);
  return std::isnan(snr_db) ? kMinSnrDb : std::max(snr_db, kMinSnrDb);
}

double Cosine(const ErrorSums& sums) {
  if (sums.max_abs_error == 0) return 1;
  // With x' = x - e: x.x' = x.x - x.e and x'.x' = x.x - 2 x.e + e.e.
  const double cross = sums.sum_squares - sums.sum_cross;
  const double decoded_squares = sums.sum_squares - 2 * sums.sum_cross + sums.sum_error_squares;
  // Of less than this, rounding has left nothing.
  constexpr double kLeastDecoded = 0x1p-33;
  if (!(sums.sum_squares > 0 && decoded_squares > kLeastDecoded * sums.sum_squares)) return 0;
  const double cosine = cross / std::sqrt(sums.sum_squares) / std::sqrt(decoded_squares);
  return std::isfinite(cosine) ? std::clamp(cosine, -1.0, 1.0) : 0.0;
}

// How far the largest error is below the magnitude of values without variance, in dB.
double MagnitudeDb(const Quality& quality) { return 2 * SnrDb(quality.rms, quality.max_error); }

}  // namespace

std::optional<double> Quality::JudgedSnrDb() const {
  if (!token_snr_db || kind == TensorKind::kValue) return snr_db;
  if (kind == TensorKind::kKey || !snr_db) return token_snr_db;
  return std::min(*snr_db, *token_snr_db);
}

Quality QualityOf(const ErrorSums& sums, TensorKind kind) {
  Quality quality{.kind = kind};
  if (sums.count == 0) return quality;
  const auto n = static_cast<double>(sums.count);
  quality.rmse = std::sqrt(sums.sum_error_squares / n);
  quality.mean_abs_error = sums.sum_abs_error / n;
  quality.cosine_similarity = Cosine(sums);
  quality.max_error = sums.max_abs_error;
  quality.rms = std::sqrt(sums.sum_squares / n);
  const bool is_exact = sums.max_abs_error == 0;
  if (!is_exact) quality.snr_db = SnrDb(sums.sum_deviations, sums.sum_error_squares);
  if (!is_exact && !(sums.sum_deviations > kLeastVariance * sums.sum_squares)) quality.snr_db.reset();
  if (sums.token_deviations > 0) quality.token_snr_db = SnrDb(sums.token_deviations, sums.token_error_deviations);
  return quality;
}

QualityLevel LevelOf(const Quality& quality) {
  const std::optional<double> snr_db = quality.JudgedSnrDb();
  const auto reaches = [&](double rmse_below, double snr_above) {
    if (!snr_db) return MagnitudeDb(quality) > snr_above;
    return quality.rmse<rmse_below&& * snr_db> snr_above;
  };
  if (reaches(0.01, 40)) return QualityLevel::kExcellent;
  if (reaches(0.05, 30)) return QualityLevel::kGood;
  if (reaches(0.10, 18)) return QualityLevel::kAcceptable;
  return QualityLevel::kPoor;
}

// A small tensor may miss four thresholds, each with two numbers: those of usual size are exact integers here, rounded
// half to even as std::to_chars does, for a part of its time.
std::string FixedText(double value, int digits) {
  constexpr std::array<uint32_t, 5> kPowers = {1, 10, 100, 1000, 10000};
  char text[512];
  if (!(std::abs(value) < 0x1p40) || static_cast<size_t>(digits) >= kPowers.size()) {
    const auto [end, error] = std::to_chars(std::begin(text), std::end(text), value, std::chars_format::fixed, digits);
    const std::string_view fixed(text, error == std::errc() ? static_cast<size_t>(end - text) : 0);
    const bool is_zero = fixed.find_first_not_of("-.0") == fixed.npos;
    return std::string(is_zero && fixed.starts_with('-') ? fixed.substr(1) : fixed);
  }
  const uint32_t power = kPowers[static_cast<size_t>(digits)];
  int exponent = 0;
  const auto mantissa = static_cast<uint64_t>(std::ldexp(std::frexp(std::abs(value), &exponent), 53));
  const int shift = 53 - exponent;  // the value is mantissa / 2^shift
  uint64_t rounded = 0;
  if (shift < 100) {  // else it is less than half of the last digit
    using Wide = unsigned __int128;
    const Wide scaled = Wide{mantissa} * power;
    rounded = static_cast<uint64_t>(scaled >> shift);
    const Wide rest = scaled - (Wide{rounded} << shift);
    const Wide half = Wide{1} << (shift - 1);
    if (rest > half || (rest == half && rounded % 2 == 1)) ++rounded;
  }
  char* at = text;
  if (value < 0 && rounded > 0) *at++ = '-';
  at = std::to_chars(at, std::end(text), rounded / power).ptr;
  if (digits == 0) return {text, at};
  *at++ = '.';
  uint64_t rest = rounded % power;
  for (uint32_t digit = power / 10; digit > 0; digit /= 10) {
    *at++ = static_cast<char>('0' + rest / digit);
    rest %= digit;
  }
  return {text, at};
}

namespace {

// Of a tensor without an SNR.
std::vector<Violation> CheckMagnitude(const Quality& quality, const Thresholds& thresholds) {
  if (MagnitudeDb(quality) >= thresholds.min_snr_db) return {};
  return {{ViolationKind::kMaxError, absl::StrFormat("MaxError %.4g > %.4g of a constant", quality.max_error,
                                                     quality.rms * std::pow(10, -thresholds.min_snr_db / 20))}};
}

}  // namespace

std::vector<Violation> CheckThresholds(const Quality& quality, const Thresholds& thresholds) {
  const std::optional<double> snr_db = quality.JudgedSnrDb();
  if (!snr_db) return CheckMagnitude(quality, thresholds);
  std::vector<Violation> violations;
  violations.reserve(kViolationKinds.size());
  // Negated, so that a NaN is a violation.
  if (!(quality.rmse <= thresholds.max_rmse)) {
    violations.push_back({ViolationKind::kRmse,
                          absl::StrCat("RMSE ", FixedText(quality.rmse, 4), " > ", FixedText(thresholds.max_rmse, 4))});
  }
  if (!(quality.max_error <= thresholds.max_error)) {
    violations.push_back({ViolationKind::kMaxError, absl::StrCat("MaxError ", FixedText(quality.max_error, 4), " > ",
                                                                 FixedText(thresholds.max_error, 4))});
  }
  if (!(quality.cosine_similarity >= thresholds.min_cosine)) {
    violations.push_back({ViolationKind::kCosine, absl::StrCat("CosineSim ", FixedText(quality.cosine_similarity, 4),
                                                               " < ", FixedText(thresholds.min_cosine, 4))});
  }
  if (!(*snr_db >= thresholds.min_snr_db)) {
    const char* const name = snr_db == quality.snr_db ? "SNR " : "TokenSNR ";
    violations.push_back({ViolationKind::kSnr, absl::StrCat(name, FixedText(*snr_db, 2), "dB < ",
                                                            FixedText(thresholds.min_snr_db, 2), "dB")});
  }
  return violations;
}

void QualityMerger::MeanSnr::Add(std::optional<double> snr_db) {
  if (!snr_db) return;
  if (*snr_db == kInfiniteSnrDb) {
    ++exact;
  } else {
    ++finite;
    sum += *snr_db;
  }
}

std::optional<double> QualityMerger::MeanSnr::Value() const {
  if (finite > 0) return sum / static_cast<double>(finite);
  return exact > 0 ? std::optional(kInfiniteSnrDb) : std::nullopt;
}

void QualityMerger::Figures::Add(const Quality& quality, std::optional<double> snr) {
  ++tensors;
  rmse += quality.rmse;
  mean_abs_error += quality.mean_abs_error;
  cosine += quality.cosine_similarity;
  max_error = std::max(max_error, quality.max_error);
  snr_db.Add(snr);
}

Quality QualityMerger::Figures::Mean() const {
  if (tensors == 0) return {};
  const auto n = static_cast<double>(tensors);
  return {.rmse = rmse / n,
          .mean_abs_error = mean_abs_error / n,
          .snr_db = snr_db.Value(),
          .cosine_similarity = cosine / n,
          .max_error = max_error};
}

void QualityMerger::Add(std::string_view name, const ErrorSums& sums) {
  if (sums.count == 0) return;
  total_.Merge(sums);
  const Quality quality = QualityOf(sums, KindOf(name));
  all_.Add(quality, quality.snr_db);
  token_snr_db_.Add(quality.token_snr_db);
  const std::optional<double> judged = quality.JudgedSnrDb();
  if (!judged) {
    if (worst_constant_name_.empty() || MagnitudeDb(quality) < MagnitudeDb(worst_constant_)) {
      worst_constant_ = quality;
      worst_constant_name_ = name;
    }
    return;
  }
  judged_.Add(quality, judged);
  judged_by_tokens_ = judged_by_tokens_ || judged != quality.snr_db;
  if (*judged < worst_snr_db_) {
    worst_ = name;
    worst_snr_db_ = *judged;
  }
}

Quality QualityMerger::Mean() const {
  Quality mean = all_.Mean();
  mean.token_snr_db = token_snr_db_.Value();
  return mean;
}

Quality QualityMerger::Judged() const {
  Quality judged = judged_.Mean();
  if (judged_by_tokens_) {
    judged.kind = TensorKind::kKey;
    judged.token_snr_db = std::exchange(judged.snr_db, std::nullopt);
  }
  return judged;
}

std::optional<QualityLevel> QualityMerger::Level() const {
  if (all_.tensors == 0) return std::nullopt;
  return std::max(LevelOf(Judged()), LevelOf(worst_constant_));
}

std::vector<Violation> QualityMerger::Violations() const {
  std::vector<Violation> violations = CheckThresholds(Judged());
  for (Violation& violation : CheckThresholds(worst_constant_)) {
    absl::StrAppend(&violation.text, ", ", worst_constant_name_);
    violations.push_back(std::move(violation));
  }
  return violations;
}

}  // namespace kvcompress
