#include "core/codec/tensor/channel_means.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/half.h"
#include "core/codec/tensor/turn_gain.h"
#include "core/simd/segment_values.h"

namespace kvcompress {
namespace {

DType MeanDType(DType dtype) { return dtype == DType::kF16 ? DType::kF16 : DType::kBF16; }

// The mean of each channel, over whole tokens.
void MeansOf(const ChannelMeans::Run& run, const float* values, std::vector<float>& means) {
  const size_t tokens = run.rows / run.columns();
  const std::vector<uint8_t> none(tokens);
  means.assign(run.columns() * run.row, 0);
  simd::ChannelSums(values, tokens, means.size(), none.data(), means.data());
  for (float& mean : means) mean /= static_cast<float>(tokens);
}

// The means that Begin has read.
struct RunMeans {
  bool is_turned;
  std::vector<float> means;
};
RunMeans& MeansOfThread() {
  thread_local RunMeans means;
  return means;
}

}  // namespace

size_t ChannelMeans::Dims(const Run& run) const {
  const size_t dims = rotary_.dims > 0 ? rotary_.dims : run.row;
  return rotary_.theta > 0 && dims % 2 == 0 && dims <= run.row ? dims : 0;
}

void ChannelMeans::Turn(const Run& run, size_t first, size_t rows, simd::RotaryTurn turn, float* values) const {
  thread_local simd::RotaryTable table;
  const uint64_t token = run.first / run.heads;
  table.Make(rotary_, Dims(run), rotary_.start + token, (run.first + first + rows - 1) / run.heads - token + 1);
  for (size_t head = 0; head < std::min(rows, run.heads); ++head) {
    simd::TurnRows(table, (run.first + first + head) / run.heads - token, rotary_.pairs, turn, values + head * run.row,
                   (rows - head + run.heads - 1) / run.heads, run.heads * run.row);
  }
}

void ChannelMeans::Remove(const Run& run, DType dtype, float* values, std::byte* means, simd::RotaryGain* gain) const {
  const size_t count = run.rows * run.row;
  bool is_turned = false;
  if (Dims(run) > 0) {
    const auto turn_back = [&](size_t at, size_t n, float* part) {
      Turn(run, at / run.row, n / run.row, simd::RotaryTurn::kBack, part);
    };
    const simd::RotaryGain own = TurnBackIfNarrower(values, count, run.columns() * run.row, turn_back);
    is_turned = own.turned > 0;
    if (gain != nullptr) gain->Merge(own);
  }
  thread_local std::vector<float> mean;
  MeansOf(run, values, mean);
  *means++ = std::byte{is_turned};
  const DType mean_dtype = MeanDType(dtype);
  const float largest = MaxFinite(mean_dtype);
  for (size_t i = 0; i < mean.size(); ++i) {
    StoreFromF32(mean_dtype, std::clamp(mean[i], -largest, largest), means, i);
    mean[i] = LoadAsF32(mean_dtype, means, i);
  }
  for (float& own : mean) own = -own;
  simd::AddToChannels(mean.data(), mean.size(), values, count);
}

absl::Status ChannelMeans::Begin(const Run& run, DType dtype, const std::byte* means) const {
  const auto is_turned = std::to_integer<unsigned>(*means++);
  if (is_turned > 1 || (is_turned == 1 && Dims(run) == 0)) return absl::DataLossError("means of channels that turn");
  const DType mean_dtype = MeanDType(dtype);
  RunMeans& own = MeansOfThread();
  own.is_turned = is_turned == 1;
  own.means.resize(run.columns() * run.row);
  for (size_t i = 0; i < own.means.size(); ++i) {
    own.means[i] = LoadAsF32(mean_dtype, means, i);
    if (!std::isfinite(own.means[i])) return absl::DataLossError("mean is not a finite number");
  }
  return absl::OkStatus();
}

void ChannelMeans::Add(const Run& run, size_t first, size_t rows, float* values) const {
  const RunMeans& own = MeansOfThread();
  const size_t at = first % run.columns() * run.row;
  const size_t count = rows * run.row;
  const size_t rest = std::min((own.means.size() - at) % own.means.size(), count);  // of a token that has begun
  simd::AddToChannels(own.means.data() + at, own.means.size(), values, rest);
  simd::AddToChannels(own.means.data(), own.means.size(), values + rest, count - rest);
  if (own.is_turned) Turn(run, first, rows, simd::RotaryTurn::kForward, values);
}

}  // namespace kvcompress
