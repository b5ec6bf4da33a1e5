#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/simd/token_columns.h"
#include "core/simd/token_sums.h"

namespace kvcompress::simd {

// Makes the TokenSums and the ErrorSums of one run after another; its memory is there for the next.
//
// Sums are made in an order that the layout alone decides: they are equal to the bit however a run is cut into calls.
// Without errors they are equal on all instruction sets of a kind of CPU, too, of which x86 leaves out what is
// subnormal; with errors, on those that add products before they round them, and in all but the last digits on others.
//
// The squares of errors are added as they are, 16 in a lane of binary32 and 4 of these sums, whence they go to
// binary64: they are exact to 22 * 2^-24, or 1.3e-6, whatever the errors are, and the RMSE to half of that; and so are
// their magnitudes, their products with values, of the sum of these products' magnitudes and but for products that
// binary32 does not hold beside the squares, and of AddDecoded the squares of values. The largest error has its own
// rounding alone. Values are summed about one of a channel's own, so that no constant takes digits from their
// deviations. Deviations of values and errors, and elsewhere the squares of values, are exact to 1e-4 relative, and to
// about 1e-6 over many values. An error that is next to constant in most channels would take digits from its
// deviations: such a run is measured again, about an error of each channel.
class TokenMeter {
 public:
  // A run that begins with the tensor's value of this index. The layout has tokens.
  void Begin(const TokenLayout& layout, uint64_t first);
  // The next values of the run, `count` of `dtype`, all of them finite, and their errors. Of F16 `wide` may have these
  // values as binary32, for targets without instructions that convert them.
  void Add(DType dtype, const void* x, const float* errors, size_t count, const float* wide = nullptr) {
    AddErrors(dtype, x, {errors, false, wide}, count);
  }
  // The same with what these values are decoded to, of `dtype` as well: in all calls of a run the values themselves, or
  // in none.
  void AddDecoded(DType dtype, const void* x, const void* decoded, size_t count) {
    AddErrors(dtype, x, {decoded, true}, count);
  }
  // For who makes errors of whole rows and adds them up at once, by AddStrip of column_sums-inl.h, in place of Add. A
  // row has width() values, the first of them the next value; WholeRows() rows have that many.
  size_t width() const { return width_; }
  uint64_t WholeRows() const;
  // Begins at most so many of these rows, of which one chunk has as many as BeginRows returns. EndRows follows.
  ChunkRows BeginRows(size_t most);
  void EndRows(DType dtype, const ChunkRows& rows);
  // Ends the run. False where a value is not finite or binary32 did not hold the sums: then the run is to be measured
  // again.
  [[nodiscard]] bool End();

  // Measures the same run once more, after End was false, and ends it: `add` adds all of it by AddDecoded. Values, of
  // which `largest` is the largest magnitude, and errors are scaled such that binary32 holds more of their squares;
  // where that does not do, or a magnitude is infinite, binary64 does. Values that are not finite are left out, and an
  // error that is not makes the sums of errors infinite.
  template <class Add>
  void MeasureAgain(float largest, Add add) {
    if (BeginScaled(largest)) {
      add();
      if (End()) return;
    }
    BeginExact();
    add();
    (void)End();  // it always holds
  }

  // Of the run, once it has ended well: the sums that are not about tokens.
  const ErrorSums& sums() const { return errors_; }
  void Take(TokenSums& sums) { std::swap(sums, sums_); }

 private:
  bool BeginScaled(float largest);
  void BeginExact() { BeginAs(true, {}); }
  void BeginAs(bool exact, std::optional<ErrorScales> again);
  void BeginStretch(uint64_t begin);
  void EndStretch();
  ColumnRange RangeOf(size_t begin, size_t end, size_t rows) const;
  // Begins moments and totals, to which chunks are merged.
  void BeginColumns(size_t columns);
  void MergeChunk();
  // Of the stretch, which is whole where it is a sequence in rows of one token.
  bool IsWhole() const { return count_ == layout_.sequence() && width_ == layout_.channels; }
  // Ends the last chunk, and returns all that the stretch comes to.
  StretchTotals EndChunks();
  StretchTotals MergeLastChunk();
  void SumColumnsExactly();
  void JoinTokens();
  // What `count` values begin with: rows of a chunk, or a part of one row.
  struct Part {
    size_t rows, columns;
  };
  Part NextPart(uint64_t count) const;
  void EndPart(const Part& part);
  void AddErrors(DType dtype, const void* x, ErrorSource errors, size_t count);
  void AddSums(const StretchTotals& totals);
  bool IsHeld() const;

  TokenLayout layout_;
  uint64_t first_ = 0;  // of the run, in its sequence
  TokenSums sums_;
  ErrorSums errors_;
  std::optional<ErrorScales> again_;
  // What tells whether binary32 held the sums of the run, scaled.
  double magnitude_ = 0;                          // kTotalMagnitude
  double deviations_ = 0, error_deviations_ = 0;  // of the columns
  double varies_ = 0, error_varies_ = 0;          // kTotalVaries and kTotalErrorVaries
  bool has_rows_ = false;                         // a column has more than one value
  bool has_value_energy_ = false;                 // kTotalValueEnergy
  bool has_marks_ = false;                        // kTotalVaries and kTotalErrorVaries

  // The stretch at hand.
  uint64_t begin_ = 0;  // in its sequence
  uint64_t count_ = 0;
  // Its values as a matrix: a row is a token or, where channels are few, several; columns begin with the channel of the
  // first value. Rows come in chunks, after each of which the columns' sums become moments, in binary64.
  size_t width_ = 0;
  size_t row_ = 0;  // in its chunk
  size_t column_ = 0;
  uint64_t rows_before_ = 0;  // in the chunks before it
  std::vector<ColumnBlock> chunk_;
  ChannelMoments moments_;  // of the columns, of the chunks before
  ColumnTotals totals_ = {};
  std::vector<double> means_;  // of the columns, where no moments are kept

  // In place of these, in binary64.
  bool exact_ = false;
  bool has_infinite_error_ = false;
  std::vector<ExactBlock> exact_blocks_;
};

// The largest magnitude of the values; infinite where one is not finite.
float LargestMagnitude(DType dtype, const void* values, size_t count);

// The same where it is certain that binary32 does not hold the sum of the values' squares, if any is not 0: a run of up
// to kMostOfSmall such values is measured as if it were once more, by MeasureAgain. Of most values the first few tell.
inline constexpr size_t kMostOfSmall = size_t{1} << 19;
std::optional<float> LargestOfSmall(DType dtype, const void* values, size_t count);

// Measures the run that `tokens` has begun, `count` values of `dtype`, and ends it. Errors are those of MeasureErrors.
void MeasureTokens(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens);
// The same of a run for which End was false.
void MeasureTokensAgain(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens);

}  // namespace kvcompress::simd
