#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/rotated_quant_decode.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "core/simd/half-inl.h"
#include "core/simd/rotated_quant.h"
#include "core/simd/rotated_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

constexpr size_t kScales = 64;  // that are widened together

// The scales that these bits are, finite ones.
HWY_INLINE void LoadScales(const uint8_t* bits, size_t count, float* scales) {
  const DF df;
  const DU du;
  const hn::Rebind<uint16_t, DF> d16;
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const auto half = LoadAt(d16, bits + 2 * i);
    const auto wide = hn::PromoteTo(du, half);
    const auto is_bfloat = hn::RebindMask(df, hn::Gt(wide, hn::Set(du, 0x7fff)));
    const VF bfloat = hn::BitCast(df, hn::ShiftRight<1>(hn::ShiftLeft<17>(wide)));
    hn::Store(hn::IfThenElse(is_bfloat, bfloat, F32FromF16(df, half)), df, scales + i);
  }
  for (; i < count; ++i) {
    uint16_t one;
    std::memcpy(&one, bits + 2 * i, 2);
    scales[i] = RotatedScaleOf(one);
  }
}

template <DType kT>
class Decoder {
 public:
  HWY_INLINE explicit Decoder(const RotatedFormat& format)
      : row_(format.row), row_bytes_(format.row * DTypeSize(kT)), levels_(kLevelTables[format.bits - 2]) {}

  // The rows of up to kScales scales.
  HWY_INLINE void Decode(const uint8_t* scales, const uint8_t* codes, size_t rows, uint8_t* values) {
    codes_ = codes;
    values_ = values;
    LoadScales(scales, rows, scales_);
    if (!IsShortRow(row_)) return DecodeLong(0, rows);
    if (row_.span == 64) return DecodeShort<64>(rows);
    if (row_.span == 128) return DecodeShort<128>(rows);
    DecodeShort<256>(rows);
  }

 private:
  template <size_t kSpan>
  HWY_INLINE void DecodeShort(size_t rows) {
    constexpr size_t kAtOnce = kShortRows<kSpan>;
    size_t r = 0;
    for (; r + kAtOnce <= rows; r += kAtOnce) {
      bool are_usual = true;
      for (size_t i = 0; i < kAtOnce; ++i) are_usual &= IsUsual<kT>(row_, scales_[r + i]);
      if (HWY_LIKELY(are_usual)) {
        DecodeShortAt<kSpan, true>(r);
      } else {
        DecodeUnusual<kSpan>(r);
      }
    }
    DecodeLong(r, rows);
  }
  template <size_t kSpan, bool kUsual>
  HWY_INLINE void DecodeShortAt(size_t r) {
    DecodeShortRows<kT, kSpan, kUsual>(row_, levels_, scales_ + r, codes_ + r * kSpan, values_ + r * row_bytes_);
  }
  template <size_t kSpan>
  HWY_NOINLINE void DecodeUnusual(size_t r) {
    DecodeShortAt<kSpan, false>(r);
  }

  HWY_NOINLINE void DecodeLong(size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      const auto decode = IsUsual<kT>(row_, scales_[r]) ? DecodeRow<kT, true> : DecodeRow<kT, false>;
      decode(row_, levels_, scales_[r], codes_ + r * row_.length, values_ + r * row_bytes_);
    }
  }

  const RotatedRow row_;
  const size_t row_bytes_;
  const LevelTable& levels_;
  HWY_ALIGN float scales_[kScales];
  const uint8_t* codes_ = nullptr;
  uint8_t* values_ = nullptr;
};

template <DType kT>
void DequantizeAs(const RotatedFormat& format, const uint8_t* scales, const uint8_t* codes, size_t rows,
                  uint8_t* values) {
  Decoder<kT> decoder(format);
  for (size_t r = 0; r < rows; r += kScales) {
    const size_t first = r * format.row;
    decoder.Decode(scales + 2 * r, codes + first, std::min(kScales, rows - r), values + first * DTypeSize(kT));
  }
}

}  // namespace

// DequantizeRotated for KernelRows().
void DequantizeRotatedRows(const RotatedFormat& format, const uint8_t* scales, const uint8_t* codes, size_t rows,
                           uint8_t* values) {
  VisitDType(format.dtype,
             [&](auto t) HWY_ATTR { DequantizeAs<decltype(t)::value>(format, scales, codes, rows, values); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(DequantizeRotatedRows);

void DequantizeRotated(const RotatedFormat& format, const void* scales, const uint8_t* codes, size_t count,
                       void* values) {
  const auto* scale_in = static_cast<const uint8_t*>(scales);
  auto* out = static_cast<uint8_t*>(values);
  const size_t rows = KernelRows(format, count);
  const size_t done = rows * format.row;
  HWY_DYNAMIC_DISPATCH(DequantizeRotatedRows)(format, scale_in, codes, rows, out);
  scalar::DequantizeRotated(format, scale_in + 2 * rows, codes + done, count - done,
                            out + done * DTypeSize(format.dtype));
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
