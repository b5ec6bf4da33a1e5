#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/simd/token_sums.h"

namespace kvcompress::simd {

// Makes the TokenSums of one run after another; its memory is there for the next.
//
// Sums are made about one of a channel's own values, so that no constant takes digits from them, and in an order that
// the layout alone decides: they are equal to the bit on all instruction sets and however a run is cut into calls.
// Deviations are exact to 1e-4 relative, and to about 1e-6 over many values.
class TokenMeter {
 public:
  // A run that begins with the tensor's value of this index. The layout has tokens.
  void Begin(const TokenLayout& layout, uint64_t first);
  // The next values of the run and their errors.
  void Add(const float* x, const float* errors, size_t count);
  // Ends the run. False where a value is not finite or binary32 did not hold the sums: then the run is to be measured
  // again, from BeginExact on.
  [[nodiscard]] bool End();

  // The same run once more, in binary64 and one by one.
  void BeginExact();
  void AddExact(double x, double error);
  void EndExact();

  // Gives the run's sums, once it has ended.
  void Take(TokenSums& sums) { std::swap(sums, sums_); }

 private:
  // Sums of x and of e about the first x and the first e.
  struct Sums {
    double count = 0;
    double x = 0, sum = 0, squares = 0;
    double error = 0, error_sum = 0, error_squares = 0;
    ChannelMoments Moments() const;
  };

  void BeginStretch(uint64_t begin);
  void AddRows(const float* x, const float* errors, size_t rows, size_t columns);
  void FlushChunk();
  Sums ColumnSums(size_t column) const;
  void EndStretch();

  TokenLayout layout_;
  uint64_t first_ = 0;  // of the run, in its sequence
  bool exact_ = false;
  TokenSums sums_;

  // The stretch at hand.
  uint64_t begin_ = 0;  // in its sequence
  uint64_t count_ = 0;
  bool infinite_error_ = false;
  // Its values as a matrix: a row is a token or, where channels are few, several; columns begin with the channel of the
  // first value. Rows come in chunks, after each of which the columns' sums are moved to binary64.
  size_t width_ = 0;
  size_t row_ = 0;  // in its chunk
  size_t column_ = 0;
  bool is_first_chunk_ = true;
  std::vector<float> x_, sum_, squares_, error_, error_sum_, error_squares_;
  std::vector<Sums> wide_;

  // Of the run, to see whether binary32 held it.
  double squares_total_ = 0, error_squares_total_ = 0;
  bool has_values_ = false, has_errors_ = false, has_rows_ = false;
};

// Measures the run that `tokens` has begun, `count` values of `dtype`, and ends it. Errors are those of MeasureErrors.
void MeasureTokens(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens);

}  // namespace kvcompress::simd
