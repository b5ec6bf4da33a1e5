#include "core/simd/token_meter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"
#include "core/simd/group_quant.h"

namespace kvcompress::simd {
namespace {

// Additions to a sum in binary32: a sum of so many equal terms is exact to 1e-6.
constexpr size_t kChunkRows = 64;
// Rows of fewer channels are joined to about this width.
constexpr uint64_t kMinWidth = 64;
// Sums of squares between these have lost nothing that matters to the largest or the smallest numbers of binary32.
constexpr double kMaxSquares = 0x1p100;
constexpr double kMinSquares = 0x1p-96;

}  // namespace

void TokenMeter::Begin(const TokenLayout& layout, uint64_t first) {
  layout_ = layout;
  first_ = first % layout.sequence();
  exact_ = false;
  sums_.Clear();
  errors_ = {};
  magnitude_ = deviations_ = error_deviations_ = 0;
  has_rows_ = false;
  BeginStretch(first_);
}

void TokenMeter::BeginStretch(uint64_t begin) {
  begin_ = begin;
  count_ = 0;
  row_ = column_ = 0;
  rows_before_ = 0;
  totals_ = {};
  has_infinite_error_ = false;
  const uint64_t joined = exact_ || layout_.channels >= kMinWidth ? 1 : kMinWidth / layout_.channels;
  width_ = static_cast<size_t>(layout_.channels * joined);
  if (exact_) {
    exact_sums_.assign(width_, {});
    return;
  }
  const size_t blocks = ColumnBlock::CountFor(width_);
  if (chunk_.size() < blocks) chunk_.resize(blocks);
}

void TokenMeter::AddErrors(DType dtype, const void* x, ErrorSource errors, size_t count) {
  while (count > 0) {
    const auto left = static_cast<size_t>(std::min<uint64_t>(count, layout_.sequence() - begin_ - count_));
    const size_t columns = std::min(left, width_ - column_);
    const size_t rows = columns == width_ ? std::min(left / width_, kChunkRows - row_) : 1;
    AddRows({dtype, x, errors, rows, columns}, row_ == 0, chunk_.data(), column_);
    const size_t taken = rows * columns;
    x = static_cast<const uint8_t*>(x) + taken * DTypeSize(dtype);
    errors.at = static_cast<const uint8_t*>(errors.at) + taken * errors.width(dtype);
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
      MergeChunk();
    }
  }
}

// Ends the chunk: the columns of its last row have one row more than the others, if that is not whole.
void TokenMeter::MergeChunk() {
  if (rows_before_ == 0) moments_.Assign(static_cast<size_t>(std::min<uint64_t>(width_, count_)));
  const auto merge = [this](size_t begin, size_t end, size_t rows) {
    if (begin == end || rows == 0) return;
    const ColumnRange range{begin, end, static_cast<double>(rows), static_cast<double>(rows_before_)};
    MergeColumns(chunk_.data(), range, moments_, totals_);
  };
  merge(0, column_, row_ + 1);
  merge(column_, moments_.size(), row_);
  rows_before_ += row_;
  row_ = 0;
}

void TokenMeter::EndStretch() {
  if (exact_) {
    MeasureStretchExactly();
  } else {
    MeasureStretch();
  }
  if (count_ == layout_.sequence()) return moments_.AddTo(sums_.closed);
  TokenStretch& stretch = begin_ > 0 ? sums_.head : sums_.tail;
  stretch.first = begin_;
  stretch.count = count_;
  std::swap(stretch.channels, moments_);
}

void TokenMeter::MeasureStretch() {
  MergeChunk();
  AddSums();
  has_rows_ = has_rows_ || count_ > width_;
  const auto channels = static_cast<size_t>(layout_.channels);
  for (size_t token = channels; token < moments_.size(); token += channels) {
    moments_.Merge(moments_, token, std::min(channels, moments_.size() - token), 0);
  }
  moments_.Shrink(std::min(channels, moments_.size()));
}

// Adds what the columns' moments and the totals come to.
void TokenMeter::AddSums() {
  moments_.AddErrorDeviations(totals_.Sum(kErrorDeviations));
  magnitude_ += totals_.Sum(kTotalMagnitude);
  error_deviations_ += moments_.error_deviations();

  const MomentTotals of_columns = TotalsOf(moments_);
  deviations_ += of_columns.deviations;
  ErrorSums sums;
  sums.count = count_;
  sums.sum = of_columns.sum;
  sums.sum_squares = of_columns.deviations + of_columns.mean_squares;
  sums.sum_deviations =
      of_columns.deviations + DeviationsOfMeans(moments_, of_columns.sum / static_cast<double>(count_));
  sums.sum_error_squares = moments_.error_deviations() + of_columns.error_mean_squares;
  sums.sum_abs_error = totals_.Sum(kTotalAbsError);
  sums.sum_cross = totals_.Sum(kTotalCross);
  sums.max_abs_error = totals_.Max(kTotalMaxError);
  errors_.Merge(sums);
}

bool TokenMeter::End() {
  if (count_ > 0) EndStretch();
  const auto is_held = [](double squares, double terms) { return squares >= kMinSquares || terms == 0; };
  const bool is_small =
      has_rows_ && !(is_held(deviations_, magnitude_) && is_held(error_deviations_, errors_.max_abs_error));
  // Of the products of values and errors, columns of one value have no other sign.
  const bool has_products = std::isfinite(errors_.sum_cross) &&
                            is_held(errors_.sum_squares, errors_.sum_error_squares) &&
                            is_held(errors_.sum_error_squares, errors_.sum_error_squares);
  return magnitude_ + deviations_ + error_deviations_ + errors_.max_abs_error < kMaxSquares && !is_small &&
         has_products;
}

void TokenMeter::BeginExact() {
  exact_ = true;
  sums_.Clear();
  BeginStretch(first_);
}

void TokenMeter::AddExact(double x, double error) {
  if (std::isfinite(x)) {
    ExactSums& sums = exact_sums_[column_];
    if (!std::isfinite(error)) {
      has_infinite_error_ = true;
      error = 0;
    }
    if (sums.count++ == 0) {
      sums.first = x;
      sums.first_error = error;
    }
    const double deviation = x - sums.first;
    const double error_deviation = error - sums.first_error;
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

void TokenMeter::MeasureStretchExactly() {
  moments_.Assign(static_cast<size_t>(std::min<uint64_t>(width_, count_)));
  for (size_t i = 0; i < moments_.size(); ++i) {
    const ExactSums& sums = exact_sums_[i];
    if (sums.count == 0) continue;
    moments_.plane(kCount)[i] = sums.count;
    moments_.plane(kMean)[i] = sums.first + sums.sum / sums.count;
    moments_.plane(kDeviations)[i] = std::max(0.0, sums.squares - sums.sum * sums.sum / sums.count);
    moments_.plane(kErrorMean)[i] = sums.first_error + sums.error_sum / sums.count;
    moments_.AddErrorDeviations(std::max(0.0, sums.error_squares - sums.error_sum * sums.error_sum / sums.count));
  }
  if (has_infinite_error_) moments_.AddErrorDeviations(std::numeric_limits<double>::infinity());
}

void MeasureTokensExactly(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  const size_t size = DTypeSize(dtype);
  tokens.BeginExact();
  for (size_t i = 0; i < count; ++i) {
    const double x = LoadAsF32(dtype, original, i);
    const double y = LoadAsF32(dtype, decoded, i);
    const bool same = std::memcmp(static_cast<const uint8_t*>(original) + i * size,
                                  static_cast<const uint8_t*>(decoded) + i * size, size) == 0;
    tokens.AddExact(x, same ? 0.0 : x - y);
  }
  tokens.EndExact();
}

void MeasureTokens(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  constexpr size_t kRun = 1024;
  uint8_t wide_x[2 * kRun], wide_y[2 * kRun];
  bool is_finite = true;
  for (size_t begin = 0; begin < count && is_finite; begin += kRun) {
    const size_t n = std::min(kRun, count - begin);
    const auto* x = static_cast<const uint8_t*>(original) + begin * DTypeSize(dtype);
    const auto* y = static_cast<const uint8_t*>(decoded) + begin * DTypeSize(dtype);
    DType kernel_dtype = dtype;
    if (IsF8(dtype)) {  // F16 holds every value of the F8 types
      WidenF8(dtype, x, n, wide_x);
      WidenF8(dtype, y, n, wide_y);
      x = wide_x;
      y = wide_y;
      kernel_dtype = DType::kF16;
    }
    const float most = MaxFinite(kernel_dtype);
    is_finite = FindOutOfRange(kernel_dtype, x, n, most) == n && FindOutOfRange(kernel_dtype, y, n, most) == n;
    if (is_finite) tokens.AddDecoded(kernel_dtype, x, y, n);
  }
  if (is_finite && tokens.End()) return;
  MeasureTokensExactly(dtype, original, decoded, count, tokens);
}

}  // namespace kvcompress::simd
