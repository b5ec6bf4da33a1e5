#pragma once

#include <cstddef>

#include "core/base/dtype.h"
#include "core/simd/token_sums.h"

// The kernels of TokenMeter (token_meter.h). Values are a matrix, of which each column has sums of its own: no sum goes
// over columns, so all targets give the same bits.
namespace kvcompress::simd {

// Planes of a column's sums: the first x and the first error, sums about these, and those of |e|, of x e, and the
// largest |e|.
enum ColumnPlane {
  kFirst,
  kSum,
  kSquares,
  kFirstError,
  kErrorSum,
  kErrorSquares,
  kAbsError,
  kCross,
  kMaxError,
  kColumnPlanes
};

// The planes of 16 columns, side by side and a whole number of cache lines: all of a vector's sums lie at fixed
// distances.
template <typename T>
struct ColumnBlock {
  static constexpr size_t kColumns = 16;
  alignas(64) T planes[kColumnPlanes][kColumns];

  static constexpr size_t CountFor(size_t columns) { return (columns + kColumns - 1) / kColumns; }
};

struct ColumnSums {
  ColumnBlock<float>* chunk;  // of the chunk of rows at hand
  ColumnBlock<double>* wide;  // of the chunks before it
};

// Rows of `columns` values of `dtype` each, and their errors.
struct ErrorRows {
  DType dtype;
  const void* x;
  const float* errors;
  size_t rows;
  size_t columns;
};

// Adds rows to the chunk, to the columns from `column` on; the first of them begins the chunk if `begins`.
void AddRows(const ErrorRows& rows, bool begins, const ColumnSums& sums, size_t column);

// Columns that have equally many rows.
struct ColumnRange {
  size_t begin, end;
  double chunk_rows;  // in the chunk
  double wide_rows;   // in the chunks before it; 0: there are none, and `wide` is only written to
};

// Adds the sums of the chunk to those before it.
void WidenColumns(const ColumnSums& sums, const ColumnRange& range);

// What tells whether binary32 held the sums.
struct ColumnExtremes {
  double largest = 0;        // of all sums and first values; infinite where one is no number
  double squares = 0;        // the largest
  double error_squares = 0;  // the largest
  double values = 0;         // the largest sum of x and first x; 0: all are 0
  double errors = 0;         // likewise, of e
};

// The moments of the columns, of all chunks, and the planes from kAbsError on, of which each begins in `terms` `stride`
// after the one before it.
void MeasureColumns(const ColumnSums& sums, const ColumnRange& range, ChannelMoments& moments, double* terms,
                    size_t stride, ColumnExtremes& extremes);

// The errors of `count` values, those of MeasureErrors, as binary32. False, with the output unspecified, where a value
// of either array is not finite.
[[nodiscard]] bool LoadErrors(DType dtype, const void* original, const void* decoded, size_t count, float* errors);

}  // namespace kvcompress::simd
