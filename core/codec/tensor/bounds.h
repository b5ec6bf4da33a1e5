#pragma once

#include <functional>
#include <optional>

#include "core/base/bytes.h"
#include "core/codec/codec.h"
#include "core/simd/error_sums.h"

// Whether the errors of a block may be what they are (docs/format.md, "bounded").
namespace kvcompress {

// 0: no such bound.
struct Bounds {
  double min_snr = 0;        // dB; of both SNRs, where a tensor has tokens
  double min_token_snr = 0;  // dB; of tensors without tokens it bounds the SNR
  double max_error = 0;
  double min_cosine = 0;
};

// What the errors of a block may be, such that a tensor whose every block keeps it keeps the bounds:
//   max_error      the largest of the blocks' errors is the tensor's;
//   min_snr        sum e^2 <= 10^(-snr/10) sum (x - mean)^2 with the block's own mean: the right sides of the blocks
//                  add up to no more than the tensor's;
//   min_token_snr  the same with the mean of each channel over the block's own tokens, and for the same reason. On the
//                  left the token SNR has the squares of e less its channel's mean, which are no more than those of e;
//   min_cosine     sum e^2 <= (1 - C^2) sum x^2: the blocks' add up to the tensor's, and the angle between x and x + e
//                  is at most the arc sine of |e| / |x|.
class Allowance {
 public:
  explicit Allowance(const Bounds& bounds);

  // Whether the bound of blocks that have tokens depends on these.
  bool looks_at_tokens() const { return token_noise_.has_value(); }

  bool looks_at_largest_error() const { return max_error_ > 0; }
  bool LargestErrorIsKept(double max_abs_error) const;

  // The largest sum of e^2 for a block of values with the sums `x`, and, if it has tokens, those deviations about the
  // channels' means; less what an error of `doubt` in `x` may add.
  double ErrorSquares(const ErrorSums& x, std::optional<double> token_deviations, double doubt) const;

 private:
  double max_error_;
  std::optional<double> noise_;             // over the signal
  std::optional<double> token_noise_;       // of blocks with tokens
  std::optional<double> noise_by_default_;  // of blocks without tokens
  std::optional<double> sine_squares_;
};

// Decides for one block, equally on every CPU: by the sums of vectors where these leave no doubt, else by those of the
// scalar definition.
class Judge {
 public:
  Judge(const Allowance& allowance, const Block& block);

  // Of the values, without errors.
  const ErrorSums& sums() const { return sums_; }
  bool has_only_finite_values() const { return sums_.count == count_; }
  // Whether what the block is allowed depends on its tokens.
  bool looks_at_tokens() const { return token_deviations_.has_value(); }
  // What it may be, in the best case.
  double ErrorSquares() const { return high_; }

  // Whether `values`, the block's or some of them, with errors `e`, keep `slack` times their share of what the block is
  // allowed. `decode` gives what the values decode to.
  bool Keeps(ByteSpan values, ErrorSums e, double slack, const std::function<ByteSpan()>& decode);

  // Whether some of its values have such errors, or errors at least as large, that no others help.
  bool Misses(const ErrorSums& e) const;

 private:
  double Exact();

  const Allowance& allowance_;
  const DType dtype_;
  const ByteSpan values_;
  const size_t count_;
  ErrorSums sums_;
  std::optional<double> token_deviations_;
  double low_ = 0;
  double high_ = 0;
  std::optional<double> exact_;
};

}  // namespace kvcompress
