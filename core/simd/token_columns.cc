#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_columns.cc"
#include "core/simd/token_columns.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "core/simd/half-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/subnormals.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Whether all values are finite, where LoadF32 does not leave them so that are not: without an instruction for it they
// become numbers beyond those of F16.
template <DType kT>
HWY_INLINE bool LeavesFinite([[maybe_unused]] const void* values, [[maybe_unused]] size_t count) {
#if KVC_EMULATES_F16
  if constexpr (kT == DType::kF16) {
    const hn::ScalableTag<int16_t> d;
    const hn::CappedTag<int16_t, 1> one;
    const auto* const from = static_cast<const uint8_t*>(values);
    const auto magnitude = [from](auto tag, size_t i) HWY_ATTR {
      return hn::And(LoadAt(tag, from + 2 * i), hn::Set(tag, hwy::LimitsMax<int16_t>()));
    };
    auto max = hn::Zero(d);
    auto max_of_rest = hn::Zero(one);
    size_t i = 0;
    for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) max = hn::Max(max, magnitude(d, i));
    for (; i < count; ++i) max_of_rest = hn::Max(max_of_rest, magnitude(one, i));
    const int16_t largest = std::max(hn::GetLane(hn::MaxOfLanes(d, max)), hn::GetLane(max_of_rest));
    return largest < static_cast<int16_t>(InfinityBits(kT));
  }
#endif
  return true;
}

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

// 2^exponent v, where that is below 2^127, as Enlarge does it.
template <class D>
HWY_INLINE hn::Vec<D> EnlargeBy(D d, int exponent, hn::Vec<D> v) {
  const hn::RebindToSigned<D> di;
  const auto magnitude = hn::BitCast(di, hn::Abs(v));
  const auto normal = hn::BitCast(d, hn::Add(magnitude, hn::Set(di, exponent << 23)));
  const auto with_power = hn::BitCast(d, hn::Add(magnitude, hn::Set(di, (exponent + 1) << 23)));
  const auto power = hn::BitCast(d, hn::Set(di, (exponent + 1) << 23));
  return hn::CopySignToAbs(hn::Min(normal, hn::Sub(with_power, power)), v);
}

// The values and errors of a strip's rows, one row after another, of the columns of `rows` from `offset` on.
template <DType kT, Errors kErrors, class D>
class StripRows {
  using V = hn::Vec<D>;

 public:
  HWY_INLINE StripRows(const ErrorRows& rows, size_t offset)
      : x_(static_cast<const uint8_t*>(kWide ? rows.errors.values : rows.x) + offset * kSize),
        errors_(static_cast<const uint8_t*>(rows.errors.at) + offset * kErrorSize),
        columns_(rows.columns) {
    const ErrorScales scales = rows.again.value_or(ErrorScales());
    value_scale_ = hn::Set(D(), scales.value);
    error_scale_ = hn::Set(D(), scales.error);
    if constexpr (kErrors == Errors::kDecodedSmallAgain) {
      value_exponent_ = std::ilogb(scales.value);
      error_exponent_ = std::ilogb(scales.error);
    }
  }
  // Vector `k` of the row.
  HWY_INLINE void Load(size_t k, V& value, V& error, V& change) const {
    const D d;
    const size_t lane = k * hn::Lanes(d);
    value = LoadF32 < kWide ? DType::kF32 : kT > (d, x_ + lane * kSize);
    change = hn::Zero(d);
    if constexpr (kErrors == Errors::kNone) {
      error = hn::Zero(d);
      return;
    }
    const uint8_t* const at = errors_ + lane * kErrorSize;
    if constexpr (AreGiven(kErrors)) {
      change = error = LoadAt(d, at);
    } else {
      const V decoded = LoadF32<kT>(d, at);
      error = hn::Sub(value, decoded);
      change = hn::Xor(value, decoded);
    }
    if constexpr (kErrors == Errors::kDecodedSmallAgain) {
      value = EnlargeBy(d, value_exponent_, value);
      // Of other errors no square is held, enlarged or not; nor of NaN.
      const auto is_small = hn::Lt(hn::Abs(error), hn::Set(d, 0x1p-40f));
      error = hn::IfThenElse(is_small, EnlargeBy(d, error_exponent_, error), hn::Set(d, hwy::HighestValue<float>()));
    } else if constexpr (IsAgain(kErrors)) {
      value = hn::Mul(value, value_scale_);
      error = hn::Mul(error, error_scale_);
    }
  }
  HWY_INLINE void Advance() {
    x_ += columns_ * kSize;
    errors_ += columns_ * kErrorSize;
  }

 private:
  static constexpr bool kWide = kErrors == Errors::kGivenWide;
  static constexpr size_t kSize = kWide ? sizeof(float) : DTypeSize(kT);
  static constexpr size_t kErrorSize = AreGiven(kErrors) ? sizeof(float) : kSize;

  const uint8_t* x_;
  const uint8_t* errors_;
  size_t columns_;
  V value_scale_, error_scale_;
  int value_exponent_ = 0, error_exponent_ = 0;
};

// AddRows for kVectors vectors of columns, the columns of `rows` from `offset` on, which are those from `column` on.
template <DType kT, Errors kErrors, class D, size_t kVectors>
HWY_INLINE void AddStrip(const ErrorRows& rows, size_t offset, size_t first_row, ColumnBlock* blocks, size_t column) {
  constexpr size_t kBlock = ColumnBlock::kColumns;
  const size_t lanes = hn::Lanes(D());
  StripRows<kT, kErrors, D> strip(rows, offset);
  // No two values, and no two errors, of F16 are so close that the square of their difference becomes 0.
  constexpr bool kMarks = kT != DType::kF16;
  Sums<D, kMarks, kErrors> sums[kVectors];
  hn::Vec<D> value, error, change;
  for (size_t k = 0; k < kVectors; ++k) {
    const size_t at = column + k * lanes;
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
  while (row < first_row + rows.rows) {
    constexpr size_t kRunRows = ColumnBlock::kRunRows;
    const size_t run_end = row - row % kRunRows + kRunRows;
    const size_t end = std::min(first_row + rows.rows, run_end);
    for (; row < end; ++row) {
      for (size_t k = 0; k < kVectors; ++k) {
        strip.Load(k, value, error, change);
        sums[k].Add(value, error, change);
      }
      strip.Advance();
    }
    if (row < run_end) break;
    for (size_t k = 0; k < kVectors; ++k) {
      const size_t at = column + k * lanes;
      sums[k].EndRun(blocks[at / kBlock], at % kBlock);
    }
  }
  for (size_t k = 0; k < kVectors; ++k) {
    const size_t at = column + k * lanes;
    sums[k].Store(blocks[at / kBlock], at % kBlock);
  }
}

template <DType kT, Errors kErrors>
HWY_INLINE void AddRowsAs(const ErrorRows& rows, size_t first_row, ColumnBlock* blocks, size_t column) {
  // As many vectors as registers hold the sums of: they leave the additions of one row time until the next.
  constexpr size_t kVectors = KVC_TARGET_AVX512 ? 2 : 1;
  size_t i = 0;
  while (i < rows.columns) {
    const size_t at = column + i;
    const size_t left = rows.columns - i;
    if (at % kLanes == 0 && left >= kVectors * kLanes) {
      AddStrip<kT, kErrors, DF, kVectors>(rows, i, first_row, blocks, at);
      i += kVectors * kLanes;
    } else if (at % kLanes == 0 && left >= kLanes) {
      AddStrip<kT, kErrors, DF, 1>(rows, i, first_row, blocks, at);
      i += kLanes;
    } else {
      AddStrip<kT, kErrors, hn::CappedTag<float, 1>, 1>(rows, i, first_row, blocks, at);
      ++i;
    }
  }
  if (AreGiven(kErrors)) return;
  const size_t count = rows.rows * rows.columns;
  if (LeavesFinite<kT>(rows.x, count) && (kErrors == Errors::kNone || LeavesFinite<kT>(rows.errors.at, count))) return;
  blocks[column / ColumnBlock::kColumns].planes[kSum][column % ColumnBlock::kColumns] =
      std::numeric_limits<float>::infinity();
}

}  // namespace

void AddToColumns(const ErrorRows& rows, size_t row, ColumnBlock* chunk, size_t column) {
  VisitDType(rows.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
#if KVC_EMULATES_F16
    if constexpr (kT == DType::kF16) {
      if (rows.errors.values != nullptr) return AddRowsAs<kT, Errors::kGivenWide>(rows, row, chunk, column);
    }
#endif
    if (!rows.errors.is_decoded) return AddRowsAs<kT, Errors::kGiven>(rows, row, chunk, column);
    if (rows.errors.at == rows.x) return AddRowsAs<kT, Errors::kNone>(rows, row, chunk, column);
    if constexpr (kT != DType::kF16) {
      if (rows.again && rows.again->OfSubnormals()) {
        return AddRowsAs<kT, Errors::kDecodedSmallAgain>(rows, row, chunk, column);
      }
    }
    if (rows.again) return AddRowsAs<kT, Errors::kDecodedAgain>(rows, row, chunk, column);
    AddRowsAs<kT, Errors::kDecoded>(rows, row, chunk, column);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(AddToColumns);

void AddRows(const ErrorRows& rows, size_t row, ColumnBlock* chunk, size_t column) {
  // Of F16 no sum is subnormal.
  std::optional<SubnormalsAreZero> guard;
  if (rows.dtype != DType::kF16 && !rows.again) guard.emplace();
  HWY_DYNAMIC_DISPATCH(AddToColumns)(rows, row, chunk, column);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
