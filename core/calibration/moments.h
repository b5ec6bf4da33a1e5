#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvcompress {

// Mean and covariance of the channels of a group of heads over tokens that come in runs, in binary64. A run has moments
// of its own about its own mean, which are then merged (Chan, Golub, LeVeque 1983): a large mean costs no digits.
class GroupMoments {
 public:
  GroupMoments(size_t heads, size_t head_dim);

  // Adds `tokens` rows of each head: [heads, tokens, head_dim].
  void Add(const float* rows, size_t tokens);

  uint64_t tokens() const { return tokens_; }
  const std::vector<double>& mean() const { return mean_; }
  // [dim, dim], divided by the number of tokens, of which there must be some.
  std::vector<double> Covariance() const;

 private:
  const size_t heads_;
  const size_t head_dim_;
  uint64_t tokens_ = 0;
  std::vector<double> mean_;
  std::vector<double> deviations_;  // [dim, dim]: sums of products; the lower triangle
};

// The error that int4(group=64) would make of runs of values, and their variance.
class Int4Error {
 public:
  // Values that follow one another in the tensor, such as those of a head. Groups begin with them.
  void Add(const float* values, size_t count);

  double mean_squared_error() const { return count_ == 0 ? 0 : squared_error_ / static_cast<double>(count_); }
  // About the mean of all values.
  double variance() const;

 private:
  uint64_t count_ = 0;
  double sum_ = 0;
  double squares_ = 0;
  double squared_error_ = 0;
};

}  // namespace kvcompress
