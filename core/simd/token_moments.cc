#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_moments.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <numeric>

#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Merges columns, as many at once as there are lanes, all of which lie in the same lanes of their blocks.
template <class D>
class ColumnMerger {
 public:
  HWY_INLINE ColumnMerger(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                          const ColumnTotals& totals, size_t lane)
      : chunk_(chunk),
        counts_(moments.plane(kCount)),
        means_(moments.plane(kMean)),
        deviations_(moments.plane(kDeviations)),
        error_means_(moments.plane(kErrorMean)),
        lane_(lane) {
    const D d;
    const double rows = range.rows_before + range.rows;
    count_ = hn::Set(d, rows);
    per_row_ = hn::Set(d, 1 / range.rows);
    share_ = hn::Set(d, range.rows / rows);
    weight_ = hn::Set(d, range.rows_before * (range.rows / rows));
    for (size_t total = 0; total < kColumnTotals; ++total) totals_[total] = hn::LoadU(d, totals.lanes[total] + lane);
  }

  HWY_INLINE void Merge(size_t column) {
    const D d;
    const ColumnBlock& block = chunk_[column / ColumnBlock::kColumns];
    const V first = Load(block, kFirst);
    const V sum = Load(block, kSum);
    const V deviations = MergeMean(first, sum, Load(block, kSquares), means_ + column);
    hn::StoreU(hn::Add(hn::LoadU(d, deviations_ + column), deviations), d, deviations_ + column);
    hn::StoreU(count_, d, counts_ + column);
    Add(kErrorDeviations,
        MergeMean(Load(block, kFirstError), Load(block, kErrorSum), Load(block, kErrorSquares), error_means_ + column));
    Add(kTotalAbsError, Load(block, kAbsError));
    Add(kTotalCross, Load(block, kCross));
    totals_[kTotalMaxError] = hn::Max(totals_[kTotalMaxError], Load(block, kMaxError));
    Add(kTotalMagnitude, hn::Add(hn::Abs(first), hn::Abs(sum)));
  }

  HWY_INLINE void Store(ColumnTotals& totals) const {
    for (size_t total = 0; total < kColumnTotals; ++total) {
      hn::StoreU(totals_[total], D(), totals.lanes[total] + lane_);
    }
  }

 private:
  using V = hn::Vec<D>;

  HWY_INLINE V Load(const ColumnBlock& block, ColumnPlane plane) const {
    return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<float, D>(), block.planes[plane] + lane_));
  }
  HWY_INLINE void Add(ColumnTotal total, V sum) { totals_[total] = hn::Add(totals_[total], sum); }

  // Merges the mean, and returns by how much the deviations grow: Chan, Golub, LeVeque 1983.
  HWY_INLINE V MergeMean(V first, V sum, V squares, double* means) const {
    const D d;
    const V from_first = hn::Mul(sum, per_row_);
    const V within = hn::Max(hn::Zero(d), hn::Sub(squares, hn::Mul(sum, from_first)));
    const V before = hn::LoadU(d, means);
    const V between = hn::Sub(hn::Add(first, from_first), before);
    hn::StoreU(hn::Add(before, hn::Mul(between, share_)), d, means);
    return hn::Add(within, hn::Mul(hn::Mul(between, between), weight_));
  }

  const ColumnBlock* const chunk_;
  double *const counts_, *const means_, *const deviations_, *const error_means_;
  const size_t lane_;
  V count_, per_row_, share_, weight_;
  V totals_[kColumnTotals];
};

}  // namespace

void MergeChunkColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                       ColumnTotals& totals) {
  constexpr size_t kColumns = ColumnBlock::kColumns;
  using WideD = hn::ScalableTag<double>;
  using OneLane = hn::CappedTag<double, 1>;
  const auto one_by_one = [&](size_t begin, size_t end) HWY_ATTR {
    for (size_t column = begin; column < end; ++column) {
      ColumnMerger<OneLane> merger(chunk, range, moments, totals, column % kColumns);
      merger.Merge(column);
      merger.Store(totals);
    }
  };
  const size_t begin = std::min(range.end, ColumnBlock::CountFor(range.begin) * kColumns);
  const size_t end = std::max(begin, range.end / kColumns * kColumns);
  one_by_one(range.begin, begin);
  if (begin < end) {
    for (size_t lane = 0; lane < kColumns; lane += hn::Lanes(WideD())) {
      ColumnMerger<WideD> merger(chunk, range, moments, totals, lane);
      for (size_t column = begin + lane; column < end; column += kColumns) merger.Merge(column);
      merger.Store(totals);
    }
  }
  one_by_one(end, range.end);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MergeChunkColumns);

void MergeColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments, ColumnTotals& totals) {
  HWY_DYNAMIC_DISPATCH(MergeChunkColumns)(chunk, range, moments, totals);
}

double ColumnTotals::Sum(ColumnTotal total) const {
  return std::accumulate(std::begin(lanes[total]), std::end(lanes[total]), 0.0);
}

double ColumnTotals::Max(ColumnTotal total) const {
  return *std::max_element(std::begin(lanes[total]), std::end(lanes[total]));
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
