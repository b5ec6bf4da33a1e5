#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_moments.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "core/simd/column_totals-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Merges columns of a chunk with those of the chunks before it, as many at once as there are lanes, all of which lie in
// the same lanes of their blocks.
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
        is_first_(range.rows_before == 0),
        sums_(range, lane) {
    const D d;
    const double rows = range.rows_before + range.rows;
    count_ = hn::Set(d, rows);
    share_ = hn::Set(d, range.rows / rows);
    weight_ = hn::Set(d, range.rows_before * (range.rows / rows));
    sums_.Load(totals);
  }

  // Returns the columns' moments.
  HWY_INLINE Moments<D> Merge(size_t column) {
    const D d;
    Moments<D> values, errors;
    const ColumnBlock& block = chunk_[column / ColumnBlock::kColumns];
    values = sums_.Add(block, errors);
    sums_.AddMaxError(block);
    MergeMean(means_ + column, values);
    MergeMean(error_means_ + column, errors);
    values.deviations = hn::Add(Before(deviations_ + column), values.deviations);
    hn::StoreU(values.deviations, d, deviations_ + column);
    hn::StoreU(count_, d, counts_ + column);
    sums_.Add(kErrorDeviations, errors.deviations);
    return values;
  }

  HWY_INLINE hn::Vec<D> count() const { return count_; }
  HWY_INLINE void Store(ColumnTotals& totals) const { sums_.Store(totals); }

 private:
  using V = hn::Vec<D>;

  HWY_INLINE V Before(const double* moments) const { return is_first_ ? hn::Zero(D()) : hn::LoadU(D(), moments); }

  // Merges the means, and adds to the deviations by how much they grow: Chan, Golub, LeVeque 1983.
  HWY_INLINE void MergeMean(double* means, Moments<D>& chunk) const {
    const V before = Before(means);
    const V between = hn::Sub(chunk.mean, before);
    chunk.mean = hn::Add(before, hn::Mul(between, share_));
    hn::StoreU(chunk.mean, D(), means);
    chunk.deviations = hn::Add(chunk.deviations, hn::Mul(hn::Mul(between, between), weight_));
  }

  const ColumnBlock* const chunk_;
  double *const counts_, *const means_, *const deviations_, *const error_means_;
  const bool is_first_;
  V count_, share_, weight_;
  ChunkSums<D> sums_;
};

// Calls visit(tag, lane, first, end) for sets of columns: for the columns first, first + 16, ... below `end`, and as
// many after each as the tag has lanes, whose sums lie in the lanes from `lane` on.
template <class Visit>
HWY_INLINE void VisitColumns(size_t begin, size_t end, Visit visit) {
  constexpr size_t kColumns = ColumnBlock::kColumns;
  const hn::ScalableTag<double> wide;
  const hn::CappedTag<double, 1> narrow;
  const size_t whole_begin = std::min(end, ColumnBlock::CountFor(begin) * kColumns);
  const size_t whole_end = std::max(whole_begin, end / kColumns * kColumns);
  for (size_t column = begin; column < whole_begin; ++column) visit(narrow, column % kColumns, column, column + 1);
  if (whole_begin < whole_end) {
    for (size_t lane = 0; lane < kColumns; lane += hn::Lanes(wide)) visit(wide, lane, whole_begin + lane, whole_end);
  }
  for (size_t column = whole_end; column < end; ++column) visit(narrow, column % kColumns, column, column + 1);
}

}  // namespace

void MergeChunkColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                       ColumnTotals& totals) {
  VisitColumns(range.begin, range.end, [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    ColumnMerger<decltype(d)> merger(chunk, range, moments, totals, lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) merger.Merge(column);
    merger.Store(totals);
  });
}

MomentTotals MergeLastChunkColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                                   ColumnTotals& totals) {
  MomentLanes sums = {};
  VisitColumns(range.begin, range.end, [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    ColumnMerger<decltype(d)> merger(chunk, range, moments, totals, lane);
    MomentSums<decltype(d)> own(lane);
    own.Load(sums);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) {
      own.Add(merger.count(), merger.Merge(column));
      own.Add(kTotalCount, merger.count());
    }
    merger.Store(totals);
    own.Store(sums);
  });
  return SumLanes(sums);
}

MomentTotals SumMoments(const ChannelMoments& moments) {
  MomentLanes sums = {};
  VisitColumns(0, moments.size(), [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    MomentSums<decltype(d)> own(lane);
    own.Load(sums);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) {
      const auto load = [&](MomentPlane plane) HWY_ATTR { return hn::LoadU(d, moments.plane(plane) + column); };
      own.Add(load(kCount), {load(kMean), load(kDeviations)});
      own.Add(kTotalCount, load(kCount));
    }
    own.Store(sums);
  });
  return SumLanes(sums);
}

double SumBetween(const ChannelMoments& moments, double mean) {
  const double* const counts = moments.plane(kCount);
  const double* const means = moments.plane(kMean);
  HWY_ALIGN double lanes[ColumnBlock::kColumns] = {};
  VisitColumns(0, moments.size(), [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    auto sum = hn::LoadU(d, lanes + lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) {
      sum = hn::Add(sum, Between(d, hn::LoadU(d, counts + column), hn::LoadU(d, means + column), mean));
    }
    hn::StoreU(sum, d, lanes + lane);
  });
  return SumOf(lanes);
}

void SumColumnTotals(const ColumnTotals& totals, double* of) {
  SumLanes(totals, true, of);
  of[kTotalMaxError] = MaxOf(totals.lanes[kTotalMaxError]);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MergeChunkColumns);
HWY_EXPORT(MergeLastChunkColumns);
HWY_EXPORT(SumMoments);
HWY_EXPORT(SumBetween);
HWY_EXPORT(SumColumnTotals);

void MergeColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments, ColumnTotals& totals) {
  HWY_DYNAMIC_DISPATCH(MergeChunkColumns)(chunk, range, moments, totals);
}

void ColumnTotals::Sum(double (&of)[kColumnTotals]) const { HWY_DYNAMIC_DISPATCH(SumColumnTotals)(*this, of); }

MomentTotals TotalsOf(const ChannelMoments& moments) { return HWY_DYNAMIC_DISPATCH(SumMoments)(moments); }

MomentTotals MergeLastColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                              ColumnTotals& totals) {
  return HWY_DYNAMIC_DISPATCH(MergeLastChunkColumns)(chunk, range, moments, totals);
}

double DeviationsOfMeans(const ChannelMoments& moments, double mean) {
  return HWY_DYNAMIC_DISPATCH(SumBetween)(moments, mean);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
