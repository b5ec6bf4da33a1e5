#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/dtype.h"
#include "core/simd/error_sums.h"
#include "core/simd/token_meter.h"

// Symmetric group quantization with 16-bit scales, the machinery of int2 .. int8 (docs/format.md, "intN").
//
// A run of values is cut into groups of `group` values; the last may be short. With qmax = 2^(bits-1) - 1:
//   scale = ScaleOf(GroupScale(max |x| of the group))
//   code  = round(x / scale), half away from zero, clamped to [-qmax - 1, qmax]; the quotient is the binary32 one;
//           0 when the scale is 0
//   value = code * scale, computed in binary32 and rounded to the dtype, to nearest even;
//           a quiet NaN (F16 7e00, BF16 7fc0, F32 7fc00000) when the scale is not finite, which Quantize never writes
// so that |x - code * scale| <= scale / 2 for every value, up to the rounding of the quotient.
//
// Codes are packed group by group as two's complement in `bits` bits. A group of n values takes m = 8 ceil(n / 8) code
// slots, the unused ones 0. The bits of a code are cut, from the low end, into fields of 4, 2 and 1 bits as `bits` has
// them in binary (8 is two fields of 4 stored as one of 8): 8 = {8}, 6 = {4, 2}, 5 = {4, 1}, 4 = {4}, 3 = {2, 1},
// 2 = {2}. Each field is an array of its own, in that order: a field of k bits takes m k / 8 bytes, and byte j holds
// the fields of the codes j, j + m k / 8, j + 2 m k / 8, ... from its low bits to its high bits.
//
// Nothing here allocates, fails or needs alignment. All targets give the same bytes; the functions in `scalar` are the
// definition.
namespace kvcompress::simd {

inline constexpr float kMaxF16 = 65504.0f;
inline constexpr uint16_t kSmallestNormalF16 = 0x0400;

constexpr bool IsNormalF16(uint16_t bits) { return bits >= kSmallestNormalF16 && bits < InfinityBits(DType::kF16); }

constexpr int QMax(int bits) { return (1 << (bits - 1)) - 1; }

// The largest magnitude that can be quantized: a half of what BF16 and F32 hold, so that every product of a code and
// its scale is finite, and more than F16 has.
inline constexpr float kMaxQuantizable = 0x1p127f;

// The bits of the scale of a group whose largest magnitude is `max_abs` <= kMaxQuantizable: max_abs / qmax rounded to
// FP16, to nearest even. Where that is no normal number,
//   in F16, one step up while (qmax + 0.5) * scale < max_abs (scales below 2^bits * 2^-24 only);
//   in BF16 and F32, the quotient rounded to bfloat16 in its place, the same step up (of subnormal bfloat16 only), and
//   the sign bit, which tells the two apart. A quotient of 0 stays 0 in FP16.
// In F16, one step down when qmax * scale would not be finite.
uint16_t GroupScale(DType dtype, int bits, float max_abs);

// The scale that these bits of GroupScale are.
float ScaleOf(DType dtype, uint16_t bits);

constexpr size_t GroupCount(size_t group, size_t count) { return (count + group - 1) / group; }

// Bytes of the packed codes of `count` values.
constexpr size_t PackedBytes(int bits, size_t group, size_t count) {
  const size_t tail = count % group;
  return (count / group * group + (tail + 7) / 8 * 8) / 8 * static_cast<size_t>(bits);
}

inline constexpr size_t kMaxGroup = 128;

struct GroupQuantFormat {
  DType dtype;
  int bits;      // 2, 3, 4, 5, 6 or 8
  size_t group;  // 32, 64 or kMaxGroup
};

// Quantizes `count` values into GroupCount() scales and PackedBytes() bytes of codes. Returns false, with the outputs
// unspecified, when a value is not finite or its magnitude is above kMaxQuantizable.
// `sums`, if not null, receives (added) the error terms of the decoded values, computed in the same pass and as exact
// as those of MeasureErrors.
[[nodiscard]] bool Quantize(const GroupQuantFormat& format, const void* values, size_t count, void* scales, void* codes,
                            ErrorSums* sums);

// A run of values.
struct ValueRun {
  const void* values;
  size_t count;
};

// The same for values that lie in several runs, of which all but the last have whole groups: codes, scales and sums are
// those of the values in one run, to the bit. `tokens`, if not null, has begun a run, which is these values, and ends
// it; then `sums` is not null and receives the sums of that TokenMeter, as exact as its header says.
[[nodiscard]] bool QuantizeRuns(const GroupQuantFormat& format, std::span<const ValueRun> runs, void* scales,
                                void* codes, ErrorSums* sums, TokenMeter* tokens = nullptr);

// Whether a value is subnormal in binary32.
bool HasSubnormals(DType dtype, std::span<const ValueRun> runs);
// The largest magnitude; infinite where a value is not finite.
float LargestMagnitude(DType dtype, std::span<const ValueRun> runs);
// The same where a TokenMeter had to measure the values again for sure; else 0.
float LargestOfSmall(DType dtype, std::span<const ValueRun> runs);

// The inverse. `scales` and `codes` hold any bits; every pattern decodes to something.
void Dequantize(const GroupQuantFormat& format, const void* scales, const void* codes, size_t count, void* values);

// The index of the first value that is not finite or whose magnitude exceeds `limit`; `count` when there is none.
size_t FindOutOfRange(DType dtype, const void* values, size_t count, float limit);

// Name of the instruction set that is in use on this CPU, for example "AVX3".
const char* TargetName();

namespace scalar {
// `errors`, if not null, receives the error of each value, in binary32.
[[nodiscard]] bool Quantize(const GroupQuantFormat& format, const void* values, size_t count, void* scales, void* codes,
                            ErrorSums* sums, float* errors = nullptr);
void Dequantize(const GroupQuantFormat& format, const void* scales, const void* codes, size_t count, void* values);

// One group of `slots` codes, a byte each and a multiple of 8, at most 128, to packed fields of 1 to 8 bits and back,
// the sign not extended. They return the end of the packed bytes.
uint8_t* PackGroup(int bits, const uint8_t* codes, size_t slots, uint8_t* out);
const uint8_t* UnpackGroup(int bits, const uint8_t* in, size_t slots, uint8_t* codes);
}  // namespace scalar

}  // namespace kvcompress::simd
