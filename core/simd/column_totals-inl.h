// What columns of a chunk come to, and totals of that over columns, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_COLUMN_TOTALS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_COLUMN_TOTALS_INL_H_
#undef KVCOMPRESS_SIMD_COLUMN_TOTALS_INL_H_
#else
#define KVCOMPRESS_SIMD_COLUMN_TOTALS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Of the values, or the errors, of some columns.
template <class D>
struct Moments {
  hn::Vec<D> mean, deviations;
};

// Adds up columns of a chunk, as many at once as there are lanes, all of which lie in the same lanes of their blocks.
template <class D>
class ChunkSums {
 public:
  HWY_INLINE ChunkSums(const ColumnRange& range, size_t lane)
      : lane_(lane),
        again_(range.again),
        has_marks_(range.has_marks),
        has_values_(range.has_values),
        has_open_run_(static_cast<size_t>(range.rows) % ColumnBlock::kRunRows != 0) {
    per_row_ = hn::Set(D(), 1 / range.rows);
    for (V& total : totals_) total = hn::Zero(D());
  }

  HWY_INLINE void Load(const ColumnTotals& totals) {
    for (size_t i = 0; i < kColumnTotals; ++i) totals_[i] = hn::LoadU(D(), totals.lanes[i] + lane_);
  }
  HWY_INLINE void Store(ColumnTotals& totals) const {
    for (size_t i = 0; i < kColumnTotals; ++i) hn::StoreU(totals_[i], D(), totals.lanes[i] + lane_);
  }

  // Adds columns to all totals but kErrorDeviations and kTotalMaxError. Returns the moments of the chunk's values, and
  // its errors' in `errors`.
  HWY_INLINE Moments<D> Add(const ColumnBlock& block, Moments<D>& errors) {
    const V first = Plane(block, kFirst), sum = Plane(block, kSum);
    const V energy = Runs(block, kEnergy, kRunEnergy);
    errors = again_ ? About(Plane(block, kFirstError), Plane(block, kErrorSum), Plane(block, kErrorSquares))
                    : About(hn::Zero(D()), Plane(block, kErrorSum), energy);
    Add(kTotalEnergy, energy);
    Add(kTotalAbsError, Runs(block, kAbsError, kRunAbsError));
    Add(kTotalCross, Runs(block, kCross, kRunCross));
    Add(kTotalMagnitude, hn::Add(hn::Abs(first), hn::Abs(sum)));
    if (has_values_) Add(kTotalValueEnergy, Runs(block, kValueEnergy, kRunValueEnergy));
    if (has_marks_) {
      Add(kTotalVaries, Plane(block, kVaries));
      Add(kTotalErrorVaries, Plane(block, kErrorVaries));
    }
    return About(first, sum, Plane(block, kSquares));
  }
  HWY_INLINE void Add(ColumnTotal total, hn::Vec<D> sum) { totals_[total] = hn::Add(totals_[total], sum); }
  HWY_INLINE void AddMaxError(const ColumnBlock& block) {
    totals_[kTotalMaxError] = hn::Max(totals_[kTotalMaxError], Plane(block, kMaxError));
  }

 private:
  using V = hn::Vec<D>;

  HWY_INLINE V Plane(const ColumnBlock& block, ColumnPlane plane) const {
    return hn::PromoteTo(D(), hn::LoadU(hn::Rebind<float, D>(), block.planes[plane] + lane_));
  }
  // Of the runs that have ended, and of the one that has not.
  HWY_INLINE V Runs(const ColumnBlock& block, ColumnPlane ended, ColumnPlane open) const {
    return has_open_run_ ? hn::Add(Plane(block, ended), Plane(block, open)) : Plane(block, ended);
  }
  // Of numbers whose sums about the first of them these are.
  HWY_INLINE Moments<D> About(V first, V sum, V squares) const {
    const V from_first = hn::Mul(sum, per_row_);
    const V deviations = hn::Max(hn::Zero(D()), hn::Sub(squares, hn::Mul(sum, from_first)));
    return {hn::Add(first, from_first), deviations};
  }

  const size_t lane_;
  const bool again_, has_marks_, has_values_, has_open_run_;
  V per_row_;
  V totals_[kColumnTotals];
};

// Sums of columns' moments, in the same lanes.
template <class D>
class MomentSums {
 public:
  HWY_INLINE explicit MomentSums(size_t lane) : lane_(lane) {
    for (V& sum : sums_) sum = hn::Zero(D());
  }

  HWY_INLINE void Load(const MomentLanes& sums) {
    for (size_t i = 0; i < kMomentTotals; ++i) sums_[i] = hn::LoadU(D(), sums.lanes[i] + lane_);
  }
  HWY_INLINE void Store(MomentLanes& sums) const {
    for (size_t i = 0; i < kMomentTotals; ++i) hn::StoreU(sums_[i], D(), sums.lanes[i] + lane_);
  }

  // Adds columns to all totals but kTotalCount.
  HWY_INLINE void Add(hn::Vec<D> count, const Moments<D>& moments) {
    const V mean = moments.mean, deviations = moments.deviations;
    const V sum = hn::Mul(count, mean);
    Add(kTotalSum, sum);
    Add(kTotalDeviations, deviations);
    Add(kTotalMeanSquares, hn::Mul(sum, mean));
    const V squares = hn::Mul(hn::Mul(mean, mean), count);
    const V constant = hn::IfThenElseZero(hn::Gt(deviations, hn::Zero(D())), hn::Div(squares, deviations));
    sums_[kTotalMaxConstant] = hn::Max(sums_[kTotalMaxConstant], constant);
  }

  HWY_INLINE void Add(MomentTotal total, hn::Vec<D> sum) { sums_[total] = hn::Add(sums_[total], sum); }

 private:
  using V = hn::Vec<D>;

  const size_t lane_;
  V sums_[kMomentTotals];
};

// The sum of (mean - `all`)^2 over a column's values.
template <class D, class V>
HWY_INLINE V Between(D d, V count, V mean, double all) {
  const V between = hn::Sub(mean, hn::Set(d, all));
  return hn::Mul(hn::Mul(count, between), between);
}

// Lanes are joined in pairs, 8 apart, then 4, 2 and 1.
using Pair = hn::Full128<double>;

template <class D, class V, class Join>
HWY_INLINE hn::Vec<Pair> FoldVector([[maybe_unused]] D d, V v, Join join) {
  if constexpr (hn::MaxLanes(D()) == 2) {
    return v;
  } else {
    const hn::Half<D> half;
    return FoldVector(half, join(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), join);
  }
}
template <class Join>
HWY_INLINE hn::Vec<Pair> Fold(const double* lanes, Join join) {
  const hn::ScalableTag<double> d;
  constexpr size_t kVectors = ColumnBlock::kColumns / hn::MaxLanes(hn::ScalableTag<double>());
  hn::Vec<decltype(d)> v[kVectors];
  for (size_t i = 0; i < kVectors; ++i) v[i] = hn::Load(d, lanes + i * hn::Lanes(d));
  for (size_t half = kVectors / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) v[i] = join(v[i], v[i + half]);
  }
  return FoldVector(d, v[0], join);
}

// The sums of two sets of lanes.
HWY_INLINE void SumTwo(const double* first, const double* second, double* sums) {
  const Pair pair;
  const auto add = [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); };
  const auto a = Fold(first, add), b = Fold(second, add);
  hn::StoreU(hn::Add(hn::InterleaveLower(pair, a, b), hn::InterleaveUpper(pair, a, b)), pair, sums);
}

HWY_INLINE double SumOf(const double* lanes) {
  double sums[2];
  SumTwo(lanes, lanes, sums);
  return sums[0];
}

HWY_INLINE double MaxOf(const double* lanes) {
  const auto max = Fold(lanes, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
  return hn::GetLane(hn::MaxOfLanes(Pair(), max));
}

// All totals but kTotalMaxError, whose marks may be known to be 0.
HWY_INLINE void SumLanes(const ColumnTotals& totals, bool has_marks, double* of) {
  of[kTotalVaries] = of[kTotalErrorVaries] = 0;
  for (size_t i = 0; i < (has_marks ? kTotalMaxError : kTotalVaries); i += 2) {
    SumTwo(totals.lanes[i], totals.lanes[i + 1], of + i);
  }
}

HWY_INLINE MomentTotals SumLanes(const MomentLanes& moments) {
  double sums[kTotalMaxConstant];
  for (size_t i = 0; i < kTotalMaxConstant; i += 2) SumTwo(moments.lanes[i], moments.lanes[i + 1], sums + i);
  return {.count = sums[kTotalCount],
          .sum = sums[kTotalSum],
          .deviations = sums[kTotalDeviations],
          .mean_squares = sums[kTotalMeanSquares],
          .max_constant = std::sqrt(MaxOf(moments.lanes[kTotalMaxConstant]))};
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
