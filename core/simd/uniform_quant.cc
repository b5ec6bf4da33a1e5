#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/uniform_quant.cc"
#include "core/simd/uniform_quant.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/simd/group_quant.h"
#include "core/simd/half-inl.h"
#include "core/simd/pack-inl.h"
#include "core/simd/subnormals-inl.h"
#include "core/simd/subnormals.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Codes are made and undone 16 at a time. Where the last 16 of a run overlap those before, they come out the same
// again.
constexpr size_t kStep = 16;
constexpr size_t kVectors = kStep / kLanes;

// Scales and offsets for vectors of a run: those of one cell, or a cell for each value.
template <bool kColumns>
class Cells {
 public:
  HWY_INLINE Cells(const float* scales, const float* offsets) : scales_(scales), offsets_(offsets) {
    scale_ = hn::Set(DF(), scales[0]);
    offset_ = hn::Set(DF(), offsets != nullptr ? offsets[0] : 0.0f);
  }
  HWY_INLINE VF scale(size_t i) const { return kColumns ? hn::LoadU(DF(), scales_ + i) : scale_; }
  HWY_INLINE VF offset(size_t i) const {
    return kColumns && offsets_ != nullptr ? hn::LoadU(DF(), offsets_ + i) : offset_;
  }

 private:
  const float* scales_;
  const float* offsets_;
  VF scale_, offset_;
};

// Differences over scales, of which some are small.
HWY_INLINE VF SmallQuotients(VF differences, VF scales) {
  const DF df;
  const auto is_small = AreSmall(scales);
  // What is beyond this is beyond all codes, too.
  const VF limit = hn::Set(df, 0x1p60f);
  const VF limited = hn::Max(hn::Min(differences, limit), hn::Neg(limit));
  return hn::Div(hn::IfThenElse(is_small, Enlarge(df, limited), differences),
                 hn::IfThenElse(is_small, Enlarge(df, scales), scales));
}

// Codes times scales, of which some are small.
HWY_INLINE VF SmallProducts(VF codes, VF scales) {
  const DF df;
  const auto is_small = AreSmall(scales);
  const VF product = hn::Mul(codes, hn::IfThenElse(is_small, Enlarge(df, scales), scales));
  return hn::IfThenElse(is_small, Reduce(df, product), product);
}

// How a call does what it does. kMayBeSmall: some scales may be small, and this thread computes with subnormal numbers.
template <bool kIsWide, bool kHasColumns, bool kMayBeSmall>
struct Way {
  static constexpr bool kWide = kIsWide, kColumns = kHasColumns, kSmall = kMayBeSmall;
};

// Codes of n >= kStep values.
template <DType kT, class W>
HWY_INLINE void EncodeRun(const UniformFormat& format, const uint8_t* values, size_t n, const float* scales,
                          const float* offsets, CodeBytes codes) {
  const DF df;
  const DU du;
  constexpr bool kWide = W::kWide;
  const Cells<W::kColumns> cells(scales, offsets);
  const VF lo = hn::Set(df, static_cast<float>(format.min_code()));
  const VF hi = hn::Set(df, static_cast<float>(format.max_code()));
  // The sum leaves the nearest integer, plus the even zero(), in its low bits.
  const VF magic = hn::Set(df, 0x1.8p23f + static_cast<float>(format.zero()));
  const VU code_mask = hn::Set(du, (1u << format.bits) - 1);
  const int low_bits = format.bits - 8;
  const VU low_mask = hn::Set(du, kWide ? (1u << low_bits) - 1 : 0);
  for (size_t i = 0; i < n; i += kStep) {
    const size_t at = std::min(i, n - kStep);
    VU high[kVectors], low[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t j = at + v * kLanes;
      const VF scale = cells.scale(j);
      const VF divisor = hn::IfThenElse(hn::Eq(scale, hn::Zero(df)), hn::Set(df, 1.0f), scale);
      const VF x = LoadF32<kT>(df, values + j * sizeof(Bits<kT>));
      const VF difference = hn::Sub(x, cells.offset(j));
      const VF number = W::kSmall ? SmallQuotients(difference, divisor) : hn::Div(difference, divisor);
      high[v] = hn::BitCast(du, hn::Add(hn::Min(hn::Max(number, lo), hi), magic));
      if constexpr (kWide) {
        low[v] = hn::And(high[v], low_mask);
        high[v] = hn::ShiftRightSame(hn::And(high[v], code_mask), low_bits);
      } else {
        high[v] = hn::And(high[v], code_mask);
      }
    }
    StoreLowBytes(high, codes.high + at);
    if constexpr (kWide) StoreLowBytes(low, codes.low + at);
  }
}

template <DType kT, class W>
HWY_INLINE void DecodeRun(const UniformFormat& format, ConstCodeBytes codes, size_t n, const float* scales,
                          const float* offsets, uint8_t* values) {
  const DF df;
  const DI di;
  const hn::Rebind<uint8_t, DF> du8;
  const Cells<W::kColumns> cells(scales, offsets);
  const VF limit = hn::Set(df, MaxFinite(kT));
  const VF lower = hn::Neg(limit);
  const auto zero = hn::Set(di, format.zero());
  const int low_bits = format.bits - 8;
  for (size_t i = 0; i < n; i += kStep) {
    const size_t at = std::min(i, n - kStep);
    for (size_t j = at; j < at + kStep; j += kLanes) {
      auto code = hn::PromoteTo(di, LoadAt(du8, codes.high + j));
      if constexpr (W::kWide) {
        code = hn::Or(hn::ShiftLeftSame(code, low_bits), hn::PromoteTo(di, LoadAt(du8, codes.low + j)));
      }
      const VF number = hn::ConvertTo(df, hn::Sub(code, zero));
      const VF product = W::kSmall ? SmallProducts(number, cells.scale(j)) : hn::Mul(number, cells.scale(j));
      const VF value = hn::Min(hn::Max(hn::Add(product, cells.offset(j)), lower), limit);
      StoreF32<kT>(df, value, values + j * sizeof(Bits<kT>));
    }
  }
}

template <DType kT, class W>
void EncodeAs(const UniformFormat& format, const CellLayout& layout, const uint8_t* values, size_t count,
              const float* scales, const float* offsets, CodeBytes codes) {
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) HWY_ATTR {
    const uint8_t* from = values + first * sizeof(Bits<kT>);
    const float* cell_offsets = offsets != nullptr ? offsets + cell : nullptr;
    const CodeBytes to = {codes.high + first, W::kWide ? codes.low + first : nullptr};
    if (n < kStep) return scalar::QuantizeRun(format, from, n, scales + cell, cell_offsets, W::kColumns, to);
    EncodeRun<kT, W>(format, from, n, scales + cell, cell_offsets, to);
  });
}

template <DType kT, class W>
void DecodeAs(const UniformFormat& format, const CellLayout& layout, ConstCodeBytes codes, size_t count,
              const float* scales, const float* offsets, uint8_t* values) {
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) HWY_ATTR {
    uint8_t* to = values + first * sizeof(Bits<kT>);
    const float* cell_offsets = offsets != nullptr ? offsets + cell : nullptr;
    const ConstCodeBytes from = {codes.high + first, W::kWide ? codes.low + first : nullptr};
    if (n < kStep) return scalar::DequantizeRun(format, from, n, scales + cell, cell_offsets, W::kColumns, to);
    DecodeRun<kT, W>(format, from, n, scales + cell, cell_offsets, to);
  });
}

// Calls visit with a Way. Of F16 no product or quotient is subnormal.
template <DType kT, typename Visit>
HWY_INLINE void VisitWay(bool is_wide, bool has_columns, bool may_be_small, Visit visit) {
  const auto with = [&]<bool kSmall>() HWY_ATTR {
    if (is_wide) return has_columns ? visit(Way<true, true, kSmall>()) : visit(Way<true, false, kSmall>());
    return has_columns ? visit(Way<false, true, kSmall>()) : visit(Way<false, false, kSmall>());
  };
  if constexpr (kT != DType::kF16) {
    if (may_be_small) return with.template operator()<true>();
  }
  with.template operator()<false>();
}

}  // namespace

// Whether any scale is small.
bool HasSmallScales(const float* scales, size_t cells) {
  const DF df;
  size_t i = 0;
  for (; i + kLanes <= cells; i += kLanes) {
    if (!hn::AllFalse(df, AreSmall(hn::LoadU(df, scales + i)))) return true;
  }
  return std::any_of(scales + i, scales + cells, [](float scale) { return scale > 0 && scale < kSmallScale; });
}

void EncodeUniform(const UniformFormat& format, const CellLayout& layout, const uint8_t* values, size_t count,
                   const float* scales, const float* offsets, CodeBytes codes, bool may_be_small) {
  VisitDType(format.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    VisitWay<kT>(format.bits > 8, layout.stretch != 0, may_be_small, [&](auto way) HWY_ATTR {
      EncodeAs<kT, decltype(way)>(format, layout, values, count, scales, offsets, codes);
    });
  });
}

void DecodeUniform(const UniformFormat& format, const CellLayout& layout, ConstCodeBytes codes, size_t count,
                   const float* scales, const float* offsets, uint8_t* values, bool may_be_small) {
  VisitDType(format.dtype, [&](auto t) HWY_ATTR {
    constexpr DType kT = decltype(t)::value;
    VisitWay<kT>(format.bits > 8, layout.stretch != 0, may_be_small, [&](auto way) HWY_ATTR {
      DecodeAs<kT, decltype(way)>(format, layout, codes, count, scales, offsets, values);
    });
  });
}

void PackWhole(int bits, const uint8_t* codes, size_t groups, uint8_t* out) { Pack(bits, 128, codes, groups, out); }
void UnpackWhole(int bits, const uint8_t* in, size_t groups, uint8_t* codes) { Unpack(bits, 128, in, groups, codes); }

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(HasSmallScales);
HWY_EXPORT(EncodeUniform);
HWY_EXPORT(DecodeUniform);
HWY_EXPORT(PackWhole);
HWY_EXPORT(UnpackWhole);

namespace {

constexpr size_t kPackGroup = 128;

const uint8_t* Bytes(const void* from) { return static_cast<const uint8_t*>(from); }
uint8_t* Bytes(void* to) { return static_cast<uint8_t*>(to); }

bool MayBeSmall(const UniformFormat& format, const CellLayout& layout, size_t count, const float* scales) {
  return format.dtype != DType::kF16 && HWY_DYNAMIC_DISPATCH(HasSmallScales)(scales, layout.cells(count));
}

}  // namespace

void UniformQuantize(const UniformFormat& format, const CellLayout& layout, const void* values, size_t count,
                     const float* scales, const float* offsets, CodeBytes codes) {
  const bool may_be_small = MayBeSmall(format, layout, count, scales);
  // Without small scales a subnormal number is as good as 0 beside half a code.
  std::optional<SubnormalsAreZero> guard;
  if (!may_be_small && format.dtype != DType::kF16) guard.emplace();
  HWY_DYNAMIC_DISPATCH(EncodeUniform)(format, layout, Bytes(values), count, scales, offsets, codes, may_be_small);
}

void UniformDequantize(const UniformFormat& format, const CellLayout& layout, ConstCodeBytes codes, size_t count,
                       const float* scales, const float* offsets, void* values) {
  HWY_DYNAMIC_DISPATCH(DecodeUniform)
  (format, layout, codes, count, scales, offsets, Bytes(values), MayBeSmall(format, layout, count, scales));
}

size_t PackedCodeBytes(int bits, size_t count) { return PackedBytes(bits, kPackGroup, count); }

void PackCodes(int bits, const uint8_t* codes, size_t count, uint8_t* out) {
  const size_t groups = count / kPackGroup;
  HWY_DYNAMIC_DISPATCH(PackWhole)(bits, codes, groups, out);
  const size_t tail = count % kPackGroup;
  if (tail == 0) return;
  uint8_t slots[kPackGroup] = {};
  std::memcpy(slots, codes + groups * kPackGroup, tail);
  scalar::PackGroup(bits, slots, (tail + 7) / 8 * 8, out + PackedBytes(bits, kPackGroup, groups * kPackGroup));
}

void UnpackCodes(int bits, const uint8_t* in, size_t count, uint8_t* codes) {
  const size_t groups = count / kPackGroup;
  HWY_DYNAMIC_DISPATCH(UnpackWhole)(bits, in, groups, codes);
  const size_t tail = count % kPackGroup;
  if (tail == 0) return;
  uint8_t slots[kPackGroup];
  scalar::UnpackGroup(bits, in + PackedBytes(bits, kPackGroup, groups * kPackGroup), (tail + 7) / 8 * 8, slots);
  std::memcpy(codes + groups * kPackGroup, slots, tail);
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
