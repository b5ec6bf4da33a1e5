#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/chunk_totals.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "core/simd/token_columns.h"

// What most sequences of a few tokens take: the sums of token_moments.cc, in the same order.
HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using DD = hn::ScalableTag<double>;
using VD = hn::Vec<DD>;
using Pair = hn::Full128<double>;

// Sums over a chunk's columns, in the lanes of ColumnTotals: the last few are of some values alone.
enum ChunkSum {
  kChunkErrorDeviations,
  kChunkEnergy,
  kChunkAbsError,
  kChunkCross,
  kChunkMagnitude,
  kChunkSum,
  kChunkDeviations,
  kChunkMeanSquares,
  kUsualChunkSums,
  kChunkValueEnergy = kUsualChunkSums,
  kChunkVaries,
  kChunkErrorVaries,
  kChunkSums = kChunkErrorVaries + 2  // an even number
};

struct ChunkLanes {
  HWY_ALIGN double sums[kChunkSums][ColumnBlock::kColumns];
  HWY_ALIGN double constants[ColumnBlock::kColumns];
};

// Adds the columns of a chunk that lie in the lanes from `lane` on, as ColumnMerger and MomentSums do.
template <bool kAll>
HWY_INLINE void SumChunkLanes(const ColumnBlock* chunk, const ColumnRange& range, size_t lane, double* means,
                              ChunkLanes& lanes) {
  const DD d;
  const VD count = hn::Set(d, range.rows);
  const VD per_row = hn::Set(d, 1 / range.rows);
  constexpr size_t kSums = kAll ? kChunkSums : kUsualChunkSums;
  VD constants = hn::Zero(d);
  VD sums[kSums];
  for (VD& sum : sums) sum = hn::Zero(d);
  const size_t blocks = ColumnBlock::CountFor(range.end);
  const bool has_open_run = static_cast<size_t>(range.rows) % ColumnBlock::kRunRows != 0;
  for (size_t i = 0; i < blocks; ++i) {
    const auto load = [&](ColumnPlane plane) HWY_ATTR {
      return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, DD>(), chunk[i].planes[plane] + lane));
    };
    const auto load_runs = [&](ColumnPlane ended, ColumnPlane open)
                               HWY_ATTR { return has_open_run ? hn::Add(load(ended), load(open)) : load(ended); };
    const auto add = [&](ChunkSum sum, VD v) HWY_ATTR { sums[sum] = hn::Add(sums[sum], v); };
    const auto within = [&](VD squares, VD sum, VD per_row_sum)
                            HWY_ATTR { return hn::Max(hn::Zero(d), hn::Sub(squares, hn::Mul(sum, per_row_sum))); };
    const VD first = load(kFirst), sum = load(kSum), error_sum = load(kErrorSum);
    const VD energy = load_runs(kEnergy, kRunEnergy);
    const VD from_first = hn::Mul(sum, per_row);
    const VD mean = hn::Add(first, from_first);
    const VD deviations = within(load(kSquares), sum, from_first);
    hn::StoreU(mean, d, means + i * ColumnBlock::kColumns + lane);
    add(kChunkErrorDeviations, within(energy, error_sum, hn::Mul(error_sum, per_row)));
    add(kChunkEnergy, energy);
    add(kChunkAbsError, load_runs(kAbsError, kRunAbsError));
    add(kChunkCross, load_runs(kCross, kRunCross));
    add(kChunkMagnitude, hn::Add(hn::Abs(first), hn::Abs(sum)));
    const VD total = hn::Mul(count, mean);
    add(kChunkSum, total);
    add(kChunkDeviations, deviations);
    add(kChunkMeanSquares, hn::Mul(total, mean));
    const VD squares = hn::Mul(hn::Mul(mean, mean), count);
    const auto varies = hn::Gt(deviations, hn::Zero(d));
    constants = hn::Max(constants, hn::IfThenElseZero(varies, hn::Div(squares, deviations)));
    if constexpr (kAll) {
      if (range.has_values) add(kChunkValueEnergy, load_runs(kValueEnergy, kRunValueEnergy));
      if (range.has_marks) add(kChunkVaries, load(kVaries));
      if (range.has_marks) add(kChunkErrorVaries, load(kErrorVaries));
    }
  }
  for (size_t i = 0; i < kSums; ++i) hn::Store(sums[i], d, lanes.sums[i] + lane);
  hn::Store(constants, d, lanes.constants + lane);
}

// Joins lanes 8 apart, then 4, then 2, as Reduce does.
template <class D, class Join>
HWY_INLINE hn::Vec<Pair> FoldVector([[maybe_unused]] D d, hn::Vec<D> v, Join join) {
  if constexpr (hn::MaxLanes(D()) == 2) {
    return v;
  } else {
    const hn::Half<D> half;
    return FoldVector(half, join(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), join);
  }
}
template <class Join>
HWY_INLINE hn::Vec<Pair> Fold(const double* lanes, Join join) {
  const DD d;
  constexpr size_t kVectors = ColumnBlock::kColumns / hn::MaxLanes(DD());
  VD v[kVectors];
  for (size_t i = 0; i < kVectors; ++i) v[i] = hn::Load(d, lanes + i * hn::Lanes(d));
  for (size_t half = kVectors / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) v[i] = join(v[i], v[i + half]);
  }
  return FoldVector(d, v[0], join);
}

// Two sums at once.
HWY_INLINE hn::Vec<Pair> SumTwo(const double* first, const double* second) {
  const Pair pair;
  const auto add = [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); };
  const auto a = Fold(first, add), b = Fold(second, add);
  return hn::Add(hn::InterleaveLower(pair, a, b), hn::InterleaveUpper(pair, a, b));
}

HWY_INLINE float LargestError(const ColumnBlock* chunk, size_t blocks) {
  const hn::ScalableTag<float> d;
  auto largest = hn::Zero(d);
  for (size_t i = 0; i < blocks; ++i) {
    for (size_t lane = 0; lane < ColumnBlock::kColumns; lane += hn::Lanes(d)) {
      largest = hn::Max(largest, hn::Load(d, chunk[i].planes[kMaxError] + lane));
    }
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// The sum of (mean - all)^2, each `rows` times, as SumBetween and SumOf make it.
HWY_INLINE double SumBetweenMeans(double* means, size_t columns, double rows, double all) {
  const DD d;
  for (; columns % ColumnBlock::kColumns != 0; ++columns) means[columns] = all;  // which adds nothing
  HWY_ALIGN double lanes[ColumnBlock::kColumns];
  for (size_t lane = 0; lane < ColumnBlock::kColumns; lane += hn::Lanes(d)) {
    VD sum = hn::Zero(d);
    for (size_t column = lane; column < columns; column += ColumnBlock::kColumns) {
      const VD between = hn::Sub(hn::LoadU(d, means + column), hn::Set(d, all));
      sum = hn::Add(sum, hn::Mul(hn::Mul(hn::Set(d, rows), between), between));
    }
    hn::Store(sum, d, lanes + lane);
  }
  return hn::GetLane(SumTwo(lanes, lanes));
}

}  // namespace

void SumChunk(const ColumnBlock* chunk, const ColumnRange& range, double* means, StretchTotals& totals) {
  ChunkLanes lanes;
  const bool all = range.has_marks || range.has_values;
  for (size_t lane = 0; lane < ColumnBlock::kColumns; lane += hn::Lanes(DD())) {
    all ? SumChunkLanes<true>(chunk, range, lane, means, lanes)
        : SumChunkLanes<false>(chunk, range, lane, means, lanes);
  }
  double sums[kChunkSums] = {};
  for (size_t i = 0; i < (all ? kChunkSums : kUsualChunkSums); i += 2) {
    hn::StoreU(SumTwo(lanes.sums[i], lanes.sums[i + 1]), Pair(), sums + i);
  }
  HWY_ALIGN double constants[2];
  hn::Store(Fold(lanes.constants, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); }), Pair(), constants);
  const double count = range.rows * static_cast<double>(range.end);
  totals.columns = {.count = count,
                    .sum = sums[kChunkSum],
                    .deviations = sums[kChunkDeviations],
                    .mean_squares = sums[kChunkMeanSquares],
                    .max_constant = std::sqrt(std::max(constants[0], constants[1]))};
  totals.of[kErrorDeviations] = sums[kChunkErrorDeviations];
  totals.of[kTotalEnergy] = sums[kChunkEnergy];
  totals.of[kTotalAbsError] = sums[kChunkAbsError];
  totals.of[kTotalCross] = sums[kChunkCross];
  totals.of[kTotalValueEnergy] = sums[kChunkValueEnergy];
  totals.of[kTotalMaxError] = static_cast<double>(LargestError(chunk, ColumnBlock::CountFor(range.end)));
  totals.of[kTotalMagnitude] = sums[kChunkMagnitude];
  totals.of[kTotalVaries] = sums[kChunkVaries];
  totals.of[kTotalErrorVaries] = sums[kChunkErrorVaries];
  totals.between_columns = SumBetweenMeans(means, range.end, range.rows, sums[kChunkSum] / count);
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(SumChunk);

bool IsOneChunk(const ColumnRange& range) {
  return range.rows_before == 0 && !range.again && range.begin == 0 && range.rows > 0;
}

StretchTotals TotalsOfChunk(const ColumnBlock* chunk, const ColumnRange& range, std::vector<double>& means) {
  const size_t columns = ColumnBlock::CountFor(range.end) * ColumnBlock::kColumns;
  if (means.size() < columns) means.resize(columns);
  StretchTotals totals;
  HWY_DYNAMIC_DISPATCH(SumChunk)(chunk, range, means.data(), totals);
  return totals;
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
