// Codes of the coefficients of rotated rows, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_ROTATED_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_ROTATED_CODES_INL_H_
#undef KVCOMPRESS_SIMD_ROTATED_CODES_INL_H_
#else
#define KVCOMPRESS_SIMD_ROTATED_CODES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/simd/half-inl.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/rotated_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// So many coefficients are quantized at once; rows are computed with zeros after them up to a multiple.
constexpr size_t kAtOnce = kBytes;
static_assert(kMaxRotatedRow % kAtOnce == 0);
constexpr size_t Padded(size_t length) { return (length + kAtOnce - 1) / kAtOnce * kAtOnce; }

// Bounds in eighths of a coefficient's unit: of each 16 of them at most one is a bound, so the upper half of their byte
// tells how many bounds are below, and which one it is to be compared with.
struct BoundTable {
  constexpr explicit BoundTable(int bits) {
    const RotatedLevels levels = LevelsOf(bits);
    sign = static_cast<uint8_t>(levels.magnitudes);
    size_t count = 0;
    for (size_t high = 0; high < 16; ++high) {
      below[high] = static_cast<uint8_t>(count);
      last_below[high] = 255;
      const auto bound = static_cast<size_t>(levels.bound[std::min<size_t>(count, 6)]) / 8;
      if (count + 1 < static_cast<size_t>(levels.magnitudes) && bound < 16 * (high + 1)) {
        last_below[high] = static_cast<uint8_t>(bound - 1);
        ++count;
      }
    }
    for (size_t m = 0; m < 16; ++m) level[m] = levels.level[m % 8];
  }

  HWY_ALIGN uint8_t below[16] = {};
  HWY_ALIGN uint8_t last_below[16] = {};
  HWY_ALIGN uint8_t level[16] = {};
  uint8_t sign = 0;
};
// Of 2, 3 and 4 bits.
constexpr BoundTable kBoundTables[] = {BoundTable(2), BoundTable(3), BoundTable(4)};

// Two vectors of shorts as bytes, limited to what those hold.
HWY_INLINE V8 NarrowUnsigned(V16 a, V16 b) {
#if KVC_TARGET_AVX512
  return V8{_mm512_packus_epi16(a.raw, b.raw)};
#elif HWY_TARGET == HWY_AVX2
  return V8{_mm256_packus_epi16(a.raw, b.raw)};
#elif HWY_ARCH_X86
  return V8{_mm_packus_epi16(a.raw, b.raw)};
#else
  const hn::Half<D8> half;
  return hn::Combine(D8(), hn::DemoteTo(half, b), hn::DemoteTo(half, a));
#endif
}
HWY_INLINE V8 NarrowSigned(V16 a, V16 b) {
#if KVC_TARGET_AVX512
  return V8{_mm512_packs_epi16(a.raw, b.raw)};
#elif HWY_TARGET == HWY_AVX2
  return V8{_mm256_packs_epi16(a.raw, b.raw)};
#elif HWY_ARCH_X86
  return V8{_mm_packs_epi16(a.raw, b.raw)};
#else
  const hn::Half<hn::RebindToSigned<D8> > half;
  return hn::BitCast(D8(), hn::Combine(hn::RebindToSigned<D8>(), hn::DemoteTo(half, b), hn::DemoteTo(half, a)));
#endif
}

// Quantizes the coefficients of a row, in the order of short rows.
class Quantizer {
 public:
  HWY_INLINE explicit Quantizer(const BoundTable& table)
      : below_(hn::LoadDup128(D8(), table.below)),
        last_below_(hn::LoadDup128(D8(), table.last_below)),
        level_(hn::LoadDup128(D8(), table.level)),
        sign_(hn::Set(D8(), table.sign)) {
    cross_ = more_cross_ = squares_ = more_squares_ = hn::Zero(DI());
  }

  // Of two vectors, which become their levels.
  HWY_INLINE void operator()(V16& a, V16& b, uint8_t* codes) {
    const D8 d8;
    const DI di;
    const auto size = NarrowUnsigned(hn::ShiftRight<3>(hn::Abs(a)), hn::ShiftRight<3>(hn::Abs(b)));
    const auto high = hn::ShiftRight<4>(size);
    const auto above = hn::SaturatedSub(size, hn::TableLookupBytes(last_below_, high));
    const auto count = hn::Add(hn::TableLookupBytes(below_, high), hn::Min(above, hn::Set(d8, 1)));
    const auto negative = hn::BitCast(d8, hn::BroadcastSignBit(hn::BitCast(I8(), NarrowSigned(a, b))));
    hn::StoreU(FromPacked(hn::OrAnd(count, negative, sign_)), d8, codes);
    const auto level = hn::Sub(hn::Xor(hn::TableLookupBytes(level_, count), negative), negative);
    V16 lower = hn::BitCast(D16(), hn::InterleaveLower(d8, level, negative));
    V16 upper = hn::BitCast(D16(), hn::InterleaveUpper(d8, level, negative));
    cross_ = hn::ReorderWidenMulAccumulate(di, a, lower, cross_, more_cross_);
    squares_ = hn::ReorderWidenMulAccumulate(di, lower, lower, squares_, more_squares_);
    cross_ = hn::ReorderWidenMulAccumulate(di, b, upper, cross_, more_cross_);
    squares_ = hn::ReorderWidenMulAccumulate(di, upper, upper, squares_, more_squares_);
    a = lower;
    b = upper;
  }

  // What least squares have to know: the sums of the products of levels with coefficients, and of their squares.
  HWY_INLINE void StoreLanes(int32_t* cross, int32_t* squares) const {
    hn::Store(hn::Add(cross_, more_cross_), DI(), cross);
    hn::Store(hn::Add(squares_, more_squares_), DI(), squares);
  }

 private:
  using I8 = hn::RebindToSigned<D8>;

  V8 below_, last_below_, level_, sign_;
  hn::Vec<DI> cross_, more_cross_, squares_, more_squares_;
};

// The codes of a row, up to a multiple of kAtOnce, from its rotated values, and their levels.
HWY_INLINE void QuantizeRow(const BoundTable& table, size_t length, float factor, const float* v, uint8_t* codes,
                            int32_t* cross, int32_t* squares, V16* levels = nullptr) {
  const DF df;
  const VF factors = hn::Set(df, factor);
  Quantizer quantizer(table);
  const auto whole = [&](size_t at) HWY_ATTR { return Nearest(hn::Mul(hn::Load(df, v + at), factors)); };
  const auto shorts = [&](size_t at) HWY_ATTR { return hn::ReorderDemote2To(D16(), whole(at), whole(at + kLanes)); };
  for (size_t i = 0; i < length; i += kAtOnce) {
    V16 lower = shorts(i), upper = shorts(i + kShorts);
    quantizer(lower, upper, codes + i);
    if (levels == nullptr) continue;
    levels[i / kShorts] = lower;
    levels[i / kShorts + 1] = upper;
  }
  quantizer.StoreLanes(cross, squares);
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
