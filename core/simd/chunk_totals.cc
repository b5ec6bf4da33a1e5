#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/chunk_totals.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/column_totals-inl.h"

// What most sequences of a few tokens take.
HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using DD = hn::ScalableTag<double>;

// Sums the columns of a chunk that lie in the lanes from `lane` on.
HWY_INLINE void SumColumns(const ColumnBlock* chunk, const ColumnRange& range, size_t lane, double* means,
                           ColumnTotals& totals, MomentLanes& moments) {
  const DD d;
  const auto rows = hn::Set(d, range.rows);
  const size_t blocks = ColumnBlock::CountFor(range.end);
  ChunkSums<DD> sums(range, lane);
  MomentSums<DD> moment_sums(lane);
  for (size_t i = 0; i < blocks; ++i) {
    Moments<DD> errors;
    const Moments<DD> values = sums.Add(chunk[i], errors);
    sums.Add(kErrorDeviations, errors.deviations);
    moment_sums.Add(rows, values);
    hn::StoreU(values.mean, d, means + i * ColumnBlock::kColumns + lane);
  }
  sums.Store(totals);
  moment_sums.Store(moments);
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

// The sum of (mean - all)^2, each `rows` times.
HWY_INLINE double SumBetweenMeans(double* means, size_t columns, double rows, double all) {
  const DD d;
  for (; columns % ColumnBlock::kColumns != 0; ++columns) means[columns] = all;  // which adds nothing
  HWY_ALIGN double lanes[ColumnBlock::kColumns];
  for (size_t lane = 0; lane < ColumnBlock::kColumns; lane += hn::Lanes(d)) {
    auto sum = hn::Zero(d);
    for (size_t column = lane; column < columns; column += ColumnBlock::kColumns) {
      sum = hn::Add(sum, Between(d, hn::Set(d, rows), hn::LoadU(d, means + column), all));
    }
    hn::Store(sum, d, lanes + lane);
  }
  return SumOf(lanes);
}

}  // namespace

void SumChunk(const ColumnBlock* chunk, const ColumnRange& range, double* means, StretchTotals& totals) {
  ColumnTotals lanes;
  MomentLanes moments;
  // Copies with constants, of which the compiler makes loops without what is not there.
  ColumnRange usual = range;
  usual.again = usual.has_marks = usual.has_values = false;
  ColumnRange all = range;
  all.again = false;
  for (size_t lane = 0; lane < ColumnBlock::kColumns; lane += hn::Lanes(DD())) {
    if (range.has_marks || range.has_values) {
      SumColumns(chunk, all, lane, means, lanes, moments);
    } else {
      SumColumns(chunk, usual, lane, means, lanes, moments);
    }
  }
  totals.columns = SumLanes(moments);
  totals.columns.count = range.rows * static_cast<double>(range.end);
  SumLanes(lanes, range.has_marks, totals.of);
  totals.of[kTotalMaxError] = static_cast<double>(LargestError(chunk, ColumnBlock::CountFor(range.end)));
  totals.between_columns = SumBetweenMeans(means, range.end, range.rows, totals.columns.sum / totals.columns.count);
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
