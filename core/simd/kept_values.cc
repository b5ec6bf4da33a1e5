#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/kept_values.cc"
#include "core/simd/kept_values.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/base/bytes.h"
#include "core/simd/cpu_features.h"
#include "core/simd/half-inl.h"
#include "core/simd/kept_tables.h"
#include "core/simd/key_counts.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

// Steps of 8 values: one byte of the mask.
constexpr size_t kStep = 8;

HWY_INLINE const uint8_t* BytesOf(const std::byte* at) { return reinterpret_cast<const uint8_t*>(at); }

// Whose bits are set, by the signed integer `key`, which every target compares.
template <MarkOf kMark, class D>
HWY_INLINE hn::Mask<D> IsMarked(D d, hn::Vec<D> bits, hn::Vec<D> key) {
  if constexpr (kMark == MarkOf::kNegative) return hn::Lt(bits, hn::Zero(d));
  const auto magnitude = hn::And(bits, hn::Set(d, hwy::LimitsMax<hn::TFromD<D>>()));
  if constexpr (kMark == MarkOf::kEqual) return hn::Eq(magnitude, key);
  return hn::Not(hn::Lt(magnitude, key));
}

template <MarkOf kMark, typename T>
size_t MarkVectors(const std::byte* values, size_t count, T key, uint8_t* mask) {
  using Signed = std::make_signed_t<T>;
  const hn::ScalableTag<Signed> d;
  const size_t lanes = hn::Lanes(d);
  const auto wanted = hn::Set(d, static_cast<Signed>(key));
  const auto mark = [&](size_t i)
                        HWY_ATTR { return IsMarked<kMark>(d, LoadAt(d, BytesOf(values) + i * sizeof(T)), wanted); };
  const size_t end = count - count % std::max(lanes, kStep);
#if KVC_TARGET_AVX512
  for (size_t i = 0; i < end; i += lanes) {
    const auto bits = mark(i).raw;
    std::memcpy(mask + i / 8, &bits, sizeof(bits));
  }
  return end;
#endif
  for (size_t i = 0; i < end; i += std::max(lanes, kStep)) {
    HWY_ALIGN uint8_t bits[8] = {};
    hn::StoreMaskBits(d, mark(i), bits);
    if (lanes < kStep) {
      HWY_ALIGN uint8_t upper[8] = {};
      hn::StoreMaskBits(d, mark(i + lanes), upper);
      bits[0] = static_cast<uint8_t>(bits[0] | upper[0] << lanes);
    }
    std::memcpy(mask + i / 8, bits, std::max(lanes, kStep) / 8);
  }
  return end;
}

template <typename T>
size_t CountVectors(const std::byte* values, size_t count, T key, size_t& equal) {
  const hn::ScalableTag<T> d;
  const size_t lanes = hn::Lanes(d);
  const auto magnitude = hn::Set(d, static_cast<T>(~kSignBit<T>));
  const auto wanted = hn::Set(d, key);
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    equal += hn::CountTrue(d, hn::Eq(hn::And(LoadAt(d, BytesOf(values) + i * sizeof(T)), magnitude), wanted));
  }
  return i;
}

// Values that one look-up moves: the vector of their bytes, and the mask of the j-th of them in a byte of the mask.
template <size_t kWidth>
struct Unit {
  using D = hn::FixedTag<uint8_t, (kWidth == 1 ? 8 : 16)>;
  static constexpr size_t kValues = kWidth == 4 ? 4 : 8;
  static constexpr size_t kBytes = kValues * kWidth;
  static HWY_INLINE size_t MaskOf(uint8_t byte, size_t j) { return byte >> (j * kValues) & ((1u << kValues) - 1); }
};

#if KVC_TARGET_AVX512
// The mask of a vector of 64 bytes.
template <size_t kWidth>
using WholeMask = std::conditional_t<kWidth == 1, __mmask64, std::conditional_t<kWidth == 2, __mmask32, __mmask16>>;
constexpr size_t kWholeBytes = 64;

template <size_t kWidth>
HWY_INLINE WholeMask<kWidth> LoadWholeMask(const uint8_t* mask) {
  WholeMask<kWidth> bits;
  std::memcpy(&bits, mask, sizeof(bits));
  return bits;
}

// PackSteps for whole vectors; returns how many steps these have, and moves `out` behind what it has written.
template <size_t kWidth>
KVC_VBMI size_t PackVectors(const uint8_t* values, size_t steps, const uint8_t* mask, uint8_t*& out) {
  constexpr size_t kSteps = sizeof(WholeMask<kWidth>);
  size_t step = 0;
  for (; step + kSteps <= steps; step += kSteps, values += kWholeBytes) {
    const auto kept = LoadWholeMask<kWidth>(mask + step);
    const __m512i v = _mm512_loadu_si512(values);
    __m512i packed;
    if constexpr (kWidth == 1) packed = _mm512_maskz_compress_epi8(kept, v);
    if constexpr (kWidth == 2) packed = _mm512_maskz_compress_epi16(kept, v);
    if constexpr (kWidth == 4) packed = _mm512_maskz_compress_epi32(kept, v);
    _mm512_storeu_si512(out, packed);
    out += static_cast<size_t>(std::popcount(uint64_t{kept})) * kWidth;
  }
  return step;
}

// UnpackSteps for whole vectors, likewise.
template <size_t kWidth>
KVC_VBMI size_t UnpackVectors(const uint8_t*& kept, const uint8_t* end, size_t steps, const uint8_t* mask,
                              uint8_t*& out) {
  constexpr size_t kSteps = sizeof(WholeMask<kWidth>);
  size_t step = 0;
  for (; step + kSteps <= steps && static_cast<size_t>(end - kept) >= kWholeBytes; step += kSteps) {
    const auto is_kept = LoadWholeMask<kWidth>(mask + step);
    const __m512i v = _mm512_loadu_si512(kept);
    __m512i unpacked;
    if constexpr (kWidth == 1) unpacked = _mm512_maskz_expand_epi8(is_kept, v);
    if constexpr (kWidth == 2) unpacked = _mm512_maskz_expand_epi16(is_kept, v);
    if constexpr (kWidth == 4) unpacked = _mm512_maskz_expand_epi32(is_kept, v);
    _mm512_storeu_si512(out, unpacked);
    out += kWholeBytes;
    kept += static_cast<size_t>(std::popcount(uint64_t{is_kept})) * kWidth;
  }
  return step;
}
#endif

template <size_t kWidth>
void PackSteps(const uint8_t* values, size_t steps, const uint8_t* mask, uint8_t* out) {
  using U = Unit<kWidth>;
  const typename U::D d;
  size_t step = 0;
#if KVC_TARGET_AVX512
  if (PermutesBytes()) {
    step = PackVectors<kWidth>(values, steps, mask, out);
    values += step * kStep * kWidth;
  }
#endif
  for (; step < steps; ++step) {
    for (size_t j = 0; j < kStep / U::kValues; ++j, values += U::kBytes) {
      const size_t kept = U::MaskOf(mask[step], j);
      const auto indices = hn::LoadU(d, kKeptTables<kWidth>.pack[kept].data());
      hn::StoreU(hn::TableLookupBytesOr0(hn::LoadU(d, values), indices), d, out);
      out += static_cast<size_t>(std::popcount(kept)) * kWidth;
    }
  }
}

// Stops before a unit that could read what is not there, and returns the number of its step.
template <size_t kWidth>
size_t UnpackSteps(const uint8_t* kept, size_t kept_bytes, size_t steps, const uint8_t* mask, uint8_t* out) {
  using U = Unit<kWidth>;
  const typename U::D d;
  const uint8_t* const end = kept + kept_bytes;
  size_t step = 0;
#if KVC_TARGET_AVX512
  if (PermutesBytes()) step = UnpackVectors<kWidth>(kept, end, steps, mask, out);
#endif
  for (; step < steps && static_cast<size_t>(end - kept) >= kStep * kWidth; ++step) {
    for (size_t j = 0; j < kStep / U::kValues; ++j, out += U::kBytes) {
      const size_t bits = U::MaskOf(mask[step], j);
      const auto indices = hn::LoadU(d, kKeptTables<kWidth>.unpack[bits].data());
      hn::StoreU(hn::TableLookupBytesOr0(hn::LoadU(d, kept), indices), d, out);
      kept += static_cast<size_t>(std::popcount(bits)) * kWidth;
    }
  }
  return step;
}

template <size_t kWidth>
void ZeroSteps(const uint8_t* values, size_t steps, const uint8_t* mask, uint8_t* out) {
  using U = Unit<kWidth>;
  const typename U::D d;
  const hn::RebindToSigned<typename U::D> di;
  size_t step = 0;
#if KVC_TARGET_AVX512
  constexpr size_t kSteps = sizeof(WholeMask<kWidth>);
  for (; step + kSteps <= steps; step += kSteps, values += kWholeBytes, out += kWholeBytes) {
    const auto kept = LoadWholeMask<kWidth>(mask + step);
    const __m512i v = _mm512_loadu_si512(values);
    if constexpr (kWidth == 1) _mm512_storeu_si512(out, _mm512_maskz_mov_epi8(kept, v));
    if constexpr (kWidth == 2) _mm512_storeu_si512(out, _mm512_maskz_mov_epi16(kept, v));
    if constexpr (kWidth == 4) _mm512_storeu_si512(out, _mm512_maskz_mov_epi32(kept, v));
  }
#endif
  for (; step < steps; ++step) {
    for (size_t j = 0; j < kStep / U::kValues; ++j, values += U::kBytes, out += U::kBytes) {
      const auto indices = hn::LoadU(d, kKeptTables<kWidth>.unpack[U::MaskOf(mask[step], j)].data());
      const auto is_dropped = hn::RebindMask(d, hn::Lt(hn::BitCast(di, indices), hn::Zero(di)));
      hn::StoreU(hn::IfThenZeroElse(is_dropped, hn::LoadU(d, values)), d, out);
    }
  }
}

template <typename Visit>
HWY_INLINE auto VisitWidth(size_t width, Visit visit) {
  switch (width) {
    case 1: return visit(std::integral_constant<size_t, 1>());
    case 2: return visit(std::integral_constant<size_t, 2>());
    default: return visit(std::integral_constant<size_t, 4>());
  }
}

}  // namespace

// Those of whole vectors; they return where these end.
size_t MarkKeyVectors(MarkOf what, DType dtype, const std::byte* values, size_t count, uint32_t key, uint8_t* bits) {
  return VisitBits(dtype, [&](auto zero) HWY_ATTR {
    const auto own = static_cast<decltype(zero)>(key);
    switch (what) {
      case MarkOf::kNegative: return MarkVectors<MarkOf::kNegative>(values, count, own, bits);
      case MarkOf::kEqual: return MarkVectors<MarkOf::kEqual>(values, count, own, bits);
      default: return MarkVectors<MarkOf::kAtLeast>(values, count, own, bits);
    }
  });
}
size_t CountMagnitudeVectors(DType dtype, const std::byte* values, size_t count, uint32_t key, size_t& equal) {
  return VisitBits(
      dtype, [&](auto zero) HWY_ATTR { return CountVectors(values, count, static_cast<decltype(zero)>(key), equal); });
}

// Those of whole steps.
void PackKeptSteps(size_t width, const uint8_t* values, size_t steps, const uint8_t* mask, uint8_t* out) {
  VisitWidth(width, [&](auto w) HWY_ATTR { PackSteps<decltype(w)::value>(values, steps, mask, out); });
}
size_t UnpackKeptSteps(size_t width, const uint8_t* kept, size_t kept_bytes, size_t steps, const uint8_t* mask,
                       uint8_t* out) {
  return VisitWidth(
      width, [&](auto w) HWY_ATTR { return UnpackSteps<decltype(w)::value>(kept, kept_bytes, steps, mask, out); });
}
void ZeroUnkeptSteps(size_t width, const uint8_t* values, size_t steps, const uint8_t* mask, uint8_t* out) {
  VisitWidth(width, [&](auto w) HWY_ATTR { ZeroSteps<decltype(w)::value>(values, steps, mask, out); });
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(MarkKeyVectors);
HWY_EXPORT(CountMagnitudeVectors);
HWY_EXPORT(PackKeptSteps);
HWY_EXPORT(UnpackKeptSteps);
HWY_EXPORT(ZeroUnkeptSteps);

namespace {

constexpr size_t kStep = 8;

const uint8_t* Raw(const std::byte* at) { return reinterpret_cast<const uint8_t*>(at); }
uint8_t* Raw(std::byte* at) { return reinterpret_cast<uint8_t*>(at); }

uint32_t MagnitudeAt(DType dtype, const std::byte* values, size_t i) {
  return VisitBits(dtype, [&](auto zero) -> uint32_t {
    using Bits = decltype(zero);
    return KeyOf(KeyOrder::kMagnitude, LoadLE<Bits>(values + i * sizeof(Bits)));
  });
}

bool IsKept(const std::byte* mask, size_t i) { return (std::to_integer<unsigned>(mask[i / 8]) >> i % 8 & 1) != 0; }

bool IsMarked(MarkOf what, DType dtype, const std::byte* values, size_t i, uint32_t key) {
  if (what == MarkOf::kNegative) return (values[(i + 1) * DTypeSize(dtype) - 1] & std::byte{0x80}) != std::byte{0};
  const uint32_t magnitude = MagnitudeAt(dtype, values, i);
  return what == MarkOf::kEqual ? magnitude == key : magnitude >= key;
}

}  // namespace

size_t CountKept(const std::byte* mask, size_t bytes) {
  size_t bits = 0;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) bits += static_cast<size_t>(std::popcount(LoadLE<uint64_t>(mask + i)));
  for (; i < bytes; ++i) bits += static_cast<size_t>(std::popcount(std::to_integer<unsigned>(mask[i])));
  return bits;
}

void MarkValues(MarkOf what, DType dtype, const std::byte* values, size_t count, uint32_t key, std::byte* mask) {
  const size_t done = HWY_DYNAMIC_DISPATCH(MarkKeyVectors)(what, dtype, values, count, key, Raw(mask));
  std::fill(mask + done / 8, mask + (count + 7) / 8, std::byte{0});
  for (size_t i = done; i < count; ++i) {
    if (IsMarked(what, dtype, values, i, key)) mask[i / 8] |= static_cast<std::byte>(1u << i % 8);
  }
}

size_t MarkMagnitudes(DType dtype, const std::byte* values, size_t count, uint32_t threshold, std::byte* mask) {
  MarkValues(MarkOf::kAtLeast, dtype, values, count, threshold, mask);
  return CountKept(mask, (count + 7) / 8);
}

size_t CountMagnitude(DType dtype, const std::byte* values, size_t count, uint32_t key) {
  size_t equal = 0;
  const size_t done = HWY_DYNAMIC_DISPATCH(CountMagnitudeVectors)(dtype, values, count, key, equal);
  for (size_t i = done; i < count; ++i) equal += MagnitudeAt(dtype, values, i) == key;
  return equal;
}

void PackKept(size_t width, const std::byte* values, size_t count, const std::byte* mask, std::byte* out) {
  const size_t steps = count / kStep;
  HWY_DYNAMIC_DISPATCH(PackKeptSteps)(width, Raw(values), steps, Raw(mask), Raw(out));
  out += CountKept(mask, steps) * width;
  for (size_t i = steps * kStep; i < count; ++i) {
    if (!IsKept(mask, i)) continue;
    std::memcpy(out, values + i * width, width);
    out += width;
  }
}

void UnpackKept(size_t width, const std::byte* kept, size_t count, const std::byte* mask, std::byte* out) {
  const size_t kept_bytes = CountKept(mask, (count + 7) / 8) * width;
  const size_t steps = count / kStep;
  size_t done = HWY_DYNAMIC_DISPATCH(UnpackKeptSteps)(width, Raw(kept), kept_bytes, steps, Raw(mask), Raw(out));
  // The last few values once more where vectors may read more than there is.
  size_t taken = CountKept(mask, done) * width;
  std::byte rest[2 * kStep * sizeof(uint32_t)] = {};
  if (kept_bytes > taken) std::memcpy(rest, kept + taken, kept_bytes - taken);
  const size_t size = kStep * width + kept_bytes - taken;
  HWY_DYNAMIC_DISPATCH(UnpackKeptSteps)
  (width, Raw(rest), size, steps - done, Raw(mask) + done, Raw(out) + done * kStep * width);
  const std::byte* from = rest + CountKept(mask + done, steps - done) * width;
  for (size_t i = steps * kStep; i < count; ++i) {
    if (IsKept(mask, i)) {
      std::memcpy(out + i * width, from, width);
      from += width;
    } else {
      std::memset(out + i * width, 0, width);
    }
  }
}

void ZeroUnkept(size_t width, const std::byte* values, size_t count, const std::byte* mask, std::byte* out) {
  const size_t steps = count / kStep;
  HWY_DYNAMIC_DISPATCH(ZeroUnkeptSteps)(width, Raw(values), steps, Raw(mask), Raw(out));
  for (size_t i = steps * kStep; i < count; ++i) {
    if (IsKept(mask, i)) {
      std::memcpy(out + i * width, values + i * width, width);
    } else {
      std::memset(out + i * width, 0, width);
    }
  }
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
