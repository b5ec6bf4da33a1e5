#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_columns_exact.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/half-inl.h"
#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// The exact sums of one vector of columns.
template <class D>
class ExactSums {
 public:
  using V = hn::Vec<D>;

  // Of the columns that begin with this lane of a block.
  HWY_INLINE ExactSums(const ExactBlock& block, size_t lane) {
    const D d;
    count_ = hn::LoadU(d, block.planes[kExactCount] + lane);
    first_ = hn::LoadU(d, block.planes[kExactFirst] + lane);
    sum_ = hn::LoadU(d, block.planes[kExactSum] + lane);
    squares_ = hn::LoadU(d, block.planes[kExactSquares] + lane);
    first_error_ = hn::LoadU(d, block.planes[kExactFirstError] + lane);
    error_sum_ = hn::LoadU(d, block.planes[kExactErrorSum] + lane);
    error_squares_ = hn::LoadU(d, block.planes[kExactErrorSquares] + lane);
    all_have_first_ = HaveFirst();
  }
  HWY_INLINE void Store(ExactBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(count_, d, block.planes[kExactCount] + lane);
    hn::StoreU(first_, d, block.planes[kExactFirst] + lane);
    hn::StoreU(sum_, d, block.planes[kExactSum] + lane);
    hn::StoreU(squares_, d, block.planes[kExactSquares] + lane);
    hn::StoreU(first_error_, d, block.planes[kExactFirstError] + lane);
    hn::StoreU(error_sum_, d, block.planes[kExactErrorSum] + lane);
    hn::StoreU(error_squares_, d, block.planes[kExactErrorSquares] + lane);
  }

  // Both at most `most`, or not finite. False if a value counts of which the error is not finite.
  HWY_INLINE bool Add(V value, V decoded, V most) {
    const D d;
    const auto counts = hn::Le(hn::Abs(value), most);
    const auto is_held = hn::Le(hn::Abs(decoded), most);
    V error = hn::Sub(value, decoded);
    V one = hn::Set(d, 1.0);
    bool holds = true;
    if (HWY_UNLIKELY(!all_have_first_ || !hn::AllTrue(d, hn::And(counts, is_held)))) {
      holds = hn::AllFalse(d, hn::AndNot(is_held, counts));
      error = hn::IfThenElseZero(hn::And(counts, is_held), error);
      const auto begins = hn::And(counts, hn::Eq(count_, hn::Zero(d)));
      first_ = hn::IfThenElse(begins, value, first_);
      first_error_ = hn::IfThenElse(begins, error, first_error_);
      // What does not count adds nothing.
      value = hn::IfThenElse(counts, value, first_);
      error = hn::IfThenElse(counts, error, first_error_);
      one = hn::IfThenElseZero(counts, one);
    }
    const V deviation = hn::Sub(value, first_);
    const V error_deviation = hn::Sub(error, first_error_);
    count_ = hn::Add(count_, one);
    sum_ = hn::Add(sum_, deviation);
    squares_ = hn::Add(squares_, hn::Mul(deviation, deviation));
    error_sum_ = hn::Add(error_sum_, error_deviation);
    error_squares_ = hn::Add(error_squares_, hn::Mul(error_deviation, error_deviation));
    if (HWY_UNLIKELY(!all_have_first_)) all_have_first_ = HaveFirst();
    return holds;
  }

 private:
  HWY_INLINE bool HaveFirst() const { return hn::AllTrue(D(), hn::Gt(count_, hn::Zero(D()))); }

  V count_, first_, sum_, squares_, first_error_, error_sum_, error_squares_;
  bool all_have_first_;
};

// AddExactRows for the columns of `rows` from `offset` on, a vector of them, which are those from `column` on.
template <DType kT, class D>
HWY_INLINE bool AddExactStrip(const ErrorRows& rows, size_t offset, ExactBlock* blocks, size_t column) {
  constexpr size_t kSize = DTypeSize(kT);
  const D d;
  const hn::Rebind<float, D> df;
  const auto most = hn::Set(d, MaxFinite(kT));
  ExactBlock& block = blocks[column / ExactBlock::kColumns];
  const size_t lane = column % ExactBlock::kColumns;
  ExactSums<D> sums(block, lane);
  bool holds = true;
  for (size_t row = 0; row < rows.rows; ++row) {
    const size_t at = (row * rows.columns + offset) * kSize;
    const auto value = hn::PromoteTo(d, LoadF32<kT>(df, static_cast<const uint8_t*>(rows.x) + at));
    const auto decoded = hn::PromoteTo(d, LoadF32<kT>(df, static_cast<const uint8_t*>(rows.errors.at) + at));
    holds &= sums.Add(value, decoded, most);
  }
  sums.Store(block, lane);
  return holds;
}

template <DType kT>
bool AddExactRowsAs(const ErrorRows& rows, ExactBlock* blocks, size_t column) {
  using DD = hn::ScalableTag<double>;
  const size_t lanes = hn::Lanes(DD());
  bool holds = true;
  for (size_t i = 0; i < rows.columns;) {
    if ((column + i) % lanes == 0 && rows.columns - i >= lanes) {
      holds &= AddExactStrip<kT, DD>(rows, i, blocks, column + i);
      i += lanes;
    } else {
      holds &= AddExactStrip<kT, hn::CappedTag<double, 1>>(rows, i, blocks, column + i);
      ++i;
    }
  }
  return holds;
}

}  // namespace

bool AddToExactColumns(const ErrorRows& rows, ExactBlock* blocks, size_t column) {
  return VisitDType(rows.dtype,
                    [&](auto t) HWY_ATTR { return AddExactRowsAs<decltype(t)::value>(rows, blocks, column); });
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
