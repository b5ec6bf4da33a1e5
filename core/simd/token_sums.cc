#include "core/simd/token_sums.h"

#include <algorithm>
#include <cmath>

namespace kvcompress {

TokenLayout TokenLayoutOf(const TensorDesc& tensor) {
  const auto& axes = tensor.axes;
  if (std::ranges::count(axes, AxisRole::kSeq) != 1 || std::ranges::count(axes, AxisRole::kHeadDim) == 0) return {};
  TokenLayout layout{.tokens = 0, .channels = 1};
  for (size_t i = axes.size(); i-- > 0;) {
    if (axes[i] == AxisRole::kSeq) {
      layout.tokens = tensor.shape[i];
      break;
    }
    layout.channels *= tensor.shape[i];
  }
  return layout.channels <= TokenLayout::kMaxChannels ? layout : TokenLayout();
}

void ChannelMoments::Merge(const ChannelMoments& other) {
  if (other.count == 0) return;
  const double all = count + other.count;
  const double weight = other.count / all;
  const double between = other.mean - mean;
  const double error_between = other.error_mean - error_mean;
  deviations += other.deviations + between * between * (count * weight);
  error_deviations += other.error_deviations + error_between * error_between * (count * weight);
  mean += between * weight;
  error_mean += error_between * weight;
  count = all;
}

void ChannelMoments::AddTo(ErrorSums& sums) const {
  sums.token_count += static_cast<uint64_t>(count);
  sums.token_deviations += deviations;
  sums.token_error_deviations += error_deviations;
  if (deviations > 0) {
    const double constant = std::abs(mean) / std::sqrt(deviations / count);
    sums.max_channel_constant = std::max(sums.max_channel_constant, constant);
  }
}

void TokenSums::Clear() {
  closed = {};
  head.Clear();
  tail.Clear();
}

void TokenTotals::Begin(const TokenLayout& layout) {
  layout_ = layout;
  closed_ = {};
  open_.Clear();
}

void TokenTotals::Merge(const TokenSums& run) {
  if (run.head.count > 0) Join(run.head);
  closed_.Merge(run.closed);
  if (run.tail.count > 0) Join(run.tail);
}

void TokenTotals::Join(const TokenStretch& next) {
  const auto channels = static_cast<size_t>(layout_.channels);
  open_.channels.resize(channels);
  size_t channel = static_cast<size_t>(next.first % channels);
  for (const ChannelMoments& moments : next.channels) {
    open_.channels[channel].Merge(moments);
    if (++channel == channels) channel = 0;
  }
  open_.count += next.count;
  if (open_.count < layout_.sequence()) return;
  for (const ChannelMoments& moments : open_.channels) moments.AddTo(closed_);
  open_.Clear();
}

}  // namespace kvcompress
