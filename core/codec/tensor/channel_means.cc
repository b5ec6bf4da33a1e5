#include "core/codec/tensor/channel_means.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/elementary.h"
#include "core/base/half.h"
#include "core/simd/segment_values.h"

namespace kvcompress {
namespace {

DType MeanDType(DType dtype) { return dtype == DType::kF16 ? DType::kF16 : DType::kBF16; }

// The mean of each channel, over whole tokens; returns the sum of the logarithms of the variances, by which they cost.
double MeansOf(const ChannelMeans::Run& run, const float* values, std::vector<float>& means) {
  const size_t width = run.columns() * run.row;
  const size_t tokens = run.rows / run.columns();
  const std::vector<uint8_t> none(tokens);
  std::vector<float> squares(width);
  means.assign(width, 0);
  simd::ChannelSums(values, tokens, width, none.data(), means.data());
  for (float& mean : means) mean /= static_cast<float>(tokens);
  simd::ChannelSquares(values, tokens, width, none.data(), means.data(), squares.data());
  double cost = 0;
  for (const float square : squares) cost += Log2(std::max(double{square} / static_cast<double>(tokens), 1e-30));
  return cost;
}

// Calls visit(value, mean) for all values of a run.
template <class Visit>
void ForEachValue(const ChannelMeans::Run& run, const std::vector<float>& means, float* values, Visit visit) {
  float* const end = values + run.rows * run.row;
  for (; values != end; values += std::min<size_t>(means.size(), static_cast<size_t>(end - values))) {
    const size_t n = std::min<size_t>(means.size(), static_cast<size_t>(end - values));
    for (size_t i = 0; i < n; ++i) visit(values[i], means[i]);
  }
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

void ChannelMeans::Remove(const Run& run, DType dtype, float* values, std::byte* means) const {
  const size_t count = run.rows * run.row;
  thread_local std::vector<float> mean, other_mean, turned;
  const double cost = MeansOf(run, values, mean);
  bool is_turned = false;
  if (Dims(run) > 0) {
    turned.assign(values, values + count);
    Turn(run, simd::RotaryTurn::kBack, turned.data());
    is_turned = MeansOf(run, turned.data(), other_mean) < cost;
    if (is_turned) {
      std::copy(turned.begin(), turned.end(), values);
      mean.swap(other_mean);
    }
  }
  *means++ = std::byte{is_turned};
  const DType mean_dtype = MeanDType(dtype);
  const float largest = MaxFinite(mean_dtype);
  for (size_t i = 0; i < mean.size(); ++i) {
    StoreFromF32(mean_dtype, std::clamp(mean[i], -largest, largest), means, i);
    mean[i] = LoadAsF32(mean_dtype, means, i);
  }
  ForEachValue(run, mean, values, [](float& value, float own) { value -= own; });
}

absl::Status ChannelMeans::Add(const Run& run, DType dtype, const std::byte* means, float* values) const {
  const auto is_turned = std::to_integer<unsigned>(*means++);
  if (is_turned > 1 || (is_turned == 1 && Dims(run) == 0)) return absl::DataLossError("means of channels that turn");
  const DType mean_dtype = MeanDType(dtype);
  thread_local std::vector<float> mean;
  mean.resize(run.columns() * run.row);
  for (size_t i = 0; i < mean.size(); ++i) {
    mean[i] = LoadAsF32(mean_dtype, means, i);
    if (!std::isfinite(mean[i])) return absl::DataLossError("mean is not a finite number");
  }
  ForEachValue(run, mean, values, [](float& value, float own) { value += own; });
  if (is_turned == 1) Turn(run, simd::RotaryTurn::kForward, values);
  return absl::OkStatus();
}

}  // namespace kvcompress
