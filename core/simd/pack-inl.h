// Codes, a byte each, to and from the packed fields of group_quant.h, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_PACK_INL_H_
#undef KVCOMPRESS_SIMD_PACK_INL_H_
#else
#define KVCOMPRESS_SIMD_PACK_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Stores the low bytes of 16 integers.
HWY_INLINE void StoreLowBytes(const VU (&v)[16 / kLanes], uint8_t* out) {
#if KVC_TARGET_AVX512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v[0].raw));
#else
  const DI di;
  const hn::Repartition<int16_t, decltype(di)> di16;
  const hn::Rebind<uint8_t, decltype(di16)> du8;
  const auto mask = hn::Set(DU(), 0xff);
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

// A field of kWidth bits that begins at bit kFrom of a code, in a group of kGroup codes.
template <int kWidth, int kFrom, size_t kGroup>
struct Field {
  static constexpr size_t kBytes = kGroup * kWidth / 8;
  using D = hn::CappedTag<uint8_t, kBytes>;
  // The fields stay within their bytes when they are shifted, so wider lanes do, which have shift instructions.
  using DW = hn::Repartition<uint16_t, D>;

  static HWY_INLINE uint8_t* Pack(const uint8_t* codes, uint8_t* out) {
    const D d;
    const DW dw;
    const auto mask = hn::BitCast(dw, hn::Set(d, ((1 << kWidth) - 1) << kFrom));
    for (size_t j = 0; j < kBytes; j += hn::Lanes(d)) {
      auto byte = hn::Zero(dw);
      for (int at = 0; at < 8; at += kWidth) {
        const auto field = hn::And(hn::BitCast(dw, hn::LoadU(d, codes + j + at / kWidth * kBytes)), mask);
        byte = hn::Or(byte, at >= kFrom ? hn::ShiftLeftSame(field, at - kFrom) : hn::ShiftRightSame(field, kFrom - at));
      }
      hn::StoreU(hn::BitCast(d, byte), d, out + j);
    }
    return out + kBytes;
  }

  static HWY_INLINE const uint8_t* Unpack(const uint8_t* in, uint8_t* codes) {
    const D d;
    const DW dw;
    const auto mask = hn::BitCast(dw, hn::Set(d, ((1 << kWidth) - 1) << kFrom));
    for (size_t j = 0; j < kBytes; j += hn::Lanes(d)) {
      const auto byte = hn::BitCast(dw, hn::LoadU(d, in + j));
      for (int at = 0; at < 8; at += kWidth) {
        uint8_t* to = codes + j + at / kWidth * kBytes;
        const auto moved = at >= kFrom ? hn::ShiftRightSame(byte, at - kFrom) : hn::ShiftLeftSame(byte, kFrom - at);
        auto field = hn::BitCast(d, hn::And(moved, mask));
        if constexpr (kFrom > 0) field = hn::Or(field, hn::LoadU(d, to));
        hn::StoreU(field, d, to);
      }
    }
    return in + kBytes;
  }
};

template <int kBits, size_t kGroup>
HWY_INLINE void PackGroups(const uint8_t* codes, size_t groups, uint8_t* out) {
  for (size_t g = 0; g < groups; ++g, codes += kGroup) {
    if constexpr (kBits & 4) out = Field<4, 0, kGroup>::Pack(codes, out);
    if constexpr (kBits & 2) out = Field<2, kBits & 4, kGroup>::Pack(codes, out);
    if constexpr (kBits & 1) out = Field<1, kBits & 6, kGroup>::Pack(codes, out);
  }
}

// Gives the codes as they are, without the sign extended.
template <int kBits, size_t kGroup>
HWY_INLINE void UnpackGroups(const uint8_t* in, size_t groups, uint8_t* codes) {
  for (size_t g = 0; g < groups; ++g, codes += kGroup) {
    if constexpr (kBits & 4) in = Field<4, 0, kGroup>::Unpack(in, codes);
    if constexpr (kBits & 2) in = Field<2, kBits & 4, kGroup>::Unpack(in, codes);
    if constexpr (kBits & 1) in = Field<1, kBits & 6, kGroup>::Unpack(in, codes);
  }
}

template <int kBits>
void PackTile(size_t group, const uint8_t* codes, size_t groups, uint8_t* out) {
  if (group == 32) return PackGroups<kBits, 32>(codes, groups, out);
  if (group == 64) return PackGroups<kBits, 64>(codes, groups, out);
  PackGroups<kBits, 128>(codes, groups, out);
}
template <int kBits>
void UnpackTile(size_t group, const uint8_t* in, size_t groups, uint8_t* codes) {
  if (group == 32) return UnpackGroups<kBits, 32>(in, groups, codes);
  if (group == 64) return UnpackGroups<kBits, 64>(in, groups, codes);
  UnpackGroups<kBits, 128>(in, groups, codes);
}

// Packs `groups` groups of codes, a byte each, into bits = 1 .. 7 bits each. Bits above are ignored.
HWY_INLINE void Pack(int bits, size_t group, const uint8_t* codes, size_t groups, uint8_t* out) {
  switch (bits) {
    case 1: return PackTile<1>(group, codes, groups, out);
    case 2: return PackTile<2>(group, codes, groups, out);
    case 3: return PackTile<3>(group, codes, groups, out);
    case 4: return PackTile<4>(group, codes, groups, out);
    case 5: return PackTile<5>(group, codes, groups, out);
    case 6: return PackTile<6>(group, codes, groups, out);
    case 7: return PackTile<7>(group, codes, groups, out);
  }
}
HWY_INLINE void Unpack(int bits, size_t group, const uint8_t* in, size_t groups, uint8_t* codes) {
  switch (bits) {
    case 1: return UnpackTile<1>(group, in, groups, codes);
    case 2: return UnpackTile<2>(group, in, groups, codes);
    case 3: return UnpackTile<3>(group, in, groups, codes);
    case 4: return UnpackTile<4>(group, in, groups, codes);
    case 5: return UnpackTile<5>(group, in, groups, codes);
    case 6: return UnpackTile<6>(group, in, groups, codes);
    case 7: return UnpackTile<7>(group, in, groups, codes);
  }
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
