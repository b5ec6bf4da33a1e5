#include "core/calibration/moments.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

namespace kvcompress {
namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

}  // namespace

GroupMoments::GroupMoments(size_t heads, size_t head_dim)
    : heads_(heads), head_dim_(head_dim), mean_(heads * head_dim), deviations_(heads * head_dim * heads * head_dim) {}

void GroupMoments::Add(const float* rows, size_t tokens) {
  if (tokens == 0) return;
  const auto dim = static_cast<Eigen::Index>(heads_ * head_dim_);
  MatrixXd x(dim, static_cast<Eigen::Index>(tokens));  // a column for each token
  for (size_t head = 0; head < heads_; ++head) {
    for (size_t token = 0; token < tokens; ++token) {
      const float* const row = rows + (head * tokens + token) * head_dim_;
      std::copy_n(row, head_dim_, x.data() + token * heads_ * head_dim_ + head * head_dim_);
    }
  }
  const VectorXd own_mean = x.rowwise().mean();
  x.colwise() -= own_mean;
  Eigen::Map<VectorXd> mean(mean_.data(), dim);
  Eigen::Map<MatrixXd> deviations(deviations_.data(), dim, dim);
  const auto before = static_cast<double>(tokens_);
  const auto added = static_cast<double>(tokens);
  const VectorXd difference = own_mean - mean;
  deviations.selfadjointView<Eigen::Lower>().rankUpdate(x);
  deviations.selfadjointView<Eigen::Lower>().rankUpdate(difference, before * added / (before + added));
  mean += difference * (added / (before + added));
  tokens_ += tokens;
}

std::vector<double> GroupMoments::Covariance() const {
  const size_t dim = heads_ * head_dim_;
  std::vector<double> covariance(dim * dim);
  for (size_t i = 0; i < dim; ++i) {
    // Of the lower triangle, column by column.
    for (size_t j = 0; j < dim; ++j) {
      covariance[i * dim + j] = deviations_[std::min(i, j) * dim + std::max(i, j)] / static_cast<double>(tokens_);
    }
  }
  return covariance;
}

void Int4Error::Add(const float* values, size_t count) {
  constexpr size_t kGroup = 64;
  constexpr double kLargest = 7;
  for (size_t begin = 0; begin < count; begin += kGroup) {
    const float* const group = values + begin;
    const size_t size = std::min(kGroup, count - begin);
    double largest = 0;
    for (size_t i = 0; i < size; ++i) largest = std::max(largest, std::abs(static_cast<double>(group[i])));
    const double scale = largest / kLargest;
    for (size_t i = 0; i < size; ++i) {
      const double value = group[i];
      const double error = scale > 0 ? value - scale * std::nearbyint(value / scale) : 0;
      sum_ += value;
      squares_ += value * value;
      squared_error_ += error * error;
    }
  }
  count_ += count;
}

double Int4Error::variance() const {
  if (count_ == 0) return 0;
  const double mean = sum_ / static_cast<double>(count_);
  return std::max(0.0, squares_ / static_cast<double>(count_) - mean * mean);
}

}  // namespace kvcompress
