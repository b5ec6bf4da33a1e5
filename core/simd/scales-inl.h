// Largest magnitudes and scales of a tile of groups, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_SCALES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_SCALES_INL_H_
#undef KVCOMPRESS_SIMD_SCALES_INL_H_
#else
#define KVCOMPRESS_SIMD_SCALES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/simd/group_quant.h"
#include "core/simd/half-inl.h"
#include "core/simd/subnormals-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Groups go through the kernels in tiles of this many: their scales are computed together, in lanes.
constexpr size_t kTileGroups = 16;

// ---- The largest magnitudes of groups, as the bits of elements, whose order as integers is that of the magnitudes.

// A vector for which the maximum of each lane over the blocks of 128 bits is a maximum of kCount groups' lanes: lane i
// belongs to group i mod kCount.
template <DType kT, size_t kCount>
HWY_INLINE hn::Vec<hn::ScalableTag<Bits<kT>>> MaxTree(const uint8_t* values, size_t group) {
  const hn::ScalableTag<Bits<kT>> d;
  if constexpr (kCount == 1) {
    const auto mask = hn::Set(d, static_cast<Bits<kT>>(Bits<kT>(~Bits<kT>{0}) >> 1));
    auto max = hn::And(LoadAt(d, values), mask);
    const size_t lanes = hn::Lanes(d);
    for (size_t i = lanes; i < group; i += lanes) {
      max = hn::Max(max, hn::And(LoadAt(d, values + i * sizeof(Bits<kT>)), mask));
    }
    return max;
  } else {
    const auto a = MaxTree<kT, kCount / 2>(values, group);
    const auto b = MaxTree<kT, kCount / 2>(values + kCount / 2 * group * sizeof(Bits<kT>), group);
    // Lanes of a and b already alternate with a period of kCount / 2: interleave units of that many.
    const hn::Repartition<hwy::UnsignedFromSize<sizeof(Bits<kT>) * kCount / 2>, decltype(d)> unit;
    const auto lower = hn::InterleaveLower(unit, hn::BitCast(unit, a), hn::BitCast(unit, b));
    const auto upper = hn::InterleaveUpper(unit, hn::BitCast(unit, a), hn::BitCast(unit, b));
    return hn::Max(hn::BitCast(d, lower), hn::BitCast(d, upper));
  }
}

// The maximum of each lane over the blocks of 128 bits.
template <class D>
HWY_INLINE auto MaxOfBlocks([[maybe_unused]] D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) * sizeof(hn::TFromD<D>) == 16) {
    return v;
  } else {
    const hn::Half<D> half;
    return MaxOfBlocks(half, hn::Max(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// Magnitude bits of the largest value of each of `groups` groups.
template <DType kT>
HWY_NOINLINE void TileMaxima(const uint8_t* values, size_t group, size_t groups, Bits<kT>* maxima) {
  using T = Bits<kT>;
  constexpr size_t kAtOnce = 16 / sizeof(T);
  const hn::ScalableTag<T> d;
  const hn::Full128<T> block;
  size_t g = 0;
  for (; g + kAtOnce <= groups; g += kAtOnce) {
    const auto tree = MaxTree<kT, kAtOnce>(values + g * group * sizeof(T), group);
    hn::Store(MaxOfBlocks(d, tree), block, maxima + g);
  }
  for (; g < groups; ++g) {
    maxima[g] = hn::GetLane(hn::MaxOfLanes(d, MaxTree<kT, 1>(values + g * group * sizeof(T), group)));
  }
}

// ---- Scales

// What a call needs to know about scales, computed once.
struct ScaleLimits {
  float qmax;
  float max_value;  // magnitudes above are refused
  int first_fine;   // scales from first_fine to last_fine are max / qmax rounded, and no code needs clamping;
  int last_fine;    // groups with others are unusual
};

template <DType kT>
ScaleLimits LimitsFor(int bits) {
  ScaleLimits limits;
  limits.qmax = static_cast<float>(QMax(bits));
  limits.max_value = std::min(MaxFinite(kT), kMaxQuantizable);
  if constexpr (kT == DType::kF16) {
    limits.first_fine = 1 << bits;
    limits.last_fine = std::min<int>(GroupScale(kT, bits, limits.max_value), 0x7bfe);
  } else {
    limits.first_fine = kSmallestNormalF16;
    limits.last_fine = InfinityBits(DType::kF16) - 1;
  }
  return limits;
}

// Whether a quotient has to be divided, because its dtype has more digits than a reciprocal leaves right; see Round in
// group_codes-inl.h.
template <DType kT>
constexpr bool kDividesExactly = MantissaBits(kT) > MantissaBits(DType::kF16);

// The scales of a tile.
struct Tile {
  HWY_ALIGN float scale[kTileGroups];
  // F16 and BF16: 1 / scale, a little more (see Round in group_codes-inl.h); F32: the scale. Such that zeros give
  // the code 0 at scale 0.
  HWY_ALIGN float divisor[kTileGroups];
  HWY_ALIGN uint16_t scale_bits[kTileGroups];
  // Not 0: codes are quotients by the scale, or products where it is small, and need clamping.
  HWY_ALIGN int32_t unusual[kTileGroups];
  bool any_unusual;
};

// The bump of reciprocals that turns ties upwards; see Round in group_codes-inl.h.
constexpr float kTieBump = 1 + 0x1p-21f;

// Loads in blocks of 128 bits, as TileMaxima stores: a load of more than one recent store would wait for the cache.
template <class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const hn::TFromD<D>* from) {
  if constexpr (hn::MaxLanes(D()) * sizeof(hn::TFromD<D>) <= 16) {
    return hn::Load(d, from);
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, LoadBlocks(half, from + hn::Lanes(half)), LoadBlocks(half, from));
  }
}

// The scale of these bits of GroupScale.
template <DType kT>
HWY_INLINE VF ScalesOf(hn::Vec<DI> bits) {
  const DF df;
  const DI di;
  const auto magnitude = hn::And(bits, hn::Set(di, 0x7fff));
  const VF scale = F32FromF16(df, hn::DemoteTo(hn::Rebind<uint16_t, DF>(), magnitude));
  if constexpr (kT == DType::kF16) return scale;
  const auto is_bf16 = hn::RebindMask(df, hn::Gt(bits, hn::Set(di, 0x7fff)));
  return hn::IfThenElse(is_bf16, hn::BitCast(df, hn::ShiftLeft<16>(magnitude)), scale);
}

// max / qmax, rounded as binary32 has it, also where that is subnormal, which the thread need not compute with. `max`
// is enlarged in the lanes that `is_small` has; then so is the quotient.
HWY_INLINE VF Quotients(VF max, float qmax, hn::Mask<DF> is_small) {
  const DF df;
  const hn::Repartition<double, DF> dd;
  const hn::Half<DF> half;
  // In binary64 no quotient that is not a tie is next to one.
  const auto of_half = [&](hn::Vec<hn::Half<DF>> v) HWY_ATTR {
    const auto quotient = hn::Div(hn::PromoteTo(dd, v), hn::Set(dd, double{qmax}));
    // The sum rounds to subnormal numbers' last digit, enlarged.
    const auto magic = hn::Set(dd, 0x1.8p52 * double{kEnlargedDigit});
    const auto rounded = hn::Sub(hn::Add(quotient, magic), magic);
    return hn::DemoteTo(half, hn::IfThenElse(hn::Lt(quotient, hn::Set(dd, double{kEnlargedMin})), rounded, quotient));
  };
  const VF quotient = hn::Combine(df, of_half(hn::UpperHalf(half, max)), of_half(hn::LowerHalf(half, max)));
  return hn::IfThenElse(is_small, Reduce(df, quotient), quotient);
}

// What GroupScale makes of `bits`, the quotients of the largest magnitudes `max` and qmax rounded to F16. One step is
// always enough: it is more than the rounding took. This thread may compute with 0 in place of subnormal numbers.
template <DType kT>
HWY_NOINLINE hn::Vec<DI> CorrectScales(const ScaleLimits& limits, VF max, hn::Vec<DI> bits) {
  const DF df;
  const DI di;
  const auto one = hn::Set(di, 1);
  [[maybe_unused]] const VF qmax = hn::Set(df, limits.qmax);
  [[maybe_unused]] const auto is_small = hn::Lt(max, hn::Set(df, 1.0f));
  if constexpr (kT != DType::kF16) {
    const auto is_normal = hn::And(hn::Gt(bits, hn::Set(di, kSmallestNormalF16 - 1)),
                                   hn::Lt(bits, hn::Set(di, int{InfinityBits(DType::kF16)})));
    const auto is_zero = hn::Eq(hn::BitCast(di, max), hn::Zero(di));
    max = hn::IfThenElse(is_small, Enlarge(df, max), max);
    const auto bf16 = hn::BitCast(di, hn::ShiftRight<16>(RoundToUpperHalf(df, Quotients(max, limits.qmax, is_small))));
    bits = hn::IfThenElse(hn::Or(is_normal, is_zero), bits, hn::Or(bf16, hn::Set(di, 0x8000)));
  }
  VF scale = ScalesOf<kT>(bits);
  if constexpr (kT != DType::kF16) scale = hn::IfThenElse(is_small, Enlarge(df, scale), scale);
  const VF reach = hn::Mul(hn::Set(df, limits.qmax + 0.5f), scale);
  bits = hn::Add(bits, hn::IfThenElseZero(hn::RebindMask(di, hn::Lt(reach, max)), one));
  if constexpr (kT == DType::kF16) {
    const VF least_infinite = hn::Set(df, 65520.0f);  // of what is rounded to F16
    const auto overflows = hn::Ge(hn::Mul(qmax, ScalesOf<kT>(bits)), least_infinite);
    bits = hn::Sub(bits, hn::IfThenElseZero(hn::RebindMask(di, overflows), one));
  }
  return bits;
}

// Computes the scales of groups with the largest magnitudes `maxima`. Returns false if one is out of range. This thread
// may compute with 0 in place of subnormal numbers.
template <DType kT>
HWY_NOINLINE bool TileScales(const ScaleLimits& limits, const Bits<kT>* maxima, Tile& tile) {
  const DF df;
  const DI di;
  const hn::Rebind<uint16_t, DF> du16;
  VF refused = hn::Zero(df);
  VF any_unusual = hn::Zero(df);
  for (size_t i = 0; i < kTileGroups; i += kLanes) {
    const VF max = F32FromBits<kT>(df, LoadBlocks(hn::Rebind<Bits<kT>, DF>(), maxima + i));
    refused = hn::Or(refused, hn::VecFromMask(df, hn::Not(hn::Le(max, hn::Set(df, limits.max_value)))));

    const auto scale_bits = F16FromF32(df, hn::Div(max, hn::Set(df, limits.qmax)));
    const VF scale = F32FromF16(df, scale_bits);
    hn::Store(scale_bits, du16, tile.scale_bits + i);
    hn::Store(scale, df, tile.scale + i);
    const VF safe = hn::IfThenElse(hn::Eq(scale, hn::Zero(df)), hn::Set(df, 1.0f), scale);
    hn::Store(kDividesExactly<kT> ? safe : hn::Div(hn::Set(df, kTieBump), safe), df, tile.divisor + i);

    const auto wide = hn::PromoteTo(di, scale_bits);
    const auto outside = hn::Or(hn::VecFromMask(di, hn::Lt(wide, hn::Set(di, limits.first_fine))),
                                hn::VecFromMask(di, hn::Gt(wide, hn::Set(di, limits.last_fine))));
    // By their bits: a subnormal one may count as 0 to this thread.
    const auto is_positive = hn::RebindMask(df, hn::Gt(hn::BitCast(di, max), hn::Zero(di)));
    const VF unusual = hn::IfThenElseZero(is_positive, hn::BitCast(df, outside));
    any_unusual = hn::Or(any_unusual, unusual);
    hn::Store(hn::BitCast(di, unusual), di, tile.unusual + i);
    if (HWY_UNLIKELY(!hn::AllTrue(di, hn::Eq(hn::BitCast(di, unusual), hn::Zero(di))))) {
      const auto corrected = CorrectScales<kT>(limits, max, wide);
      hn::Store(hn::DemoteTo(du16, corrected), du16, tile.scale_bits + i);
      hn::Store(ScalesOf<kT>(corrected), df, tile.scale + i);
    }
  }
  tile.any_unusual = !hn::AllTrue(di, hn::Eq(hn::BitCast(di, any_unusual), hn::Zero(di)));
  return hn::AllTrue(di, hn::Eq(hn::BitCast(di, refused), hn::Zero(di)));
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
