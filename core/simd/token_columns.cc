#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/token_columns.cc"
#include "core/simd/token_columns.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "core/simd/column_sums-inl.h"
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

template <DType kT, Errors kErrors>
HWY_INLINE void AddRowsAs(const ErrorRows& rows, size_t first_row, ColumnBlock* blocks, size_t column) {
  // As many vectors as registers hold the sums of: they leave the additions of one row time until the next.
  constexpr size_t kVectors = KVC_TARGET_AVX512 ? 2 : 1;
  using One = hn::CappedTag<float, 1>;
  size_t i = 0;
  while (i < rows.columns) {
    const size_t at = column + i;
    const size_t left = rows.columns - i;
    if (at % kLanes == 0 && left >= kVectors * kLanes) {
      AddStrip<kT, kErrors, DF, kVectors>(StripRows<kT, kErrors, DF>(rows, i), rows.rows, first_row, blocks, at,
                                          kLanes);
      i += kVectors * kLanes;
    } else if (at % kLanes == 0 && left >= kLanes) {
      AddStrip<kT, kErrors, DF, 1>(StripRows<kT, kErrors, DF>(rows, i), rows.rows, first_row, blocks, at, kLanes);
      i += kLanes;
    } else {
      AddStrip<kT, kErrors, One, 1>(StripRows<kT, kErrors, One>(rows, i), rows.rows, first_row, blocks, at, 1);
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
