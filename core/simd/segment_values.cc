#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/segment_values.cc"
#include "core/simd/segment_values.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstring>

#include "core/simd/half-inl.h"
#include "core/simd/row_sums-inl.h"
#include "core/simd/subnormals-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using VI = hn::Vec<DI>;

template <DType kT>
void NarrowAs(const float* values, size_t count, uint8_t* out) {
  ForEachVector(count, [&](size_t i) HWY_ATTR {
    StoreLimited<kT>(DF(), hn::LoadU(DF(), values + i), out + i * sizeof(Bits<kT>));
  });
}

template <DType kT>
VI LoadScaledAs(const uint8_t* values, size_t count, float factor, float* out) {
  const DF df;
  const DI di;
  VI largest = hn::Zero(di);
  const auto load_all = [&](auto scaled) HWY_ATTR {
    ForEachVector(count, [&](size_t i) HWY_ATTR {
      const VF value = LoadF32<kT>(df, values + i * sizeof(Bits<kT>));
      largest = hn::Max(largest, hn::BitCast(di, hn::Abs(value)));
      hn::StoreU(scaled(value), df, out + i);
    });
  };
  const VF by = hn::Set(df, factor);
  const VF by_enlarged = hn::Set(df, factor / kEnlarging);
  // Products with subnormal numbers take long: none is made of the factor 1, and of one that leaves no product
  // subnormal, of enlarged numbers.
  constexpr float kLeavesNormal = 0x1p42f;
  if (factor == 1) {
    load_all([](VF value) HWY_ATTR { return value; });
  } else if (kT != DType::kF16 && factor >= kLeavesNormal) {
    load_all([&](VF value) HWY_ATTR {
      const auto is_small = hn::Lt(hn::Abs(value), hn::Set(df, 1.0f));
      return hn::Mul(hn::IfThenElse(is_small, Enlarge(df, value), value), hn::IfThenElse(is_small, by_enlarged, by));
    });
  } else {
    load_all([&](VF value) HWY_ATTR { return hn::Mul(value, by); });
  }
  return largest;
}

constexpr size_t kEnergyParts = 16;
constexpr size_t kEnergyVectors = kEnergyParts / kLanes;

// The parts of a token's energy, those that are more than kLanes apart added up.
HWY_INLINE VF EnergyLanes(const float* row, size_t channels, const float* means, const float* weights) {
  const DF df;
  VF sums[kEnergyVectors];
  for (VF& sum : sums) sum = hn::Zero(df);
  for (size_t c = 0; c < channels; c += kEnergyParts) {
    for (size_t v = 0; v < kEnergyVectors; ++v) {
      const size_t at = c + v * kLanes;
      const VF d = hn::Sub(hn::LoadU(df, row + at), hn::LoadU(df, means + at));
      sums[v] = hn::Add(sums[v], hn::Mul(hn::Mul(d, d), hn::LoadU(df, weights + at)));
    }
  }
  return AddVectors(sums);
}

}  // namespace

float LoadScaledAll(DType dtype, const void* values, size_t count, float factor, float* out) {
  if (count < kLanes) return scalar::LoadScaled(dtype, values, count, factor, out);
  const VI largest = VisitDType(dtype, [&](auto type) HWY_ATTR {
    return LoadScaledAs<type>(static_cast<const uint8_t*>(values), count, factor, out);
  });
  return hn::GetLane(hn::BitCast(DF(), hn::MaxOfLanes(DI(), largest)));
}

void NarrowLimitedAll(DType dtype, const float* values, size_t count, void* out) {
  if (count < kLanes) return scalar::NarrowLimited(dtype, values, count, out);
  VisitDType(dtype, [&](auto type) { NarrowAs<type>(values, count, static_cast<uint8_t*>(out)); });
}

// Sums over the tokens of term(value, c), of kBeside vectors of channels from c on.
template <size_t kBeside, class Term>
HWY_INLINE void SumTokens(const float* values, size_t tokens, size_t channels, const uint8_t* skip, size_t c, Term term,
                          float* sums) {
  const DF df;
  VF sum[kBeside];
  for (size_t v = 0; v < kBeside; ++v) sum[v] = hn::Zero(df);
  for (size_t t = 0; t < tokens; ++t) {
    if (skip[t] != 0) continue;
#pragma GCC unroll 4
    for (size_t v = 0; v < kBeside; ++v) {
      const size_t at = c + v * kLanes;
      sum[v] = hn::Add(sum[v], term(hn::LoadU(df, values + t * channels + at), at));
    }
  }
  for (size_t v = 0; v < kBeside; ++v) hn::StoreU(sum[v], df, sums + c + v * kLanes);
}

// Of all channels, kLanes or more.
template <class Term>
HWY_INLINE void SumChannels(const float* values, size_t tokens, size_t channels, const uint8_t* skip, Term term,
                            float* sums) {
  constexpr size_t kBeside = 4;
  size_t c = 0;
  for (; c + kBeside * kLanes <= channels; c += kBeside * kLanes) {
    SumTokens<kBeside>(values, tokens, channels, skip, c, term, sums);
  }
  for (; c < channels; c += kLanes) {
    SumTokens<1>(values, tokens, channels, skip, HWY_MIN(c, channels - kLanes), term, sums);
  }
}

void ChannelSumsAll(const float* values, size_t tokens, size_t channels, const uint8_t* skip, float* sums) {
  if (channels < kLanes) return scalar::ChannelSums(values, tokens, channels, skip, sums);
  SumChannels(
      values, tokens, channels, skip, [](VF value, size_t) HWY_ATTR { return value; }, sums);
}

void ChannelSquaresAll(const float* values, size_t tokens, size_t channels, const uint8_t* skip, const float* means,
                       float* sums) {
  if (channels < kLanes) return scalar::ChannelSquares(values, tokens, channels, skip, means, sums);
  const auto square = [means](VF value, size_t c) HWY_ATTR {
    const VF d = hn::Sub(value, hn::LoadU(DF(), means + c));
    return hn::Mul(d, d);
  };
  SumChannels(values, tokens, channels, skip, square, sums);
}

void TokenEnergiesAll(const float* values, size_t tokens, size_t channels, const float* means, const float* weights,
                      float* energies) {
  if (channels % kEnergyParts != 0) {
    return scalar::TokenEnergies(values, tokens, channels, means, weights, energies);
  }
  const DF df;
  HWY_ALIGN float lanes[kRows * kLanes] = {};
  HWY_ALIGN float sums[kRows];
  for (size_t first = 0; first < tokens; first += kRows) {
    const size_t count = HWY_MIN(kRows, tokens - first);
    for (size_t i = 0; i < count; ++i) {
      const VF energy = EnergyLanes(values + (first + i) * channels, channels, means, weights);
      hn::Store(energy, df, lanes + SlotOf(i) * kLanes);
    }
    SumRows(df, lanes, sums);
    std::memcpy(energies + first, sums, count * sizeof(float));
  }
}

void AddToChannelsAll(const float* addends, size_t channels, float* values, size_t count) {
  const DF df;
  for (size_t first = 0; first < count; first += channels) {
    const size_t n = HWY_MIN(channels, count - first);
    float* const row = values + first;
    size_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      hn::StoreU(hn::Add(hn::LoadU(df, row + c), hn::LoadU(df, addends + c)), df, row + c);
    }
    for (; c < n; ++c) row[c] += addends[c];
  }
}

template <DType kT>
void PlaceAs(const int32_t* points, size_t tokens, const Placing& placing) {
  const DF df;
  const VF by = hn::Set(df, placing.unit);
  constexpr size_t kVectors = kStripChannels / kLanes;
  VF mean[kVectors];
  for (size_t v = 0; v < kVectors; ++v) mean[v] = hn::LoadU(df, placing.means + v * kLanes);
  auto* out = static_cast<uint8_t*>(placing.values.first);
  for (size_t t = 0; t < tokens; ++t, out += placing.values.stride * sizeof(Bits<kT>)) {
#pragma GCC unroll 8
    for (size_t v = 0; v < kVectors; ++v) {
      const VF point = hn::ConvertTo(df, hn::LoadU(DI(), points + t * kStripChannels + v * kLanes));
      StoreLimited<kT>(df, hn::Add(hn::Mul(point, by), mean[v]), out + v * kLanes * sizeof(Bits<kT>));
    }
  }
}

void PlaceStripAll(const int32_t* points, size_t tokens, size_t channels, const Placing& placing) {
  if (channels != kStripChannels) return scalar::PlaceStrip(points, tokens, channels, placing);
  VisitDType(placing.values.dtype, [&](auto type) { PlaceAs<type>(points, tokens, placing); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(LoadScaledAll);
HWY_EXPORT(NarrowLimitedAll);
HWY_EXPORT(ChannelSumsAll);
HWY_EXPORT(ChannelSquaresAll);
HWY_EXPORT(TokenEnergiesAll);
HWY_EXPORT(AddToChannelsAll);
HWY_EXPORT(PlaceStripAll);

float LoadScaled(DType dtype, const void* values, size_t count, float factor, float* out) {
  return HWY_DYNAMIC_DISPATCH(LoadScaledAll)(dtype, values, count, factor, out);
}
void NarrowLimited(DType dtype, const float* values, size_t count, void* out) {
  HWY_DYNAMIC_DISPATCH(NarrowLimitedAll)(dtype, values, count, out);
}
void ChannelSums(const float* values, size_t tokens, size_t channels, const uint8_t* skip, float* sums) {
  HWY_DYNAMIC_DISPATCH(ChannelSumsAll)(values, tokens, channels, skip, sums);
}
void ChannelSquares(const float* values, size_t tokens, size_t channels, const uint8_t* skip, const float* means,
                    float* sums) {
  HWY_DYNAMIC_DISPATCH(ChannelSquaresAll)(values, tokens, channels, skip, means, sums);
}
void TokenEnergies(const float* values, size_t tokens, size_t channels, const float* means, const float* weights,
                   float* energies) {
  HWY_DYNAMIC_DISPATCH(TokenEnergiesAll)(values, tokens, channels, means, weights, energies);
}
void AddToChannels(const float* addends, size_t channels, float* values, size_t count) {
  HWY_DYNAMIC_DISPATCH(AddToChannelsAll)(addends, channels, values, count);
}
void PlaceStrip(const int32_t* points, size_t tokens, size_t channels, const Placing& placing) {
  HWY_DYNAMIC_DISPATCH(PlaceStripAll)(points, tokens, channels, placing);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
