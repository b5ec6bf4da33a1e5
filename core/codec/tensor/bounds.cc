#include "core/codec/tensor/bounds.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/simd/token_meter.h"

namespace kvcompress {
namespace {

// Sums of binary32 lanes differ between instruction sets by at most kDoubt (relative, see MeasureErrors; the terms of
// the variance add up to less than this, too). A block is held to bounds that are tighter by kMargin, so that figures
// made of such sums keep the bounds as they were given.
constexpr double kDoubt = 5e-6;
constexpr double kMargin = 3e-5;
// Sums over tokens are the same everywhere, and exact to 1e-4: those of the block, and both of the figure.
constexpr double kTokenMargin = 3e-4;

// Empty for no bound. binary32: what std::pow makes of the last digits of binary64 depends on the library.
std::optional<double> NoiseOf(double snr_db) {
  if (snr_db == 0) return std::nullopt;
  return static_cast<float>(std::pow(10.0, -snr_db / 10));
}

// Sets `sums` to those of the values.
double TokenDeviations(const Block& block, ErrorSums& sums) {
  thread_local simd::TokenMeter meter;
  thread_local TokenSums tokens;
  const std::byte* const values = block.values.data();
  meter.Begin(block.tokens.layout, block.tokens.first);
  simd::MeasureTokens(block.tensor.dtype, values, values, block.count, meter);
  sums = meter.sums();
  meter.Take(tokens);
  ErrorSums all = tokens.closed;
  for (const TokenStretch* stretch : {&tokens.head, &tokens.tail}) stretch->channels.AddTo(all);
  return all.token_deviations;
}

}  // namespace

Allowance::Allowance(const Bounds& bounds)
    : max_error_(bounds.max_error),
      noise_(NoiseOf(bounds.min_snr)),
      token_noise_(NoiseOf(std::max(bounds.min_snr, bounds.min_token_snr))),
      noise_by_default_(token_noise_) {
  if (bounds.min_cosine == 0) return;
  const double sine_squares = (1 - bounds.min_cosine) * (1 + bounds.min_cosine);
  // So close to 1 that binary64 would decide: only what has no error will do.
  sine_squares_ = sine_squares < 1e-9 ? 0 : sine_squares;
}

bool Allowance::LargestErrorIsKept(double max_abs_error) const {
  return max_error_ == 0 || max_abs_error * (1 + kMargin) <= max_error_;
}

double Allowance::ErrorSquares(const ErrorSums& x, std::optional<double> token_deviations, double doubt) const {
  double allowed = std::numeric_limits<double>::infinity();
  if (const std::optional<double> noise = token_deviations ? noise_ : noise_by_default_) {
    const double deviations = x.sum_squares - x.sum * x.sum / static_cast<double>(x.count);
    allowed = std::min(allowed, *noise * (deviations - (kMargin + doubt) * x.sum_squares));
  }
  if (token_deviations && token_noise_) {
    allowed = std::min(allowed, *token_noise_ * *token_deviations * (1 - kTokenMargin));
  }
  if (sine_squares_) allowed = std::min(allowed, *sine_squares_ * x.sum_squares * (1 - doubt));
  return std::max(0.0, allowed * (1 - kMargin));
}

Judge::Judge(const Allowance& allowance, const Block& block)
    : allowance_(allowance), dtype_(block.tensor.dtype), values_(block.values), count_(block.count) {
  // Of one token nothing changes, and the tensor has no token SNR.
  if (count_ > 0 && allowance.looks_at_tokens() && block.tokens.layout.tokens > 1) {
    token_deviations_ = TokenDeviations(block, sums_);
  }
  if (sums_.count == 0) simd::MeasureErrors(dtype_, values_.data(), values_.data(), count_, sums_);
  if (count_ == 0 || !has_only_finite_values()) return;
  low_ = allowance.ErrorSquares(sums_, token_deviations_, kDoubt);
  high_ = allowance.ErrorSquares(sums_, token_deviations_, -kDoubt);
}

bool Judge::Keeps(ByteSpan values, ErrorSums e, double slack, const std::function<ByteSpan()>& decode) {
  const double share = slack * static_cast<double>(e.count) / static_cast<double>(count_);
  const bool kept = allowance_.LargestErrorIsKept(e.max_abs_error * (1 + kDoubt)) &&
                    e.sum_error_squares * (1 + kDoubt) <= share * low_;
  const bool missed = Misses(e) || e.sum_error_squares * (1 - kDoubt) > share * high_;
  if (kept || missed) return kept;
  const ByteSpan decoded = decode();
  e = {};
  simd::scalar::MeasureErrors(dtype_, values.data(), decoded.data(), values.size() / DTypeSize(dtype_), e);
  return allowance_.LargestErrorIsKept(e.max_abs_error) && e.sum_error_squares <= share * Exact();
}

bool Judge::Misses(const ErrorSums& e) const {
  return !allowance_.LargestErrorIsKept(e.max_abs_error * (1 - kDoubt)) || e.sum_error_squares * (1 - kDoubt) > high_;
}

double Judge::Exact() {
  if (!exact_) {
    ErrorSums sums;
    simd::scalar::MeasureErrors(dtype_, values_.data(), values_.data(), count_, sums);
    exact_ = allowance_.ErrorSquares(sums, token_deviations_, 0);
  }
  return *exact_;
}

}  // namespace kvcompress
