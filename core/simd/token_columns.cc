#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_columns.cc"
#include "core/simd/token_columns.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/half.h"
#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// ---- Rows

#if !HWY_NATIVE_FMA
// a b + c, rounded once, of as many lanes as there are of binary64.
template <class D, class V>
HWY_INLINE V FusedMulAddWide(D d, V a, V b, V c) {
  const hn::Rebind<double, D> wide;
  const hn::RebindToSigned<decltype(wide)> bits;
  const auto product = hn::Mul(hn::PromoteTo(wide, a), hn::PromoteTo(wide, b));  // exact
  const auto added = hn::PromoteTo(wide, c);
  const auto sum = hn::Add(product, added);
  // What the sum lost (Knuth's two-sum). To be rounded once more it has to be rounded to odd: then the last digit tells
  // that there was something behind it.
  const auto back = hn::Sub(sum, product);
  const auto lost = hn::Add(hn::Sub(product, hn::Sub(sum, back)), hn::Sub(added, back));
  const auto zero = hn::Zero(wide);
  const auto sum_bits = hn::BitCast(bits, sum);
  const auto is_even = hn::Eq(hn::And(sum_bits, hn::Set(bits, 1)), hn::Zero(bits));
  const auto inwards = hn::Xor(hn::Lt(sum_bits, hn::Zero(bits)), hn::RebindMask(bits, hn::Lt(lost, zero)));
  const auto is_inexact = hn::RebindMask(bits, hn::Or(hn::Lt(lost, zero), hn::Gt(lost, zero)));
  const auto step = hn::IfThenElse(inwards, hn::Set(bits, -1), hn::Set(bits, 1));
  const auto odd = hn::Add(sum_bits, hn::IfThenElseZero(hn::And(is_even, is_inexact), step));
  return hn::DemoteTo(d, hn::BitCast(wide, odd));
}
#endif

// a b + c, rounded once, on targets that have no instruction for it, too.
template <class D, class V>
HWY_INLINE V FusedMulAdd([[maybe_unused]] D d, V a, V b, V c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  if constexpr (hn::MaxLanes(D()) == 1) {
    return FusedMulAddWide(d, a, b, c);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, FusedMulAddWide(half, hn::UpperHalf(half, a), hn::UpperHalf(half, b), hn::UpperHalf(half, c)),
                       FusedMulAddWide(half, hn::LowerHalf(half, a), hn::LowerHalf(half, b), hn::LowerHalf(half, c)));
  }
#endif
}

// The sums of one vector of columns: of each term one a lane, so that they are the same for vectors of any length.
template <DType kT, class D>
class Sums {
 public:
  using V = hn::Vec<D>;

  HWY_INLINE void Begin(const uint8_t* x, const float* errors) {
    const D d;
    first_ = LoadF32<kT>(d, x);
    first_error_ = hn::LoadU(d, errors);
    sum_ = squares_ = error_sum_ = error_squares_ = hn::Zero(d);
    abs_error_ = max_error_ = hn::Abs(first_error_);
    cross_ = hn::Mul(first_, first_error_);
  }
  HWY_INLINE void Load(const float* from, size_t stride) {
    const D d;
    first_ = hn::LoadU(d, from + kFirst * stride);
    sum_ = hn::LoadU(d, from + kSum * stride);
    squares_ = hn::LoadU(d, from + kSquares * stride);
    first_error_ = hn::LoadU(d, from + kFirstError * stride);
    error_sum_ = hn::LoadU(d, from + kErrorSum * stride);
    error_squares_ = hn::LoadU(d, from + kErrorSquares * stride);
    abs_error_ = hn::LoadU(d, from + kAbsError * stride);
    cross_ = hn::LoadU(d, from + kCross * stride);
    max_error_ = hn::LoadU(d, from + kMaxError * stride);
  }
  HWY_INLINE void StoreFirst(float* to, size_t stride) const {
    hn::StoreU(first_, D(), to + kFirst * stride);
    hn::StoreU(first_error_, D(), to + kFirstError * stride);
  }
  HWY_INLINE void StoreSums(float* to, size_t stride) const {
    const D d;
    hn::StoreU(sum_, d, to + kSum * stride);
    hn::StoreU(squares_, d, to + kSquares * stride);
    hn::StoreU(error_sum_, d, to + kErrorSum * stride);
    hn::StoreU(error_squares_, d, to + kErrorSquares * stride);
    hn::StoreU(abs_error_, d, to + kAbsError * stride);
    hn::StoreU(cross_, d, to + kCross * stride);
    hn::StoreU(max_error_, d, to + kMaxError * stride);
  }
  HWY_INLINE void Add(const uint8_t* x, const float* errors) {
    const D d;
    const V value = LoadF32<kT>(d, x);
    const V error = hn::LoadU(d, errors);
    const V deviation = hn::Sub(value, first_);
    const V error_deviation = hn::Sub(error, first_error_);
    const V magnitude = hn::Abs(error);
    // The same sum, on CPUs that convert and add in one place and multiply in another, by the idle one.
    sum_ = hn::MulAdd(deviation, hn::Set(d, 1.0f), sum_);
    error_sum_ = hn::Add(error_sum_, error_deviation);
    squares_ = FusedMulAdd(d, deviation, deviation, squares_);
    error_squares_ = FusedMulAdd(d, error_deviation, error_deviation, error_squares_);
    abs_error_ = hn::Add(abs_error_, magnitude);
    cross_ = FusedMulAdd(d, value, error, cross_);
    max_error_ = hn::Max(max_error_, magnitude);
  }

 private:
  V first_, sum_, squares_, first_error_, error_sum_, error_squares_, abs_error_, cross_, max_error_;
};

// AddRows for kVectors vectors of columns: as many as leave the additions of one row time until the next.
template <DType kT, class D, size_t kVectors>
HWY_INLINE void AddStrip(const ErrorRows& rows, size_t offset, bool begins, float* chunk, size_t stride) {
  constexpr size_t kSize = DTypeSize(kT);
  const size_t lanes = hn::Lanes(D());
  const uint8_t* x = static_cast<const uint8_t*>(rows.x) + offset * kSize;
  const float* errors = rows.errors + offset;
  Sums<kT, D> sums[kVectors];
  for (size_t k = 0; k < kVectors; ++k) {
    if (begins) {
      sums[k].Begin(x + k * lanes * kSize, errors + k * lanes);
      sums[k].StoreFirst(chunk + k * lanes, stride);
    } else {
      sums[k].Load(chunk + k * lanes, stride);
    }
  }
  for (size_t row = begins ? 1 : 0; row < rows.rows; ++row) {
    const size_t at = row * rows.columns;
    for (size_t k = 0; k < kVectors; ++k) {
      sums[k].Add(x + (at + k * lanes) * kSize, errors + at + k * lanes);
    }
  }
  for (size_t k = 0; k < kVectors; ++k) sums[k].StoreSums(chunk + k * lanes, stride);
}

template <DType kT>
HWY_INLINE void AddRowsAs(const ErrorRows& rows, bool begins, float* chunk, size_t stride) {
  // Registers hold the sums of so many vectors.
  constexpr size_t kVectors = KVC_TARGET_AVX512 ? 2 : 1;
  size_t i = 0;
  for (; i + kVectors * kLanes <= rows.columns; i += kVectors * kLanes) {
    AddStrip<kT, DF, kVectors>(rows, i, begins, chunk + i, stride);
  }
  for (; i + kLanes <= rows.columns; i += kLanes) AddStrip<kT, DF, 1>(rows, i, begins, chunk + i, stride);
  for (; i < rows.columns; ++i) AddStrip<kT, hn::CappedTag<float, 1>, 1>(rows, i, begins, chunk + i, stride);
}

// ---- Sums to moments

using WideD = hn::ScalableTag<double>;
template <class D>
using OneLane = hn::CappedTag<hn::TFromD<D>, 1>;

// Calls each(d, column) for vectors of columns, and of one column where those left are fewer.
template <class D, class Each>
HWY_INLINE void ForEachVector(D d, size_t begin, size_t end, Each each) {
  size_t column = begin;
  for (; column + hn::Lanes(d) <= end; column += hn::Lanes(d)) each(d, column);
  for (; column < end; ++column) each(OneLane<D>(), column);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const float* from) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), from));
}

// A plane that is not about a first value, in all chunks.
template <class D>
HWY_INLINE hn::Vec<D> Term(D d, const ColumnSums& sums, const ColumnRange& range, size_t column, size_t plane) {
  const auto chunk = LoadWide(d, sums.chunk + plane * sums.stride + column);
  if (range.wide_rows == 0) return chunk;
  const auto wide = hn::LoadU(d, sums.wide + plane * sums.stride + column);
  if (range.chunk_rows == 0) return wide;
  return plane == kMaxError ? hn::Max(wide, chunk) : hn::Add(wide, chunk);
}

// The sums about a first value, in binary64.
template <class D>
struct WideSums {
  hn::Vec<D> first, sum, squares;

  // Those of the planes from `plane` on, in all chunks.
  HWY_INLINE WideSums(const ColumnSums& sums, const ColumnRange& range, size_t column, size_t plane) {
    const D d;
    const float* chunk = sums.chunk + plane * sums.stride + column;
    const auto chunk_first = LoadWide(d, chunk);
    const auto chunk_sum = LoadWide(d, chunk + sums.stride);
    const auto chunk_squares = LoadWide(d, chunk + 2 * sums.stride);
    if (range.wide_rows == 0) {
      first = chunk_first;
      sum = chunk_sum;
      squares = chunk_squares;
      return;
    }
    const double* wide = sums.wide + plane * sums.stride + column;
    first = hn::LoadU(d, wide);
    sum = hn::LoadU(d, wide + sums.stride);
    squares = hn::LoadU(d, wide + 2 * sums.stride);
    if (range.chunk_rows == 0) return;
    // About the first value of all in place of the chunk's.
    const auto shift = hn::Sub(chunk_first, first);
    const auto shifts = hn::Mul(shift, hn::Set(d, range.chunk_rows));
    sum = hn::Add(sum, hn::Add(chunk_sum, shifts));
    const auto added = hn::Mul(shift, hn::Add(hn::Add(chunk_sum, chunk_sum), shifts));
    squares = hn::Add(squares, hn::Add(chunk_squares, added));
  }

  HWY_INLINE void Store(const ColumnSums& sums, size_t column, size_t plane) const {
    const D d;
    double* wide = sums.wide + plane * sums.stride + column;
    hn::StoreU(first, d, wide);
    hn::StoreU(sum, d, wide + sums.stride);
    hn::StoreU(squares, d, wide + 2 * sums.stride);
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

// ---- Values

template <DType kT>
bool LoadErrorsAs(const uint8_t* original, const uint8_t* decoded, size_t count, float* errors) {
  const DF df;
  constexpr size_t kSize = DTypeSize(kT);
  const VF most = hn::Set(df, MaxFinite(kT));  // of which NaN is not below either
  auto finite = hn::Eq(most, most);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VF x = LoadF32<kT>(df, original + i * kSize);
    const VF y = LoadF32<kT>(df, decoded + i * kSize);
    finite = hn::And(finite, hn::And(hn::Le(hn::Abs(x), most), hn::Le(hn::Abs(y), most)));
    hn::StoreU(hn::Sub(x, y), df, errors + i);
  }
  bool all_finite = hn::AllTrue(df, finite);
  for (; i < count; ++i) {
    const float x = LoadAsF32(kT, original, i);
    const float y = LoadAsF32(kT, decoded, i);
    errors[i] = x - y;
    all_finite = all_finite && std::isfinite(x) && std::isfinite(y);
  }
  return all_finite;
}

}  // namespace

void AddToColumns(const ErrorRows& rows, bool begins, const ColumnSums& sums, size_t column) {
  VisitDType(rows.dtype,
             [&](auto t) HWY_ATTR { AddRowsAs<decltype(t)::value>(rows, begins, sums.chunk + column, sums.stride); });
}

void AddToWide(const ColumnSums& sums, const ColumnRange& range) {
  ForEachVector(WideD(), range.begin, range.end, [&](auto d, size_t column) HWY_ATTR {
    for (const ColumnPlane plane : {kFirst, kFirstError}) {
      WideSums<decltype(d)>(sums, range, column, plane).Store(sums, column, plane);
    }
    for (const ColumnPlane plane : {kAbsError, kCross, kMaxError}) {
      hn::StoreU(Term(d, sums, range, column, plane), d, sums.wide + plane * sums.stride + column);
    }
  });
}

void TakeMoments(const ColumnSums& sums, const ColumnRange& range, ChannelMoments& moments, double* terms,
                 ColumnExtremes& extremes) {
  const double rows = range.wide_rows + range.chunk_rows;
  ForEachVector(WideD(), range.begin, range.end, [&](auto d, size_t column) HWY_ATTR {
    const WideSums<decltype(d)> value(sums, range, column, kFirst);
    const WideSums<decltype(d)> error(sums, range, column, kFirstError);
    hn::StoreU(hn::Set(d, rows), d, moments.plane(kCount) + column);
    value.StoreMoments(rows, moments.plane(kMean) + column, moments.plane(kDeviations) + column);
    error.StoreMoments(rows, moments.plane(kErrorMean) + column, moments.plane(kErrorDeviations) + column);

    for (size_t term = 0; term < kColumnPlanes - kAbsError; ++term) {
      hn::StoreU(Term(d, sums, range, column, kAbsError + term), d, terms + term * sums.stride + column);
    }

    const auto all = hn::Add(hn::Add(value.Size(), value.squares), hn::Add(error.Size(), error.squares));
    const auto infinity = hn::Set(d, std::numeric_limits<double>::infinity());
    TakeLargest(d, hn::IfThenElse(hn::Lt(all, infinity), all, infinity), extremes.largest);
    TakeLargest(d, value.squares, extremes.squares);
    TakeLargest(d, error.squares, extremes.error_squares);
    TakeLargest(d, value.Size(), extremes.values);
    TakeLargest(d, error.Size(), extremes.errors);
  });
}

bool LoadErrorsOf(DType dtype, const uint8_t* original, const uint8_t* decoded, size_t count, float* errors) {
  return VisitDType(
      dtype, [&](auto t) HWY_ATTR { return LoadErrorsAs<decltype(t)::value>(original, decoded, count, errors); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(AddToColumns);
HWY_EXPORT(AddToWide);
HWY_EXPORT(TakeMoments);
HWY_EXPORT(LoadErrorsOf);

void AddRows(const ErrorRows& rows, bool begins, const ColumnSums& sums, size_t column) {
  HWY_DYNAMIC_DISPATCH(AddToColumns)(rows, begins, sums, column);
}

void WidenColumns(const ColumnSums& sums, const ColumnRange& range) { HWY_DYNAMIC_DISPATCH(AddToWide)(sums, range); }

void MeasureColumns(const ColumnSums& sums, const ColumnRange& range, ChannelMoments& moments, double* terms,
                    ColumnExtremes& extremes) {
  HWY_DYNAMIC_DISPATCH(TakeMoments)(sums, range, moments, terms, extremes);
}

bool LoadErrors(DType dtype, const void* original, const void* decoded, size_t count, float* errors) {
  return HWY_DYNAMIC_DISPATCH(LoadErrorsOf)(dtype, static_cast<const uint8_t*>(original),
                                            static_cast<const uint8_t*>(decoded), count, errors);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
