#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_moments.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using WideD = hn::ScalableTag<double>;
template <class D>
using OneLane = hn::CappedTag<hn::TFromD<D>, 1>;

// Calls each(d, column) for the columns, as vectors that lie in one block and, where there is none, one by one.
template <class D, class Each>
HWY_INLINE void ForEachVector(D d, size_t begin, size_t end, Each each) {
  for (size_t column = begin; column < end;) {
    if (column % hn::Lanes(d) == 0 && column + hn::Lanes(d) <= end) {
      each(d, column);
      column += hn::Lanes(d);
    } else {
      each(OneLane<D>(), column);
      ++column;
    }
  }
}

template <typename T>
HWY_INLINE T* At(ColumnBlock<T>* blocks, size_t column, size_t plane) {
  return blocks[column / ColumnBlock<T>::kColumns].planes[plane] + column % ColumnBlock<T>::kColumns;
}

// A plane of the chunk, and of those before it.
template <class D>
HWY_INLINE hn::Vec<D> LoadChunk(D d, const ColumnSums& sums, size_t column, size_t plane) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), At(sums.chunk, column, plane)));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const ColumnSums& sums, size_t column, size_t plane) {
  return hn::LoadU(d, At(sums.wide, column, plane));
}

// Which rows columns have sums of: those of the chunk, those before it, or both.
enum class Parts { kChunk, kWide, kBoth };

// Calls visit(std::integral_constant<Parts, ...>) for the parts of `range`.
template <typename Visit>
HWY_INLINE void VisitParts(const ColumnRange& range, Visit visit) {
  if (range.wide_rows == 0) {
    visit(std::integral_constant<Parts, Parts::kChunk>());
  } else if (range.chunk_rows == 0) {
    visit(std::integral_constant<Parts, Parts::kWide>());
  } else {
    visit(std::integral_constant<Parts, Parts::kBoth>());
  }
}

// A plane that is not about a first value, in all chunks.
template <Parts kParts, class D>
HWY_INLINE hn::Vec<D> Term(D d, const ColumnSums& sums, size_t column, size_t plane) {
  if constexpr (kParts == Parts::kChunk) {
    return LoadChunk(d, sums, column, plane);
  } else if constexpr (kParts == Parts::kWide) {
    return LoadWide(d, sums, column, plane);
  } else {
    const auto before = LoadWide(d, sums, column, plane);
    const auto added = LoadChunk(d, sums, column, plane);
    return plane == kMaxError ? hn::Max(before, added) : hn::Add(before, added);
  }
}

// The sums about a first value, in binary64.
template <Parts kParts, class D>
struct WideSums {
  hn::Vec<D> first, sum, squares;

  // Those of the planes from `plane` on, in all chunks.
  HWY_INLINE WideSums(const ColumnSums& sums, size_t column, size_t plane, double chunk_rows) {
    const D d;
    if constexpr (kParts == Parts::kChunk) {
      first = LoadChunk(d, sums, column, plane);
      sum = LoadChunk(d, sums, column, plane + 1);
      squares = LoadChunk(d, sums, column, plane + 2);
    } else {
      first = LoadWide(d, sums, column, plane);
      sum = LoadWide(d, sums, column, plane + 1);
      squares = LoadWide(d, sums, column, plane + 2);
    }
    if constexpr (kParts == Parts::kBoth) {
      // About the first value of all in place of the chunk's.
      const auto chunk_sum = LoadChunk(d, sums, column, plane + 1);
      const auto shift = hn::Sub(LoadChunk(d, sums, column, plane), first);
      const auto shifts = hn::Mul(shift, hn::Set(d, chunk_rows));
      sum = hn::Add(sum, hn::Add(chunk_sum, shifts));
      const auto added = hn::Mul(shift, hn::Add(hn::Add(chunk_sum, chunk_sum), shifts));
      squares = hn::Add(squares, hn::Add(LoadChunk(d, sums, column, plane + 2), added));
    }
  }

  HWY_INLINE void Store(const ColumnSums& sums, size_t column, size_t plane) const {
    const D d;
    hn::StoreU(first, d, At(sums.wide, column, plane));
    hn::StoreU(sum, d, At(sums.wide, column, plane + 1));
    hn::StoreU(squares, d, At(sums.wide, column, plane + 2));
  }

  // The magnitudes of the values.
  HWY_INLINE hn::Vec<D> Size() const { return hn::Add(hn::Abs(first), hn::Abs(sum)); }

  HWY_INLINE void StoreMoments(double rows, double* means, double* deviations) const {
    const D d;
    const auto mean = hn::Div(sum, hn::Set(d, rows));
    hn::StoreU(hn::Add(first, mean), d, means);
    hn::StoreU(hn::Max(hn::Zero(d), hn::Sub(squares, hn::Mul(sum, mean))), d, deviations);
  }
};

template <class D>
HWY_INLINE void TakeLargest(D d, hn::Vec<D> v, double& largest) {
  largest = std::max(largest, hn::GetLane(hn::MaxOfLanes(d, v)));
}

}  // namespace

void AddToWide(const ColumnSums& sums, const ColumnRange& range) {
  VisitParts(range, [sums, range](auto parts) HWY_ATTR {
    constexpr Parts kParts = decltype(parts)::value;
    ForEachVector(WideD(), range.begin, range.end, [&](auto d, size_t column) HWY_ATTR {
      for (const ColumnPlane plane : {kFirst, kFirstError}) {
        WideSums<kParts, decltype(d)>(sums, column, plane, range.chunk_rows).Store(sums, column, plane);
      }
      for (const ColumnPlane plane : {kAbsError, kCross, kMaxError}) {
        hn::StoreU(Term<kParts>(d, sums, column, plane), d, At(sums.wide, column, plane));
      }
    });
  });
}

void TakeMoments(const ColumnSums& sums, const ColumnRange& range, ChannelMoments& moments, double* terms,
                 size_t stride, ColumnExtremes& extremes) {
  const double rows = range.wide_rows + range.chunk_rows;
  VisitParts(range, [&, sums, range](auto parts) HWY_ATTR {
    constexpr Parts kParts = decltype(parts)::value;
    ForEachVector(WideD(), range.begin, range.end, [&](auto d, size_t column) HWY_ATTR {
      const WideSums<kParts, decltype(d)> value(sums, column, kFirst, range.chunk_rows);
      const WideSums<kParts, decltype(d)> error(sums, column, kFirstError, range.chunk_rows);
      hn::StoreU(hn::Set(d, rows), d, moments.plane(kCount) + column);
      value.StoreMoments(rows, moments.plane(kMean) + column, moments.plane(kDeviations) + column);
      error.StoreMoments(rows, moments.plane(kErrorMean) + column, moments.plane(kErrorDeviations) + column);

      for (size_t term = 0; term < kColumnPlanes - kAbsError; ++term) {
        hn::StoreU(Term<kParts>(d, sums, column, kAbsError + term), d, terms + term * stride + column);
      }

      const auto all = hn::Add(hn::Add(value.Size(), value.squares), hn::Add(error.Size(), error.squares));
      const auto infinity = hn::Set(d, std::numeric_limits<double>::infinity());
      TakeLargest(d, hn::IfThenElse(hn::Lt(all, infinity), all, infinity), extremes.largest);
      TakeLargest(d, value.squares, extremes.squares);
      TakeLargest(d, error.squares, extremes.error_squares);
      TakeLargest(d, value.Size(), extremes.values);
      TakeLargest(d, error.Size(), extremes.errors);
    });
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(AddToWide);
HWY_EXPORT(TakeMoments);

void WidenColumns(const ColumnSums& sums, const ColumnRange& range) { HWY_DYNAMIC_DISPATCH(AddToWide)(sums, range); }

void MeasureColumns(const ColumnSums& sums, const ColumnRange& range, ChannelMoments& moments, double* terms,
                    size_t stride, ColumnExtremes& extremes) {
  HWY_DYNAMIC_DISPATCH(TakeMoments)(sums, range, moments, terms, stride, extremes);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
