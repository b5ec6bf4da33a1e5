#include "core/simd/token_sums.h"

#include <algorithm>

#include "core/simd/token_columns.h"

namespace kvcompress {

TokenLayout TokenLayoutOf(const TensorDesc& tensor) {
  const auto& axes = tensor.axes;
  if (IsOpaque(tensor.dtype)) return {};
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

void ChannelMoments::Assign(size_t size) {
  Begin(size);
  std::fill_n(moments_.begin(), kMomentPlanes * size, 0.0);
}

void ChannelMoments::Begin(size_t size) {
  if (moments_.size() < kMomentPlanes * size) moments_.resize(kMomentPlanes * size);
  error_deviations_ = 0;
  stride_ = size_ = size;
}

void ChannelMoments::Unscale(double value, double error) {
  if (value == 1 && error == 1) return;
  for (size_t i = 0; i < size_; ++i) {
    plane(kMean)[i] /= value;
    plane(kDeviations)[i] /= value * value;
    plane(kErrorMean)[i] /= error;
  }
  error_deviations_ /= error * error;
}

void ChannelMoments::Merge(const ChannelMoments& other, size_t first, size_t count, size_t to) {
  double error_deviations = 0;
  for (size_t i = 0; i < count; ++i) {
    const double own = plane(kCount)[to + i];
    const double added = other.plane(kCount)[first + i];
    const double share = added > 0 ? added / (own + added) : 0;
    const double between = other.plane(kMean)[first + i] - plane(kMean)[to + i];
    const double error_between = other.plane(kErrorMean)[first + i] - plane(kErrorMean)[to + i];
    plane(kCount)[to + i] = own + added;
    plane(kMean)[to + i] += between * share;
    plane(kDeviations)[to + i] += other.plane(kDeviations)[first + i] + between * between * (own * share);
    plane(kErrorMean)[to + i] += error_between * share;
    error_deviations += error_between * error_between * (own * share);
  }
  error_deviations_ += error_deviations;
}

void ChannelMoments::AddTo(ErrorSums& sums) const { AddTo(sums, simd::TotalsOf(*this)); }

void ChannelMoments::AddTo(ErrorSums& sums, const simd::MomentTotals& totals) const {
  ErrorSums own;
  own.token_count = static_cast<uint64_t>(totals.count);
  own.token_deviations = totals.deviations;
  own.token_error_deviations = error_deviations_;
  own.max_channel_constant = totals.max_constant;
  sums.Merge(own);
}

void TokenStretch::Clear() {
  first = count = 0;
  channels.Shrink(0);
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
  if (open_.count == 0) open_.channels.Assign(channels);
  const auto first = static_cast<size_t>(next.first % channels);
  const size_t before_end = std::min(next.channels.size(), channels - first);
  open_.channels.Merge(next.channels, 0, before_end, first);
  open_.channels.Merge(next.channels, before_end, next.channels.size() - before_end, 0);
  open_.channels.AddErrorDeviations(next.channels.error_deviations());
  open_.count += next.count;
  if (open_.count < layout_.sequence()) return;
  open_.channels.AddTo(closed_);
  open_.Clear();
}

}  // namespace kvcompress
