#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/rotated_quant_encode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/simd/group_quant.h"
#include "core/simd/half-inl.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/rotated_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// So many coefficients are quantized at once; rows are computed with zeros after them up to a multiple.
constexpr size_t kAtOnce = hn::MaxLanes(D16());
static_assert(kMaxRotatedRow % kAtOnce == 0);
constexpr size_t Padded(size_t length) { return (length + kAtOnce - 1) / kAtOnce * kAtOnce; }

// Bounds in eighths of a coefficient's unit: of each 16 of them at most one is a bound, so the upper half of their byte
// tells how many bounds are below, and which one it is to be compared with.
struct BoundTable {
  explicit BoundTable(int bits) {
    const RotatedLevels levels = LevelsOf(bits);
    sign = static_cast<int16_t>(levels.magnitudes);
    size_t count = 0;
    for (size_t high = 0; high < 16; ++high) {
      below[high] = static_cast<uint8_t>(count);
      last_below[high] = 255;
      const auto bound = static_cast<size_t>(levels.bound[std::min<size_t>(count, 6)]) / 8;
      if (count + 1 < static_cast<size_t>(levels.magnitudes) && bound < 16 * (high + 1)) {
        last_below[high] = static_cast<uint8_t>(bound - 1);
        ++count;
      }
    }
    for (size_t m = 0; m < 16; ++m) level[m] = levels.level[m % 8];
  }

  HWY_ALIGN uint8_t below[16];
  HWY_ALIGN uint8_t last_below[16];
  HWY_ALIGN uint8_t level[16];
  int16_t sign;
};

// Looks bytes up in a table of 16, one for each lane; the upper byte of a lane has an index that gives 0.
class LookUp {
 public:
  HWY_INLINE explicit LookUp(const uint8_t* table) : table_(hn::LoadDup128(D8(), table)) {}
  HWY_INLINE hn::Vec<D16> operator()(hn::Vec<D16> index) const {
    const auto lanes = hn::Or(index, hn::Set(D16(), INT16_MIN));
    return hn::BitCast(D16(), hn::TableLookupBytesOr0(table_, hn::BitCast(D8(), lanes)));
  }

 private:
  using D8 = hn::Repartition<uint8_t, D16>;
  hn::Vec<D8> table_;
};

// The number of bounds up to coefficients of these magnitudes.
HWY_INLINE hn::Vec<D16> CountBounds(const LookUp& below, const LookUp& last_below, hn::Vec<D16> magnitudes) {
  const D16 d16;
  const auto eighths = hn::Min(hn::ShiftRight<3>(magnitudes), hn::Set(d16, 255));
  const auto high = hn::ShiftRight<4>(eighths);
  const auto count = below(high);
  const auto reached = hn::Gt(eighths, last_below(high));
#if KVC_TARGET_AVX512
  return hn::Vec<D16>{_mm512_mask_add_epi16(count.raw, reached.raw, count.raw, _mm512_set1_epi16(1))};
#else
  return hn::Sub(count, hn::VecFromMask(d16, reached));
#endif
}

// What least squares have to know of a row.
struct Fit {
  int32_t cross;
  int32_t squares;
};

// Stores codes as bytes, those of two vectors that ReorderDemote2To has put together.
HWY_INLINE void StoreCodes(hn::Vec<D16> codes, uint8_t* out) {
  const hn::Rebind<uint8_t, D16> d8;
  auto bytes = hn::DemoteTo(d8, codes);
#if KVC_TARGET_AVX512
  bytes = decltype(bytes){_mm256_permutevar8x32_epi32(bytes.raw, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7))};
#elif HWY_TARGET == HWY_AVX2
  bytes = decltype(bytes){_mm_shuffle_epi32(bytes.raw, _MM_SHUFFLE(3, 1, 2, 0))};
#endif
  hn::StoreU(bytes, d8, out);
}

// The codes of a row, up to a multiple of kAtOnce, from its rotated values.
HWY_INLINE Fit QuantizeRow(const BoundTable& table, size_t length, float factor, const float* v, uint8_t* codes) {
  const DF df;
  const DI di;
  const D16 d16;
  const VF factors = hn::Set(df, factor);
  const LookUp below(table.below), last_below(table.last_below), levels(table.level);
  const auto sign = hn::Set(d16, table.sign);
  auto cross = hn::Zero(di), more_cross = hn::Zero(di);
  auto squares = hn::Zero(di), more_squares = hn::Zero(di);
  const auto whole = [&](size_t at) HWY_ATTR { return hn::NearestInt(hn::Mul(hn::Load(df, v + at), factors)); };
  const size_t padded = Padded(length);
  for (size_t i = 0; i < padded; i += kAtOnce) {
    const auto q = hn::ReorderDemote2To(d16, whole(i), whole(i + kLanes));
    const auto magnitude = hn::Abs(q);
    const auto count = CountBounds(below, last_below, magnitude);
    const auto level = levels(count);
    StoreCodes(hn::Or(count, hn::And(hn::ShiftRight<15>(q), sign)), codes + i);
    cross = hn::ReorderWidenMulAccumulate(di, magnitude, level, cross, more_cross);
    squares = hn::ReorderWidenMulAccumulate(di, level, level, squares, more_squares);
  }
  const auto sum = [&](auto a, auto b) HWY_ATTR { return hn::GetLane(hn::SumOfLanes(di, hn::Add(a, b))); };
  const auto zeros = static_cast<int32_t>(padded - length);
  return {sum(cross, more_cross), sum(squares, more_squares) - zeros * table.level[0] * table.level[0]};
}

// How far ahead of their use values are fetched.
constexpr size_t kPrefetchBytes = 8192;

// The sum of 16 lanes, in the order of EnergyOf.
HWY_INLINE float SumLanes(const VF (&sums)[16 / kLanes]) {
  const hn::Full128<float> d4;
#if KVC_TARGET_AVX512
  const hn::Full256<float> d8;
  const auto eight = hn::Add(hn::LowerHalf(d8, sums[0]), hn::UpperHalf(d8, sums[0]));
  const auto four = hn::Add(hn::LowerHalf(d4, eight), hn::UpperHalf(d4, eight));
#elif HWY_TARGET == HWY_AVX2
  const auto eight = hn::Add(sums[0], sums[1]);
  const auto four = hn::Add(hn::LowerHalf(d4, eight), hn::UpperHalf(d4, eight));
#else
  const auto four = hn::Add(hn::Add(sums[0], sums[2]), hn::Add(sums[1], sums[3]));
#endif
  const auto two = hn::Add(four, hn::Shuffle1032(four));
  return hn::GetLane(hn::Add(two, hn::Reverse2(d4, two)));
}

// Calls use(i, values) for the vectors of a row with its signs; returns its energy.
template <DType kT, class Use>
HWY_INLINE float LoadRow(const uint8_t* values, size_t length, Use use) {
  const DF df;
  VF sums[16 / kLanes];
  for (VF& sum : sums) sum = hn::Zero(df);
  for (size_t i = 0; i < length; i += 16) {
    for (size_t k = 0; k < 16 / kLanes; ++k) {
      const size_t at = i + k * kLanes;
      PrefetchAhead<kPrefetchBytes>(values + at * DTypeSize(kT), kLanes * DTypeSize(kT));
      const VF x = LoadF32<kT>(df, values + at * DTypeSize(kT));
      use(at, hn::Mul(x, hn::Load(df, kRotatedSigns.data() + at)));
      sums[k] = hn::Add(sums[k], hn::Mul(x, x));
    }
  }
  return SumLanes(sums);
}

template <DType kT, size_t kCount>
HWY_INLINE float RotateVectors(const uint8_t* values, float* out) {
  const DF df;
  VF v[kCount];
  const float energy = LoadRow<kT>(values, kCount * kLanes, [&](size_t at, VF x) HWY_ATTR { v[at / kLanes] = x; });
  HadamardOfVectors(v);
  for (size_t i = 0; i < kCount; ++i) hn::Store(v[i], df, out + i * kLanes);
  return energy;
}

// Rotates a row, and returns its energy.
template <DType kT>
HWY_INLINE float RotateRow(const RotatedRow& row, const uint8_t* values, float* out) {
  const size_t vectors = VectorsOf(row);
  if (vectors == 8) return RotateVectors<kT, 8>(values, out);
  if (vectors == 4) return RotateVectors<kT, 4>(values, out);
  const float energy = LoadRow<kT>(values, row.length, [&](size_t at, VF x) HWY_ATTR { hn::Store(x, DF(), out + at); });
  Rotate(row, out);
  return energy;
}

// From this energy on rows are left for the scalar code. Of F16 these may have infinities or NaN, which are numbers of
// 2^16 and more on targets that emulate it.
template <DType kT>
constexpr float kEnergyLimit = kT == DType::kF16 ? 0x1p32f : kMaxRotatedEnergy;

// Rows that go through the steps together: a step of one row has to wait for the step before it.
template <DType kT, bool kMeasure>
class Tile {
 public:
  explicit Tile(const RotatedFormat& format)
      : format_(format),
        row_(format.row),
        stride_(Padded(format.row)),
        levels_(format.bits),
        bounds_(format.bits),
        max_rows_(std::clamp<size_t>(kValues / stride_, 1, kRows)) {
    if (stride_ > row_.length) std::memset(v_, 0, sizeof(v_));
  }

  size_t max_rows() const { return max_rows_; }

  // `errors` is there where kMeasure says so.
  HWY_INLINE bool Encode(const uint8_t* values, size_t rows, uint8_t* scales, uint8_t* codes, float* errors) {
    const size_t row_bytes = row_.length * DTypeSize(kT);
    for (size_t r = 0; r < rows; ++r) energies_[r] = RotateRow<kT>(row_, values + r * row_bytes, v_ + r * stride_);
    for (size_t r = 0; r < rows; ++r) norms_[r] = std::sqrt(energies_[r]);
    for (size_t r = 0; r < rows; ++r) factors_[r] = row_.unit / norms_[r];
    for (size_t r = 0; r < rows; ++r) {
      fits_[r] = QuantizeRow(bounds_, row_.length, factors_[r], v_ + r * stride_, codes_ + r * row_.length);
    }
    std::memcpy(codes, codes_, rows * row_.length);
    for (size_t r = 0; r < rows; ++r) scales_[r] = row_.ScaleOf(fits_[r].cross, fits_[r].squares, norms_[r]);
    RoundScales(rows, scales);
    for (size_t r = 0; r < rows; ++r) {
      const bool is_usual = energies_[r] >= kMinRotatedEnergy && energies_[r] < kEnergyLimit<kT>;
      float* row_errors = kMeasure ? errors + r * row_.length : nullptr;
      if (HWY_LIKELY(is_usual && (!kMeasure || IsUsual<kT>(row_, wide_[r])))) {
        if constexpr (kMeasure) MeasureRow(values + r * row_bytes, r, row_errors);
      } else if (!scalar::QuantizeRotated(format_, values + r * row_bytes, row_.length, scales + 2 * r,
                                          codes + r * row_.length, row_errors)) {
        return false;
      }
    }
    return true;
  }

 private:
  static constexpr size_t kRows = 16;
  static constexpr size_t kValues = 4096;

  // Rounds the scales to their bits.
  HWY_INLINE void RoundScales(size_t rows, uint8_t* out) {
    const DF df;
    HWY_ALIGN uint16_t bits[kRows];
    for (size_t r = 0; r < rows; r += kLanes) {
      const auto half = F16FromF32(df, hn::Load(df, scales_ + r));
      hn::Store(half, hn::Rebind<uint16_t, DF>(), bits + r);
      hn::Store(F32FromF16(df, half), df, wide_ + r);
    }
    for (size_t r = 0; r < rows; ++r) {
      if (HWY_LIKELY(IsNormalF16(bits[r]))) continue;
      bits[r] = RotatedScaleBits(scales_[r]);
      wide_[r] = RotatedScaleOf(bits[r]);
    }
    std::memcpy(out, bits, 2 * rows);
  }

  HWY_INLINE void MeasureRow(const uint8_t* values, size_t r, float* errors) {
    const DF df;
    DecodeRow(row_, levels_, wide_[r], codes_ + r * row_.length, [&](size_t i, VF decoded) HWY_ATTR {
      const VF x = LoadF32<kT>(df, values + i * DTypeSize(kT));
      hn::StoreU(hn::Sub(x, RoundTo<kT>(df, decoded)), df, errors + i);
    });
  }

  const RotatedFormat& format_;
  const RotatedRow row_;
  const size_t stride_;
  const LevelTable levels_;
  const BoundTable bounds_;
  const size_t max_rows_;
  HWY_ALIGN float v_[kValues];
  HWY_ALIGN uint8_t codes_[kValues + kAtOnce];  // what is after a row's is overwritten by the next one's
  float energies_[kRows], norms_[kRows], factors_[kRows];
  HWY_ALIGN float scales_[kRows] = {};
  HWY_ALIGN float wide_[kRows];  // as their bits have them
  Fit fits_[kRows];
};

template <DType kT, bool kMeasure>
bool QuantizeAs(const RotatedFormat& format, const uint8_t* values, size_t rows, uint8_t* scales, uint8_t* codes,
                float* errors) {
  Tile<kT, kMeasure> tile(format);
  for (size_t r = 0; r < rows; r += tile.max_rows()) {
    const size_t first = r * format.row;
    if (!tile.Encode(values + first * DTypeSize(kT), std::min(tile.max_rows(), rows - r), scales + 2 * r, codes + first,
                     kMeasure ? errors + first : nullptr)) {
      return false;
    }
  }
  return true;
}

}  // namespace

// QuantizeRotated for KernelRows().
bool QuantizeRotatedRows(const RotatedFormat& format, const uint8_t* values, size_t rows, uint8_t* scales,
                         uint8_t* codes, float* errors) {
  return VisitDType(format.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    return errors != nullptr ? QuantizeAs<kT, true>(format, values, rows, scales, codes, errors)
                             : QuantizeAs<kT, false>(format, values, rows, scales, codes, errors);
  });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(QuantizeRotatedRows);

bool QuantizeRotated(const RotatedFormat& format, const void* values, size_t count, void* scales, uint8_t* codes,
                     float* errors) {
  const auto* from = static_cast<const uint8_t*>(values);
  auto* scale_out = static_cast<uint8_t*>(scales);
  const size_t rows = KernelRows(format, count);
  const size_t done = rows * format.row;
  return HWY_DYNAMIC_DISPATCH(QuantizeRotatedRows)(format, from, rows, scale_out, codes, errors) &&
         scalar::QuantizeRotated(format, from + done * DTypeSize(format.dtype), count - done, scale_out + 2 * rows,
                                 codes + done, errors != nullptr ? errors + done : nullptr);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
