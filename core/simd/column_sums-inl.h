// Sums of columns, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_COLUMN_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_COLUMN_SUMS_INL_H_
#undef KVCOMPRESS_SIMD_COLUMN_SUMS_INL_H_
#else
#define KVCOMPRESS_SIMD_COLUMN_SUMS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>

#include "core/simd/half-inl.h"
#include "core/simd/token_columns.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// How errors come; kGivenWide are given beside the values as binary32.
enum class Errors { kNone, kGiven, kGivenWide, kDecoded, kDecodedAgain, kDecodedSmallAgain };
constexpr bool AreGiven(Errors errors) { return errors == Errors::kGiven || errors == Errors::kGivenWide; }
constexpr bool IsAgain(Errors errors) { return errors >= Errors::kDecodedAgain; }

// The sums of one vector of columns: of each term one a lane, so that they are the same for vectors of any length. With
// kMarks they tell whether anything varies; without errors they are the same on all targets, too.
template <class D, bool kMarks, Errors kErrors>
class Sums {
 public:
  using V = hn::Vec<D>;

  HWY_INLINE Sums() = default;  // for the target, as those of the vectors are

  // `change` is in which bits a value was decoded to another one; where errors are given, those of the error.
  HWY_INLINE void Begin(V value, V error, V change) {
    const D d;
    first_ = value;
    first_error_ = error;
    change_ = change;
    sum_ = squares_ = error_squares_ = bits_ = error_bits_ = hn::Zero(d);
    error_sum_ = kAgain ? hn::Zero(d) : error;
    energy_ = hn::Mul(error, error);
    if constexpr (kDecoded) value_energy_ = hn::Mul(value, value);
    abs_error_ = max_error_ = hn::Abs(error);
    cross_ = hn::Mul(value, error);
  }
  // Begins a block, from this lane on, with planes that Store leaves as they are.
  HWY_INLINE void StoreFirst(ColumnBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(first_, d, block.planes[kFirst] + lane);
    hn::StoreU(first_error_, d, block.planes[kFirstError] + lane);
    for (const ColumnPlane plane : {kEnergy, kAbsError, kCross, kValueEnergy, kRunValueEnergy}) {
      hn::StoreU(hn::Zero(d), d, block.planes[plane] + lane);
    }
    if constexpr (kErrors == Errors::kNone) {
      StoreErrors(block, lane);
      hn::StoreU(error_squares_, d, block.planes[kErrorSquares] + lane);
    }
    if constexpr (!kMarks) hn::StoreU(hn::Zero(d), d, block.planes[kVaries] + lane);
    if constexpr (!kMarks || kErrors == Errors::kNone) hn::StoreU(hn::Zero(d), d, block.planes[kErrorVaries] + lane);
  }
  // The sums that begin with this lane of a block.
  HWY_INLINE void Load(const ColumnBlock& block, size_t lane) {
    const D d;
    first_ = hn::LoadU(d, block.planes[kFirst] + lane);
    sum_ = hn::LoadU(d, block.planes[kSum] + lane);
    squares_ = hn::LoadU(d, block.planes[kSquares] + lane);
    if constexpr (kMarks) bits_ = hn::LoadU(d, block.planes[kVaries] + lane);
    if constexpr (kErrors == Errors::kNone) return;
    error_sum_ = hn::LoadU(d, block.planes[kErrorSum] + lane);
    energy_ = hn::LoadU(d, block.planes[kRunEnergy] + lane);
    abs_error_ = hn::LoadU(d, block.planes[kRunAbsError] + lane);
    cross_ = hn::LoadU(d, block.planes[kRunCross] + lane);
    if constexpr (kDecoded) value_energy_ = hn::LoadU(d, block.planes[kRunValueEnergy] + lane);
    max_error_ = hn::LoadU(d, block.planes[kMaxError] + lane);
    if constexpr (kMarks) change_ = hn::LoadU(d, block.planes[kErrorVaries] + lane);
    if constexpr (!kAgain) return;
    first_error_ = hn::LoadU(d, block.planes[kFirstError] + lane);
    error_squares_ = hn::LoadU(d, block.planes[kErrorSquares] + lane);
    error_bits_ = change_;
  }
  HWY_INLINE void Store(ColumnBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(sum_, d, block.planes[kSum] + lane);
    hn::StoreU(squares_, d, block.planes[kSquares] + lane);
    if constexpr (kMarks) hn::StoreU(MarkOf(bits_, first_), d, block.planes[kVaries] + lane);
    if constexpr (kErrors == Errors::kNone) return;
    StoreErrors(block, lane);
    if constexpr (kMarks) {
      const V mark = kAgain ? MarkOf(error_bits_, first_error_) : MarkOf(change_, hn::Zero(d));
      hn::StoreU(mark, d, block.planes[kErrorVaries] + lane);
    }
    if constexpr (kAgain) hn::StoreU(error_squares_, d, block.planes[kErrorSquares] + lane);
  }
  HWY_INLINE void Add(V value, V error, V change) {
    const D d;
    const V deviation = hn::Sub(value, first_);
    // The same sum, on CPUs that convert and add in one place and multiply in another, by the idle one.
    sum_ = HWY_NATIVE_FMA ? hn::MulAdd(deviation, hn::Set(d, 1.0f), sum_) : hn::Add(deviation, sum_);
    if constexpr (kMarks) bits_ = hn::Or(bits_, hn::Xor(value, first_));
    if constexpr (kErrors == Errors::kNone) {
      squares_ = hn::Add(squares_, hn::Mul(deviation, deviation));  // rounded twice on all targets
      return;
    }
    squares_ = hn::MulAdd(deviation, deviation, squares_);
    const V magnitude = hn::Abs(error);
    if constexpr (kAgain) {
      const V error_deviation = hn::Sub(error, first_error_);
      error_sum_ = hn::Add(error_sum_, error_deviation);
      error_squares_ = hn::MulAdd(error_deviation, error_deviation, error_squares_);
      if constexpr (kMarks) error_bits_ = hn::Or(error_bits_, hn::Xor(error, first_error_));
    } else {
      error_sum_ = hn::Add(error_sum_, error);
      if constexpr (kMarks) change_ = hn::Or(change_, change);
    }
    energy_ = hn::MulAdd(error, error, energy_);
    if constexpr (kDecoded) value_energy_ = hn::MulAdd(value, value, value_energy_);
    abs_error_ = hn::Add(abs_error_, magnitude);
    cross_ = hn::MulAdd(value, error, cross_);
    max_error_ = hn::Max(max_error_, magnitude);
  }
  HWY_INLINE void EndRun(ColumnBlock& block, size_t lane) {
    if constexpr (kErrors == Errors::kNone) return;
    MoveTo(block.planes[kEnergy] + lane, energy_);
    MoveTo(block.planes[kAbsError] + lane, abs_error_);
    MoveTo(block.planes[kCross] + lane, cross_);
    if constexpr (kDecoded) MoveTo(block.planes[kValueEnergy] + lane, value_energy_);
  }

 private:
  static constexpr bool kAgain = IsAgain(kErrors);
  static constexpr bool kDecoded = kAgain || kErrors == Errors::kDecoded;

  static HWY_INLINE void MoveTo(float* sums, V& own) {
    const D d;
    hn::StoreU(hn::Add(hn::LoadU(d, sums), own), d, sums);
    own = hn::Zero(d);
  }

  HWY_INLINE void StoreErrors(ColumnBlock& block, size_t lane) const {
    const D d;
    hn::StoreU(error_sum_, d, block.planes[kErrorSum] + lane);
    hn::StoreU(energy_, d, block.planes[kRunEnergy] + lane);
    hn::StoreU(abs_error_, d, block.planes[kRunAbsError] + lane);
    hn::StoreU(cross_, d, block.planes[kRunCross] + lane);
    if constexpr (kDecoded) hn::StoreU(value_energy_, d, block.planes[kRunValueEnergy] + lane);
    hn::StoreU(max_error_, d, block.planes[kMaxError] + lane);
  }

  // 1 where any number differed from the first in these bits, unless both were 0, of either sign.
  static HWY_INLINE V MarkOf(V bits, V first) {
    const D d;
    const hn::RebindToUnsigned<D> du;
    const auto without_sign = [&](V v) HWY_ATTR { return hn::ShiftLeft<1>(hn::BitCast(du, v)); };
    const auto first_is_zero = hn::Eq(without_sign(first), hn::Zero(du));
    const auto differing = hn::IfThenElse(first_is_zero, without_sign(bits), hn::BitCast(du, bits));
    return hn::IfThenZeroElse(hn::RebindMask(d, hn::Eq(differing, hn::Zero(du))), hn::Set(d, 1.0f));
  }

  V first_, sum_, squares_, error_sum_, max_error_;
  V energy_, abs_error_, cross_, value_energy_;  // of the run of rows at hand
  V first_error_, error_squares_;
  V bits_, error_bits_;  // in which numbers differed from the first: exact where subnormal deviations count as 0
  V change_;             // of all values
};

// Adds `rows` rows to a chunk, whose row `first_row` the first of them is: those of a strip, which is kVectors vectors
// of columns, `distance` columns apart and beginning with `column`. For a row, Load(k, value, error, change) of the
// strip is called for each vector k, and then Advance().
template <DType kT, Errors kErrors, class D, size_t kVectors, class Strip>
HWY_INLINE void AddStrip(Strip strip, size_t rows, size_t first_row, ColumnBlock* blocks, size_t column,
                         size_t distance) {
  constexpr size_t kBlock = ColumnBlock::kColumns;
  // No two values, and no two errors, of F16 are so close that the square of their difference becomes 0.
  constexpr bool kMarks = kT != DType::kF16;
  // Loops over them are unrolled before the compiler looks whether registers hold them.
  Sums<D, kMarks, kErrors> sums[kVectors];
  hn::Vec<D> value, error, change;
#pragma GCC unroll 2
  for (size_t k = 0; k < kVectors; ++k) {
    const size_t at = column + k * distance;
    if (first_row == 0) {
      strip.Load(k, value, error, change);
      sums[k].Begin(value, error, change);
      sums[k].StoreFirst(blocks[at / kBlock], at % kBlock);
    } else {
      sums[k].Load(blocks[at / kBlock], at % kBlock);
    }
  }
  if (first_row == 0) strip.Advance();
  size_t row = std::max<size_t>(first_row, 1);
  while (row < first_row + rows) {
    constexpr size_t kRunRows = ColumnBlock::kRunRows;
    const size_t run_end = row - row % kRunRows + kRunRows;
    const size_t end = std::min(first_row + rows, run_end);
    for (; row < end; ++row) {
#pragma GCC unroll 2
      for (size_t k = 0; k < kVectors; ++k) {
        strip.Load(k, value, error, change);
        sums[k].Add(value, error, change);
      }
      strip.Advance();
    }
    if (row < run_end) break;
#pragma GCC unroll 2
    for (size_t k = 0; k < kVectors; ++k) {
      const size_t at = column + k * distance;
      sums[k].EndRun(blocks[at / kBlock], at % kBlock);
    }
  }
#pragma GCC unroll 2
  for (size_t k = 0; k < kVectors; ++k) {
    const size_t at = column + k * distance;
    sums[k].Store(blocks[at / kBlock], at % kBlock);
  }
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
