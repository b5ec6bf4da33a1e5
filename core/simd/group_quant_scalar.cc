#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "core/base/half.h"
#include "core/simd/exact_terms.h"
#include "core/simd/group_quant.h"
#include "core/simd/token_meter.h"
#include "core/simd/value_limits.h"

namespace kvcompress::simd {

namespace {

constexpr uint16_t kSign = 0x8000;

}  // namespace

uint16_t GroupScale(DType dtype, int bits, float max_abs) {
  const auto qmax = static_cast<float>(QMax(bits));
  uint16_t scale = F32ToF16(max_abs / qmax);
  if (dtype != DType::kF16 && max_abs > 0 && !IsNormalF16(scale)) scale = kSign | F32ToBF16(max_abs / qmax);
  while ((qmax + 0.5f) * ScaleOf(dtype, scale) < max_abs) ++scale;
  if (!std::isfinite(RoundTo(dtype, qmax * ScaleOf(dtype, scale)))) --scale;
  return scale;
}

float ScaleOf(DType dtype, uint16_t bits) {
  if (dtype == DType::kF16 || (bits & kSign) == 0) return F16ToF32(bits);
  return BF16ToF32(static_cast<uint16_t>(bits & ~kSign));
}

size_t FindOutOfRange(DType dtype, const void* values, size_t count, float limit) {
  return VisitBits(dtype, [&](auto zero) {
    using Bits = decltype(zero);
    constexpr auto kMagnitude = static_cast<Bits>(static_cast<Bits>(~Bits{0}) >> 1);
    constexpr size_t kChunk = 256;
    const auto* const bytes = static_cast<const std::byte*>(values);
    for (size_t begin = 0; begin < count; begin += kChunk) {
      const size_t end = std::min(begin + kChunk, count);
      // Magnitudes order like their bits, NaN above all: the largest of a chunk tells of all its values.
      Bits largest = 0;
      for (size_t i = begin; i < end; ++i) {
        largest = std::max(largest, static_cast<Bits>(LoadLE<Bits>(bytes + i * sizeof(Bits)) & kMagnitude));
      }
      const uint32_t bits = largest;
      if (LoadAsF32(dtype, &bits, 0) <= limit) continue;
      for (size_t i = begin; i < end; ++i) {
        // The negated comparison is also true for NaN.
        if (!(std::abs(LoadAsF32(dtype, values, i)) <= limit)) return i;
      }
    }
    return count;
  });
}

bool HasSubnormals(DType dtype, std::span<const ValueRun> runs) {
  return std::ranges::any_of(runs,
                             [dtype](const ValueRun& run) { return HasSubnormals(dtype, run.values, run.count); });
}

float LargestMagnitude(DType dtype, std::span<const ValueRun> runs) {
  float largest = 0;
  for (const ValueRun& run : runs) largest = std::max(largest, LargestMagnitude(dtype, run.values, run.count));
  return largest;
}

float LargestOfSmall(DType dtype, std::span<const ValueRun> runs) {
  float largest = 0;
  size_t count = 0;
  for (const ValueRun& run : runs) {
    const std::optional<float> own = LargestOfSmall(dtype, run.values, run.count);
    count += run.count;
    if (!own || count > kMostOfSmall) return 0;
    largest = std::max(largest, *own);
  }
  return largest;
}

namespace scalar {
namespace {

// The field widths of a code, from its low bits up; 0 ends the list of fewer than three.
struct Fields {
  int width[3];
};

Fields FieldsOf(int bits) {
  if (bits == 8) return {{8, 0, 0}};
  Fields fields = {{0, 0, 0}};
  int n = 0;
  for (const int width : {4, 2, 1}) {
    if (bits & width) fields.width[n++] = width;
  }
  return fields;
}

}  // namespace

uint8_t* PackGroup(int bits, const uint8_t* codes, size_t slots, uint8_t* out) {
  int shift = 0;
  for (const int width : FieldsOf(bits).width) {
    if (width == 0) break;
    const size_t bytes = slots * static_cast<size_t>(width) / 8;
    for (size_t j = 0; j < bytes; ++j) {
      unsigned byte = 0;
      for (int at = 0; at < 8; at += width) {
        const unsigned field = (codes[j + static_cast<size_t>(at / width) * bytes] >> shift) & ((1u << width) - 1);
        byte |= field << at;
      }
      out[j] = static_cast<uint8_t>(byte);
    }
    out += bytes;
    shift += width;
  }
  return out;
}

const uint8_t* UnpackGroup(int bits, const uint8_t* in, size_t slots, uint8_t* codes) {
  std::memset(codes, 0, slots);
  int shift = 0;
  for (const int width : FieldsOf(bits).width) {
    if (width == 0) break;
    const size_t bytes = slots * static_cast<size_t>(width) / 8;
    for (size_t j = 0; j < bytes; ++j) {
      for (int at = 0; at < 8; at += width) {
        const unsigned field = (static_cast<unsigned>(in[j]) >> at) & ((1u << width) - 1);
        uint8_t& code = codes[j + static_cast<size_t>(at / width) * bytes];
        code = static_cast<uint8_t>(code | field << shift);
      }
    }
    in += bytes;
    shift += width;
  }
  return in;
}

namespace {

int Code(float x, float scale, int qmax) {
  if (scale == 0) return 0;
  return std::clamp(static_cast<int>(std::round(x / scale)), -qmax - 1, qmax);
}

float Decode(int code, float scale) {
  return std::isfinite(scale) ? static_cast<float>(code) * scale : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace

bool Quantize(const GroupQuantFormat& format, const void* values, size_t count, void* scales, void* codes,
              ErrorSums* sums, float* errors) {
  auto* scale_out = static_cast<uint8_t*>(scales);
  auto* code_out = static_cast<uint8_t*>(codes);
  ExactTerms terms;
  for (size_t begin = 0; begin < count; begin += format.group) {
    const size_t n = std::min(format.group, count - begin);
    float group[kMaxGroup];  // read once: the values may change meanwhile
    float max_abs = 0;
    for (size_t i = 0; i < n; ++i) {
      group[i] = LoadAsF32(format.dtype, values, begin + i);
      const float magnitude = std::abs(group[i]);
      if (!(magnitude <= kMaxQuantizable)) return false;
      max_abs = std::max(max_abs, magnitude);
    }
    const uint16_t scale_bits = GroupScale(format.dtype, format.bits, max_abs);
    std::memcpy(scale_out, &scale_bits, 2);
    scale_out += 2;

    const float scale = ScaleOf(format.dtype, scale_bits);
    uint8_t slots[kMaxGroup] = {};
    for (size_t i = 0; i < n; ++i) {
      const float x = group[i];
      const int code = Code(x, scale, QMax(format.bits));
      slots[i] = static_cast<uint8_t>(code);
      if (!sums && !errors) continue;
      const float decoded = RoundTo(format.dtype, Decode(code, scale));
      if (sums) terms.Add(x, double{x} - double{decoded});
      if (errors) errors[begin + i] = x - decoded;
    }
    code_out = PackGroup(format.bits, slots, (n + 7) / 8 * 8, code_out);
  }
  if (sums) terms.AddTo(*sums);
  return true;
}

void Dequantize(const GroupQuantFormat& format, const void* scales, const void* codes, size_t count, void* values) {
  const auto* scale_in = static_cast<const uint8_t*>(scales);
  const auto* code_in = static_cast<const uint8_t*>(codes);
  for (size_t begin = 0; begin < count; begin += format.group) {
    const size_t n = std::min(format.group, count - begin);
    uint16_t scale_bits;
    std::memcpy(&scale_bits, scale_in, 2);
    scale_in += 2;
    const float scale = ScaleOf(format.dtype, scale_bits);
    uint8_t slots[kMaxGroup];
    code_in = UnpackGroup(format.bits, code_in, (n + 7) / 8 * 8, slots);
    const int half = 1 << (format.bits - 1);
    for (size_t i = 0; i < n; ++i) {
      const int code = (slots[i] ^ half) - half;
      StoreFromF32(format.dtype, Decode(code, scale), values, begin + i);
    }
  }
}

void MeasureErrors(DType dtype, const void* original, const void* decoded, size_t count, ErrorSums& sums) {
  const size_t size = DTypeSize(dtype);
  ExactTerms terms;
  for (size_t i = 0; i < count; ++i) {
    const double x = LoadAsF32(dtype, original, i);
    if (!std::isfinite(x)) continue;
    const bool same = std::memcmp(static_cast<const uint8_t*>(original) + i * size,
                                  static_cast<const uint8_t*>(decoded) + i * size, size) == 0;
    const double y = LoadAsF32(dtype, decoded, i);
    const double error = same ? 0.0 : x - y;
    terms.Add(x, std::isfinite(y) ? error : std::numeric_limits<double>::infinity());
  }
  terms.AddTo(sums);
}

}  // namespace scalar
}  // namespace kvcompress::simd
