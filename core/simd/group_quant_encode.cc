#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/group_quant_encode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/base/half.h"
#include "core/simd/group_encode-inl.h"
#include "core/simd/group_quant.h"
#include "core/simd/group_rows-inl.h"
#include "core/simd/half-inl.h"
#include "core/simd/pack-inl.h"
#include "core/simd/scales-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/subnormals.h"
#include "core/simd/sums-inl.h"
#include "core/simd/token_meter.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

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
    if constexpr (kMeasure == Measure::kErrors) {
      if (total_groups_ == 0 && groups > 0) lanes_ = LaneSums(ShiftOf<kT>(values, groups * group_));
    }
    total_groups_ += groups;
    size_t begin = 0;
    if constexpr (kByRows) {
      if (!EncodeRows(begin)) return false;
    }
    // The scales of the next tile are under way while the codes of this one are computed: that hides the latency of
    // the maxima, the divisions and the conversions.
    Tile tiles[2];
    if (begin < groups_ && !Prepare(begin, groups_, tiles[0])) return false;
    for (size_t i = 0; begin < groups_; begin += kTileGroups, ++i) {
      const size_t next = begin + kTileGroups;
      if (next < groups_ && !Prepare(next, groups_, tiles[(i + 1) % 2])) return false;
      Encode(begin, groups_, tiles[i % 2]);
    }
    if constexpr (kMeasure == Measure::kTokens) PassOn(groups_);
    return true;
  }

  // Adds what all runs, which are these, came to. False where binary32 did not hold it.
  HWY_NOINLINE bool AddSums(std::span<const ValueRun> runs, ErrorSums& sums) {
    wide_.Flush(lanes_);
    const ErrorSums total = wide_.Totals(total_groups_ * group_, lanes_);
    // F16, and the values of groups that are not unusual, are small, and not too small beside their errors.
    constexpr double kLeastSquares = 0x1p-60, kMostSquares = 0x1p100;
    const bool is_held =
        kT == DType::kF16 || !has_unusual_ || (total.sum_squares >= kLeastSquares && total.sum_squares <= kMostSquares);
    if (!is_held || !SafeInLanes(total.max_abs_error) || !wide_.DifferencesFollow(total, lanes_)) return false;
    // Subnormal errors count as 0.
    if (total.max_abs_error == 0 && (has_small_ || HasSubnormals(kT, runs))) return false;
    sums.Merge(total);
    return true;
  }

 private:
  // Whether errors are added up as they are made, where tokens are of whole groups.
  static constexpr bool kByRows = kQuantizesRows && kNibbles && kMeasure == Measure::kTokens;

  static HWY_INLINE size_t GroupsOf(size_t begin, size_t end) { return std::min(kTileGroups, end - begin); }

  // Of a tile that begins with group `begin`, and ends before `end`.
  HWY_INLINE bool Prepare(size_t begin, size_t end, Tile& tile) {
    HWY_ALIGN Bits<kT> maxima[kTileGroups] = {};
    TileMaxima<kT>(values_ + begin * group_bytes_, group_, GroupsOf(begin, end), maxima);
    return TileScales<kT>(limits_, maxima, tile);
  }

  // Encodes the whole rows that the run begins with, if they are of whole groups, and moves `begin` behind them.
  HWY_NOINLINE bool EncodeRows(size_t& begin) {
    const size_t row = tokens_->width() / group_;
    const size_t most = std::min(kMostRowGroups, kPrefetchBytes / group_bytes_);
    if (tokens_->width() % group_ != 0 || row > most) return true;
    const size_t step = most / row * row;
    const size_t end = row * static_cast<size_t>(std::min<uint64_t>(tokens_->WholeRows(), groups_ / row));
    for (; begin < end; begin += step) {
      if (!EncodeRowGroups(begin, std::min(begin + step, end), row)) return false;
    }
    begin = end;
    return true;
  }

  // Of rows of `row` groups.
  HWY_INLINE bool EncodeRowGroups(size_t begin, size_t end, size_t row) {
    const uint8_t* const values = values_ + begin * group_bytes_;
    // Step by step, of all tiles: none waits for what another's divisions come to.
    HWY_ALIGN Bits<kT> maxima[kMostRowGroups] = {};
    TileMaxima<kT>(values, group_, end - begin, maxima);
    Tile tiles[kMostRowGroups / kTileGroups];
    bool any_unusual = false;
    for (size_t g = begin, i = 0; g < end; g += kTileGroups, ++i) {
      if (!TileScales<kT>(limits_, maxima + i * kTileGroups, tiles[i])) return false;
      any_unusual = any_unusual || tiles[i].any_unusual;
    }
    if (HWY_UNLIKELY(any_unusual)) {
      for (size_t g = begin, i = 0; g < end; g += kTileGroups, ++i) Encode(g, end, tiles[i]);
      PassOn(end);
      return true;
    }
    RowScales<kT> made;
    for (size_t g = begin, i = 0; g < end; g += kTileGroups, ++i) {
      std::memcpy(scales_ + 2 * g, tiles[i].scale_bits, 2 * GroupsOf(g, end));
      made.Set(g - begin, tiles[i]);
    }
    uint8_t* const codes = codes_ + begin * code_bytes_;
    QuantizeRows<kT>({values, codes, made.divisor, made.decode, (end - begin) / row, row, group_}, *tokens_);
    return true;
  }

  HWY_NOINLINE void Encode(size_t begin, size_t end, const Tile& tile) {
    const size_t n = GroupsOf(begin, end);
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
    has_unusual_ = has_unusual_ || tile.any_unusual;
    if constexpr (kMeasure == Measure::kTokens) {
      filled_ += n;
      if ((filled_ + kTileGroups) * group_ > kErrors) PassOn(begin + n);
    }
  }

  template <size_t kGroup>
  HWY_INLINE void EncodeGroups(size_t begin, size_t n, const Tile& tile, uint8_t* out) {
    if (HWY_LIKELY(!tile.any_unusual)) {
      EncodeUsual<kGroup>(begin, n, tile, out);
    } else {
      EncodeAny<kGroup>(begin, n, tile, out);
    }
  }

  template <size_t kGroup>
  HWY_INLINE void EncodeUsual(size_t begin, size_t n, const Tile& tile, uint8_t* out) {
    ForEachGroup<kGroup>(begin, n, [&](size_t g, const uint8_t* values, LaneSums& lanes, Measured kept) HWY_ATTR {
      const GroupScales scales{tile.scale[g], tile.divisor[g], limits_.qmax};
      QuantizeGroup<kT, kGroup, kNibbles, Group::kUsual, kMeasure>(values, scales, OutOf<kGroup>(out, g), lanes, kept);
    });
  }

  // Of a tile with groups that are not usual.
  template <size_t kGroup>
  HWY_NOINLINE void EncodeAny(size_t begin, size_t n, const Tile& tile, uint8_t* out) {
    ForEachGroup<kGroup>(begin, n, [&](size_t g, const uint8_t* values, LaneSums& lanes, Measured kept) HWY_ATTR {
      uint8_t* const to = OutOf<kGroup>(out, g);
      const float scale = tile.scale[g];
      GroupScales scales{scale, tile.divisor[g], limits_.qmax};
      if (!tile.unusual[g]) {
        return QuantizeGroup<kT, kGroup, kNibbles, Group::kUsual, kMeasure>(values, scales, to, lanes, kept);
      }
      if constexpr (kT != DType::kF16) {
        if (scale < kSmallScale) {
          has_small_ = true;
          scales.scale = hn::GetLane(Enlarge(DF(), hn::Set(DF(), scale)));
          scales.divisor = kDividesExactly<kT> ? scales.scale : kTieBump / scales.scale;
          return QuantizeGroup<kT, kGroup, kNibbles, Group::kSmall, kMeasure>(values, scales, to, lanes, kept);
        }
      }
      scales.divisor = scale;
      QuantizeGroup<kT, kGroup, kNibbles, Group::kUnusual, kMeasure>(values, scales, to, lanes, kept);
    });
  }

  template <size_t kGroup>
  static HWY_INLINE uint8_t* OutOf(uint8_t* out, size_t g) {
    return out + g * (kNibbles ? kGroup / 2 : kGroup);
  }

  // Calls encode(g, values, lanes, kept) for the groups of a tile.
  template <size_t kGroup, class Encode>
  HWY_INLINE void ForEachGroup(size_t begin, size_t n, Encode encode) {
    LaneSums lanes = lanes_;
    for (size_t g = 0; g < n; ++g) {
      encode(g, values_ + (begin + g) * kGroup * DTypeSize(kT), lanes, KeptAt(g));
      if constexpr (kMeasure == Measure::kErrors) {
        additions_ += kGroup / kLanes;
        if (additions_ >= LaneSums::kFlushAfter) {
          wide_.Flush(lanes);
          additions_ = 0;
        }
      }
    }
    lanes_ = lanes;
  }

  // Has the groups since the last call measured, which end with group `end`.
  HWY_INLINE void PassOn(size_t end) {
    const uint8_t* const values = values_ + (end - filled_) * group_bytes_;
    tokens_->Add(kT, values, errors_, filled_ * group_, kKeepsWide<kT> ? errors_ + kErrors : nullptr);
    filled_ = 0;
  }

  // Where what is measured of a group of the tile goes.
  HWY_INLINE Measured KeptAt(size_t g) {
    if constexpr (kMeasure != Measure::kTokens) return {nullptr, nullptr};
    float* const errors = errors_ + (filled_ + g) * group_;
    return {errors, kKeepsWide<kT> ? errors + kErrors : nullptr};
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
  HWY_ALIGN float errors_[kKeepsWide<kT> ? 2 * kErrors : kErrors];  // then their values, where these are kept
  size_t filled_ = 0;                                               // in groups
  LaneSums lanes_{0};
  WideSums wide_;
  size_t additions_ = 0;
  size_t total_groups_ = 0;
  bool has_unusual_ = false;
  bool has_small_ = false;  // groups whose errors may be subnormal
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
                  ErrorSums* sums, TokenMeter* tokens, [[maybe_unused]] bool* has_sums) {
  Quantizer<kT, kNibbles, kMeasure> quantizer(format, tokens);
  const auto fast = [&](const uint8_t* values, size_t groups, uint8_t* scale_out, uint8_t* code_out) {
    return quantizer.Run(values, groups, scale_out, code_out);
  };
  if (!ForEachRun(format, runs, scales, codes, fast)) return false;
  if constexpr (kMeasure == Measure::kErrors) *has_sums = quantizer.AddSums(runs, *sums);
  return true;
}

template <DType kT, bool kNibbles>
bool QuantizeAs(const GroupQuantFormat& format, std::span<const ValueRun> runs, uint8_t* scales, uint8_t* codes,
                ErrorSums* sums, TokenMeter* tokens, bool* has_sums) {
  const auto with = [&]<Measure kMeasure>(std::integral_constant<Measure, kMeasure>) {
    return QuantizeWith<kT, kNibbles, kMeasure>(format, runs, scales, codes, sums, tokens, has_sums);
  };
  if (!sums) return with(std::integral_constant<Measure, Measure::kNothing>());
  if (!tokens) return with(std::integral_constant<Measure, Measure::kErrors>());
  return with(std::integral_constant<Measure, Measure::kTokens>());
}

}  // namespace

// QuantizeRuns for whole groups, on a thread that may compute with 0 in place of subnormal numbers: scales and codes
// are as if it did not, errors of subnormal values may become 0. `has_sums` becomes false where sums without tokens did
// not come to anything.
bool QuantizeGroups(const GroupQuantFormat& format, std::span<const ValueRun> runs, uint8_t* scales, uint8_t* codes,
                    ErrorSums* sums, TokenMeter* tokens, bool* has_sums) {
  return VisitDType(format.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    return format.bits == 4 ? QuantizeAs<kT, true>(format, runs, scales, codes, sums, tokens, has_sums)
                            : QuantizeAs<kT, false>(format, runs, scales, codes, sums, tokens, has_sums);
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

// Calls visit(values, decoded, count) for a few values at a time that have been quantized.
template <typename Visit>
void ForEachDecoded(const GroupQuantFormat& format, std::span<const ValueRun> runs, const uint8_t* scales,
                    const uint8_t* codes, Visit visit) {
  constexpr size_t kTile = 16 * kMaxGroup;
  uint8_t decoded[kTile * sizeof(float)];
  for (const ValueRun& run : runs) {
    for (size_t at = 0; at < run.count; at += kTile) {
      const size_t count = std::min(kTile, run.count - at);
      Dequantize(format, scales, codes, count, decoded);
      visit(static_cast<const uint8_t*>(run.values) + at * DTypeSize(format.dtype), decoded, count);
      scales += 2 * GroupCount(format.group, count);
      codes += PackedBytes(format.bits, format.group, count);
    }
  }
}

// Measures values that have been quantized, of which `largest` is the largest magnitude, for `tokens`, for which
// binary32 does not hold the sums.
void MeasureAgain(const GroupQuantFormat& format, std::span<const ValueRun> runs, const uint8_t* scales,
                  const uint8_t* codes, float largest, TokenMeter& tokens) {
  tokens.MeasureAgain(largest, [&] {
    ForEachDecoded(format, runs, scales, codes, [&](const void* values, const void* decoded, size_t count) {
      tokens.AddDecoded(format.dtype, values, decoded, count);
    });
  });
}

}  // namespace

bool QuantizeRuns(const GroupQuantFormat& format, std::span<const ValueRun> runs, void* scales, void* codes,
                  ErrorSums* sums, TokenMeter* tokens) {
  auto* scale_out = static_cast<uint8_t*>(scales);
  auto* code_out = static_cast<uint8_t*>(codes);
  bool has_sums = true;
  // Such values are measured once all are quantized.
  const float small = tokens != nullptr ? LargestOfSmall(format.dtype, runs) : 0;
  TokenMeter* const meter = small > 0 ? nullptr : tokens;
  {
    const SubnormalsAreZero guard;
    ErrorSums* const measured = small > 0 ? nullptr : sums;
    if (!HWY_DYNAMIC_DISPATCH(QuantizeGroups)(format, runs, scale_out, code_out, measured, meter, &has_sums)) {
      return false;
    }
  }
  if (!runs.empty()) {
    size_t groups = 0;
    for (const ValueRun& run : runs) groups += run.count / format.group;
    const ValueRun& last = runs.back();
    const size_t tail = last.count % format.group;
    const auto* values = static_cast<const uint8_t*>(last.values) + (last.count - tail) * DTypeSize(format.dtype);
    float errors[kMaxGroup];
    if (!scalar::Quantize(format, values, tail, scale_out + 2 * groups,
                          code_out + PackedBytes(format.bits, format.group, groups * format.group),
                          tokens == nullptr && has_sums ? sums : nullptr, tokens == nullptr ? nullptr : errors)) {
      return false;
    }
    if (meter != nullptr) meter->Add(format.dtype, values, errors, tail);
  }
  if (tokens != nullptr) {
    const bool is_held =
        small == 0 && tokens->End() && (tokens->sums().max_abs_error > 0 || !HasSubnormals(format.dtype, runs));
    if (!is_held) {
      MeasureAgain(format, runs, scale_out, code_out, small > 0 ? small : LargestMagnitude(format.dtype, runs),
                   *tokens);
    }
    sums->Merge(tokens->sums());
  } else if (!has_sums) {
    ForEachDecoded(format, runs, scale_out, code_out, [&](const void* values, const void* decoded, size_t count) {
      MeasureErrors(format.dtype, values, decoded, count, *sums);
    });
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
