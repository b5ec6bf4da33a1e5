#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_moments.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <iterator>

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
        lane_(lane),
        is_first_(range.rows_before == 0),
        again_(range.again) {
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
    const V energy = LoadRuns(block, kEnergy, kRunEnergy);
    const V first_error = again_ ? Load(block, kFirstError) : hn::Zero(d);
    const V error_squares = again_ ? Load(block, kErrorSquares) : energy;
    hn::StoreU(hn::Add(Before(deviations_ + column), deviations), d, deviations_ + column);
    hn::StoreU(count_, d, counts_ + column);
    Add(kErrorDeviations, MergeMean(first_error, Load(block, kErrorSum), error_squares, error_means_ + column));
    Add(kTotalEnergy, energy);
    Add(kTotalAbsError, LoadRuns(block, kAbsError, kRunAbsError));
    Add(kTotalCross, LoadRuns(block, kCross, kRunCross));
    Add(kTotalValueEnergy, LoadRuns(block, kValueEnergy, kRunValueEnergy));
    totals_[kTotalMaxError] = hn::Max(totals_[kTotalMaxError], Load(block, kMaxError));
    Add(kTotalMagnitude, hn::Add(hn::Abs(first), hn::Abs(sum)));
    Add(kTotalVaries, Load(block, kVaries));
    Add(kTotalErrorVaries, Load(block, kErrorVaries));
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

  // Merges the mean, and returns by how much the deviations grow: Chan, Golub, LeVeque 1983.
  HWY_INLINE V MergeMean(V first, V sum, V squares, double* means) const {
    const D d;
    const V from_first = hn::Mul(sum, per_row_);
    const V within = hn::Max(hn::Zero(d), hn::Sub(squares, hn::Mul(sum, from_first)));
    const V before = Before(means);
    const V between = hn::Sub(hn::Add(first, from_first), before);
    hn::StoreU(hn::Add(before, hn::Mul(between, share_)), d, means);
    return hn::Add(within, hn::Mul(hn::Mul(between, between), weight_));
  }

  const ColumnBlock* const chunk_;
  double *const counts_, *const means_, *const deviations_, *const error_means_;
  const size_t lane_;
  const bool is_first_;
  const bool again_;
  V count_, per_row_, share_, weight_;
  V totals_[kColumnTotals];
};

// Sums of moments, in the same lanes.
template <class D>
class MomentSums {
 public:
  HWY_INLINE MomentSums(const ChannelMoments& moments, const MomentLanes& sums, size_t lane)
      : counts_(moments.plane(kCount)),
        means_(moments.plane(kMean)),
        deviations_(moments.plane(kDeviations)),
        lane_(lane) {
    for (size_t i = 0; i < kMomentTotals; ++i) sums_[i] = hn::LoadU(D(), sums.lanes[i] + lane);
  }

  HWY_INLINE void Add(size_t column) {
    const D d;
    const V count = hn::LoadU(d, counts_ + column);
    Add(kTotalCount, count);
    const V mean = hn::LoadU(d, means_ + column);
    const V sum = hn::Mul(count, mean);
    Add(kTotalSum, sum);
    Add(kTotalDeviations, hn::LoadU(d, deviations_ + column));
    Add(kTotalMeanSquares, hn::Mul(sum, mean));
  }

  HWY_INLINE void Store(MomentLanes& sums) const {
    for (size_t i = 0; i < kMomentTotals; ++i) hn::StoreU(sums_[i], D(), sums.lanes[i] + lane_);
  }

 private:
  using V = hn::Vec<D>;

  HWY_INLINE void Add(MomentTotal total, V sum) { sums_[total] = hn::Add(sums_[total], sum); }

  const double *const counts_, *const means_, *const deviations_;
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

void SumMoments(const ChannelMoments& moments, MomentLanes& sums) {
  VisitColumns(0, moments.size(), [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    MomentSums<decltype(d)> own(moments, sums, lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) own.Add(column);
    own.Store(sums);
  });
}

void FindMaxConstant(const ChannelMoments& moments, double* lanes) {
  VisitColumns(0, moments.size(), [&](auto d, size_t lane, size_t begin, size_t end) HWY_ATTR {
    auto most = hn::LoadU(d, lanes + lane);
    for (size_t column = begin; column < end; column += ColumnBlock::kColumns) {
      const auto mean = hn::LoadU(d, moments.plane(kMean) + column);
      const auto squares = hn::Mul(hn::Mul(mean, mean), hn::LoadU(d, moments.plane(kCount) + column));
      const auto deviations = hn::LoadU(d, moments.plane(kDeviations) + column);
      most = hn::Max(most, hn::IfThenElseZero(hn::Gt(deviations, hn::Zero(d)), hn::Div(squares, deviations)));
    }
    hn::StoreU(most, d, lanes + lane);
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
HWY_EXPORT(SumMoments);
HWY_EXPORT(SumBetween);
HWY_EXPORT(FindMaxConstant);

namespace {

// In pairs, which do not wait for each other.
double SumOf(const double (&lanes)[ColumnBlock::kColumns]) {
  double sums[ColumnBlock::kColumns / 2];
  for (size_t i = 0; i < std::size(sums); ++i) sums[i] = lanes[i] + lanes[i + std::size(sums)];
  for (size_t half = std::size(sums) / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

double MaxOf(const double (&lanes)[ColumnBlock::kColumns]) {
  return *std::max_element(std::begin(lanes), std::end(lanes));
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
  return {.count = SumOf(sums.lanes[kTotalCount]),
          .sum = SumOf(sums.lanes[kTotalSum]),
          .deviations = SumOf(sums.lanes[kTotalDeviations]),
          .mean_squares = SumOf(sums.lanes[kTotalMeanSquares])};
}

double MaxConstant(const ChannelMoments& moments) {
  double lanes[ColumnBlock::kColumns] = {};
  HWY_DYNAMIC_DISPATCH(FindMaxConstant)(moments, lanes);
  return std::sqrt(MaxOf(lanes));
}

double DeviationsOfMeans(const ChannelMoments& moments, double mean) {
  double lanes[ColumnBlock::kColumns] = {};
  HWY_DYNAMIC_DISPATCH(SumBetween)(moments, mean, lanes);
  return SumOf(lanes);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
