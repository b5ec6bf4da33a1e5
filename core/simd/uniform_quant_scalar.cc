#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress::simd {

float UniformFormat::max_magnitude() const {
  constexpr float kMax = std::numeric_limits<float>::max();
  return std::min(MaxFinite(dtype), symmetric ? kMax : kMax / 4);
}

namespace scalar {
namespace {

// `value`, not negative, up to the next scale of the dtype.
uint16_t ScaleUp(DType dtype, float value) {
  uint32_t bits;
  if (ScaleDType(dtype) == DType::kF16) {
    bits = F32ToF16(value);
    if (F16ToF32(static_cast<uint16_t>(bits)) < value) ++bits;
  } else {
    std::memcpy(&bits, &value, sizeof(bits));
    bits = (bits + 0xffff) >> 16;
  }
  return static_cast<uint16_t>(std::min<uint32_t>(bits, MaxScaleBits(dtype)));
}

// The bits of an element in the upper bits of a word.
uint32_t LoadBits(DType dtype, const void* elements, size_t index) {
  const size_t width = dtype == DType::kF32 ? 4 : 2;
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 4 - width, static_cast<const uint8_t*>(elements) + index * width,
              width);
  return bits;
}
void StoreBits(DType dtype, uint32_t bits, void* elements, size_t index) {
  const size_t width = dtype == DType::kF32 ? 4 : 2;
  std::memcpy(static_cast<uint8_t*>(elements) + index * width, reinterpret_cast<uint8_t*>(&bits) + 4 - width, width);
}

// Unsigned integers in the order of the values, so that minima do not depend on the order of comparisons; -0 goes right
// below +0, NaN to either end.
uint32_t OrderKey(uint32_t bits) { return (bits >> 31) != 0 ? ~bits : bits ^ 0x80000000u; }
uint32_t FromOrderKey(uint32_t key) { return (key >> 31) != 0 ? key ^ 0x80000000u : ~key; }

}  // namespace

void CellRanges(DType dtype, const CellLayout& layout, const void* values, size_t count, void* min, void* max) {
  const size_t cells = layout.cells(count);
  for (size_t i = 0; i < cells; ++i) {
    StoreBits(dtype, ~0u, min, i);
    StoreBits(dtype, 0, max, i);
  }
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) {
    for (size_t i = 0; i < n; ++i) {
      const size_t own = layout.stretch != 0 ? cell + i : cell;
      const uint32_t key = OrderKey(LoadBits(dtype, values, first + i));
      StoreBits(dtype, std::min(key, LoadBits(dtype, min, own)), min, own);
      StoreBits(dtype, std::max(key, LoadBits(dtype, max, own)), max, own);
    }
  });
  for (void* ends : {min, max}) {
    for (size_t i = 0; i < cells; ++i) {
      StoreBits(dtype, FromOrderKey(LoadBits(dtype, ends, i)), ends, i);
      if (LoadAsF32(dtype, ends, i) == 0) StoreBits(dtype, 0, ends, i);
    }
  }
}

bool CellScales(const UniformFormat& format, const void* min, const void* max, size_t cells, uint16_t* scales) {
  for (size_t i = 0; i < cells; ++i) {
    const float lo = LoadAsF32(format.dtype, min, i);
    const float hi = LoadAsF32(format.dtype, max, i);
    if (!(std::fabs(lo) <= format.max_magnitude()) || !(std::fabs(hi) <= format.max_magnitude())) return false;
    const float range = format.symmetric ? std::max(std::fabs(lo), std::fabs(hi)) : hi - lo;
    scales[i] = ScaleUp(format.dtype, range / static_cast<float>(format.max_code()));
  }
  return true;
}

void QuantizeRun(const UniformFormat& format, const void* values, size_t count, const float* scales,
                 const float* offsets, size_t step, CodeBytes codes) {
  const auto lo = static_cast<float>(format.min_code());
  const auto hi = static_cast<float>(format.max_code());
  const int low_bits = std::max(format.bits - 8, 0);
  for (size_t i = 0; i < count; ++i) {
    const float scale = scales[i * step] == 0 ? 1 : scales[i * step];
    const float offset = offsets == nullptr ? 0 : offsets[i * step];
    const float number = (LoadAsF32(format.dtype, values, i) - offset) / scale;
    const auto code =
        static_cast<unsigned>(static_cast<int>(std::nearbyint(std::min(std::max(number, lo), hi))) + format.zero());
    codes.high[i] = static_cast<uint8_t>(code >> low_bits);
    if (low_bits > 0) codes.low[i] = static_cast<uint8_t>(code & ((1u << low_bits) - 1));
  }
}

void DequantizeRun(const UniformFormat& format, ConstCodeBytes codes, size_t count, const float* scales,
                   const float* offsets, size_t step, void* values) {
  const float limit = MaxFinite(format.dtype);
  const int low_bits = std::max(format.bits - 8, 0);
  for (size_t i = 0; i < count; ++i) {
    int code = codes.high[i] << low_bits;
    if (low_bits > 0) code |= codes.low[i];
    // Without offsets, too, a sum: it has no negative zero.
    const float value =
        static_cast<float>(code - format.zero()) * scales[i * step] + (offsets != nullptr ? offsets[i * step] : 0.0f);
    StoreFromF32(format.dtype, std::min(std::max(value, -limit), limit), values, i);
  }
}

namespace {

template <typename Byte>
CodePointers<Byte> At(const UniformFormat& format, CodePointers<Byte> codes, size_t first) {
  return {codes.high + first, format.bits > 8 ? codes.low + first : nullptr};
}

}  // namespace

void UniformQuantize(const UniformFormat& format, const CellLayout& layout, const void* values, size_t count,
                     const float* scales, const float* offsets, CodeBytes codes) {
  const auto* bytes = static_cast<const uint8_t*>(values);
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) {
    QuantizeRun(format, bytes + first * DTypeSize(format.dtype), n, scales + cell, offsets ? offsets + cell : nullptr,
                layout.stretch != 0, At(format, codes, first));
  });
}

void UniformDequantize(const UniformFormat& format, const CellLayout& layout, ConstCodeBytes codes, size_t count,
                       const float* scales, const float* offsets, void* values) {
  auto* bytes = static_cast<uint8_t*>(values);
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) {
    DequantizeRun(format, At(format, codes, first), n, scales + cell, offsets ? offsets + cell : nullptr,
                  layout.stretch != 0, bytes + first * DTypeSize(format.dtype));
  });
}

float RunEnergy(DType dtype, const void* values, size_t count) {
  float lanes[16] = {};
  for (size_t i = 0; i < count; ++i) {
    const float x = LoadAsF32(dtype, values, i);
    lanes[i % 16] += x * x;
  }
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

void CellEnergies(DType dtype, const CellLayout& layout, const void* values, size_t count, float* energies) {
  const auto* bytes = static_cast<const uint8_t*>(values);
  ForEachRun(layout, count, [&](size_t first, size_t n, size_t cell) {
    energies[cell] = RunEnergy(dtype, bytes + first * DTypeSize(dtype), n);
  });
}

}  // namespace scalar
}  // namespace kvcompress::simd
