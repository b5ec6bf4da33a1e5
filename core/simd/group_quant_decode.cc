#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/group_quant_decode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/simd/group_quant.h"
#include "core/simd/half-inl.h"
#include "core/simd/pack-inl.h"
#include "core/simd/subnormals-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

constexpr size_t kTileGroups = 16;
// How far ahead of their use packed codes, and the lines that values are written to, are fetched.
constexpr size_t kPrefetchCodes = 2048;
constexpr size_t kPrefetchValues = 8192;

// The scales of up to kTileGroups groups; NaN for one that is not finite.
template <DType kT>
HWY_INLINE void LoadScales(const uint8_t* scales, size_t groups, float* out) {
  const DF df;
  const hn::Rebind<uint16_t, DF> du16;
  const DI di;
  HWY_ALIGN uint16_t bits[kTileGroups] = {};
  std::memcpy(bits, scales, 2 * groups);
  for (size_t i = 0; i < kTileGroups; i += kLanes) {
    const auto half = hn::Load(du16, bits + i);
    const auto wide = hn::PromoteTo(di, half);
    const auto magnitude = hn::And(wide, hn::Set(di, 0x7fff));
    const VF nan = hn::BitCast(df, hn::Set(di, 0x7fc00000));
    auto infinity = hn::Set(di, 0x7c00);
    VF scale = F32FromF16(df, half);
    if constexpr (kT != DType::kF16) {
      // With the sign bit, bfloat16.
      const auto is_bf16 = hn::Gt(wide, hn::Set(di, 0x7fff));
      infinity = hn::IfThenElse(is_bf16, hn::Set(di, 0x7f80), infinity);
      scale = hn::IfThenElse(hn::RebindMask(df, is_bf16), hn::BitCast(df, hn::ShiftLeft<16>(magnitude)), scale);
    }
    hn::Store(hn::IfThenElse(hn::RebindMask(df, hn::Lt(magnitude, infinity)), scale, nan), df, out + i);
  }
}

HWY_INLINE bool IsSubnormal(float scale) { return scale != 0 && std::fabs(scale) < std::numeric_limits<float>::min(); }

// Products with a subnormal scale.
HWY_INLINE VF SubnormalProducts(VF numbers, VF scale) {
  const DF df;
  return Reduce(df, hn::Mul(numbers, Enlarge(df, scale)));
}

// Products with any scale.
HWY_INLINE VF Products(VF numbers, float scale) {
  const VF scales = hn::Set(DF(), scale);
  return HWY_UNLIKELY(IsSubnormal(scale)) ? SubnormalProducts(numbers, scales) : hn::Mul(numbers, scales);
}

// Decodes a group of codes, a byte each, whose bits above `bits` are 0; kIsSmall where the scale is subnormal.
template <DType kT, bool kIsSmall>
HWY_INLINE void DecodeBytesAs(int bits, size_t group, float scale, const uint8_t* codes, uint8_t* values) {
  const DF df;
  const DI di;
  const hn::Rebind<uint8_t, DF> du8;
  const auto sign = hn::Set(di, 1 << (bits - 1));
  const VF scales = hn::Set(df, scale);
  for (size_t i = 0; i < group; i += kLanes) {
    const auto code = hn::PromoteTo(di, LoadAt(du8, codes + i));
    const auto number = hn::ConvertTo(df, hn::Sub(hn::Xor(code, sign), sign));
    const VF product = kIsSmall ? SubnormalProducts(number, scales) : hn::Mul(number, scales);
    StoreF32<kT>(df, product, values + i * DTypeSize(kT));
  }
}
template <DType kT>
HWY_INLINE void DecodeBytes(int bits, size_t group, float scale, const uint8_t* codes, uint8_t* values) {
  if constexpr (kT != DType::kF16) {
    if (HWY_UNLIKELY(IsSubnormal(scale))) return DecodeBytesAs<kT, true>(bits, group, scale, codes, values);
  }
  DecodeBytesAs<kT, false>(bits, group, scale, codes, values);
}

HWY_ALIGN constexpr float kNibbleCodes[16] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};

#if KVC_TARGET_AVX512

// Decodes a group of 4-bit codes with a table of their 16 values. A permutation takes the low bits of each lane as the
// index into the table, which is there twice when the index has 5 bits, so that nibbles need no mask.
template <DType kT>
HWY_INLINE void DecodeNibbles(size_t group, float scale, const uint8_t* packed, uint8_t* values) {
  const DF df;
  const VF products = Products(hn::Load(df, kNibbleCodes), scale);
  const size_t bytes = group / 2;
  if constexpr (kT == DType::kF32) {
    for (size_t i = 0; i < bytes; i += 16) {
      const __m512i lower = _mm512_cvtepu8_epi32(LoadAt(hn::Full128<uint8_t>(), packed + i).raw);
      const __m512i upper = _mm512_srli_epi32(lower, 4);
      StoreAt(VF{_mm512_permutexvar_ps(lower, products.raw)}, df, values + i * 4);
      StoreAt(VF{_mm512_permutexvar_ps(upper, products.raw)}, df, values + (bytes + i) * 4);
    }
  } else {
    static_assert(DTypeSize(kT) == 2);
    const hn::ScalableTag<uint16_t> du16;
    using V16 = hn::Vec<decltype(du16)>;
    const __m512i table = _mm512_broadcast_i64x4(Narrow<kT>(df, products).raw);
    if (bytes == 16) {  // both halves of the group in one vector
      const auto half = LoadAt(hn::Full128<uint8_t>(), packed).raw;
      const __m512i codes = _mm512_cvtepu8_epi16(_mm256_set_m128i(_mm_srli_epi16(half, 4), half));
      StoreAt(V16{_mm512_permutexvar_epi16(codes, table)}, du16, values);
      return;
    }
    for (size_t i = 0; i < bytes; i += 32) {
      const __m512i lower = _mm512_cvtepu8_epi16(LoadAt(hn::Full256<uint8_t>(), packed + i).raw);
      const __m512i upper = _mm512_srli_epi16(lower, 4);
      StoreAt(V16{_mm512_permutexvar_epi16(lower, table)}, du16, values + i * 2);
      StoreAt(V16{_mm512_permutexvar_epi16(upper, table)}, du16, values + (bytes + i) * 2);
    }
  }
}

#else

// Eight values of 4-bit codes from the `from`-th on.
template <DType kT>
HWY_INLINE hn::Vec<hn::Full128<uint16_t> > EightValues(float scale, size_t from) {
  const DF df;
  const auto lower = Narrow<kT>(df, Products(hn::Load(df, kNibbleCodes + from), scale));
  if constexpr (kLanes == 8) {
    return lower;
  } else {
    const auto upper = Narrow<kT>(df, Products(hn::Load(df, kNibbleCodes + from + 4), scale));
    return hn::Combine(hn::Full128<uint16_t>(), upper, lower);
  }
}

// The lower and the upper bytes of the 16 values of 4-bit codes.
struct ByteTables {
  hn::Vec<hn::Full128<uint8_t> > lower, upper;
};

// Decodes `bytes` bytes of 4-bit codes, kBytes or a vector at a time: the bytes of values are looked up in two tables
// and interleaved.
template <size_t kBytes>
HWY_INLINE void LookUpNibbles(const ByteTables& tables, const uint8_t* packed, size_t bytes, uint8_t* values) {
  const hn::CappedTag<uint8_t, kBytes> d;
  const hn::Repartition<uint16_t, decltype(d)> du16;
  const auto mask = hn::Set(d, 15);
  const size_t lanes = hn::Lanes(d);
  auto lower_bytes = hn::Zero(d);
  auto upper_bytes = hn::Zero(d);
  if constexpr (hn::MaxLanes(d) == 16) {
    lower_bytes = tables.lower;
    upper_bytes = tables.upper;
  } else {
    lower_bytes = hn::Combine(d, tables.lower, tables.lower);
    upper_bytes = hn::Combine(d, tables.upper, tables.upper);
  }
  const auto store = [&](auto codes, uint8_t* to) HWY_ATTR {
    const auto a = hn::TableLookupBytes(lower_bytes, codes);
    const auto b = hn::TableLookupBytes(upper_bytes, codes);
    StoreAt(hn::InterleaveLower(d, a, b), d, to);
    StoreAt(hn::InterleaveUpper(d, a, b), d, to + lanes);
  };
  for (size_t i = 0; i < bytes; i += lanes) {
    auto both = LoadAt(d, packed + i);
#if HWY_TARGET == HWY_AVX2
    // Interleaving works in blocks of 128 bits: this order of the quarters makes the results contiguous.
    if constexpr (kBytes > 16) both = decltype(both){_mm256_permute4x64_epi64(both.raw, _MM_SHUFFLE(3, 1, 2, 0))};
#endif
    store(hn::And(both, mask), values + i * 2);
    const auto upper = hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(du16, both)));
    store(hn::And(upper, mask), values + (bytes + i) * 2);
  }
}

template <DType kT>
HWY_INLINE void DecodeNibbles(size_t group, float scale, const uint8_t* packed, uint8_t* values) {
  if constexpr (kT == DType::kF32) {
    HWY_ALIGN uint8_t codes[kMaxGroup];
    Unpack(4, group, packed, 1, codes);
    DecodeBytes<kT>(4, group, scale, codes, values);
  } else {
    static_assert(DTypeSize(kT) == 2);
    const hn::Full128<uint8_t> block;
    const auto a = hn::BitCast(block, EightValues<kT>(scale, 0));
    const auto b = hn::BitCast(block, EightValues<kT>(scale, 8));
    const ByteTables tables = {hn::ConcatEven(block, b, a), hn::ConcatOdd(block, b, a)};
    if (group == 32) return LookUpNibbles<16>(tables, packed, 16, values);
    LookUpNibbles<32>(tables, packed, group / 2, values);
  }
}

#endif

template <DType kT>
void DequantizeAs(const GroupQuantFormat& format, const uint8_t* scales, const uint8_t* codes, size_t groups,
                  uint8_t* values) {
  const size_t group = format.group;
  const size_t group_bytes = group * DTypeSize(kT);
  const size_t code_bytes = group / 8 * static_cast<size_t>(format.bits);
  HWY_ALIGN uint8_t unpacked[kTileGroups * kMaxGroup];
  for (size_t begin = 0; begin < groups; begin += kTileGroups) {
    const size_t n = std::min(kTileGroups, groups - begin);
    const uint8_t* tile_codes = codes + begin * code_bytes;
    uint8_t* tile_values = values + begin * group_bytes;
    HWY_ALIGN float tile_scales[kTileGroups];
    LoadScales<kT>(scales + 2 * begin, n, tile_scales);
    PrefetchAhead<kPrefetchCodes>(tile_codes, n * code_bytes);
    if (format.bits < 8 && format.bits != 4) Unpack(format.bits, group, tile_codes, n, unpacked);
    const uint8_t* bytes = format.bits == 8 ? tile_codes : unpacked;
    for (size_t g = 0; g < n; ++g) {
      uint8_t* group_values = tile_values + g * group_bytes;
      PrefetchAhead<kPrefetchValues>(group_values, group_bytes);
      if (format.bits == 4) {
        DecodeNibbles<kT>(group, tile_scales[g], tile_codes + g * code_bytes, group_values);
      } else {
        DecodeBytes<kT>(format.bits, group, tile_scales[g], bytes + g * group, group_values);
      }
    }
  }
}

}  // namespace

// Dequantize for whole groups.
void DequantizeGroups(const GroupQuantFormat& format, const uint8_t* scales, const uint8_t* codes, size_t groups,
                      uint8_t* values) {
  VisitDType(format.dtype,
             [&](auto t) HWY_ATTR { DequantizeAs<decltype(t)::value>(format, scales, codes, groups, values); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(DequantizeGroups);

void Dequantize(const GroupQuantFormat& format, const void* scales, const void* codes, size_t count, void* values) {
  const auto* scale_in = static_cast<const uint8_t*>(scales);
  const auto* code_in = static_cast<const uint8_t*>(codes);
  auto* out = static_cast<uint8_t*>(values);
  const size_t groups = count / format.group;
  const size_t whole = groups * format.group;
  HWY_DYNAMIC_DISPATCH(DequantizeGroups)(format, scale_in, code_in, groups, out);
  scalar::Dequantize(format, scale_in + 2 * groups, code_in + PackedBytes(format.bits, format.group, whole),
                     count - whole, out + whole * DTypeSize(format.dtype));
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
