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

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Kernels take scales of which no product needs care.
constexpr float kMinScale = 0x1p-100f;
constexpr float kMaxScale = 0x1p100f;

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
  explicit LevelTable(int bits) {
    const RotatedLevels levels = LevelsOf(bits);
    for (int code = 0; code < 16; ++code) {
      const int level = levels.level[static_cast<size_t>(code & (levels.magnitudes - 1))];
      bytes_[code] = static_cast<int8_t>((code & levels.magnitudes) != 0 ? -level : level);
      floats_[code] = bytes_[code];
    }
  }
  HWY_INLINE const float* floats() const { return floats_; }
  template <class D>
  HWY_INLINE hn::Vec<D> bytes(D d8) const {
    return hn::LoadDup128(d8, bytes_);
  }

 private:
  HWY_ALIGN int8_t bytes_[16];
  HWY_ALIGN float floats_[16];
};

// The levels of kLanes codes as numbers.
HWY_INLINE VF LoadLevels(const LevelTable& table, const uint8_t* codes) {
  const DF df;
#if KVC_TARGET_AVX512
  const __m512i code = _mm512_cvtepu8_epi32(LoadAt(hn::Full128<uint8_t>(), codes).raw);
  return VF{_mm512_permutexvar_ps(code, hn::Load(df, table.floats()).raw)};
#else
  const hn::Rebind<int8_t, DF> d8;
  const auto code = hn::BitCast(d8, LoadAt(hn::Rebind<uint8_t, DF>(), codes));
  return hn::ConvertTo(df, hn::PromoteTo(DI(), hn::TableLookupBytes(table.bytes(hn::Full128<int8_t>()), code)));
#endif
}

// Whether a row with this scale is one for kernels: none of its values is beyond what the dtype has.
template <DType kT>
HWY_INLINE bool IsUsual(const RotatedRow& row, float scale) {
  const float largest = 128 * row.root * (scale * row.level_unit);  // no sum of levels with signs is larger
  return scale >= kMinScale && scale <= kMaxScale && largest <= MaxFinite(kT);
}

// Of a row that is one transform of so few vectors that registers hold them, their number; else 0.
HWY_INLINE size_t VectorsOf(const RotatedRow& row) {
  const size_t vectors = row.length / kLanes;
  return row.second() == 0 && (vectors == 4 || vectors == 8) ? vectors : 0;
}

// The levels of kShorts codes.
HWY_INLINE V16 LoadShortLevels(const LevelTable& table, const uint8_t* codes) {
  const hn::Rebind<int8_t, D16> d8;
  const auto code = hn::BitCast(d8, LoadAt(hn::Rebind<uint8_t, D16>(), codes));
  const hn::FixedTag<int8_t, HWY_MAX(kShorts, 16)> all;
  return hn::PromoteTo(D16(), hn::TableLookupBytes(table.bytes(all), code));
}

// A row of kSpan values that is one transform: its sums of levels are integers of 16 bits.
template <size_t kSpan, class Use>
HWY_INLINE void DecodeShorts(const LevelTable& table, VF factor, const uint8_t* codes, Use use) {
  const DF df;
  const DI di;
  const hn::Half<D16> half;
  V16 v[kSpan / kShorts];
  for (size_t i = 0; i < kSpan; i += kShorts) v[i / kShorts] = LoadShortLevels(table, codes + i);
  HadamardOfShorts(v);
  const auto scaled = [&](size_t i, hn::Vec<hn::Half<D16>> sums) HWY_ATTR {
    const VF number = hn::ConvertTo(df, hn::PromoteTo(di, sums));
    use(i, hn::Mul(number, hn::Mul(factor, hn::Load(df, kRotatedSigns.data() + i))));
  };
  for (size_t i = 0; i < kSpan; i += kShorts) {
    scaled(i, hn::LowerHalf(half, v[i / kShorts]));
    scaled(i + kLanes, hn::UpperHalf(half, v[i / kShorts]));
  }
}

// Calls use(i, values) for the vectors that a usual row of codes decodes to, not yet rounded to the dtype.
template <class Use>
HWY_INLINE void DecodeRow(const RotatedRow& row, const LevelTable& table, float scale, const uint8_t* codes, Use use) {
  const DF df;
  const VF factor = hn::Set(df, scale * row.level_unit);
  if (row.second() == 0) {
    if (row.span == 64) return DecodeShorts<64>(table, factor, codes, use);
    if (row.span == 128) return DecodeShorts<128>(table, factor, codes, use);
    if (row.span == 256) return DecodeShorts<256>(table, factor, codes, use);
  }
  HWY_ALIGN float v[kMaxRotatedRow];
  for (size_t i = 0; i < row.length; i += kLanes) hn::Store(LoadLevels(table, codes + i), df, v + i);
  RotateBack(row, v);
  for (size_t i = 0; i < row.length; i += kLanes) {
    use(i, hn::Mul(hn::Load(df, v + i), hn::Mul(factor, hn::Load(df, kRotatedSigns.data() + i))));
  }
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
