#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kvcompress/simd/quantize.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kvcompress/base/half.h"
#include "kvcompress/simd/group_quant.h"
#include "kvcompress/simd/half-inl.h"
#include "kvcompress/simd/pack-inl.h"
#include "kvcompress/simd/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
constexpr size_t kLanes = hn::MaxLanes(DF());

// Groups go through the kernels in tiles of this many: their scales are computed together, in lanes.
constexpr size_t kTileGroups = 16;
constexpr size_t kMaxGroup = 128;
// How far ahead of their use values are fetched.
constexpr size_t kPrefetchBytes = 4096;

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
HWY_INLINE void TileMaxima(const uint8_t* values, size_t group, size_t groups, Bits<kT>* maxima) {
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
  int last_fine;    // groups with others need GroupScale() and the scalar definition
};

template <DType kT>
ScaleLimits LimitsFor(int bits) {
  ScaleLimits limits;
  limits.qmax = static_cast<float>(QMax(bits));
  limits.max_value = kT == DType::kF16 ? kMaxF16 : MaxQuantizable(bits);
  limits.first_fine = 1 << bits;
  limits.last_fine = 0x7bfe;
  if (kT == DType::kF16) {
    while (F32ToF16(limits.qmax * F16ToF32(static_cast<uint16_t>(limits.last_fine))) == 0x7c00) --limits.last_fine;
  }
  return limits;
}

// The scales of a tile.
struct Tile {
  HWY_ALIGN float scale[kTileGroups];
  // F16 and BF16: 1 / scale, a little more (see Round); F32: the scale. Such that zeros give the code 0 at scale 0.
  HWY_ALIGN float divisor[kTileGroups];
  HWY_ALIGN uint16_t scale_bits[kTileGroups];
  HWY_ALIGN int32_t unusual[kTileGroups];  // not 0: the group needs the scalar definition
  bool any_unusual;
};

// The bump of reciprocals that turns ties upwards; see Round.
constexpr float kTieBump = 1 + 0x1p-21f;

// Computes the scales of groups with the largest magnitudes `maxima`, and raises `largest` to them. Returns false if
// one is out of range.
template <DType kT>
HWY_INLINE bool TileScales(const ScaleLimits& limits, const Bits<kT>* maxima, Tile& tile, VF& largest) {
  const DF df;
  const DI di;
  const hn::Rebind<uint16_t, DF> du16;
  VF refused = hn::Zero(df);
  VF any_unusual = hn::Zero(df);
  for (size_t i = 0; i < kTileGroups; i += kLanes) {
    const VF max = LoadF32<kT>(df, reinterpret_cast<const uint8_t*>(maxima + i));
    largest = hn::Max(largest, max);
    refused = hn::Or(refused, hn::VecFromMask(df, hn::Not(hn::Le(max, hn::Set(df, limits.max_value)))));

    const auto scale_bits = F16FromF32(df, hn::Div(max, hn::Set(df, limits.qmax)));
    const VF scale = F32FromF16(df, scale_bits);
    hn::Store(scale_bits, du16, tile.scale_bits + i);
    hn::Store(scale, df, tile.scale + i);
    const VF safe = hn::IfThenElse(hn::Eq(scale, hn::Zero(df)), hn::Set(df, 1.0f), scale);
    hn::Store(kT == DType::kF32 ? safe : hn::Div(hn::Set(df, kTieBump), safe), df, tile.divisor + i);

    const auto wide = hn::PromoteTo(di, scale_bits);
    const auto outside = hn::Or(hn::VecFromMask(di, hn::Lt(wide, hn::Set(di, limits.first_fine))),
                                hn::VecFromMask(di, hn::Gt(wide, hn::Set(di, limits.last_fine))));
    const VF unusual = hn::IfThenElseZero(hn::Gt(max, hn::Zero(df)), hn::BitCast(df, outside));
    any_unusual = hn::Or(any_unusual, unusual);
    hn::Store(hn::BitCast(di, unusual), di, tile.unusual + i);
  }
  tile.any_unusual = !hn::AllTrue(di, hn::Eq(hn::BitCast(di, any_unusual), hn::Zero(di)));
  return hn::AllTrue(di, hn::Eq(hn::BitCast(di, refused), hn::Zero(di)));
}

// ---- Codes

// Codes as whole numbers, and as integers of which the low 8 bits count.
struct Codes {
  VF number;
  VU bits;
};

// round(x / scale), half away from zero, for a group that is not unusual.
//
// F16 and BF16: x r + 1.5 2^23 with r = (1 + 2^-21) / scale leaves the nearest integer in the low bits of the sum.
// That is the same code as the definition's. Let x = X 2^i and scale = S 2^j with integers X < 2^11, S < 2^11, and
// e = i - j. If the quotient is no tie, its distance from a tie k + 1/2 is |X 2^(e+1) - (2k+1) S| / 2S, where the
// numerator is a positive multiple of min(1, 2^(e+1)): so the distance is at least 1 / 2S > 2^-12, or, when e < -1, at
// least 2^e / S = quotient / X, which is above 2^-13 for the quotients from 1/4 that alone can round to more than 0.
// The product x r is off the quotient by a relative 2^-21 +- 2^-23 (two roundings of 2^-24 each): it turns a tie up,
// and as no quotient exceeds 2^7 it moves others by less than 2^-13. Rounding the quotient to binary32 first, as the
// definition does, moves it by a relative 2^-24 and so changes neither.
//
// F32: the quotient itself, plus the largest number below 1/2, truncated; 1/2 would round 0.5 - 2^-25 up.
template <DType kT>
HWY_INLINE Codes Round(VF x, VF divisor) {
  const DF df;
  const DI di;
  const DU du;
  if constexpr (kT == DType::kF32) {
    const VF quotient = hn::Div(x, divisor);
    const auto whole = hn::ConvertTo(di, hn::Add(quotient, hn::CopySignToAbs(hn::Set(df, 0x1.fffffep-2f), quotient)));
    return {hn::ConvertTo(df, whole), hn::BitCast(du, whole)};
  } else {
    const VF magic = hn::Set(df, 0x1.8p23f);
    const VF sum = hn::MulAdd(x, divisor, magic);
    return {hn::Sub(sum, magic), hn::BitCast(du, sum)};
  }
}

// Codes to the values that Dequantize gives for them.
template <DType kT, bool kNibbles>
class Decoder {
 public:
  HWY_INLINE explicit Decoder(float scale) : scale_(hn::Set(DF(), scale)) {}
  HWY_INLINE VF operator()(const Codes& codes) const { return RoundTo<kT>(DF(), hn::Mul(codes.number, scale_)); }

 private:
  VF scale_;
};

#if KVC_TARGET_AVX512
// A table of all 16 values, of which the permutation takes the low 4 bits as the index.
template <DType kT>
class Decoder<kT, true> {
 public:
  HWY_INLINE explicit Decoder(float scale) {
    const DF df;
    const VF codes{_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1)};
    table_ = RoundTo<kT>(df, hn::Mul(codes, hn::Set(df, scale)));
  }
  HWY_INLINE VF operator()(const Codes& codes) const { return VF{_mm512_permutexvar_ps(codes.bits.raw, table_.raw)}; }

 private:
  VF table_;
};
#endif

// Stores the low bytes of 16 integers.
HWY_INLINE void StoreLowBytes(const VU (&v)[16 / kLanes], uint8_t* out) {
#if KVC_TARGET_AVX512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v[0].raw));
#else
  const DI di;
  const hn::Repartition<int16_t, DI> di16;
  const hn::Rebind<uint8_t, decltype(di16)> du8;
  const VU mask = hn::Set(DU(), 0xff);
  for (size_t i = 0; i < 16 / kLanes; i += 2) {
    const auto a = hn::BitCast(di, hn::And(v[i], mask));
    const auto b = hn::BitCast(di, hn::And(v[i + 1], mask));
    auto bytes = hn::DemoteTo(du8, hn::ReorderDemote2To(di16, a, b));
#if HWY_TARGET == HWY_AVX2
    // Two blocks of 128 bits: the demotion left a and b interleaved by fours.
    bytes = hn::BitCast(du8, hn::Vec128<int32_t>{_mm_shuffle_epi32(bytes.raw, _MM_SHUFFLE(3, 1, 2, 0))});
#endif
    StoreAt(bytes, du8, out + i * kLanes);
  }
#endif
}

// Quantizes a group that is not unusual. Codes leave as bytes, or packed as 4-bit codes when kNibbles.
template <DType kT, bool kNibbles, bool kSums>
HWY_INLINE void QuantizeGroup(const uint8_t* values, size_t group, float scale, float divisor, uint8_t* out,
                              LaneSums& sums) {
  const DF df;
  constexpr size_t kSize = DTypeSize(kT);
  const Decoder<kT, kNibbles> decode(scale);
  const VF divisors = hn::Set(df, divisor);
  const size_t bytes = kNibbles ? group / 2 : group;
  for (size_t i = 0; i < bytes; i += 16) {
    // Linear in i, so that each line is asked for once, although nibbles pair the two halves of a group.
    constexpr size_t kStep = 16 * kSize * (kNibbles ? 2 : 1);
    PrefetchAhead<kPrefetchBytes>(values + i / 16 * kStep, kStep);
    VU low_bytes[16 / kLanes];
    for (size_t v = 0; v < 16 / kLanes; ++v) {
      const uint8_t* at = values + (i + v * kLanes) * kSize;
      const VF x = LoadF32<kT>(df, at);
      const Codes codes = Round<kT>(x, divisors);
      if constexpr (kSums) sums.Add(x, hn::Sub(x, decode(codes)));
      low_bytes[v] = codes.bits;
      if constexpr (kNibbles) {
        const VF upper = LoadF32<kT>(df, at + bytes * kSize);
        const Codes upper_codes = Round<kT>(upper, divisors);
        if constexpr (kSums) sums.Add(upper, hn::Sub(upper, decode(upper_codes)));
        const VU low_nibble = hn::And(codes.bits, hn::Set(DU(), 15));
        low_bytes[v] = hn::Or(low_nibble, hn::ShiftLeft<4>(upper_codes.bits));
      }
    }
    StoreLowBytes(low_bytes, out + i);
  }
}

// ---- Calls

template <DType kT, bool kNibbles, bool kSums>
bool QuantizeTiles(const GroupQuantFormat& format, const uint8_t* values, size_t groups, uint8_t* scales,
                   uint8_t* codes, ErrorSums* sums) {
  const size_t group = format.group;
  const size_t group_bytes = group * DTypeSize(kT);
  const size_t code_bytes = group / 8 * static_cast<size_t>(format.bits);
  const bool direct = kNibbles || format.bits == 8;
  const ScaleLimits limits = LimitsFor<kT>(format.bits);
  HWY_ALIGN uint8_t unpacked[kTileGroups * kMaxGroup] = {};
  VF largest = hn::Zero(DF());
  LaneSums lanes;
  lanes.Clear();
  WideSums wide;
  ErrorSums total;
  size_t additions = 0;
  size_t unusual_groups = 0;

  for (size_t begin = 0; begin < groups; begin += kTileGroups) {
    const size_t n = std::min(kTileGroups, groups - begin);
    const uint8_t* tile_values = values + begin * group_bytes;
    uint8_t* tile_codes = codes + begin * code_bytes;
    HWY_ALIGN Bits<kT> maxima[kTileGroups] = {};
    Tile tile;
    TileMaxima<kT>(tile_values, group, n, maxima);
    if (!TileScales<kT>(limits, maxima, tile, largest)) return false;
    std::memcpy(scales + 2 * begin, tile.scale_bits, 2 * n);

    for (size_t g = 0; g < n; ++g) {
      if (HWY_UNLIKELY(tile.unusual[g])) continue;
      uint8_t* out = direct ? tile_codes + g * code_bytes : unpacked + g * group;
      QuantizeGroup<kT, kNibbles, kSums>(tile_values + g * group_bytes, group, tile.scale[g], tile.divisor[g], out,
                                         lanes);
      if constexpr (kSums) {
        additions += group / kLanes;
        if (additions >= LaneSums::kFlushAfter) {
          wide.Flush(lanes);
          additions = 0;
        }
      }
    }
    if (!direct) Pack(format.bits, group, unpacked, n, tile_codes);
    if (HWY_UNLIKELY(tile.any_unusual)) {
      for (size_t g = 0; g < n; ++g) {
        if (!tile.unusual[g]) continue;
        ++unusual_groups;
        if (!scalar::Quantize(format, tile_values + g * group_bytes, group, scales + 2 * (begin + g),
                              tile_codes + g * code_bytes, kSums ? &total : nullptr)) {
          return false;
        }
      }
    }
  }
  if constexpr (kSums) {
    wide.Flush(lanes);
    total.Merge(wide.Totals((groups - unusual_groups) * group, lanes.max_error));
    // Squares below the range of binary32: rare enough to start again.
    const auto max_abs = static_cast<double>(hn::GetLane(hn::MaxOfLanes(DF(), largest)));
    if (!SafeInLanes(max_abs) || !SafeInLanes(total.max_abs_error)) {
      return scalar::Quantize(format, values, groups * group, scales, codes, sums);
    }
    sums->Merge(total);
  }
  return true;
}

template <DType kT>
bool QuantizeAs(const GroupQuantFormat& format, const uint8_t* values, size_t groups, uint8_t* scales, uint8_t* codes,
                ErrorSums* sums) {
  if (format.bits == 4) {
    return sums ? QuantizeTiles<kT, true, true>(format, values, groups, scales, codes, sums)
                : QuantizeTiles<kT, true, false>(format, values, groups, scales, codes, sums);
  }
  return sums ? QuantizeTiles<kT, false, true>(format, values, groups, scales, codes, sums)
              : QuantizeTiles<kT, false, false>(format, values, groups, scales, codes, sums);
}

}  // namespace

// Quantize for whole groups.
bool QuantizeGroups(const GroupQuantFormat& format, const uint8_t* values, size_t groups, uint8_t* scales,
                    uint8_t* codes, ErrorSums* sums) {
  switch (format.dtype) {
    case DType::kF16:
      return QuantizeAs<DType::kF16>(format, values, groups, scales, codes, sums);
    case DType::kBF16:
      return QuantizeAs<DType::kBF16>(format, values, groups, scales, codes, sums);
    case DType::kF32:
      return QuantizeAs<DType::kF32>(format, values, groups, scales, codes, sums);
  }
  return false;
}

const char* CompiledTargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(QuantizeGroups);
HWY_EXPORT(CompiledTargetName);

bool Quantize(const GroupQuantFormat& format, const void* values, size_t count, void* scales, void* codes,
              ErrorSums* sums) {
  const auto* in = static_cast<const uint8_t*>(values);
  auto* scale_out = static_cast<uint8_t*>(scales);
  auto* code_out = static_cast<uint8_t*>(codes);
  const size_t groups = count / format.group;
  const size_t whole = groups * format.group;
  if (!HWY_DYNAMIC_DISPATCH(QuantizeGroups)(format, in, groups, scale_out, code_out, sums)) return false;
  return scalar::Quantize(format, in + whole * DTypeSize(format.dtype), count - whole, scale_out + 2 * groups,
                          code_out + PackedBytes(format.bits, format.group, whole), sums);
}

const char* TargetName() { return HWY_DYNAMIC_DISPATCH(CompiledTargetName)(); }

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
