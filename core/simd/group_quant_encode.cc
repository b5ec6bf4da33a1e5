#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/group_quant_encode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/simd/group_quant.h"
#include "core/simd/half-inl.h"
#include "core/simd/pack-inl.h"
#include "core/simd/scales-inl.h"
#include "core/simd/sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// How far ahead of their use values are fetched.
constexpr size_t kPrefetchBytes = 8192;
// How far ahead of the codes the lines are fetched that they are written to: stores that wait for memory would hold up
// those of errors, which do not.
constexpr size_t kPrefetchCodes = 1024;

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
  if constexpr (kDividesExactly<kT>) {
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

// What is measured on the way: nothing, ErrorSums, or all that a TokenMeter does.
enum class Measure { kNothing, kErrors, kTokens };

// Quantizes a group that is not unusual. Codes leave as bytes, or packed as 4-bit codes when kNibbles.
template <DType kT, size_t kGroup, bool kNibbles, Measure kMeasure>
HWY_INLINE void QuantizeGroup(const uint8_t* values, float scale, float divisor, uint8_t* out, LaneSums& sums,
                              [[maybe_unused]] float* errors) {
  const DF df;
  constexpr size_t kSize = DTypeSize(kT);
  const Decoder<kT, kNibbles> decode(scale);
  const VF divisors = hn::Set(df, divisor);
  const auto measure = [&](size_t at, VF x, const Codes& codes) HWY_ATTR {
    if constexpr (kMeasure == Measure::kNothing) return;
    const VF error = hn::Sub(x, decode(codes));
    if constexpr (kMeasure == Measure::kErrors) {
      sums.Add(x, error);
    } else {
      hn::StoreU(error, df, errors + at);
    }
  };
  constexpr size_t kBytes = kNibbles ? kGroup / 2 : kGroup;
  for (size_t i = 0; i < kBytes; i += 16) {
    // Linear in i, so that each line is asked for once, although nibbles pair the two halves of a group.
    constexpr size_t kStep = 16 * kSize * (kNibbles ? 2 : 1);
    PrefetchAhead<kPrefetchBytes>(values + i / 16 * kStep, kStep);
    if (i % kCacheLine == 0) PrefetchForWriting<kPrefetchCodes>(out + i);
    VU low_bytes[16 / kLanes];
    for (size_t v = 0; v < 16 / kLanes; ++v) {
      const size_t at = i + v * kLanes;
      const VF x = LoadF32<kT>(df, values + at * kSize);
      const Codes codes = Round<kT>(x, divisors);
      measure(at, x, codes);
      low_bytes[v] = codes.bits;
      if constexpr (kNibbles) {
        const VF upper = LoadF32<kT>(df, values + (at + kBytes) * kSize);
        const Codes upper_codes = Round<kT>(upper, divisors);
        measure(at + kBytes, upper, upper_codes);
        low_bytes[v] = hn::OrAnd(hn::ShiftLeft<4>(upper_codes.bits), codes.bits, hn::Set(DU(), 15));
      }
    }
    StoreLowBytes(low_bytes, out + i);
  }
}

// ---- Calls

// One call: runs of whole groups, tile by tile. What it sums up does not depend on where runs end.
template <DType kT, bool kNibbles, Measure kMeasure>
class Quantizer {
 public:
  HWY_INLINE Quantizer(const GroupQuantFormat& format, TokenMeter* tokens)
      : format_(format),
        tokens_(tokens),
        group_(format.group),
        group_bytes_(format.group * DTypeSize(kT)),
        code_bytes_(format.group / 8 * static_cast<size_t>(format.bits)),
        limits_(LimitsFor<kT>(format.bits)) {}

  // Returns false if a value is out of range.
  HWY_INLINE bool Run(const uint8_t* values, size_t groups, uint8_t* scales, uint8_t* codes) {
    values_ = values;
    groups_ = groups;
    scales_ = scales;
    codes_ = codes;
    total_groups_ += groups;
    // The scales of the next tile are under way while the codes of this one are computed: that hides the latency of
    // the maxima, the divisions and the conversions.
    Tile tiles[2];
    if (groups_ > 0 && !Prepare(0, tiles[0])) return false;
    for (size_t begin = 0, i = 0; begin < groups_; begin += kTileGroups, ++i) {
      const size_t next = begin + kTileGroups;
      if (next < groups_ && !Prepare(next, tiles[(i + 1) % 2])) return false;
      if (!Encode(begin, tiles[i % 2])) return false;
    }
    if constexpr (kMeasure == Measure::kTokens) PassOn(groups_);
    return true;
  }

  // Adds what all runs came to. False where the squares of the errors fall below the range of binary32, and so do those
  // of the values if they are as small, for then their codes are 0; and where the values are next to equal: rare enough
  // to start again.
  HWY_NOINLINE bool AddSums(ErrorSums* sums) {
    wide_.Flush(lanes_);
    const ErrorSums usual = wide_.Totals((total_groups_ - unusual_groups_) * group_, lanes_);
    ErrorSums total = unusual_sums_;
    total.Merge(usual);
    if (!SafeInLanes(total.max_abs_error) || !wide_.DifferencesFollow(usual, lanes_)) return false;
    sums->Merge(total);
    return true;
  }

 private:
  HWY_INLINE size_t GroupsFrom(size_t begin) const { return std::min(kTileGroups, groups_ - begin); }

  HWY_INLINE bool Prepare(size_t begin, Tile& tile) {
    HWY_ALIGN Bits<kT> maxima[kTileGroups] = {};
    TileMaxima<kT>(values_ + begin * group_bytes_, group_, GroupsFrom(begin), maxima);
    return TileScales<kT>(limits_, maxima, tile);
  }

  HWY_NOINLINE bool Encode(size_t begin, const Tile& tile) {
    const size_t n = GroupsFrom(begin);
    std::memcpy(scales_ + 2 * begin, tile.scale_bits, 2 * n);
    const bool direct = kNibbles || format_.bits == 8;
    uint8_t* codes = codes_ + begin * code_bytes_;
    uint8_t* out = direct ? codes : unpacked_;
    switch (group_) {
      case 32: EncodeGroups<32>(begin, n, tile, out); break;
      case 64: EncodeGroups<64>(begin, n, tile, out); break;
      default: EncodeGroups<kMaxGroup>(begin, n, tile, out);
    }
    if (!direct) Pack(format_.bits, group_, unpacked_, n, codes);
    if (HWY_UNLIKELY(tile.any_unusual) && !EncodeUnusual(begin, tile)) return false;
    if constexpr (kMeasure == Measure::kTokens) {
      filled_ += n;
      if ((filled_ + kTileGroups) * group_ > kErrors) PassOn(begin + n);
    }
    return true;
  }

  // Those of the tile that are not unusual.
  template <size_t kGroup>
  HWY_INLINE void EncodeGroups(size_t begin, size_t n, const Tile& tile, uint8_t* out) {
    const uint8_t* values = values_ + begin * kGroup * DTypeSize(kT);
    float* errors = ErrorsAt(0);
    LaneSums lanes = lanes_;
    for (size_t g = 0; g < n; ++g) {
      if (HWY_LIKELY(!tile.unusual[g])) {
        QuantizeGroup<kT, kGroup, kNibbles, kMeasure>(values, tile.scale[g], tile.divisor[g], out, lanes, errors);
        if constexpr (kMeasure == Measure::kErrors) {
          additions_ += kGroup / kLanes;
          if (additions_ >= LaneSums::kFlushAfter) {
            wide_.Flush(lanes);
            additions_ = 0;
          }
        }
      }
      values += kGroup * DTypeSize(kT);
      out += kNibbles ? kGroup / 2 : kGroup;
      if constexpr (kMeasure == Measure::kTokens) errors += kGroup;
    }
    lanes_ = lanes;
  }

  // Has the groups since the last call measured, which end with group `end`.
  HWY_INLINE void PassOn(size_t end) {
    tokens_->Add(kT, values_ + (end - filled_) * group_bytes_, errors_, filled_ * group_);
    filled_ = 0;
  }

  // Where the errors of a group of the tile go.
  HWY_INLINE float* ErrorsAt(size_t g) {
    return kMeasure == Measure::kTokens ? errors_ + (filled_ + g) * group_ : nullptr;
  }

  // Groups whose scale or codes need the corrections of the definition.
  HWY_NOINLINE bool EncodeUnusual(size_t begin, const Tile& tile) {
    for (size_t g = begin; g < begin + GroupsFrom(begin); ++g) {
      if (!tile.unusual[g - begin]) continue;
      ++unusual_groups_;
      if (!scalar::Quantize(format_, values_ + g * group_bytes_, group_, scales_ + 2 * g, codes_ + g * code_bytes_,
                            kMeasure == Measure::kErrors ? &unusual_sums_ : nullptr, ErrorsAt(g - begin))) {
        return false;
      }
    }
    return true;
  }

  const GroupQuantFormat& format_;
  TokenMeter* const tokens_;
  const size_t group_, group_bytes_, code_bytes_;
  const ScaleLimits limits_;
  // Of the run at hand.
  const uint8_t* values_ = nullptr;
  size_t groups_ = 0;
  uint8_t* scales_ = nullptr;
  uint8_t* codes_ = nullptr;
  HWY_ALIGN uint8_t unpacked_[kTileGroups * kMaxGroup] = {};
  // Errors are measured together: of so many tokens that it is worth while, and while they are in the cache.
  static constexpr size_t kErrors = kMeasure == Measure::kTokens ? kTileGroups * kMaxGroup : 1;
  HWY_ALIGN float errors_[kErrors];
  size_t filled_ = 0;  // in groups
  LaneSums lanes_{0};
  WideSums wide_;
  ErrorSums unusual_sums_;
  size_t additions_ = 0;
  size_t total_groups_ = 0;
  size_t unusual_groups_ = 0;
};

// Calls visit(run, groups, scales, codes) for the whole groups of each run, until one call returns false.
template <typename Visit>
bool ForEachRun(const GroupQuantFormat& format, std::span<const ValueRun> runs, uint8_t* scales, uint8_t* codes,
                Visit visit) {
  for (const ValueRun& run : runs) {
    const size_t groups = run.count / format.group;
    if (!visit(static_cast<const uint8_t*>(run.values), groups, scales, codes)) return false;
    scales += 2 * groups;
    codes += groups * (format.group / 8 * static_cast<size_t>(format.bits));
  }
  return true;
}

template <DType kT, bool kNibbles, Measure kMeasure>
bool QuantizeWith(const GroupQuantFormat& format, std::span<const ValueRun> runs, uint8_t* scales, uint8_t* codes,
                  ErrorSums* sums, TokenMeter* tokens) {
  Quantizer<kT, kNibbles, kMeasure> quantizer(format, tokens);
  const auto fast = [&](const uint8_t* values, size_t groups, uint8_t* scale_out, uint8_t* code_out) {
    return quantizer.Run(values, groups, scale_out, code_out);
  };
  if (!ForEachRun(format, runs, scales, codes, fast)) return false;
  if (kMeasure != Measure::kErrors || quantizer.AddSums(sums)) return true;
  const auto exact = [&](const uint8_t* values, size_t groups, uint8_t* scale_out, uint8_t* code_out) {
    return scalar::Quantize(format, values, groups * format.group, scale_out, code_out, sums);
  };
  return ForEachRun(format, runs, scales, codes, exact);
}

template <DType kT, bool kNibbles>
bool QuantizeAs(const GroupQuantFormat& format, std::span<const ValueRun> runs, uint8_t* scales, uint8_t* codes,
                ErrorSums* sums, TokenMeter* tokens) {
  if (!sums) return QuantizeWith<kT, kNibbles, Measure::kNothing>(format, runs, scales, codes, sums, tokens);
  if (!tokens) return QuantizeWith<kT, kNibbles, Measure::kErrors>(format, runs, scales, codes, sums, tokens);
  return QuantizeWith<kT, kNibbles, Measure::kTokens>(format, runs, scales, codes, sums, tokens);
}

}  // namespace

// QuantizeRuns for whole groups.
bool QuantizeGroups(const GroupQuantFormat& format, std::span<const ValueRun> runs, uint8_t* scales, uint8_t* codes,
                    ErrorSums* sums, TokenMeter* tokens) {
  return VisitDType(format.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    return format.bits == 4 ? QuantizeAs<kT, true>(format, runs, scales, codes, sums, tokens)
                            : QuantizeAs<kT, false>(format, runs, scales, codes, sums, tokens);
  });
}

const char* CompiledTargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(QuantizeGroups);
HWY_EXPORT(CompiledTargetName);

namespace {

// Measures once more, by what they are decoded to, values that have been quantized.
void MeasureExactly(const GroupQuantFormat& format, std::span<const ValueRun> runs, const uint8_t* scales,
                    const uint8_t* codes, ErrorSums& sums, TokenMeter& tokens) {
  constexpr size_t kTile = 16 * kMaxGroup;
  uint8_t decoded[kTile * sizeof(float)];
  tokens.BeginExact();
  for (const ValueRun& run : runs) {
    for (size_t at = 0; at < run.count; at += kTile) {
      const size_t count = std::min(kTile, run.count - at);
      const auto* values = static_cast<const uint8_t*>(run.values) + at * DTypeSize(format.dtype);
      Dequantize(format, scales, codes, count, decoded);
      MeasureErrors(format.dtype, values, decoded, count, sums);
      tokens.AddDecoded(format.dtype, values, decoded, count);
      scales += 2 * GroupCount(format.group, count);
      codes += PackedBytes(format.bits, format.group, count);
    }
  }
  (void)tokens.End();  // it always holds
}

}  // namespace

bool QuantizeRuns(const GroupQuantFormat& format, std::span<const ValueRun> runs, void* scales, void* codes,
                  ErrorSums* sums, TokenMeter* tokens) {
  auto* scale_out = static_cast<uint8_t*>(scales);
  auto* code_out = static_cast<uint8_t*>(codes);
  if (!HWY_DYNAMIC_DISPATCH(QuantizeGroups)(format, runs, scale_out, code_out, sums, tokens)) return false;
  if (!runs.empty()) {
    size_t groups = 0;
    for (const ValueRun& run : runs) groups += run.count / format.group;
    const ValueRun& last = runs.back();
    const size_t tail = last.count % format.group;
    const auto* values = static_cast<const uint8_t*>(last.values) + (last.count - tail) * DTypeSize(format.dtype);
    float errors[kMaxGroup];
    if (!scalar::Quantize(format, values, tail, scale_out + 2 * groups,
                          code_out + PackedBytes(format.bits, format.group, groups * format.group),
                          tokens == nullptr ? sums : nullptr, tokens == nullptr ? nullptr : errors)) {
      return false;
    }
    if (tokens != nullptr) tokens->Add(format.dtype, values, errors, tail);
  }
  if (tokens == nullptr) return true;
  if (tokens->End()) {
    sums->Merge(tokens->sums());
  } else {
    MeasureExactly(format, runs, scale_out, code_out, *sums, *tokens);
  }
  return true;
}

bool Quantize(const GroupQuantFormat& format, const void* values, size_t count, void* scales, void* codes,
              ErrorSums* sums) {
  const ValueRun run{values, count};
  return QuantizeRuns(format, {&run, 1}, scales, codes, sums);
}

const char* TargetName() { return HWY_DYNAMIC_DISPATCH(CompiledTargetName)(); }

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
