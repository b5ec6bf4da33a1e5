#include "core/simd/token_meter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"

namespace kvcompress::simd {
namespace {

// Additions to a sum in binary32.
constexpr size_t kChunkRows = 128;
// Rows are at least about this wide.
constexpr uint64_t kMinWidth = 64;
// Where sums of squares in binary32 have lost nothing that matters, to its largest or to its smallest numbers.
constexpr double kMaxSquares = 0x1p100;
constexpr double kMinSquares = 0x1p-96;

bool IsHeld(double squares, bool has_terms) { return squares < kMaxSquares && (squares >= kMinSquares || !has_terms); }

}  // namespace

ChannelMoments TokenMeter::Sums::Moments() const {
  if (count == 0) return {};
  return {.count = count,
          .mean = x + sum / count,
          .deviations = std::max(0.0, squares - sum * sum / count),
          .error_mean = error + error_sum / count,
          .error_deviations = std::max(0.0, error_squares - error_sum * error_sum / count)};
}

void TokenMeter::Begin(const TokenLayout& layout, uint64_t first) {
  layout_ = layout;
  first_ = first % layout.sequence();
  exact_ = false;
  sums_.Clear();
  squares_total_ = error_squares_total_ = 0;
  has_values_ = has_errors_ = has_rows_ = false;
  BeginStretch(first_);
}

void TokenMeter::BeginStretch(uint64_t begin) {
  begin_ = begin;
  count_ = 0;
  infinite_error_ = false;
  const uint64_t fold = exact_ || layout_.channels >= kMinWidth ? 1 : kMinWidth / layout_.channels;
  width_ = static_cast<size_t>(layout_.channels * fold);
  row_ = column_ = 0;
  is_first_chunk_ = true;
  if (exact_) {
    wide_.assign(width_, {});
    return;
  }
  if (x_.size() >= width_) return;
  for (std::vector<float>* sums : {&x_, &sum_, &squares_, &error_, &error_sum_, &error_squares_}) sums->resize(width_);
}

void TokenMeter::Add(const float* x, const float* errors, size_t count) {
  while (count > 0) {
    const auto left = static_cast<size_t>(std::min<uint64_t>(count, layout_.sequence() - begin_ - count_));
    size_t rows = 1;
    size_t columns = std::min(left, width_ - column_);
    if (columns == width_) rows = std::min(left / width_, kChunkRows - row_);
    AddRows(x, errors, rows, columns);
    const size_t taken = rows * columns;
    x += taken;
    errors += taken;
    count -= taken;
    count_ += taken;
    column_ += columns;
    if (column_ == width_) {
      column_ = 0;
      row_ += rows;
    }
    if (begin_ + count_ == layout_.sequence()) {
      EndStretch();
      BeginStretch(0);
    } else if (row_ == kChunkRows) {
      FlushChunk();
    }
  }
}

// Adds rows of `columns` values to the columns from column_ on.
void TokenMeter::AddRows(const float* x, const float* errors, size_t rows, size_t columns) {
  const size_t at = column_;
  size_t row = 0;
  if (row_ == 0) {
    std::copy(x, x + columns, x_.begin() + static_cast<ptrdiff_t>(at));
    std::copy(errors, errors + columns, error_.begin() + static_cast<ptrdiff_t>(at));
    for (std::vector<float>* sums : {&sum_, &squares_, &error_sum_, &error_squares_}) {
      std::fill_n(sums->begin() + static_cast<ptrdiff_t>(at), columns, 0.0f);
    }
    row = 1;
  }
  for (; row < rows; ++row) {
    const float* row_x = x + row * columns;
    const float* row_errors = errors + row * columns;
    for (size_t i = 0; i < columns; ++i) {
      const float deviation = row_x[i] - x_[at + i];
      const float error_deviation = row_errors[i] - error_[at + i];
      sum_[at + i] += deviation;
      squares_[at + i] += deviation * deviation;
      error_sum_[at + i] += error_deviation;
      error_squares_[at + i] += error_deviation * error_deviation;
    }
  }
}

// The sums of a column in all chunks.
TokenMeter::Sums TokenMeter::ColumnSums(size_t column) const {
  const auto count = static_cast<double>(row_ + (column < column_ ? 1 : 0));
  const Sums chunk{count,          x_[column],         sum_[column],          squares_[column],
                   error_[column], error_sum_[column], error_squares_[column]};
  if (is_first_chunk_) return chunk;
  Sums all = wide_[column];
  if (count == 0) return all;
  // About the first value in place of the chunk's first.
  const double x = chunk.x - all.x;
  const double error = chunk.error - all.error;
  all.count += count;
  all.sum += chunk.sum + count * x;
  all.squares += chunk.squares + x * (2 * chunk.sum + count * x);
  all.error_sum += chunk.error_sum + count * error;
  all.error_squares += chunk.error_squares + error * (2 * chunk.error_sum + count * error);
  return all;
}

void TokenMeter::FlushChunk() {
  wide_.resize(std::max(wide_.size(), width_));
  for (size_t column = 0; column < width_; ++column) wide_[column] = ColumnSums(column);
  row_ = 0;
  is_first_chunk_ = false;
}

void TokenMeter::EndStretch() {
  const bool is_whole = count_ == layout_.sequence();
  TokenStretch& stretch = begin_ > 0 ? sums_.head : sums_.tail;
  if (!is_whole) {
    stretch.first = begin_;
    stretch.count = count_;
    stretch.channels.clear();
  }
  const auto channels = static_cast<size_t>(std::min(count_, layout_.channels));
  double infinite = infinite_error_ ? std::numeric_limits<double>::infinity() : 0;
  for (size_t channel = 0; channel < channels; ++channel) {
    ChannelMoments moments;
    for (size_t column = channel; column < std::min<uint64_t>(width_, count_); column += layout_.channels) {
      const Sums sums = exact_ ? wide_[column] : ColumnSums(column);
      // A single value shows in no square.
      if (!std::isfinite(sums.x) || !std::isfinite(sums.error))
        squares_total_ = std::numeric_limits<double>::infinity();
      squares_total_ += sums.squares;
      error_squares_total_ += sums.error_squares;
      has_values_ = has_values_ || sums.x != 0 || sums.sum != 0;
      has_errors_ = has_errors_ || sums.error != 0 || sums.error_sum != 0;
      has_rows_ = has_rows_ || sums.count > 1;
      moments.Merge(sums.Moments());
    }
    moments.error_deviations += std::exchange(infinite, 0.0);
    if (is_whole) {
      moments.AddTo(sums_.closed);
    } else {
      stretch.channels.push_back(moments);
    }
  }
}

bool TokenMeter::End() {
  if (count_ > 0) EndStretch();
  return IsHeld(squares_total_, has_values_ && has_rows_) && IsHeld(error_squares_total_, has_errors_ && has_rows_);
}

void TokenMeter::BeginExact() {
  exact_ = true;
  sums_.Clear();
  BeginStretch(first_);
}

void TokenMeter::AddExact(double x, double error) {
  if (std::isfinite(x)) {
    Sums& sums = wide_[column_];
    if (!std::isfinite(error)) {
      infinite_error_ = true;
      error = 0;
    }
    if (sums.count++ == 0) {
      sums.x = x;
      sums.error = error;
    }
    const double deviation = x - sums.x;
    const double error_deviation = error - sums.error;
    sums.sum += deviation;
    sums.squares += deviation * deviation;
    sums.error_sum += error_deviation;
    sums.error_squares += error_deviation * error_deviation;
  }
  if (++column_ == width_) column_ = 0;
  if (begin_ + ++count_ < layout_.sequence()) return;
  EndStretch();
  BeginStretch(0);
}

void TokenMeter::EndExact() {
  if (count_ > 0) EndStretch();
}

namespace {

// Calls take(x, error) for each value, where errors are those of MeasureErrors.
template <typename Take>
void ForEachError(DType dtype, const void* original, const void* decoded, size_t count, Take take) {
  const size_t size = DTypeSize(dtype);
  for (size_t i = 0; i < count; ++i) {
    const double x = LoadAsF32(dtype, original, i);
    const double y = LoadAsF32(dtype, decoded, i);
    const bool same = std::memcmp(static_cast<const uint8_t*>(original) + i * size,
                                  static_cast<const uint8_t*>(decoded) + i * size, size) == 0;
    take(x, same ? 0.0 : x - y);
  }
}

}  // namespace

void MeasureTokens(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  constexpr size_t kRun = 1024;
  float x[kRun];
  float errors[kRun];
  for (size_t begin = 0; begin < count; begin += kRun) {
    const size_t n = std::min(kRun, count - begin);
    size_t i = 0;
    ForEachError(dtype, static_cast<const uint8_t*>(original) + begin * DTypeSize(dtype),
                 static_cast<const uint8_t*>(decoded) + begin * DTypeSize(dtype), n, [&](double value, double error) {
                   x[i] = static_cast<float>(value);
                   errors[i++] = static_cast<float>(error);
                 });
    tokens.Add(x, errors, n);
  }
  if (tokens.End()) return;
  tokens.BeginExact();
  ForEachError(dtype, original, decoded, count, [&](double value, double error) { tokens.AddExact(value, error); });
  tokens.EndExact();
}

}  // namespace kvcompress::simd
