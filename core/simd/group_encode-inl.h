// Quantizes and measures one group of values, for the target that is being compiled.

#if defined(KVCOMPRESS_SIMD_GROUP_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVCOMPRESS_SIMD_GROUP_ENCODE_INL_H_
#undef KVCOMPRESS_SIMD_GROUP_ENCODE_INL_H_
#else
#define KVCOMPRESS_SIMD_GROUP_ENCODE_INL_H_
#endif

#include <hwy/highway.h>

#include "core/simd/group_codes-inl.h"
#include "core/simd/half-inl.h"
#include "core/simd/pack-inl.h"
#include "core/simd/sixteen-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// How far ahead of their use values are fetched.
constexpr size_t kPrefetchBytes = 8192;
// How far ahead of the codes the lines are fetched that they are written to: stores that wait for memory would hold up
// those of errors, which do not.
constexpr size_t kPrefetchCodes = 1024;

// What is measured on the way: nothing, ErrorSums, or all that a TokenMeter does.
enum class Measure { kNothing, kErrors, kTokens };

// Of groups that are not usual, some are so small that their values are enlarged.
enum class Group { kUsual, kUnusual, kSmall };

// How the codes of a group are made: its `divisor` is the tile's, or the scale where the group is divided exactly.
struct GroupScales {
  float scale;
  float divisor;
  float qmax;
};

// Where a group's errors are stored, and its values as binary32, of dtypes for which kKeepsWide.
struct Measured {
  float* errors;
  float* values;
};

// Whether values are converted with more work than it is to keep them for who measures errors.
template <DType kT>
constexpr bool kKeepsWide = KVC_EMULATES_F16 ? kT == DType::kF16 : false;

// Quantizes a group. Codes leave as bytes, or packed as 4-bit codes when kNibbles. Scales of a small one are enlarged.
template <DType kT, size_t kGroup, bool kNibbles, Group kKind, Measure kMeasure>
HWY_INLINE void QuantizeGroup(const uint8_t* values, const GroupScales& scales, uint8_t* out, LaneSums& sums,
                              [[maybe_unused]] const Measured& kept) {
  const DF df;
  constexpr size_t kSize = DTypeSize(kT);
  const Decoder<kT, kNibbles> decode(scales.scale);
  const VF divisors = hn::Set(df, scales.divisor);
  const auto enlarge = [&](VF x) HWY_ATTR { return kKind == Group::kSmall ? Enlarge(df, x) : x; };
  const auto round = [&](VF x) HWY_ATTR {
    if constexpr (kKind == Group::kUsual) return Round<kT>(x, divisors);
    const VF qmax = hn::Set(df, scales.qmax);
    if constexpr (kKind == Group::kSmall && !kDividesExactly<kT>) return RoundSmall<kT>(x, divisors, qmax);
    return RoundAndClamp(x, divisors, qmax);
  };
  const auto measure = [&](size_t at, VF x, const Codes& codes) HWY_ATTR {
    if constexpr (kMeasure == Measure::kNothing) return;
    VF error = hn::Sub(x, decode(codes));
    if constexpr (kKind == Group::kSmall) {
      error = Reduce(df, error);
      x = Reduce(df, x);
    }
    if constexpr (kMeasure == Measure::kErrors) {
      sums.Add(x, error);
    } else {
      hn::StoreU(error, df, kept.errors + at);
      if constexpr (kKeepsWide<kT>) hn::StoreU(x, df, kept.values + at);
    }
  };
  constexpr size_t kBytes = kNibbles ? kGroup / 2 : kGroup;
  for (size_t i = 0; i < kBytes; i += 16) {
    // Linear in i, so that each line is asked for once, although nibbles pair the two halves of a group.
    constexpr size_t kStep = 16 * kSize * (kNibbles ? 2 : 1);
    PrefetchAhead<kPrefetchBytes>(values + i / 16 * kStep, kStep);
    if (i % kCacheLine == 0) PrefetchForWriting<kPrefetchCodes>(out + i);
    const Sixteen<kT> lower(values + i * kSize);
    const Sixteen<kT> upper(values + (kNibbles ? i + kBytes : i) * kSize);
    VU low_bytes[16 / kLanes];
    for (size_t v = 0; v < 16 / kLanes; ++v) {
      const size_t at = i + v * kLanes;
      const VF x = enlarge(lower[v]);
      const Codes codes = round(x);
      measure(at, x, codes);
      low_bytes[v] = codes.bits;
      if constexpr (kNibbles) {
        const VF upper_x = enlarge(upper[v]);
        const Codes upper_codes = round(upper_x);
        measure(at + kBytes, upper_x, upper_codes);
        low_bytes[v] = hn::OrAnd(hn::ShiftLeft<4>(upper_codes.bits), codes.bits, hn::Set(DU(), 15));
      }
    }
    StoreLowBytes(low_bytes, out + i);
  }
}

}  // namespace
}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
