#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"

// Uniform quantization of a block whose cells, sets of values with one scale, have several shapes: the machinery of
// quant and blocknorm (docs/format.md, "quant").
//
// A code u is an unsigned integer of `bits` bits. With the cell's scale s and, unless symmetric, its offset m:
//   symmetric   zero = 2^(bits-1), q = round(x / s) within +-(2^(bits-1) - 1)
//   asymmetric  zero = 0,          q = round((x - m) / s) within 0 .. 2^bits - 1
//   u = q + zero;  x' = (u - zero) s + m, m = 0 where symmetric
// Every operation is rounded to binary32, to nearest even, and so is round() to an integer; a scale of 0 divides as 1.
// x' saturates at the dtype's largest finite value and is rounded to the dtype, to nearest even.
//
// Nothing here allocates or needs alignment. All targets give the same bytes; the functions in `scalar` are the
// definition.
namespace kvcompress::simd {

inline constexpr int kMinUniformBits = 2;
inline constexpr int kMaxUniformBits = 12;

struct UniformFormat {
  DType dtype;
  int bits;
  bool symmetric;

  int zero() const { return symmetric ? 1 << (bits - 1) : 0; }
  int max_code() const { return symmetric ? (1 << (bits - 1)) - 1 : (1 << bits) - 1; }  // largest q
  int min_code() const { return symmetric ? -max_code() : 0; }
  // Values of larger magnitude are refused: the difference of two values, and what the scale that is rounded up makes
  // of it, have to be finite in binary32.
  float max_magnitude() const;
};

// How a block's values, as rows of `row` of them (the last one short where need be), are shared out among cells.
struct CellLayout {
  size_t row = 1;
  // Each row is cut into cells of `run` values, the last one short.
  size_t run = 1;
  // Where not 0, instead: a cell is one column of a stretch of `stretch` rows; the last stretch has up to
  // 2 stretch - 1 rows, the only one of a block has all. Such a block has at least one whole row.
  size_t stretch = 0;

  size_t rows(size_t count) const { return (count + row - 1) / row; }
  size_t stretches(size_t count) const { return std::max<size_t>(1, rows(count) / stretch); }
  size_t cells(size_t count) const {
    if (count == 0) return 0;
    if (stretch != 0) return row * stretches(count);
    return count / row * ((row + run - 1) / run) + (count % row + run - 1) / run;
  }
};

// Calls visit(first, n, cell) for each run of consecutive values: values first .. first + n - 1 belong all to `cell`,
// or, with a stretch, to cells cell .. cell + n - 1, one each.
template <typename Visit>
void ForEachRun(const CellLayout& layout, size_t count, Visit visit) {
  if (layout.stretch != 0) {
    const size_t last = layout.stretches(count) - 1;
    for (size_t first = 0, r = 0; first < count; first += layout.row, ++r) {
      visit(first, std::min(layout.row, count - first), std::min(r / layout.stretch, last) * layout.row);
    }
    return;
  }
  size_t cell = 0;
  for (size_t row_begin = 0; row_begin < count; row_begin += layout.row) {
    const size_t row_end = std::min(row_begin + layout.row, count);
    for (size_t first = row_begin; first < row_end; first += layout.run) {
      visit(first, std::min(layout.run, row_end - first), cell++);
    }
  }
}

// The smallest and the largest value of each cell, as elements of the dtype; a zero is +0. With NaN or infinities among
// the values of a cell, at least one of the two is not finite.
void CellRanges(DType dtype, const CellLayout& layout, const void* values, size_t count, void* min, void* max);

// The scales of cells that have these ranges: of symmetric codes max |x| / (2^(bits-1) - 1), of others
// (max - min) / (2^bits - 1), in binary32, and then up to the next binary16 (F16) or bfloat16 (BF16, F32), but no
// further than the largest finite one. Returns false, with `scales` unspecified, for a range that is not within
// format.max_magnitude().
[[nodiscard]] bool CellScales(const UniformFormat& format, const void* min, const void* max, size_t cells,
                              uint16_t* scales);

// The dtype of CellScales' scales, which has 16 bits.
constexpr DType ScaleDType(DType dtype) { return dtype == DType::kF16 ? DType::kF16 : DType::kBF16; }

// The largest bits of CellScales' scales; those above are negative or not finite.
constexpr uint16_t MaxScaleBits(DType dtype) { return static_cast<uint16_t>(InfinityBits(ScaleDType(dtype)) - 1); }

// Elements of scales or values to floats, all finite.
void WidenScales(DType dtype, const void* scales, size_t cells, float* out);
void WidenValues(DType dtype, const void* values, size_t count, float* out);

// Where codes lie, a byte each: the upper 8 of their bits in `high`; the bits below, if there are more than 8, in
// `low`. Codes of fewer bits are in `high` as they are.
template <typename Byte>
struct CodePointers {
  Byte* high = nullptr;
  Byte* low = nullptr;
};
using CodeBytes = CodePointers<uint8_t>;
using ConstCodeBytes = CodePointers<const uint8_t>;

// `scales` and `offsets` are those of the cells; no offsets: all are 0. Scales are finite.
void UniformQuantize(const UniformFormat& format, const CellLayout& layout, const void* values, size_t count,
                     const float* scales, const float* offsets, CodeBytes codes);
void UniformDequantize(const UniformFormat& format, const CellLayout& layout, ConstCodeBytes codes, size_t count,
                       const float* scales, const float* offsets, void* values);

// The energy of each cell of a layout without stretches, in binary32: lane j of 16 adds up the squares of the values j,
// j + 16, ... in that order, then lanes i + 8 are added to lanes i, i + 4 to i, i + 2 to i, and 1 to 0.
void CellEnergies(DType dtype, const CellLayout& layout, const void* values, size_t count, float* energies);

// Codes of 1 to 7 bits, a byte each, to fields and back, laid out as those of intN in groups of 128.
size_t PackedCodeBytes(int bits, size_t count);
void PackCodes(int bits, const uint8_t* codes, size_t count, uint8_t* out);
void UnpackCodes(int bits, const uint8_t* in, size_t count, uint8_t* codes);

namespace scalar {
void CellRanges(DType dtype, const CellLayout& layout, const void* values, size_t count, void* min, void* max);
[[nodiscard]] bool CellScales(const UniformFormat& format, const void* min, const void* max, size_t cells,
                              uint16_t* scales);
void UniformQuantize(const UniformFormat& format, const CellLayout& layout, const void* values, size_t count,
                     const float* scales, const float* offsets, CodeBytes codes);
void UniformDequantize(const UniformFormat& format, const CellLayout& layout, ConstCodeBytes codes, size_t count,
                       const float* scales, const float* offsets, void* values);
void CellEnergies(DType dtype, const CellLayout& layout, const void* values, size_t count, float* energies);

// One run of values whose scales lie `step` (0 or 1) apart; `offsets` may be null.
void QuantizeRun(const UniformFormat& format, const void* values, size_t count, const float* scales,
                 const float* offsets, size_t step, CodeBytes codes);
void DequantizeRun(const UniformFormat& format, ConstCodeBytes codes, size_t count, const float* scales,
                   const float* offsets, size_t step, void* values);
float RunEnergy(DType dtype, const void* values, size_t count);
}  // namespace scalar

}  // namespace kvcompress::simd
