#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/rotated_quant_encode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "core/simd/group_quant.h"
#include "core/simd/half-inl.h"
#include "core/simd/rotated_codes-inl.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/rotated_row-inl.h"
#include "core/simd/row_sums-inl.h"
#include "core/simd/sixteen-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/subnormals.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// How far ahead of their use values are fetched.
constexpr size_t kPrefetchBytes = 8192;

// Calls use(i, values) for the vectors of a row with its signs; returns a vector whose lanes have its energy as their
// sum.
template <DType kT, class Use>
HWY_INLINE VF LoadRow(const uint8_t* values, size_t length, Use use) {
  const DF df;
  VF sums[16 / kLanes];
  for (VF& sum : sums) sum = hn::Zero(df);
  for (size_t i = 0; i < length; i += 16) {
    const Sixteen<kT> sixteen(values + i * DTypeSize(kT));
    for (size_t k = 0; k < 16 / kLanes; ++k) {
      const size_t at = i + k * kLanes;
      PrefetchAhead<kPrefetchBytes>(values + at * DTypeSize(kT), kLanes * DTypeSize(kT));
      const VF x = sixteen[k];
      use(at, hn::Mul(x, hn::Load(df, kRotatedSigns.data() + at)));
      // Squares of 16-bit floats are exact, so that they may be added without being rounded.
      sums[k] = kT == DType::kF32 ? hn::Add(sums[k], hn::Mul(x, x)) : hn::MulAdd(x, x, sums[k]);
    }
  }
  return AddVectors(sums);
}

// Rotates kTogether rows that are one transform of kCount vectors; what LoadRow returns is stored to `energies`.
template <DType kT, size_t kCount, size_t kTogether>
HWY_INLINE void RotateVectors(const uint8_t* values, float* out, VF (&energies)[kTogether]) {
  const DF df;
  constexpr size_t kValues = kCount * kLanes;
  VF v[kCount * kTogether];
  HWY_UNROLL(4)
  for (size_t r = 0; r < kTogether; ++r) {
    energies[r] = LoadRow<kT>(values + r * kValues * DTypeSize(kT), kValues,
                              [&](size_t at, VF x) HWY_ATTR { v[r * kCount + at / kLanes] = x; });
  }
  HadamardOfVectors<kCount>(v);
  for (size_t i = 0; i < kCount * kTogether; ++i) hn::Store(v[i], df, out + i * kLanes);
}

// Rotates a row of any length, and returns what LoadRow does.
template <DType kT>
HWY_INLINE VF RotateRow(const RotatedRow& row, const uint8_t* values, float* out) {
  const VF energy = LoadRow<kT>(values, row.length, [&](size_t at, VF x) HWY_ATTR { hn::Store(x, DF(), out + at); });
  Rotate(row, out);
  return energy;
}

// From this energy on rows may have values that are refused. Of F16 these may have infinities or NaN, which are numbers
// of 2^16 and more on targets that emulate it.
template <DType kT>
constexpr float kEnergyLimit = kT == DType::kF16 ? 0x1p32f : kMaxRotatedEnergy;

// Rows that go through the steps together: a step of one row has to wait for the step before it.
template <DType kT, bool kMeasure>
class Tile {
 public:
  explicit Tile(const RotatedFormat& format)
      : row_(format.row),
        stride_(Padded(format.row)),
        levels_(kLevelTables[format.bits - 2]),
        bounds_(kBoundTables[format.bits - 2]),
        max_rows_(std::clamp<size_t>(kValues / stride_, 1, kRows)) {
    if (stride_ > row_.length) std::memset(v_, 0, sizeof(v_));
  }

  size_t max_rows() const { return max_rows_; }

  // `decoded` is there where kMeasure says so.
  HWY_INLINE bool Encode(const uint8_t* values, size_t rows, uint8_t* scales, uint8_t* codes, uint8_t* decoded) {
    if (rows < kRows) ClearLanes();
    const bool is_exact = rows == kRows && row_.length % kAtOnce == 0;  // no code is written beyond the rows'
    row_codes_ = is_exact ? codes : codes_;
    RotateRows(values, rows);
    if (!MakeFactors(values, rows)) return false;
    QuantizeRows(rows);
    if (!is_exact) std::memcpy(codes, codes_, rows * row_.length);
    MakeScales(rows, scales);
    if constexpr (kMeasure) DecodeRows(rows, decoded);
    return true;
  }

 private:
  static constexpr size_t kValues = 4096;

  void ClearLanes() {
    std::fill_n(energy_lanes_, kRows * kLanes, 0.0f);
    std::fill_n(cross_lanes_, kRows * kLanes, 0);
    std::fill_n(square_lanes_, kRows * kLanes, 0);
  }

  // Of all rows that there may be. False where a value is refused.
  HWY_INLINE bool MakeFactors(const uint8_t* values, size_t rows) {
    const DF df;
    SumRows(df, energy_lanes_, energies_);
    std::fill_n(exponents_, kRows, 0);
    for (size_t r = 0; r < rows; ++r) {
      const bool is_usual = energies_[r] >= kMinRotatedEnergy && energies_[r] < kEnergyLimit<kT>;
      if (HWY_LIKELY(is_usual)) continue;
      if (!RotateUnusual(values + r * row_.length * DTypeSize(kT), r)) return false;
    }
    for (size_t r = 0; r < kRows; r += kLanes) {
      const VF norm = hn::Sqrt(hn::Load(df, energies_ + r));
      hn::Store(norm, df, norms_ + r);
      hn::Store(hn::Div(hn::Set(df, row_.unit), norm), df, factors_ + r);
    }
    return true;
  }

  // Rotates a row again whose energy was not held, or might not have been. False where a value is refused.
  HWY_NOINLINE bool RotateUnusual(const uint8_t* values, size_t r) {
    const DF df;
    float* const v = v_ + r * stride_;
    // Read once: the values may change meanwhile. As integers, magnitudes are in order, and NaN above them.
    auto largest = hn::Zero(DI());
    for (size_t i = 0; i < row_.length; i += kLanes) {
      const VF x = LoadF32<kT>(df, values + i * DTypeSize(kT));
      largest = hn::Max(largest, hn::BitCast(DI(), hn::Abs(x)));
      hn::Store(x, df, v + i);
    }
    const auto most_bits = hn::MaxOfLanes(DI(), largest);
    const float most = hn::GetLane(hn::BitCast(df, most_bits));
    if (!(most <= std::min(kMaxRotatable, MaxFinite(kT)))) return false;
    float energy = EnergyOfRow(v);
    if (hn::GetLane(most_bits) == 0) {
      energy = 1;  // any that gives codes of 0
    } else if (!(energy >= kMinRotatedEnergy && energy <= kMaxRotatedEnergy)) {
      exponents_[r] = std::ilogb(most);
      Scale(-exponents_[r], v);
      energy = HasSubnormalSquares(v) ? ExactEnergy(v, row_.length) : EnergyOfRow(v);
    }
    energies_[r] = energy;
    for (size_t i = 0; i < row_.length; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(df, v + i), hn::Load(df, kRotatedSigns.data() + i)), df, v + i);
    }
    Rotate(row_, v);
    return true;
  }
  float EnergyOfRow(const float* v) const {
    HWY_ALIGN float lanes[kLanes];
    hn::Store(LoadRow<DType::kF32>(reinterpret_cast<const uint8_t*>(v), row_.length, [](size_t, VF) HWY_ATTR {}), DF(),
              lanes);
    for (size_t half = kLanes / 2; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
  bool HasSubnormalSquares(const float* v) const {
    const DF df;
    const DI di;
    const auto limit = hn::BitCast(di, hn::Set(df, 0x1p-62f));
    auto found = hn::Zero(di);
    for (size_t i = 0; i < row_.length; i += kLanes) {
      const auto bits = hn::BitCast(di, hn::Abs(hn::Load(df, v + i)));
      found = hn::Or(found, hn::IfThenElseZero(hn::Lt(bits, limit), bits));
    }
    return !hn::AllTrue(di, hn::Eq(found, hn::Zero(di)));
  }
  // Times 2^exponent, for values below 2^(1 - exponent), rounded once.
  void Scale(int exponent, float* v) const {
    const DF df;
    if (exponent >= kEnlargingExponent) {
      const VF rest = hn::Set(df, std::ldexp(1.0f, exponent - kEnlargingExponent));
      for (size_t i = 0; i < row_.length; i += kLanes) {
        hn::Store(hn::Mul(Enlarge(df, hn::Load(df, v + i)), rest), df, v + i);
      }
      return;
    }
    const int first = std::min(exponent, 100);
    const VF by = hn::Set(df, std::ldexp(1.0f, first)), then = hn::Set(df, std::ldexp(1.0f, exponent - first));
    for (size_t i = 0; i < row_.length; i += kLanes) {
      hn::Store(hn::Mul(hn::Mul(hn::Load(df, v + i), by), then), df, v + i);
    }
  }

  HWY_INLINE void RotateRows(const uint8_t* values, size_t rows) {
    size_t r = 0;
    if (row_.second() == 0 && row_.span == 8 * kLanes) r = RotateShort<8>(values, rows);
    if (row_.second() == 0 && row_.span == 4 * kLanes) r = RotateShort<4>(values, rows);
    for (; r < rows; ++r) {
      StoreEnergy(r, RotateRow<kT>(row_, values + r * row_.length * DTypeSize(kT), v_ + r * stride_));
    }
  }
  // Returns how many of the rows it has rotated.
  template <size_t kCount>
  HWY_INLINE size_t RotateShort(const uint8_t* values, size_t rows) {
    constexpr size_t kTogether = KVC_TARGET_AVX512 ? 16 / kCount : 1;
    size_t r = 0;
    for (; r + kTogether <= rows; r += kTogether) {
      VF energies[kTogether];
      RotateVectors<kT, kCount>(values + r * row_.length * DTypeSize(kT), v_ + r * stride_, energies);
      for (size_t i = 0; i < kTogether; ++i) StoreEnergy(r + i, energies[i]);
    }
    return r;
  }
  HWY_INLINE void StoreEnergy(size_t r, VF energy) { hn::Store(energy, DF(), energy_lanes_ + SlotOf(r) * kLanes); }

  HWY_INLINE void QuantizeRows(size_t rows) {
    size_t r = 0;
    if (kMeasure && IsShortRow(row_)) {
      if (row_.span == 64) r = QuantizeShort<64>(rows);
      if (row_.span == 128) r = QuantizeShort<128>(rows);
      if (row_.span == 256) r = QuantizeShort<256>(rows);
    }
    for (; r < rows; ++r) Quantize(r);
  }
  HWY_INLINE void Quantize(size_t r, V16* levels = nullptr) {
    QuantizeRow(bounds_, row_.length, factors_[r], v_ + r * stride_, row_codes_ + r * row_.length,
                cross_lanes_ + SlotOf(r) * kLanes, square_lanes_ + SlotOf(r) * kLanes, levels);
  }
  // Makes the sums of levels, too. Rows that there are none of are quantized with the others.
  template <size_t kSpan>
  HWY_INLINE size_t QuantizeShort(size_t rows) {
    constexpr size_t kTogether = kShortRows<kSpan>;
    static_assert(kRows % kTogether == 0);
    for (size_t r = 0; r < rows; r += kTogether) {
      ShortRows<kSpan> levels;
      HWY_UNROLL(4)
      for (size_t i = 0; i < kTogether; ++i) Quantize(r + i, levels + i * (kSpan / kShorts));
      HadamardOfShorts<kSpan / kShorts>(levels);
      HWY_UNROLL(16)
      for (size_t i = 0; i < kTogether * kSpan; i += kShorts) {
        hn::Store(levels[i / kShorts], D16(), sums_ + r * kSpan + i);
      }
    }
    return rows;
  }

  // The scales, as their bits have them.
  HWY_INLINE void MakeScales(size_t rows, uint8_t* out) {
    const DF df;
    const DI di;
    HWY_ALIGN uint16_t bits[kRows];
    HWY_ALIGN float exact[kRows];
    HWY_ALIGN int32_t cross[kRows];
    HWY_ALIGN int32_t squares[kRows];
    SumRows(di, cross_lanes_, cross);
    SumRows(di, square_lanes_, squares);
    const auto of_zeros =
        hn::Set(di, static_cast<int32_t>(stride_ - row_.length) * bounds_.level[0] * bounds_.level[0]);
    for (size_t r = 0; r < rows; r += kLanes) {
      const VF numerator = hn::ConvertTo(df, hn::Load(di, cross + r));
      const VF ratio = hn::Div(numerator, hn::ConvertTo(df, hn::Sub(hn::Load(di, squares + r), of_zeros)));
      const VF scale = hn::Div(hn::Mul(ratio, hn::Load(df, norms_ + r)), hn::Set(df, row_.scale_divisor));
      const auto half = F16FromF32(df, scale);
      hn::Store(scale, df, exact + r);
      hn::Store(half, hn::Rebind<uint16_t, DF>(), bits + r);
      hn::Store(F32FromF16(df, half), df, scales_ + r);
    }
    for (size_t r = 0; r < rows; ++r) {
      if (HWY_LIKELY(IsNormalF16(bits[r]) && exponents_[r] == 0)) continue;
      bits[r] = exact[r] == 0 ? 0 : RotatedScaleBits(ExactPower(exact[r], exponents_[r]));  // 0 of a row of zeros
      scales_[r] = RotatedScaleOf(bits[r]);
    }
    std::memcpy(out, bits, 2 * rows);
  }

  HWY_INLINE void DecodeRows(size_t rows, uint8_t* out) {
    for (size_t r = 0; r < rows; ++r, out += row_.length * DTypeSize(kT)) {
      if (HWY_LIKELY(IsUsual<kT>(row_, scales_[r]))) {
        Decode<true>(r, out);
      } else {
        DecodeUnusual(r, out);
      }
    }
  }
  template <bool kUsual>
  HWY_INLINE void Decode(size_t r, uint8_t* out) {
    if (!IsShortRow(row_)) {
      return DecodeRow<kT, kUsual>(row_, levels_, scales_[r], row_codes_ + r * row_.length, out);
    }
    const RowValues<kT, kUsual> store(row_, scales_[r], row_.level_unit * kSumUnit, out);
    for (size_t i = 0; i < row_.length; i += kShorts) {
      VisitSums(hn::Load(D16(), sums_ + r * stride_ + i),
                [&](size_t at, VF number) HWY_ATTR { store(i + at, number); });
    }
  }
  HWY_NOINLINE void DecodeUnusual(size_t r, uint8_t* out) { Decode<false>(r, out); }

  const RotatedRow row_;
  const size_t stride_;
  const LevelTable& levels_;
  const BoundTable& bounds_;
  const size_t max_rows_;
  HWY_ALIGN float v_[kValues];
  HWY_ALIGN int16_t sums_[kMeasure ? kValues : 1];
  HWY_ALIGN uint8_t codes_[kValues + kAtOnce];  // what is after a row's is overwritten by the next one's
  uint8_t* row_codes_ = nullptr;                // of the tile at hand: these, or those of the caller
  // 0 of rows that there are none of.
  HWY_ALIGN float energy_lanes_[kRows * kLanes];
  HWY_ALIGN int32_t cross_lanes_[kRows * kLanes];
  HWY_ALIGN int32_t square_lanes_[kRows * kLanes];
  HWY_ALIGN float energies_[kRows];
  int exponents_[kRows];  // of powers of two that rows were divided by
  HWY_ALIGN float norms_[kRows];
  HWY_ALIGN float factors_[kRows];
  HWY_ALIGN float scales_[kRows];
};

template <DType kT, bool kMeasure>
bool QuantizeAs(const RotatedFormat& format, const uint8_t* values, size_t rows, uint8_t* scales, uint8_t* codes,
                uint8_t* decoded) {
  Tile<kT, kMeasure> tile(format);
  for (size_t r = 0; r < rows; r += tile.max_rows()) {
    const size_t first = r * format.row;
    if (!tile.Encode(values + first * DTypeSize(kT), std::min(tile.max_rows(), rows - r), scales + 2 * r, codes + first,
                     kMeasure ? decoded + first * DTypeSize(kT) : nullptr)) {
      return false;
    }
  }
  return true;
}

}  // namespace

// QuantizeRotated for KernelRows(), all below 2^-64 and with exact products where this thread computes with 0 in place
// of subnormal numbers.
bool QuantizeRotatedRows(const RotatedFormat& format, const uint8_t* values, size_t rows, uint8_t* scales,
                         uint8_t* codes, uint8_t* decoded) {
  return VisitDType(format.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    const auto quantize = decoded != nullptr ? QuantizeAs<kT, true> : QuantizeAs<kT, false>;
    return quantize(format, values, rows, scales, codes, decoded);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(QuantizeRotatedRows);

bool QuantizeRotated(const RotatedFormat& format, const void* values, size_t count, void* scales, uint8_t* codes,
                     void* decoded) {
  const auto* from = static_cast<const uint8_t*>(values);
  auto* scale_out = static_cast<uint8_t*>(scales);
  const size_t rows = KernelRows(format, count);
  const size_t row_bytes = format.row * DTypeSize(format.dtype);
  auto* const to = static_cast<uint8_t*>(decoded);
  const bool may_be_small = format.dtype != DType::kF16 && RotatedRow(format.row).has_exact_products();
  // Of so many rows at a time, so that tiles stay whole.
  constexpr size_t kTogether = 64;
  const auto are_small = [&](size_t r) {
    return may_be_small && AreSmall(format.dtype, reinterpret_cast<const std::byte*>(from + r * row_bytes),
                                    std::min(kTogether, rows - r) * format.row);
  };
  for (size_t r = 0; r < rows;) {
    const bool is_guarded = are_small(r);
    size_t end = r + kTogether;
    while (end < rows && are_small(end) == is_guarded) end += kTogether;
    end = std::min(end, rows);
    std::optional<SubnormalsAreZero> guard;
    if (is_guarded) guard.emplace();
    if (!HWY_DYNAMIC_DISPATCH(QuantizeRotatedRows)(format, from + r * row_bytes, end - r, scale_out + 2 * r,
                                                   codes + r * format.row,
                                                   to != nullptr ? to + r * row_bytes : nullptr)) {
      return false;
    }
    r = end;
  }
  return scalar::QuantizeRotated(format, from + rows * row_bytes, count - rows * format.row, scale_out + 2 * rows,
                                 codes + rows * format.row, to != nullptr ? to + rows * row_bytes : nullptr);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
