#pragma once

#include <cstddef>
#include <optional>

#include "core/base/dtype.h"
#include "core/simd/token_sums.h"

// The kernels of TokenMeter (token_meter.h). Values are a matrix, of which each column has sums of its own; sums over
// columns are made in 16 lanes. So vectors of any length give the same bits; of errors, targets that round products
// before they add them give others in the last digits.
namespace kvcompress::simd {

// Planes of a column's sums: the first x and sums about it; those of e; the largest |e|; whether x ever differs from
// the first, and whether there is an error: 0 where not, and for F16, of which squares tell. Where rows are measured
// again, the first error, the sums of errors are about it, and whether one differs from it. The energy, the sum of e^2
// itself, those of |e| and x e, and where errors come as decoded values that of x^2, are made of those of runs of rows;
// those of a run which has not ended have planes of their own.
enum ColumnPlane {
  kFirst,
  kSum,
  kSquares,
  kErrorSum,
  kEnergy,
  kRunEnergy,
  kAbsError,
  kRunAbsError,
  kCross,
  kRunCross,
  kValueEnergy,
  kRunValueEnergy,
  kMaxError,
  kVaries,
  kFirstError,
  kErrorSquares,
  kErrorVaries,
  kColumnPlanes
};

// The planes of 16 columns, side by side and a whole number of cache lines: all of a vector's sums lie at fixed
// distances.
struct ColumnBlock {
  static constexpr size_t kColumns = 16;
  static constexpr size_t kRunRows = 16;
  alignas(64) float planes[kColumnPlanes][kColumns];

  static constexpr size_t CountFor(size_t columns) { return (columns + kColumns - 1) / kColumns; }
};

// The errors of values of `dtype`: as binary32, or as what the values are decoded to. Beside those of F16 as binary32
// the values may be there, too.
struct ErrorSource {
  const void* at;
  bool is_decoded;
  const float* values = nullptr;

  size_t width(DType dtype) const { return is_decoded ? DTypeSize(dtype) : sizeof(float); }
};

// Powers of two by which values and errors are multiplied, so that binary32 holds their squares.
struct ErrorScales {
  float value = 1;
  float error = 1;

  // Whether the largest value and the largest error are below 2^-81: most may be subnormal then.
  bool OfSubnormals() const { return value >= 0x1p120f && error >= 0x1p120f; }
};

// Rows of `columns` values of `dtype` each, and their errors. Where they are measured `again`, by these scales, errors
// come as decoded values.
struct ErrorRows {
  DType dtype;
  const void* x;
  ErrorSource errors;
  size_t rows;
  size_t columns;
  std::optional<ErrorScales> again = {};
};

// The next rows of a chunk, whose sums are to be added to its blocks: row `first` of it, and those after it.
struct ChunkRows {
  ColumnBlock* blocks;
  size_t first;
  size_t rows;
};

// Adds rows, whose values may be decoded to themselves, to the chunk, to the columns from `column` on; the first of
// them is `row` of the chunk.
void AddRows(const ErrorRows& rows, size_t row, ColumnBlock* chunk, size_t column);

// Sums over all columns.
enum ColumnTotal {
  kErrorDeviations,   // about each column's mean
  kTotalEnergy,       // of e^2
  kTotalAbsError,     // of |e|
  kTotalCross,        // of x e
  kTotalMagnitude,    // of the first x and the sums of x
  kTotalValueEnergy,  // of x^2, where errors come as decoded values that differ from these
  kTotalVaries,       // of the marks that x varies
  kTotalErrorVaries,
  kTotalMaxError,  // the largest |e|, behind all sums
  kColumnTotals
};

// Of the columns i, i + 16, ... in lane i, whatever the length of vectors.
struct ColumnTotals {
  alignas(64) double lanes[kColumnTotals][ColumnBlock::kColumns];

  void Sum(double (&of)[kColumnTotals]) const;
};

// Columns that have equally many rows.
struct ColumnRange {
  size_t begin, end;
  double rows;         // in the chunk, at least 1
  double rows_before;  // in the chunks before it
  bool again;          // errors have sums about the first one
  bool has_marks;      // kVaries and kErrorVaries are not all 0
  bool has_values;     // nor is kValueEnergy
};

// Adds the sums of a chunk to the moments of the chunks before it, which it sets where there are none, and to the
// totals.
void MergeColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments, ColumnTotals& totals);

// Sums over the columns of moments, each as often as the column has values; and the largest squares of a column's mean
// in its deviations.
enum MomentTotal { kTotalCount, kTotalSum, kTotalDeviations, kTotalMeanSquares, kTotalMaxConstant, kMomentTotals };

// In the lanes of ColumnTotals.
struct MomentLanes {
  alignas(64) double lanes[kMomentTotals][ColumnBlock::kColumns];
};

struct MomentTotals {
  double count;
  double sum;           // of x
  double deviations;    // of x about its column's mean, squared
  double mean_squares;  // of the mean of x
  double max_constant;  // the largest |mean of x| / standard deviation of x of a column that varies; 0 if none does
};

MomentTotals TotalsOf(const ChannelMoments& moments);

// MergeColumns of the last chunk, of all columns, and TotalsOf, in one pass.
MomentTotals MergeLastColumns(const ColumnBlock* chunk, const ColumnRange& range, ChannelMoments& moments,
                              ColumnTotals& totals);

// The sum of (mean of x of its column - `mean`)^2 over all values.
double DeviationsOfMeans(const ChannelMoments& moments, double mean);

// All that a stretch comes to.
struct StretchTotals {
  MomentTotals columns;
  double of[kColumnTotals];  // Sum of ColumnTotals
  double between_columns;    // DeviationsOfMeans about the mean of all values
};

// Of a stretch that is one chunk, of whole rows, which is not measured again: what the functions above make of it, to
// the bit, without the moments of each column. In the last block, columns that the range has not are 0.
bool IsOneChunk(const ColumnRange& range);
StretchTotals TotalsOfChunk(const ColumnBlock* chunk, const ColumnRange& range, std::vector<double>& means);

// The same in binary64, for values and errors of any kind. Values that are not finite are left out, and so is an error
// that is not.
enum ExactPlane {
  kExactCount,
  kExactFirst,
  kExactSum,
  kExactSquares,
  kExactFirstError,
  kExactErrorSum,
  kExactErrorSquares,
  kExactAbsError,
  kExactCross,
  kExactMaxError,
  kExactPlanes
};

struct ExactBlock {
  static constexpr size_t kColumns = 8;
  alignas(64) double planes[kExactPlanes][kColumns] = {};

  static constexpr size_t CountFor(size_t columns) { return (columns + kColumns - 1) / kColumns; }
};

// Adds rows with what their values are decoded to; nothing is an error where that is the values themselves. False if an
// error was left out.
[[nodiscard]] bool AddExactRows(const ErrorRows& rows, ExactBlock* blocks, size_t column);

}  // namespace kvcompress::simd
