#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_columns_exact.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/half-inl.h"
#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// The exact sums of one vector of columns. Without kErrors values are decoded to themselves.
template <class D, bool kErrors>
class ExactSums {
 public:
  using V = hn::Vec<D>;

  // Of the columns that begin with this lane of a block, of values with magnitudes up to `most`.
  HWY_INLINE ExactSums(const ExactBlock& block, size_t lane, float most) {
    const D d;
    most_ = hn::Set(d, most);
    count_ = hn::LoadU(d, block.planes[kExactCount] + lane);
    first_ = hn::LoadU(d, block.planes[kExactFirst] + lane);
    sum_ = hn::LoadU(d, block.planes[kExactSum] + lane);
    squares_ = hn::LoadU(d, block.planes[kExactSquares] + lane);
    first_error_ = hn::LoadU(d, block.planes[kExactFirstError] + lane);
    error_sum_ = hn::LoadU(d, block.planes[kExactErrorSum] + lane);
    error_squares_ = hn::LoadU(d, block.planes[kExactErrorSquares] + lane);
    abs_error_ = hn::LoadU(d, block.planes[kExactAbsError] + lane);
    cross_ = hn::LoadU(d, block.planes[kExactCross] + lane);
    max_error_ = hn::LoadU(d, block.planes[kExactMaxError] + lane);
    begun_here_ = lost_ = hn::Zero(d);
  }
  HWY_INLINE void Store(ExactBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(count_, d, block.planes[kExactCount] + lane);
    hn::StoreU(first_, d, block.planes[kExactFirst] + lane);
    hn::StoreU(sum_, d, block.planes[kExactSum] + lane);
    hn::StoreU(squares_, d, block.planes[kExactSquares] + lane);
    if constexpr (!kErrors) return;
    hn::StoreU(first_error_, d, block.planes[kExactFirstError] + lane);
    hn::StoreU(error_sum_, d, block.planes[kExactErrorSum] + lane);
    hn::StoreU(error_squares_, d, block.planes[kExactErrorSquares] + lane);
    hn::StoreU(abs_error_, d, block.planes[kExactAbsError] + lane);
    hn::StoreU(cross_, d, block.planes[kExactCross] + lane);
    hn::StoreU(max_error_, d, block.planes[kExactMaxError] + lane);
  }

  // Lets columns without a finite value so far begin with these, if they are finite. Returns whether all columns have
  // begun. To be called before Add of any row, for one after the other until it is true.
  HWY_INLINE bool Begin(V value, V decoded) {
    const D d;
    const auto has_begun = hn::Gt(hn::Add(count_, begun_here_), hn::Zero(d));
    const auto counts = hn::Le(hn::Abs(value), most_);
    const auto begins = hn::AndNot(has_begun, counts);
    first_ = hn::IfThenElse(begins, value, first_);
    if constexpr (kErrors) {
      const auto is_held = hn::And(begins, hn::Le(hn::Abs(decoded), most_));
      first_error_ = hn::IfThenElse(is_held, hn::Sub(value, decoded), first_error_);
    }
    begun_here_ = hn::Add(begun_here_, hn::IfThenElseZero(begins, hn::Set(d, 1.0)));
    return hn::AllTrue(d, hn::Or(has_begun, begins));
  }

  HWY_INLINE void Add(V value, V decoded) {
    const D d;
    const auto counts = hn::Le(hn::Abs(value), most_);
    const V deviation = hn::IfThenElseZero(counts, hn::Sub(value, first_));
    count_ = hn::Add(count_, hn::IfThenElseZero(counts, hn::Set(d, 1.0)));
    sum_ = hn::Add(sum_, deviation);
    squares_ = hn::Add(squares_, hn::Mul(deviation, deviation));
    if constexpr (!kErrors) return;
    const auto is_held = hn::Le(hn::Abs(decoded), most_);
    const auto measured = hn::And(counts, is_held);
    lost_ = hn::IfThenElse(hn::AndNot(is_held, counts), hn::Set(d, 1.0), lost_);
    const V error = hn::IfThenElseZero(measured, hn::Sub(value, decoded));
    const V error_deviation = hn::IfThenElseZero(measured, hn::Sub(error, first_error_));
    const V magnitude = hn::Abs(error);
    error_sum_ = hn::Add(error_sum_, error_deviation);
    error_squares_ = hn::Add(error_squares_, hn::Mul(error_deviation, error_deviation));
    abs_error_ = hn::Add(abs_error_, magnitude);
    cross_ = hn::Add(cross_, hn::IfThenElseZero(measured, hn::Mul(value, error)));
    max_error_ = hn::Max(max_error_, magnitude);
  }

  // Whether every value that counts had an error that is finite.
  HWY_INLINE bool HoldsAll() const { return hn::AllTrue(D(), hn::Eq(lost_, hn::Zero(D()))); }

 private:
  V most_;
  V count_, first_, sum_, squares_, first_error_, error_sum_, error_squares_, abs_error_, cross_, max_error_;
  V begun_here_, lost_;
};

// AddExactRows for the columns of `rows` from `offset` on, a vector of them, which are those from `column` on.
template <DType kT, bool kErrors, class D>
HWY_INLINE bool AddExactStrip(const ErrorRows& rows, size_t offset, ExactBlock* blocks, size_t column) {
  constexpr size_t kSize = DTypeSize(kT);
  const D d;
  const hn::Rebind<float, D> df;
  const auto* const x = static_cast<const uint8_t*>(rows.x) + offset * kSize;
  const auto* const y = static_cast<const uint8_t*>(rows.errors.at) + offset * kSize;
  const size_t step = rows.columns * kSize;
  const auto load = [&](const uint8_t* from, size_t row)
                        HWY_ATTR { return hn::PromoteTo(d, LoadF32<kT>(df, from + row * step)); };
  ExactBlock& block = blocks[column / ExactBlock::kColumns];
  const size_t lane = column % ExactBlock::kColumns;
  ExactSums<D, kErrors> sums(block, lane, MaxFinite(kT));
  for (size_t row = 0; row < rows.rows; ++row) {
    if (sums.Begin(load(x, row), load(y, row))) break;
  }
  for (size_t row = 0; row < rows.rows; ++row) sums.Add(load(x, row), load(y, row));
  sums.Store(block, lane);
  return sums.HoldsAll();
}

template <DType kT, bool kErrors>
bool AddExactRowsAs(const ErrorRows& rows, ExactBlock* blocks, size_t column) {
  using DD = hn::ScalableTag<double>;
  const size_t lanes = hn::Lanes(DD());
  bool holds = true;
  for (size_t i = 0; i < rows.columns;) {
    if ((column + i) % lanes == 0 && rows.columns - i >= lanes) {
      holds &= AddExactStrip<kT, kErrors, DD>(rows, i, blocks, column + i);
      i += lanes;
    } else {
      holds &= AddExactStrip<kT, kErrors, hn::CappedTag<double, 1>>(rows, i, blocks, column + i);
      ++i;
    }
  }
  return holds;
}

}  // namespace

bool AddToExactColumns(const ErrorRows& rows, ExactBlock* blocks, size_t column) {
  return VisitDType(rows.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    return rows.errors.at == rows.x ? AddExactRowsAs<kT, false>(rows, blocks, column)
                                    : AddExactRowsAs<kT, true>(rows, blocks, column);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(AddToExactColumns);

bool AddExactRows(const ErrorRows& rows, ExactBlock* blocks, size_t column) {
  return HWY_DYNAMIC_DISPATCH(AddToExactColumns)(rows, blocks, column);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
