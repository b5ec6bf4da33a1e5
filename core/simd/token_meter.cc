#include "core/simd/token_meter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"

namespace kvcompress::simd {
namespace {

// Additions to a sum in binary32: a sum of so many equal terms is exact to 1e-6.
constexpr size_t kChunkRows = 64;
// Rows of fewer channels are joined to about this width.
constexpr uint64_t kMinWidth = 64;
// Squares between these have lost nothing that matters to the largest or the smallest numbers of binary32.
constexpr double kMaxSquares = 0x1p100;
constexpr double kMinSquares = 0x1p-96;
constexpr size_t kTerms = kColumnPlanes - kAbsError;

}  // namespace

void TokenMeter::Begin(const TokenLayout& layout, uint64_t first) {
  layout_ = layout;
  first_ = first % layout.sequence();
  exact_ = false;
  sums_.Clear();
  errors_ = {};
  extremes_ = {};
  has_rows_ = false;
  BeginStretch(first_);
}

void TokenMeter::BeginStretch(uint64_t begin) {
  begin_ = begin;
  count_ = 0;
  row_ = column_ = 0;
  wide_rows_ = 0;
  has_infinite_error_ = false;
  const uint64_t joined = exact_ || layout_.channels >= kMinWidth ? 1 : kMinWidth / layout_.channels;
  width_ = static_cast<size_t>(layout_.channels * joined);
  if (exact_) {
    exact_sums_.assign(width_, {});
    return;
  }
  const size_t blocks = ColumnBlock<float>::CountFor(width_);
  if (chunk_.size() < blocks) chunk_.resize(blocks);
  columns_ = {chunk_.data(), wide_.data()};
}

void TokenMeter::Add(DType dtype, const void* x, const float* errors, size_t count) {
  while (count > 0) {
    const auto left = static_cast<size_t>(std::min<uint64_t>(count, layout_.sequence() - begin_ - count_));
    const size_t columns = std::min(left, width_ - column_);
    const size_t rows = columns == width_ ? std::min(left / width_, kChunkRows - row_) : 1;
    AddRows({dtype, x, errors, rows, columns}, row_ == 0, columns_, column_);
    const size_t taken = rows * columns;
    x = static_cast<const uint8_t*>(x) + taken * DTypeSize(dtype);
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
      if (wide_.size() < chunk_.size()) wide_.resize(chunk_.size());
      columns_.wide = wide_.data();
      ForEachRange(width_, [&](const ColumnRange& range) { WidenColumns(columns_, range); });
      wide_rows_ += kChunkRows;
      row_ = 0;
    }
  }
}

// The columns that end with the last row, and those that end with the row before it.
template <typename Visit>
void TokenMeter::ForEachRange(size_t columns, Visit visit) const {
  const auto rows = static_cast<double>(row_);
  const auto wide_rows = static_cast<double>(wide_rows_);
  if (column_ > 0) visit(ColumnRange{0, column_, rows + 1, wide_rows});
  if (column_ < columns) visit(ColumnRange{column_, columns, rows, wide_rows});
}

void TokenMeter::EndStretch() {
  const bool is_whole = count_ == layout_.sequence();
  TokenStretch& stretch = begin_ > 0 ? sums_.head : sums_.tail;
  ChannelMoments& moments = is_whole ? closed_ : stretch.channels;
  moments.Assign(static_cast<size_t>(std::min<uint64_t>(width_, count_)));
  if (exact_) {
    MeasureExactly(moments);
  } else {
    MeasureStretch(moments);
  }
  if (is_whole) {
    moments.AddTo(sums_.closed);
  } else {
    stretch.first = begin_;
    stretch.count = count_;
  }
}

void TokenMeter::MeasureStretch(ChannelMoments& moments) {
  if (terms_.size() < kTerms * width_) terms_.resize(kTerms * width_);
  ForEachRange(moments.size(), [&](const ColumnRange& range) {
    MeasureColumns(columns_, range, moments, terms_.data(), width_, extremes_);
  });
  AddErrors(moments);
  has_rows_ = has_rows_ || count_ > width_;
  const auto channels = static_cast<size_t>(layout_.channels);
  for (size_t token = channels; token < moments.size(); token += channels) {
    moments.Merge(moments, token, std::min(channels, moments.size() - token), 0);
  }
  moments.Shrink(std::min(channels, moments.size()));
}

// What the columns' moments and terms come to.
void TokenMeter::AddErrors(const ChannelMoments& moments) {
  const double* counts = moments.plane(kCount);
  const double* means = moments.plane(kMean);
  const double* error_means = moments.plane(kErrorMean);
  const double* abs_errors = terms_.data();
  const double* cross = abs_errors + width_;
  const double* max_errors = cross + width_;
  ErrorSums sums;
  sums.count = count_;
  for (size_t i = 0; i < moments.size(); ++i) {
    const double sum = counts[i] * means[i];
    sums.sum += sum;
    sums.sum_squares += moments.plane(kDeviations)[i] + sum * means[i];
    sums.sum_error_squares += moments.plane(kErrorDeviations)[i] + counts[i] * error_means[i] * error_means[i];
    sums.sum_abs_error += abs_errors[i];
    sums.sum_cross += cross[i];
    sums.max_abs_error = std::max(sums.max_abs_error, max_errors[i]);
  }
  const double mean = sums.sum / static_cast<double>(count_);
  for (size_t i = 0; i < moments.size(); ++i) {
    const double between = means[i] - mean;
    sums.sum_deviations += moments.plane(kDeviations)[i] + counts[i] * between * between;
  }
  errors_.Merge(sums);
}

bool TokenMeter::End() {
  if (count_ > 0) EndStretch();
  const auto is_held = [](double squares, double terms) { return squares >= kMinSquares || terms == 0; };
  const bool is_small = has_rows_ && !(is_held(extremes_.squares, extremes_.values) &&
                                       is_held(extremes_.error_squares, extremes_.errors));
  // Of the products of values and errors, columns of one value have no other sign.
  const bool has_products = std::isfinite(errors_.sum_cross) &&
                            is_held(errors_.sum_squares, errors_.sum_error_squares) &&
                            is_held(errors_.sum_error_squares, errors_.sum_error_squares);
  return extremes_.largest < kMaxSquares && !is_small && has_products;
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

void TokenMeter::MeasureExactly(ChannelMoments& moments) const {
  for (size_t i = 0; i < moments.size(); ++i) {
    const ExactSums& sums = exact_sums_[i];
    if (sums.count == 0) continue;
    moments.plane(kCount)[i] = sums.count;
    moments.plane(kMean)[i] = sums.first + sums.sum / sums.count;
    moments.plane(kDeviations)[i] = std::max(0.0, sums.squares - sums.sum * sums.sum / sums.count);
    moments.plane(kErrorMean)[i] = sums.first_error + sums.error_sum / sums.count;
    moments.plane(kErrorDeviations)[i] =
        std::max(0.0, sums.error_squares - sums.error_sum * sums.error_sum / sums.count);
  }
  if (has_infinite_error_) moments.plane(kErrorDeviations)[0] = std::numeric_limits<double>::infinity();
}

namespace {

void MeasureExactly(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
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

}  // namespace

void MeasureTokens(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  constexpr size_t kRun = 1024;
  float errors[kRun];
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
    is_finite = LoadErrors(kernel_dtype, x, y, n, errors);
    if (is_finite) tokens.Add(kernel_dtype, x, errors, n);
  }
  if (is_finite && tokens.End()) return;
  MeasureExactly(dtype, original, decoded, count, tokens);
}

}  // namespace kvcompress::simd
