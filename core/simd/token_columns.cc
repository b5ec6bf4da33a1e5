#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_columns.cc"
#include "core/simd/token_columns.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

#if !HWY_NATIVE_FMA
// a b + c, rounded once, of as many lanes as there are of binary64.
template <class D, class V>
HWY_INLINE V FusedMulAddWide(D d, V a, V b, V c) {
  const hn::Rebind<double, D> wide;
  const hn::RebindToSigned<decltype(wide)> bits;
  const auto product = hn::Mul(hn::PromoteTo(wide, a), hn::PromoteTo(wide, b));  // exact
  const auto added = hn::PromoteTo(wide, c);
  const auto sum = hn::Add(product, added);
  const auto sum_bits = hn::BitCast(bits, sum);
  // Rounded once more, the sum may go the wrong way only where it lies in the middle of two numbers of binary32 or, as
  // subnormal ones are elsewhere, below the normal ones.
  const auto in_middle = hn::Eq(hn::And(sum_bits, hn::Set(bits, 0x1fffffff)), hn::Set(bits, 0x10000000));
  const auto magnitude = hn::Abs(sum);
  const auto is_subnormal = hn::And(hn::Lt(magnitude, hn::Set(wide, 0x1p-126)), hn::Gt(magnitude, hn::Zero(wide)));
  if (HWY_LIKELY(hn::AllFalse(wide, hn::Or(hn::RebindMask(wide, in_middle), is_subnormal)))) {
    return hn::DemoteTo(d, sum);
  }
  // What the sum lost (Knuth's two-sum). To be rounded once more it has to be rounded to odd: then the last digit tells
  // that there was something behind it.
  const auto back = hn::Sub(sum, product);
  const auto lost = hn::Add(hn::Sub(product, hn::Sub(sum, back)), hn::Sub(added, back));
  const auto zero = hn::Zero(wide);
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

// LoadF32 that leaves what is not finite so on targets without an instruction for it, too: there Highway makes numbers
// beyond those of F16 of it.
template <DType kT, class D>
HWY_INLINE hn::Vec<D> LoadAny(D d, const uint8_t* from) {
  const auto value = LoadF32<kT>(d, from);
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_EMU128
  if constexpr (kT == DType::kF16) {
    const auto infinity = hn::BitCast(d, hn::Set(hn::RebindToUnsigned<D>(), 0x7f800000u));
    return hn::IfThenElse(hn::Gt(hn::Abs(value), hn::Set(d, MaxFinite(kT))), hn::Or(value, infinity), value);
  }
#endif
  return value;
}

// The sums of one vector of columns: of each term one a lane, so that they are the same for vectors of any length. With
// kMarks they tell whether anything varies; without kErrors there are none, and then the sums are the same on all
// targets, too.
template <class D, bool kMarks, bool kErrors>
class Sums {
 public:
  using V = hn::Vec<D>;

  HWY_INLINE Sums() = default;  // for the target, as those of the vectors are

  HWY_INLINE void Begin(V value, V error) {
    const D d;
    first_ = value;
    first_error_ = error;
    sum_ = squares_ = error_sum_ = error_squares_ = bits_ = error_bits_ = hn::Zero(d);
    abs_error_ = max_error_ = hn::Abs(first_error_);
    cross_ = hn::Mul(first_, first_error_);
  }
  // Begins a block, from this lane on, with planes that Store leaves as they are.
  HWY_INLINE void StoreFirst(ColumnBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(first_, d, block.planes[kFirst] + lane);
    hn::StoreU(first_error_, d, block.planes[kFirstError] + lane);
    if constexpr (!kErrors) StoreErrors(block, lane);
    if constexpr (!kMarks) hn::StoreU(hn::Zero(d), d, block.planes[kVaries] + lane);
    if constexpr (!kMarks || !kErrors) hn::StoreU(hn::Zero(d), d, block.planes[kErrorVaries] + lane);
  }
  // The sums that begin with this lane of a block.
  HWY_INLINE void Load(const ColumnBlock& block, size_t lane) {
    const D d;
    first_ = hn::LoadU(d, block.planes[kFirst] + lane);
    sum_ = hn::LoadU(d, block.planes[kSum] + lane);
    squares_ = hn::LoadU(d, block.planes[kSquares] + lane);
    if constexpr (kMarks) bits_ = hn::LoadU(d, block.planes[kVaries] + lane);
    if constexpr (!kErrors) return;
    first_error_ = hn::LoadU(d, block.planes[kFirstError] + lane);
    error_sum_ = hn::LoadU(d, block.planes[kErrorSum] + lane);
    error_squares_ = hn::LoadU(d, block.planes[kErrorSquares] + lane);
    abs_error_ = hn::LoadU(d, block.planes[kAbsError] + lane);
    cross_ = hn::LoadU(d, block.planes[kCross] + lane);
    max_error_ = hn::LoadU(d, block.planes[kMaxError] + lane);
    if constexpr (kMarks) error_bits_ = hn::LoadU(d, block.planes[kErrorVaries] + lane);
  }
  HWY_INLINE void Store(ColumnBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(sum_, d, block.planes[kSum] + lane);
    hn::StoreU(squares_, d, block.planes[kSquares] + lane);
    if constexpr (kMarks) hn::StoreU(MarkOf(bits_), d, block.planes[kVaries] + lane);
    if constexpr (!kErrors) return;
    StoreErrors(block, lane);
    if constexpr (kMarks) hn::StoreU(MarkOf(error_bits_), d, block.planes[kErrorVaries] + lane);
  }
  HWY_INLINE void Add(V value, V error) {
    const D d;
    const V deviation = hn::Sub(value, first_);
    // The same sum, on CPUs that convert and add in one place and multiply in another, by the idle one.
    sum_ = hn::MulAdd(deviation, hn::Set(d, 1.0f), sum_);
    if constexpr (kMarks) bits_ = hn::Or(bits_, deviation);
    if constexpr (!kErrors) {
      squares_ = FusedMulAdd(d, deviation, deviation, squares_);
      return;
    }
    squares_ = hn::MulAdd(deviation, deviation, squares_);
    const V error_deviation = hn::Sub(error, first_error_);
    const V magnitude = hn::Abs(error);
    error_sum_ = hn::Add(error_sum_, error_deviation);
    error_squares_ = hn::MulAdd(error_deviation, error_deviation, error_squares_);
    abs_error_ = hn::Add(abs_error_, magnitude);
    cross_ = hn::MulAdd(value, error, cross_);
    max_error_ = hn::Max(max_error_, magnitude);
    if constexpr (kMarks) error_bits_ = hn::Or(error_bits_, error_deviation);
  }

 private:
  HWY_INLINE void StoreErrors(ColumnBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(error_sum_, d, block.planes[kErrorSum] + lane);
    hn::StoreU(error_squares_, d, block.planes[kErrorSquares] + lane);
    hn::StoreU(abs_error_, d, block.planes[kAbsError] + lane);
    hn::StoreU(cross_, d, block.planes[kCross] + lane);
    hn::StoreU(max_error_, d, block.planes[kMaxError] + lane);
  }

  // 1 where any deviation was not 0, of either sign.
  static HWY_INLINE V MarkOf(V bits) {
    const D d;
    const hn::RebindToUnsigned<D> du;
    const auto is_zero = hn::Eq(hn::ShiftLeft<1>(hn::BitCast(du, bits)), hn::Zero(du));
    return hn::IfThenZeroElse(hn::RebindMask(d, is_zero), hn::Set(d, 1.0f));
  }

  V first_, sum_, squares_, first_error_, error_sum_, error_squares_, abs_error_, cross_, max_error_;
  V bits_, error_bits_;  // of all deviations, or'ed
};

// How errors come.
enum class Errors { kNone, kGiven, kDecoded, kDecodedScaled };

// AddRows for kVectors vectors of columns, the columns of `rows` from `offset` on, which are those from `column` on.
template <DType kT, Errors kErrors, class D, size_t kVectors>
HWY_INLINE void AddStrip(const ErrorRows& rows, size_t offset, bool begins, ColumnBlock* blocks, size_t column) {
  constexpr size_t kSize = DTypeSize(kT);
  constexpr size_t kBlock = ColumnBlock::kColumns;
  constexpr size_t kErrorSize = kErrors == Errors::kGiven ? sizeof(float) : kSize;
  using V = hn::Vec<D>;
  const D d;
  const size_t lanes = hn::Lanes(d);
  const uint8_t* x = static_cast<const uint8_t*>(rows.x) + offset * kSize;
  const uint8_t* errors = static_cast<const uint8_t*>(rows.errors.at) + offset * kErrorSize;
  [[maybe_unused]] const V value_scale = hn::Set(d, rows.scales.value);
  [[maybe_unused]] const V error_scale = hn::Set(d, rows.scales.error);
  const auto load = [&](size_t k, V& value, V& error) HWY_ATTR {
    value = LoadAny<kT>(d, x + k * lanes * kSize);
    if constexpr (kErrors == Errors::kNone) {
      error = hn::Zero(d);
      return;
    }
    const uint8_t* const at = errors + k * lanes * kErrorSize;
    if constexpr (kErrors == Errors::kGiven) {
      error = LoadAt(d, at);
    } else {
      error = hn::Sub(value, LoadAny<kT>(d, at));
    }
    if constexpr (kErrors == Errors::kDecodedScaled) {
      value = hn::Mul(value, value_scale);
      error = hn::Mul(error, error_scale);
    }
  };
  const auto advance = [&] {
    x += rows.columns * kSize;
    errors += rows.columns * kErrorSize;
  };
  // No two values, and no two errors, of F16 are so close that the square of their difference becomes 0.
  Sums<D, kT != DType::kF16, kErrors != Errors::kNone> sums[kVectors];
  V value, error;
  for (size_t k = 0; k < kVectors; ++k) {
    const size_t at = column + k * lanes;
    if (begins) {
      load(k, value, error);
      sums[k].Begin(value, error);
      sums[k].StoreFirst(blocks[at / kBlock], at % kBlock);
    } else {
      sums[k].Load(blocks[at / kBlock], at % kBlock);
    }
  }
  if (begins) advance();
  for (size_t row = begins; row < rows.rows; ++row) {
    for (size_t k = 0; k < kVectors; ++k) {
      load(k, value, error);
      sums[k].Add(value, error);
    }
    advance();
  }
  for (size_t k = 0; k < kVectors; ++k) {
    const size_t at = column + k * lanes;
    sums[k].Store(blocks[at / kBlock], at % kBlock);
  }
}

template <DType kT, Errors kErrors>
HWY_INLINE void AddRowsAs(const ErrorRows& rows, bool begins, ColumnBlock* blocks, size_t column) {
  // As many vectors as registers hold the sums of: they leave the additions of one row time until the next.
  constexpr size_t kVectors = KVC_TARGET_AVX512 ? 2 : 1;
  size_t i = 0;
  while (i < rows.columns) {
    const size_t at = column + i;
    const size_t left = rows.columns - i;
    if (at % kLanes == 0 && left >= kVectors * kLanes) {
      AddStrip<kT, kErrors, DF, kVectors>(rows, i, begins, blocks, at);
      i += kVectors * kLanes;
    } else if (at % kLanes == 0 && left >= kLanes) {
      AddStrip<kT, kErrors, DF, 1>(rows, i, begins, blocks, at);
      i += kLanes;
    } else {
      AddStrip<kT, kErrors, hn::CappedTag<float, 1>, 1>(rows, i, begins, blocks, at);
      ++i;
    }
  }
}

}  // namespace

void AddToColumns(const ErrorRows& rows, bool begins, ColumnBlock* chunk, size_t column) {
  VisitDType(rows.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    if (!rows.errors.is_decoded) return AddRowsAs<kT, Errors::kGiven>(rows, begins, chunk, column);
    if (rows.errors.at == rows.x) return AddRowsAs<kT, Errors::kNone>(rows, begins, chunk, column);
    if (rows.scales == ErrorScales()) return AddRowsAs<kT, Errors::kDecoded>(rows, begins, chunk, column);
    AddRowsAs<kT, Errors::kDecodedScaled>(rows, begins, chunk, column);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(AddToColumns);

void AddRows(const ErrorRows& rows, bool begins, ColumnBlock* chunk, size_t column) {
  HWY_DYNAMIC_DISPATCH(AddToColumns)(rows, begins, chunk, column);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
