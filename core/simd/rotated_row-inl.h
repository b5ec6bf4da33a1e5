// Rows of rotated values, and levels back to values, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_ROTATED_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_ROTATED_ROW_INL_H_
#undef KVCOMPRESS_SIMD_ROTATED_ROW_INL_H_
#else
#define KVCOMPRESS_SIMD_ROTATED_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "core/simd/hadamard-inl.h"
#include "core/simd/half-inl.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/subnormals-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// The product of a scale from here on with a power of two that levels have is exact.
constexpr float kMinUsualScale = 0x1p-100f;

// Both transforms of a row in `v`, either way; `v` has the row's signs before and after.
HWY_INLINE void ScaleOverlap(const RotatedRow& row, float* v) {
  const DF df;
  const VF factor = hn::Set(df, row.overlap);
  for (size_t i = row.second(); i < row.span; i += kLanes) {
    const VF sign = hn::LoadU(df, kRotatedSigns.data() + kMaxRotatedRow + i);
    hn::StoreU(hn::Mul(hn::LoadU(df, v + i), hn::Mul(factor, sign)), df, v + i);
  }
}
HWY_INLINE void Rotate(const RotatedRow& row, float* v) {
  Hadamard(v, row.span);
  if (row.second() == 0) return;
  ScaleOverlap(row, v);
  Hadamard(v + row.second(), row.span);
}
HWY_INLINE void RotateBack(const RotatedRow& row, float* v) {
  if (row.second() > 0) {
    Hadamard(v + row.second(), row.span);
    ScaleOverlap(row, v);
  }
  Hadamard(v, row.span);
}

// A level of each code, with its sign.
class LevelTable {
 public:
  constexpr explicit LevelTable(int bits) {
    const RotatedLevels levels = LevelsOf(bits);
    for (int code = 0; code < 16; ++code) {
      const int level = levels.level[static_cast<size_t>(code & (levels.magnitudes - 1))];
      bytes_[code] = static_cast<int8_t>((code & levels.magnitudes) != 0 ? -level : level);
      floats_[code] = bytes_[code];
    }
  }
  HWY_INLINE const float* floats() const { return floats_; }
  HWY_INLINE const int8_t* bytes() const { return bytes_; }

 private:
  HWY_ALIGN int8_t bytes_[16] = {};
  HWY_ALIGN float floats_[16] = {};
};
// Of 2, 3 and 4 bits.
constexpr LevelTable kLevelTables[] = {LevelTable(2), LevelTable(3), LevelTable(4)};

// The levels of kLanes codes as numbers.
HWY_INLINE VF LoadLevels(const LevelTable& table, const uint8_t* codes) {
  const DF df;
#if KVC_TARGET_AVX512
  const __m512i code = _mm512_cvtepu8_epi32(LoadAt(hn::Full128<uint8_t>(), codes).raw);
  return VF{_mm512_permutexvar_ps(code, hn::Load(df, table.floats()).raw)};
#else
  const hn::Rebind<int8_t, DF> d8;
  const auto code = hn::BitCast(d8, LoadAt(hn::Rebind<uint8_t, DF>(), codes));
  return hn::ConvertTo(df,
                       hn::PromoteTo(DI(), hn::TableLookupBytes(hn::Load(hn::Full128<int8_t>(), table.bytes()), code)));
#endif
}

// Whether none of the values of a row with this scale is beyond what the dtype has.
template <DType kT>
HWY_INLINE bool IsUsual(const RotatedRow& row, float scale) {
  const float largest = 128 * row.root * (scale * row.level_unit);  // no sum of levels with signs is larger
  return scale >= kMinUsualScale && largest <= MaxFinite(kT);
}

// Stores values of a row, whose sums of levels are numbers in units of `unit`; kUsual rows are what IsUsual says.
template <DType kT, bool kUsual>
class RowValues {
 public:
  HWY_INLINE RowValues(const RotatedRow& row, float scale, float unit, uint8_t* out)
      : scale_(hn::Set(DF(), kUsual ? scale * unit : scale)), unit_(hn::Set(DF(), unit)), out_(out) {
    if constexpr (kUsual) return;
    is_small_ = row.has_exact_products() && !hn::AllFalse(DF(), AreSmall(scale_));
    if (is_small_) scale_ = Enlarge(DF(), scale_);
  }

  // Those from channel i on.
  HWY_INLINE void operator()(size_t i, VF number) const {
    const DF df;
    uint8_t* const to = out_ + i * DTypeSize(kT);
    const VF signed_scale = hn::Mul(scale_, hn::Load(df, kRotatedSigns.data() + i));
    if (!kUsual && is_small_) {
      StoreF32<kT>(df, Reduce(df, hn::Mul(hn::Mul(number, unit_), signed_scale)), to);
    } else if constexpr (kUsual) {
      StoreF32<kT>(df, hn::Mul(number, signed_scale), to);
    } else {
      // In this order a product is rounded once, also if it is subnormal. With a scale of 0 there is no -0.
      const VF value = hn::Mul(hn::Mul(number, unit_), signed_scale);
      StoreLimited<kT>(df, hn::IfThenElseZero(hn::Gt(scale_, hn::Zero(df)), value), to);
    }
  }

 private:
  VF scale_, unit_;
  bool is_small_ = false;  // and the scale enlarged
  uint8_t* const out_;
};

// ---- Rows of one transform whose sums fit 16 bits. Their vectors have channels in the order in which ReorderDemote2To
// leaves two vectors of numbers, one block of 128 bits of each after the other, so that no move puts them in order.

constexpr size_t kBytes = 4 * kLanes;

// Bytes in the order of two vectors that are narrowed to one as they lie in memory.
HWY_INLINE V8 FromPacked(V8 v) {
#if KVC_TARGET_AVX512
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  v.raw = _mm512_permutexvar_epi32(order, v.raw);
#elif HWY_TARGET == HWY_AVX2
  v.raw = _mm256_permutevar8x32_epi32(v.raw, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
  return v;
}

// As many rows as registers hold go together.
template <size_t kSpan>
constexpr size_t kShortRows = KVC_TARGET_AVX512 ? 512 / HWY_MAX(kSpan, 128) : 1;
template <size_t kSpan>
using ShortRows = V16[kSpan / kShorts * kShortRows<kSpan>];
inline bool IsShortRow(const RotatedRow& row) { return row.second() == 0 && row.span >= 64 && row.span <= 256; }

// Calls use(i, number) for the numbers of kShorts sums; 2^16 times the sums.
template <class Use>
HWY_INLINE void VisitSums(V16 sums, Use use) {
  const V16 zero = hn::Zero(D16());
  const DF df;
  const DI di;
  use(0, hn::ConvertTo(df, hn::BitCast(di, hn::InterleaveLower(D16(), zero, sums))));
  use(kLanes, hn::ConvertTo(df, hn::BitCast(di, hn::InterleaveUpper(D16(), zero, sums))));
}

// What VisitSums gives, in levels.
constexpr float kSumUnit = 0x1p-16f;

// The values that kShortRows rows of codes decode to; usual ones, if kUsual says so.
template <DType kT, size_t kSpan, bool kUsual>
HWY_INLINE void DecodeShortRows(const RotatedRow& row, const LevelTable& table, const float* scales,
                                const uint8_t* codes, uint8_t* out) {
  const auto levels = hn::LoadDup128(D8(), reinterpret_cast<const uint8_t*>(table.bytes()));
  constexpr size_t kValues = kSpan * kShortRows<kSpan>;
  V8 bytes[kValues / kBytes];
  HWY_UNROLL(16)
  for (size_t i = 0; i < kValues; i += kBytes) {
    bytes[i / kBytes] = hn::TableLookupBytes(levels, ToMixedOrder(hn::LoadU(D8(), codes + i)));
  }
  ShortRows<kSpan> v;
  HadamardOfBytes<kSpan / kShorts>(bytes, v);
  HWY_UNROLL(4)
  for (size_t r = 0; r < kShortRows<kSpan>; ++r) {
    const RowValues<kT, kUsual> store(row, scales[r], row.level_unit * kSumUnit, out + r * kSpan * DTypeSize(kT));
    HWY_UNROLL(16)
    for (size_t i = 0; i < kSpan; i += kShorts) {
      VisitSums(v[(r * kSpan + i) / kShorts], [&](size_t at, VF number) HWY_ATTR { store(i + at, number); });
    }
  }
}

// The values that a row of codes decodes to; a usual one, if kUsual says so.
template <DType kT, bool kUsual>
HWY_INLINE void DecodeRow(const RotatedRow& row, const LevelTable& table, float scale, const uint8_t* codes,
                          uint8_t* out) {
  const DF df;
  const RowValues<kT, kUsual> store(row, scale, row.level_unit, out);
  HWY_ALIGN float v[kMaxRotatedRow];
  for (size_t i = 0; i < row.length; i += kLanes) hn::Store(LoadLevels(table, codes + i), df, v + i);
  RotateBack(row, v);
  for (size_t i = 0; i < row.length; i += kLanes) store(i, hn::Load(df, v + i));
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
