#include "core/codec/tensor/channel_means.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/half.h"

namespace kvcompress {
namespace {

DType MeanDType(DType dtype) { return dtype == DType::kF16 ? DType::kF16 : DType::kBF16; }

// The mean of each channel; returns the sum of the logarithms of their deviations, which says what they cost.
double MeansOf(const ChannelMeans::Run& run, const float* values, std::vector<double>& means) {
  const size_t width = run.columns() * run.row;
  std::vector<double> squares(width);
  means.assign(width, 0);
  const size_t count = run.rows * run.row;
  for (size_t begin = 0; begin < count; begin += width) {
    for (size_t i = 0; i < std::min(width, count - begin); ++i) {
      const double x = values[begin + i];
      means[i] += x;
      squares[i] += x * x;
    }
  }
  double cost = 0;
  for (size_t i = 0; i < width; ++i) {
    const auto tokens = static_cast<double>((count - i + width - 1) / width);
    means[i] /= tokens;
    cost += std::log2(std::max(squares[i] / tokens - means[i] * means[i], 1e-30));
  }
  return cost;
}

}  // namespace

size_t ChannelMeans::Dims(const Run& run) const {
  const size_t dims = dims_ > 0 ? dims_ : run.row;
  return theta_ > 0 && dims % 2 == 0 && dims <= run.row ? dims : 0;
}

void ChannelMeans::Turn(const Run& run, simd::RotaryTurn turn, float* values) const {
  thread_local simd::RotaryTable table;
  const uint64_t token = run.first / run.heads;
  table.Make(theta_, Dims(run), start_ + token, (run.first + run.rows - 1) / run.heads - token + 1);
  for (size_t head = 0; head < run.columns(); ++head) {
    simd::TurnRows(table, (run.first + head) / run.heads - token, pairs_, turn, values + head * run.row,
                   (run.rows - head + run.heads - 1) / run.heads, run.heads * run.row);
  }
}

bool ChannelMeans::Remove(const Run& run, DType dtype, const std::byte* values, float limit, float* centered,
                          std::byte* means) const {
  const size_t count = run.rows * run.row;
  for (size_t i = 0; i < count; ++i) {
    centered[i] = LoadAsF32(dtype, values, i);
    if (!(std::abs(centered[i]) <= limit)) return false;
  }
  thread_local std::vector<double> mean, other_mean;
  thread_local std::vector<float> turned;
  double cost = MeansOf(run, centered, mean);
  bool is_turned = false;
  if (Dims(run) > 0) {
    turned.assign(centered, centered + count);
    Turn(run, simd::RotaryTurn::kBack, turned.data());
    is_turned = MeansOf(run, turned.data(), other_mean) < cost;
    if (is_turned) {
      std::copy(turned.begin(), turned.end(), centered);
      mean.swap(other_mean);
    }
  }
  *means++ = std::byte{is_turned};
  const DType mean_dtype = MeanDType(dtype);
  const auto largest = double{MaxFinite(mean_dtype)};
  for (size_t i = 0; i < mean.size(); ++i) {
    StoreFromF32(mean_dtype, static_cast<float>(std::clamp(mean[i], -largest, largest)), means, i);
  }
  for (size_t i = 0; i < count; ++i) centered[i] -= LoadAsF32(mean_dtype, means, i % mean.size());
  return true;
}

absl::Status ChannelMeans::Add(const Run& run, DType dtype, const std::byte* means, float* centered,
                               std::byte* values) const {
  const size_t count = run.rows * run.row;
  const size_t width = run.columns() * run.row;
  const auto is_turned = std::to_integer<unsigned>(*means++);
  if (is_turned > 1 || (is_turned == 1 && Dims(run) == 0)) return absl::DataLossError("means of channels that turn");
  const DType mean_dtype = MeanDType(dtype);
  for (size_t i = 0; i < width; ++i) {
    if (!std::isfinite(LoadAsF32(mean_dtype, means, i))) return absl::DataLossError("mean is not a finite number");
  }
  for (size_t i = 0; i < count; ++i) centered[i] += LoadAsF32(mean_dtype, means, i % width);
  if (is_turned == 1) Turn(run, simd::RotaryTurn::kForward, centered);
  const float limit = MaxFinite(dtype);
  for (size_t i = 0; i < count; ++i) StoreFromF32(dtype, std::clamp(centered[i], -limit, limit), values, i);
  return absl::OkStatus();
}

}  // namespace kvcompress
