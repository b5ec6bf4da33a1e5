#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/uniform_quant_cells.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/simd/half-inl.h"
#include "core/simd/key_counts.h"
#include "core/simd/row_sums-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/uniform_quant.h"
#include "core/simd/value_limits.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

constexpr size_t kPrefetchBytes = 4096;

// ---- Ranges

template <DType kT>
using DKey = hn::ScalableTag<Bits<kT>>;

// Elements as unsigned integers in the order of the values; see OrderKey in uniform_scalar.cc.
template <DType kT, class D = DKey<kT>>
HWY_INLINE hn::Vec<D> OrderKeys(D d, hn::Vec<D> bits) {
  constexpr int kTop = static_cast<int>(sizeof(Bits<kT>)) * 8 - 1;
  const hn::RebindToSigned<D> ds;
  const auto negative = hn::BitCast(d, hn::ShiftRight<kTop>(hn::BitCast(ds, bits)));
  return hn::Xor(bits, hn::Or(negative, hn::Set(d, static_cast<Bits<kT>>(1u << kTop))));
}

// The same in place, backwards; -0 becomes +0.
template <DType kT>
HWY_INLINE Bits<kT> FromOrderKey(Bits<kT> key) {
  constexpr auto kTop = static_cast<Bits<kT>>(1u << (sizeof(Bits<kT>) * 8 - 1));
  if ((key & kTop) != 0) return static_cast<Bits<kT>>(key ^ kTop);
  const auto bits = static_cast<Bits<kT>>(~key);
  return bits == kTop ? Bits<kT>{0} : bits;
}

// The smallest key of a vector.
template <class D>
HWY_INLINE hn::TFromD<D> MinOfKeys(D d, hn::Vec<D> keys) {
#if KVC_TARGET_AVX512 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
  if constexpr (sizeof(hn::TFromD<D>) == 2) {
    if constexpr (hn::MaxLanes(D()) > 8) {
      const hn::Half<D> half;
      return MinOfKeys(half, hn::Min(hn::LowerHalf(half, keys), hn::UpperHalf(half, keys)));
    } else {
      return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_minpos_epu16(keys.raw)));
    }
  }
#endif
  return hn::GetLane(hn::MinOfLanes(d, keys));
}

template <DType kT>
HWY_INLINE void RunRange(const uint8_t* values, size_t n, uint8_t* min_out, uint8_t* max_out) {
  const DKey<kT> d;
  constexpr size_t kWidth = sizeof(Bits<kT>);
  const size_t lanes = hn::Lanes(d);
  if (n < lanes) return scalar::CellRanges(kT, {.row = n, .run = n}, values, n, min_out, max_out);
  auto min = OrderKeys<kT>(d, LoadAt(d, values));
  auto max = min;
  for (size_t i = lanes; i < n; i += lanes) {
    const uint8_t* at = values + std::min(i, n - lanes) * kWidth;
    PrefetchAhead<kPrefetchBytes>(at, lanes * kWidth);
    const auto keys = OrderKeys<kT>(d, LoadAt(d, at));
    min = hn::Min(min, keys);
    max = hn::Max(max, keys);
  }
  const Bits<kT> lowest = FromOrderKey<kT>(MinOfKeys(d, min));
  const Bits<kT> largest = FromOrderKey<kT>(static_cast<Bits<kT>>(~MinOfKeys(d, hn::Not(max))));
  std::memcpy(min_out, &lowest, kWidth);
  std::memcpy(max_out, &largest, kWidth);
}

// Columns of a row of n >= a vector's lanes, joined with what `min` and `max` have, all of them keys.
template <DType kT>
HWY_INLINE void JoinRow(const uint8_t* values, size_t n, uint8_t* min, uint8_t* max) {
  const DKey<kT> d;
  const size_t lanes = hn::Lanes(d);
  for (size_t i = 0; i < n; i += lanes) {
    const size_t at = std::min(i, n - lanes) * sizeof(Bits<kT>);
    PrefetchAhead<kPrefetchBytes>(values + at, lanes * sizeof(Bits<kT>));
    const auto keys = OrderKeys<kT>(d, LoadAt(d, values + at));
    StoreAt(hn::Min(LoadAt(d, min + at), keys), d, min + at);
    StoreAt(hn::Max(LoadAt(d, max + at), keys), d, max + at);
  }
}

template <DType kT>
void ColumnRanges(const CellLayout& layout, const uint8_t* values, size_t count, uint8_t* min, uint8_t* max) {
  constexpr size_t kWidth = sizeof(Bits<kT>);
  const size_t cells = layout.cells(count);
  std::memset(min, 0xff, cells * kWidth);
  std::memset(max, 0, cells * kWidth);
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) HWY_ATTR {
    const uint8_t* row = values + first * kWidth;
    if (n >= hn::Lanes(DKey<kT>())) return JoinRow<kT>(row, n, min + cell * kWidth, max + cell * kWidth);
    // The last row, cut short: vectors over a copy, of which the rest changes nothing.
    constexpr size_t kMax = hn::MaxLanes(DKey<kT>()) * kWidth;
    HWY_ALIGN uint8_t tail[3][kMax] = {};
    std::memcpy(tail[0], row, n * kWidth);
    std::memcpy(tail[1], min + cell * kWidth, n * kWidth);
    std::memcpy(tail[2], max + cell * kWidth, n * kWidth);
    JoinRow<kT>(tail[0], hn::Lanes(DKey<kT>()), tail[1], tail[2]);
    std::memcpy(min + cell * kWidth, tail[1], n * kWidth);
    std::memcpy(max + cell * kWidth, tail[2], n * kWidth);
  });
  for (uint8_t* ends : {min, max}) {
    for (size_t i = 0; i < cells; ++i) {
      Bits<kT> key;
      std::memcpy(&key, ends + i * kWidth, kWidth);
      key = FromOrderKey<kT>(key);
      std::memcpy(ends + i * kWidth, &key, kWidth);
    }
  }
}

template <DType kT>
void RangesAs(const CellLayout& layout, const uint8_t* values, size_t count, uint8_t* min, uint8_t* max) {
  if (layout.stretch != 0) return ColumnRanges<kT>(layout, values, count, min, max);
  constexpr size_t kWidth = sizeof(Bits<kT>);
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) HWY_ATTR {
    RunRange<kT>(values + first * kWidth, n, min + cell * kWidth, max + cell * kWidth);
  });
}

// ---- Scales

// The scales of kLanes cells; `refused` becomes not 0 where a range is too large.
template <DType kT>
HWY_INLINE void ScalesOf(const UniformFormat& format, const uint8_t* min, const uint8_t* max, uint8_t* scales,
                         VU& refused) {
  const DF df;
  const DU du;
  const hn::Rebind<uint16_t, DF> du16;
  const VF lo = LoadF32<kT>(df, min);
  const VF hi = LoadF32<kT>(df, max);
  const VF largest = hn::Max(hn::Abs(lo), hn::Abs(hi));
  const VF limit = hn::Set(df, format.max_magnitude());
  // Each by itself, because a maximum may lose a NaN.
  const auto good = hn::And(hn::Le(hn::Abs(lo), limit), hn::Le(hn::Abs(hi), limit));
  refused = hn::Or(refused, hn::BitCast(du, hn::VecFromMask(df, hn::Not(good))));
  const VF range = format.symmetric ? largest : hn::Sub(hi, lo);
  const VF exact = hn::Div(range, hn::Set(df, static_cast<float>(format.max_code())));
  VU bits;
  if constexpr (ScaleDType(kT) == DType::kF16) {
    const auto half = F16FromF32(df, exact);
    const auto below = hn::VecFromMask(df, hn::Lt(F32FromF16(df, half), exact));
    bits = hn::Sub(hn::PromoteTo(du, half), hn::BitCast(du, below));
  } else {
    bits = hn::ShiftRight<16>(hn::Add(hn::BitCast(du, exact), hn::Set(du, 0xffff)));
  }
  bits = hn::Min(bits, hn::Set(du, MaxScaleBits(kT)));
  StoreAt(hn::DemoteTo(du16, hn::BitCast(DI(), bits)), du16, scales);
}

template <DType kT>
bool ScalesAs(const UniformFormat& format, const uint8_t* min, const uint8_t* max, size_t cells, uint8_t* scales) {
  constexpr size_t kWidth = sizeof(Bits<kT>);
  VU refused = hn::Zero(DU());
  size_t i = 0;
  for (; i + kLanes <= cells; i += kLanes) {
    ScalesOf<kT>(format, min + i * kWidth, max + i * kWidth, scales + i * 2, refused);
  }
  if (i < cells) {
    const size_t n = cells - i;
    HWY_ALIGN uint8_t tail[3][kLanes * 4] = {};
    std::memcpy(tail[0], min + i * kWidth, n * kWidth);
    std::memcpy(tail[1], max + i * kWidth, n * kWidth);
    ScalesOf<kT>(format, tail[0], tail[1], tail[2], refused);
    std::memcpy(scales + i * 2, tail[2], n * 2);
  }
  return hn::AllTrue(DU(), hn::Eq(refused, hn::Zero(DU())));
}

template <DType kT>
void WidenAs(const uint8_t* elements, size_t count, float* out) {
  const DF df;
  constexpr size_t kWidth = sizeof(Bits<kT>);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(LoadF32<kT>(df, elements + i * kWidth), df, out + i);
  if (i < count) {
    HWY_ALIGN uint8_t tail[kLanes * 4] = {};
    HWY_ALIGN float wide[kLanes];
    std::memcpy(tail, elements + i * kWidth, (count - i) * kWidth);
    hn::Store(LoadF32<kT>(df, tail), df, wide);
    std::memcpy(out + i, wide, (count - i) * sizeof(float));
  }
}

// ---- Energies

// Lanes of an energy; see CellEnergies.
constexpr size_t kStep = 16;
constexpr size_t kVectors = kStep / kLanes;

// Of values below this, 2^-64, squares are subnormal.
template <DType kT>
constexpr uint32_t kSubnormalSquareBits = uint32_t{63} << MantissaBits(kT);
// Whether their sum can be made of enlarged values: where they are rounded once.
template <DType kT>
constexpr bool kEnlargesSquares = kT == DType::kBF16 || (kT == DType::kF32 && HWY_NATIVE_FMA);

// Squares, or, of values that are enlarged and have subnormal ones, squares that are rounded as these are.
template <bool kEnlarged>
HWY_INLINE VF SquaresOf(VF x) {
  const DF df;
  if constexpr (!kEnlarged) return hn::Mul(x, x);
  const VF magic = hn::Set(df, 6.0f);  // its last digit is the smallest number, times the square of kEnlarging
  return hn::Sub(hn::MulAdd(x, x, magic), magic);
}

// The sum of a vector: upper halves are added to lower ones until one lane is left.
template <class D>
HWY_INLINE float AddLanes(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return AddLanes(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  } else {
    (void)d;
    v = hn::Add(v, hn::Shuffle1032(v));
    return hn::GetLane(hn::Add(v, hn::Shuffle2301(v)));
  }
}

template <DType kT, bool kEnlarged>
HWY_INLINE float RunEnergyAs(const uint8_t* values, size_t n) {
  const DF df;
  constexpr size_t kWidth = sizeof(Bits<kT>);
  VF lanes[kVectors];
  for (VF& lane : lanes) lane = hn::Zero(df);
  const auto add = [&](const uint8_t* from) HWY_ATTR {
    for (size_t v = 0; v < kVectors; ++v) {
      const VF x = LoadF32<kT>(df, from + v * kLanes * kWidth);
      lanes[v] = hn::Add(lanes[v], SquaresOf<kEnlarged>(kEnlarged ? Enlarge(df, x) : x));
    }
  };
  size_t i = 0;
  for (; i + kStep <= n; i += kStep) add(values + i * kWidth);
  if (i < n) {  // the zeros after them change nothing
    HWY_ALIGN uint8_t tail[kStep * kWidth] = {};
    std::memcpy(tail, values + i * kWidth, (n - i) * kWidth);
    add(tail);
  }
  const float energy = AddLanes(df, AddVectors(lanes));
  if constexpr (!kEnlarged) return energy;
  return hn::GetLane(Reduce(df, Reduce(df, hn::Set(df, energy))));
}

template <DType kT>
HWY_INLINE float RunEnergy(const uint8_t* values, size_t n) {
  if constexpr (kEnlargesSquares<kT>) {
    const auto* const bytes = reinterpret_cast<const std::byte*>(values);
    constexpr uint32_t kLimit = kSubnormalSquareBits<kT>;
    const bool may_be_small = KeyOf(KeyOrder::kMagnitude, LoadLE<Bits<kT>>(bytes)) < kLimit;  // by the first one
    if (may_be_small && LargestBits(kT, bytes, n) < kLimit) return RunEnergyAs<kT, true>(values, n);
  }
  return RunEnergyAs<kT, false>(values, n);
}

template <DType kT>
void EnergiesAs(const CellLayout& layout, const uint8_t* values, size_t count, float* energies) {
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) HWY_ATTR {
    energies[cell] = RunEnergy<kT>(values + first * sizeof(Bits<kT>), n);
  });
}

}  // namespace

void RangesOfCells(DType dtype, const CellLayout& layout, const uint8_t* values, size_t count, uint8_t* min,
                   uint8_t* max) {
  VisitDType(dtype, [&](auto t) HWY_ATTR { RangesAs<decltype(t)::value>(layout, values, count, min, max); });
}

bool ScalesOfCells(const UniformFormat& format, const uint8_t* min, const uint8_t* max, size_t cells, uint8_t* scales) {
  return VisitDType(format.dtype,
                    [&](auto t) HWY_ATTR { return ScalesAs<decltype(t)::value>(format, min, max, cells, scales); });
}

void WidenElements(DType dtype, const uint8_t* elements, size_t count, float* out) {
  VisitDType(dtype, [&](auto t) HWY_ATTR { WidenAs<decltype(t)::value>(elements, count, out); });
}

void EnergiesOfCells(DType dtype, const CellLayout& layout, const uint8_t* values, size_t count, float* energies) {
  VisitDType(dtype, [&](auto t) HWY_ATTR { EnergiesAs<decltype(t)::value>(layout, values, count, energies); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(RangesOfCells);
HWY_EXPORT(ScalesOfCells);
HWY_EXPORT(WidenElements);
HWY_EXPORT(EnergiesOfCells);

namespace {

const uint8_t* Bytes(const void* from) { return static_cast<const uint8_t*>(from); }
uint8_t* Bytes(void* to) { return static_cast<uint8_t*>(to); }

}  // namespace

void CellRanges(DType dtype, const CellLayout& layout, const void* values, size_t count, void* min, void* max) {
  HWY_DYNAMIC_DISPATCH(RangesOfCells)(dtype, layout, Bytes(values), count, Bytes(min), Bytes(max));
}

bool CellScales(const UniformFormat& format, const void* min, const void* max, size_t cells, uint16_t* scales) {
  return HWY_DYNAMIC_DISPATCH(ScalesOfCells)(format, Bytes(min), Bytes(max), cells, reinterpret_cast<uint8_t*>(scales));
}

void WidenScales(DType dtype, const void* scales, size_t cells, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenElements)(ScaleDType(dtype), Bytes(scales), cells, out);
}
void WidenValues(DType dtype, const void* values, size_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(WidenElements)(dtype, Bytes(values), count, out);
}

void CellEnergies(DType dtype, const CellLayout& layout, const void* values, size_t count, float* energies) {
  HWY_DYNAMIC_DISPATCH(EnergiesOfCells)(dtype, layout, Bytes(values), count, energies);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
