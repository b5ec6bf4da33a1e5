#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_moments.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>

#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Of some columns.
template <class D>
struct Moments {
  hn::Vec<D> count, mean, deviations;
};

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
        lane_(lane),
        is_first_(range.rows_before == 0),
        again_(range.again),
        has_marks_(range.has_marks),
        has_values_(range.has_values) {
    const D d;
    const double rows = range.rows_before + range.rows;
    count_ = hn::Set(d, rows);
    per_row_ = hn::Set(d, 1 / range.rows);
    share_ = hn::Set(d, range.rows / rows);
    weight_ = hn::Set(d, range.rows_before * (range.rows / rows));
    for (size_t total = 0; total < kColumnTotals; ++total) totals_[total] = hn::LoadU(d, totals.lanes[total] + lane);
  }

  // Returns the column's moments.
  HWY_INLINE Moments<D> Merge(size_t column) {
    const D d;
    const ColumnBlock& block = chunk_[column / ColumnBlock::kColumns];
    const V first = Load(block, kFirst);
    const V sum = Load(block, kSum);
    V mean, error_mean;
    const V added = MergeMean(first, sum, Load(block, kSquares), means_ + column, mean);
    const V deviations = hn::Add(Before(deviations_ + column), added);
    const V energy = LoadRuns(block, kEnergy, kRunEnergy);
    const V first_error = again_ ? Load(block, kFirstError) : hn::Zero(d);
    const V error_squares = again_ ? Load(block, kErrorSquares) : energy;
    hn::StoreU(deviations, d, deviations_ + column);
    hn::StoreU(count_, d, counts_ + column);
    Add(kErrorDeviations,
        MergeMean(first_error, Load(block, kErrorSum), error_squares, error_means_ + column, error_mean));
    Add(kTotalEnergy, energy);
    Add(kTotalAbsError, LoadRuns(block, kAbsError, kRunAbsError));
    Add(kTotalCross, LoadRuns(block, kCross, kRunCross));
    if (has_values_) Add(kTotalValueEnergy, LoadRuns(block, kValueEnergy, kRunValueEnergy));
    totals_[kTotalMaxError] = hn::Max(totals_[kTotalMaxError], Load(block, kMaxError));
    Add(kTotalMagnitude, hn::Add(hn::Abs(first), hn::Abs(sum)));
    if (has_marks_) {
      Add(kTotalVaries, Load(block, kVaries));
      Add(kTotalErrorVaries, Load(block, kErrorVaries));
    }
    return {count_, mean, deviations};
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
  // Of the runs that have ended, and of the one that has not.
  HWY_INLINE V LoadRuns(const ColumnBlock& block, ColumnPlane ended, ColumnPlane run) const {
    return hn::Add(Load(block, ended), Load(block, run));
  }
  HWY_INLINE void Add(ColumnTotal total, V sum) { totals_[total] = hn::Add(totals_[total], sum); }

  HWY_INLINE V Before(const double* moments) const { return is_first_ ? hn::Zero(D()) : hn::LoadU(D(), moments); }

  // Merges `mean`, and returns by how much the deviations grow: Chan, Golub, LeVeque 1983.
  HWY_INLINE V MergeMean(V first, V sum, V squares, double* means, V& mean) const {
    const D d;
    const V from_first = hn::Mul(sum, per_row_);
    const V within = hn::Max(hn::Zero(d), hn::Sub(squares, hn::Mul(sum, from_first)));
    const V before = Before(means);
    const V between = hn::Sub(hn::Add(first, from_first), before);
    mean = hn::Add(before, hn::Mul(between, share_));
    hn::StoreU(mean, d, means);
    return hn::Add(within, hn::Mul(hn::Mul(between, between), weight_));
  }

  const ColumnBlock* const chunk_;
  double *const counts_, *const means_, *const deviations_, *const error_means_;
  const size_t lane_;
  const bool is_first_;
  const bool again_, has_marks_, has_values_;
  V count_, per_row_, share_, weight_;
  V totals_[kColumnTotals];
};

// Sums of moments, in the same lanes.
template <class D>
class MomentSums {
 public:
  HWY_INLINE MomentSums(const MomentLanes& sums, size_t lane) : lane_(lane) {
    for (size_t i = 0; i < kMomentTotals; ++i) sums_[i] = hn::LoadU(D(), sums.lanes[i] + lane);
  }

  HWY_INLINE void Add(const Moments<D>& moments) {
    const D d;
    const V sum = hn::Mul(moments.count, moments.mean);
    Add(kTotalCount, moments.count);
    Add(kTotalSum, sum);
    Add(kTotalDeviations, moments.deviations);
    Add(kTotalMeanSquares, hn::Mul(sum, moments.mean));
    const V squares = hn::Mul(hn::Mul(moments.mean, moments.mean), moments.count);
    const V constant =
        hn::IfThenElseZero(hn::Gt(moments.deviations, hn::Zero(d)), hn::Div(squares, moments.deviations));
    sums_[kTotalMaxConstant] = hn::Max(sums_[kTotalMaxConstant], constant);
  }

  HWY_INLINE void Store(MomentLanes& sums) const {
    for (size_t i = 0; i < kMomentTotals; ++i) hn::StoreU(sums_[i], D(), sums.lanes[i] + lane_);
  }

 private:
  using V = hn::Vec<D>;

  HWY_INLINE void Add(MomentTotal total, V sum) { sums_[total] = hn::Add(sums_[total], sum); }

  const size_t lane_;
  V sums_[kMomentTotals];
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

void MergeLastChunkColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                           ColumnTotals& totals, MomentLanes& sums) {
  VisitColumns(range.begin, range.end, [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    ColumnMerger<decltype(d)> merger(chunk, range, moments, totals, lane);
    MomentSums<decltype(d)> own(sums, lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) own.Add(merger.Merge(column));
    merger.Store(totals);
    own.Store(sums);
  });
}

void SumMoments(const ChannelMoments& moments, MomentLanes& sums) {
  VisitColumns(0, moments.size(), [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    MomentSums<decltype(d)> own(sums, lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) {
      own.Add({hn::LoadU(d, moments.plane(kCount) + column), hn::LoadU(d, moments.plane(kMean) + column),
               hn::LoadU(d, moments.plane(kDeviations) + column)});
    }
    own.Store(sums);
  });
}

void SumBetween(const ChannelMoments& moments, double mean, double* lanes) {
  const double* const counts = moments.plane(kCount);
  const double* const means = moments.plane(kMean);
  VisitColumns(0, moments.size(), [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    auto sum = hn::LoadU(d, lanes + lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) {
      const auto between = hn::Sub(hn::LoadU(d, means + column), hn::Set(d, mean));
      sum = hn::Add(sum, hn::Mul(hn::Mul(hn::LoadU(d, counts + column), between), between));
    }
    hn::StoreU(sum, d, lanes + lane);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MergeChunkColumns);
HWY_EXPORT(MergeLastChunkColumns);
HWY_EXPORT(SumMoments);
HWY_EXPORT(SumBetween);

namespace {

// In pairs, which do not wait for each other.
template <class Join>
double Reduce(const double (&lanes)[ColumnBlock::kColumns], Join join) {
  double joined[ColumnBlock::kColumns / 2];
  for (size_t i = 0; i < std::size(joined); ++i) joined[i] = join(lanes[i], lanes[i + std::size(joined)]);
  for (size_t half = std::size(joined) / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) joined[i] = join(joined[i], joined[i + half]);
  }
  return joined[0];
}

double SumOf(const double (&lanes)[ColumnBlock::kColumns]) { return Reduce(lanes, std::plus<double>()); }

double MaxOf(const double (&lanes)[ColumnBlock::kColumns]) {
  return Reduce(lanes, [](double a, double b) { return std::max(a, b); });
}

MomentTotals TotalsOf(const MomentLanes& sums) {
  return {.count = SumOf(sums.lanes[kTotalCount]),
          .sum = SumOf(sums.lanes[kTotalSum]),
          .deviations = SumOf(sums.lanes[kTotalDeviations]),
          .mean_squares = SumOf(sums.lanes[kTotalMeanSquares]),
          .max_constant = std::sqrt(MaxOf(sums.lanes[kTotalMaxConstant]))};
}

}  // namespace

void MergeColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments, ColumnTotals& totals) {
  HWY_DYNAMIC_DISPATCH(MergeChunkColumns)(chunk, range, moments, totals);
}

double ColumnTotals::Sum(ColumnTotal total) const { return SumOf(lanes[total]); }

double ColumnTotals::Max(ColumnTotal total) const { return MaxOf(lanes[total]); }

MomentTotals TotalsOf(const ChannelMoments& moments) {
  MomentLanes sums;
  HWY_DYNAMIC_DISPATCH(SumMoments)(moments, sums);
  return TotalsOf(sums);
}

MomentTotals MergeLastColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                              ColumnTotals& totals) {
  MomentLanes sums;
  HWY_DYNAMIC_DISPATCH(MergeLastChunkColumns)(chunk, range, moments, totals, sums);
  return TotalsOf(sums);
}

double DeviationsOfMeans(const ChannelMoments& moments, double mean) {
  double lanes[ColumnBlock::kColumns] = {};
  HWY_DYNAMIC_DISPATCH(SumBetween)(moments, mean, lanes);
  return SumOf(lanes);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
