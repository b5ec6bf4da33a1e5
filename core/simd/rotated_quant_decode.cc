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
void DequantizeAs(const RotatedFormat& format, const uint8_t* scales, const uint8_t* codes, size_t rows,
                  uint8_t* values) {
  const DF df;
  const RotatedRow row(format.row);
  const LevelTable table(format.bits);
  const size_t row_bytes = row.length * DTypeSize(kT);
  HWY_ALIGN float wide[kScales];
  for (size_t r = 0; r < rows; ++r, scales += 2, codes += row.length, values += row_bytes) {
    if (r % kScales == 0) LoadScales(scales, std::min(kScales, rows - r), wide);
    const float scale = wide[r % kScales];
    if (HWY_UNLIKELY(!IsUsual<kT>(row, scale))) {
      scalar::DequantizeRotated(format, scales, codes, row.length, values);
      continue;
    }
    DecodeRow(row, table, scale, codes,
              [&](size_t i, VF v) HWY_ATTR { StoreF32<kT>(df, v, values + i * DTypeSize(kT)); });
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
