#include "core/simd/token_meter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.h"
#include "core/simd/value_limits.h"

namespace kvcompress::simd {
namespace {

// Additions to a sum in binary32: a sum of so many equal terms is exact to 1e-6.
constexpr size_t kChunkRows = 64;
static_assert(kChunkRows / ColumnBlock::kRunRows == 4);  // what TokenMeter promises of squares of errors counts these
// Rows of fewer channels are joined to about this width.
constexpr uint64_t kMinWidth = 64;
// Sums of squares between these have lost nothing that matters to the largest or the smallest numbers of binary32, of
// which each square may have lost 2^-126.
constexpr double kMaxSquares = 0x1p100;
constexpr double kMinSquares = 0x1p-80;
// The squares of kMostOfSmall values below this come to less.
constexpr float kSmall = 0x1p-50f;
static_assert(double{kSmall} * double{kSmall} * kMostOfSmall < kMinSquares);
// Deviations of errors, as what their mean leaves of their energy, are exact to 1e-4 where they are so much of it.
constexpr double kLeastDeviations = 1.0 / 8;
// What the largest magnitude is scaled to: of as many values as a block has, the squares of differences stay below
// kMaxSquares.
constexpr int kScaledExponent = 38;

// The power of two that brings `largest`, which is finite, there, as far as binary32 has it.
float ScaleFor(double largest) {
  if (largest == 0) return 1;
  return std::ldexp(1.0f, std::clamp(kScaledExponent - std::ilogb(largest), -126, 127));
}

}  // namespace

void TokenMeter::Begin(const TokenLayout& layout, uint64_t first) {
  layout_ = layout;
  first_ = first % layout.sequence();
  BeginAs(false, {});
}

void TokenMeter::BeginAs(bool exact, std::optional<ErrorScales> again) {
  exact_ = exact;
  again_ = again;
  sums_.Clear();
  errors_ = {};
  magnitude_ = deviations_ = error_deviations_ = varies_ = error_varies_ = 0;
  has_rows_ = has_value_energy_ = false;
  const uint64_t joined = layout_.channels >= kMinWidth ? 1 : kMinWidth / layout_.channels;
  width_ = static_cast<size_t>(layout_.channels * joined);
  const size_t blocks = ColumnBlock::CountFor(width_);
  if (!exact_ && chunk_.size() < blocks) chunk_.resize(blocks);
  if (!exact_ && width_ % ColumnBlock::kColumns != 0) chunk_[blocks - 1] = {};  // as TotalsOfChunk has it
  BeginStretch(first_);
}

bool TokenMeter::BeginScaled(float largest) {
  // Subnormal errors have counted as 0.
  const double largest_error = errors_.max_abs_error > 0 ? errors_.max_abs_error : double{largest};
  if (!std::isfinite(largest) || !std::isfinite(largest_error)) return false;
  BeginAs(false, ErrorScales{.value = ScaleFor(largest), .error = ScaleFor(largest_error)});
  return true;
}

void TokenMeter::BeginStretch(uint64_t begin) {
  begin_ = begin;
  count_ = 0;
  row_ = column_ = 0;
  rows_before_ = 0;
  has_infinite_error_ = false;
  if (exact_) exact_blocks_.assign(ExactBlock::CountFor(width_), {});
}

void TokenMeter::AddErrors(DType dtype, const void* x, ErrorSource errors, size_t count) {
  has_marks_ = dtype != DType::kF16;
  has_value_energy_ = !exact_ && errors.is_decoded && errors.at != x;
  while (count > 0) {
    const Part part = NextPart(count);
    const ErrorRows added{dtype, x, errors, part.rows, part.columns, again_};
    if (!exact_) {
      AddRows(added, row_, chunk_.data(), column_);
    } else if (!AddExactRows(added, exact_blocks_.data(), column_)) {
      has_infinite_error_ = true;
    }
    const size_t taken = part.rows * part.columns;
    x = static_cast<const uint8_t*>(x) + taken * DTypeSize(dtype);
    errors.at = static_cast<const uint8_t*>(errors.at) + taken * errors.width(dtype);
    if (errors.values != nullptr) errors.values += taken;
    count -= taken;
    EndPart(part);
  }
}

TokenMeter::Part TokenMeter::NextPart(uint64_t count) const {
  const auto left = static_cast<size_t>(std::min(count, layout_.sequence() - begin_ - count_));
  const size_t columns = std::min(left, width_ - column_);
  const size_t whole_rows = exact_ ? left / width_ : std::min(left / width_, kChunkRows - row_);
  return {.rows = columns == width_ ? whole_rows : 1, .columns = columns};
}

void TokenMeter::EndPart(const Part& part) {
  count_ += part.rows * part.columns;
  column_ += part.columns;
  if (column_ == width_) {
    column_ = 0;
    row_ += part.rows;
  }
  if (begin_ + count_ == layout_.sequence()) {
    EndStretch();
    BeginStretch(0);
  } else if (!exact_ && row_ == kChunkRows) {
    MergeChunk();
  }
}

uint64_t TokenMeter::WholeRows() const {
  // Of shorter sequences sums would hardly stay in registers.
  if (column_ > 0 || layout_.tokens < ColumnBlock::kRunRows) return 0;
  const uint64_t left = layout_.sequence() - begin_ - count_;
  const bool all_are = left % width_ == 0 && layout_.sequence() % width_ == 0;
  return all_are ? std::numeric_limits<uint64_t>::max() : left / width_;
}

ChunkRows TokenMeter::BeginRows(size_t most) {
  return {.blocks = chunk_.data(), .first = row_, .rows = NextPart(uint64_t{most} * width_).rows};
}

void TokenMeter::EndRows(DType dtype, const ChunkRows& rows) {
  has_marks_ = dtype != DType::kF16;
  has_value_energy_ = false;
  EndPart({.rows = rows.rows, .columns = width_});
}

ColumnRange TokenMeter::RangeOf(size_t begin, size_t end, size_t rows) const {
  return {.begin = begin,
          .end = end,
          .rows = static_cast<double>(rows),
          .rows_before = static_cast<double>(rows_before_),
          .again = again_.has_value(),
          .has_marks = has_marks_,
          .has_values = has_value_energy_ || again_.has_value()};
}

void TokenMeter::BeginColumns(size_t columns) {
  moments_.Begin(columns);
  totals_ = {};
}

// Ends the chunk: the columns of its last row have one row more than the others, if that is not whole.
void TokenMeter::MergeChunk() {
  if (rows_before_ == 0) BeginColumns(static_cast<size_t>(std::min<uint64_t>(width_, count_)));
  const auto merge = [this](size_t begin, size_t end, size_t rows) {
    if (begin < end && rows > 0) MergeColumns(chunk_.data(), RangeOf(begin, end, rows), moments_, totals_);
  };
  merge(0, column_, row_ + 1);
  merge(column_, moments_.size(), row_);
  rows_before_ += row_;
  row_ = 0;
}

StretchTotals TokenMeter::MergeLastChunk() {
  StretchTotals totals;
  if (exact_) {
    SumColumnsExactly();
    totals.columns = TotalsOf(moments_);
  } else if (column_ > 0 || row_ == 0) {
    MergeChunk();
    totals.columns = TotalsOf(moments_);
  } else {
    if (rows_before_ == 0) BeginColumns(width_);
    totals.columns = MergeLastColumns(chunk_.data(), RangeOf(0, width_, row_), moments_, totals_);
  }
  totals_.Sum(totals.of);
  totals.between_columns = DeviationsOfMeans(moments_, totals.columns.sum / totals.columns.count);
  return totals;
}

StretchTotals TokenMeter::EndChunks() {
  const ColumnRange rows = RangeOf(0, width_, row_);
  if (exact_ || !IsWhole() || !IsOneChunk(rows)) return MergeLastChunk();
  moments_.Begin(0);
  return TotalsOfChunk(chunk_.data(), rows, means_);
}

void TokenMeter::EndStretch() {
  const StretchTotals totals = EndChunks();
  AddSums(totals);
  has_rows_ = has_rows_ || count_ > width_;
  if (IsWhole() && !again_) return moments_.AddTo(sums_.closed, totals.columns);
  JoinTokens();
  if (again_) moments_.Unscale(again_->value, again_->error);
  if (count_ == layout_.sequence()) return moments_.AddTo(sums_.closed);
  TokenStretch& stretch = begin_ > 0 ? sums_.head : sums_.tail;
  stretch.first = begin_;
  stretch.count = count_;
  std::swap(stretch.channels, moments_);
}

// Merges the columns of the tokens of a row to those of the first.
void TokenMeter::JoinTokens() {
  const auto channels = static_cast<size_t>(layout_.channels);
  for (size_t token = channels; token < moments_.size(); token += channels) {
    moments_.Merge(moments_, token, std::min(channels, moments_.size() - token), 0);
  }
  moments_.Shrink(std::min(channels, moments_.size()));
}

// Adds what the stretch comes to.
void TokenMeter::AddSums(const StretchTotals& totals) {
  // Of one value the energy has no deviation, but a last digit.
  if (exact_ || count_ > width_) moments_.AddErrorDeviations(totals.of[kErrorDeviations]);
  magnitude_ += totals.of[kTotalMagnitude];
  varies_ += totals.of[kTotalVaries];
  error_varies_ += totals.of[kTotalErrorVaries];
  error_deviations_ += moments_.error_deviations();

  const MomentTotals& columns = totals.columns;
  if (columns.count == 0) return;
  deviations_ += columns.deviations;
  ErrorSums sums;
  sums.count = static_cast<uint64_t>(columns.count);
  sums.sum = columns.sum;
  sums.sum_squares = has_value_energy_ ? totals.of[kTotalValueEnergy] : columns.deviations + columns.mean_squares;
  sums.sum_deviations = columns.deviations + totals.between_columns;
  sums.sum_error_squares = totals.of[kTotalEnergy];
  sums.sum_abs_error = totals.of[kTotalAbsError];
  sums.sum_cross = totals.of[kTotalCross];
  sums.max_abs_error = totals.of[kTotalMaxError];
  errors_.Merge(sums);
}

bool TokenMeter::End() {
  if (count_ > 0) EndStretch();
  const bool held = exact_ || IsHeld();
  if (again_) errors_.Unscale(again_->value, again_->error);
  return held;
}

bool TokenMeter::IsHeld() const {
  const auto is_held = [](double squares, double terms) { return squares >= kMinSquares || terms == 0; };
  const bool has_deviations =
      !has_rows_ ||
      (is_held(deviations_, varies_) && (again_ ? is_held(error_deviations_, error_varies_)
                                                : error_deviations_ >= kLeastDeviations * errors_.sum_error_squares));
  const bool has_squares =
      !has_value_energy_ || (is_held(errors_.sum_squares, magnitude_) && errors_.sum_squares < kMaxSquares);
  return has_squares && is_held(errors_.sum_squares, errors_.sum_error_squares) &&
         is_held(errors_.sum_error_squares, errors_.max_abs_error + error_varies_) &&
         magnitude_ + errors_.sum_error_squares + deviations_ + error_deviations_ < kMaxSquares &&
         std::isfinite(errors_.sum_cross) && has_deviations;
}

// Makes moments and totals of the columns of a stretch.
void TokenMeter::SumColumnsExactly() {
  moments_.Assign(static_cast<size_t>(std::min<uint64_t>(width_, count_)));
  totals_ = {};
  for (size_t i = 0; i < moments_.size(); ++i) {
    const auto of = [&](ExactPlane plane) {
      return exact_blocks_[i / ExactBlock::kColumns].planes[plane][i % ExactBlock::kColumns];
    };
    const double count = of(kExactCount);
    if (count == 0) continue;
    const auto deviations = [count](double sum, double squares) { return std::max(0.0, squares - sum * sum / count); };
    const double error_mean = of(kExactFirstError) + of(kExactErrorSum) / count;
    const double error_from_mean = deviations(of(kExactErrorSum), of(kExactErrorSquares));
    moments_.plane(kCount)[i] = count;
    moments_.plane(kMean)[i] = of(kExactFirst) + of(kExactSum) / count;
    moments_.plane(kDeviations)[i] = deviations(of(kExactSum), of(kExactSquares));
    moments_.plane(kErrorMean)[i] = error_mean;
    const size_t lane = i % ColumnBlock::kColumns;
    totals_.lanes[kErrorDeviations][lane] += error_from_mean;
    totals_.lanes[kTotalEnergy][lane] += error_from_mean + count * error_mean * error_mean;
    totals_.lanes[kTotalAbsError][lane] += of(kExactAbsError);
    totals_.lanes[kTotalCross][lane] += of(kExactCross);
    double& max_error = totals_.lanes[kTotalMaxError][lane];
    max_error = std::max(max_error, of(kExactMaxError));
  }
  if (!has_infinite_error_) return;
  for (const ColumnTotal total : {kErrorDeviations, kTotalEnergy, kTotalAbsError, kTotalMaxError}) {
    totals_.lanes[total][0] = std::numeric_limits<double>::infinity();
  }
}

float LargestMagnitude(DType dtype, const void* values, size_t count) {
  const uint32_t bits = LargestBits(dtype, static_cast<const std::byte*>(values), count);
  return bits > MaxFiniteBits(dtype) ? std::numeric_limits<float>::infinity() : LoadAsF32(dtype, &bits, 0);
}

std::optional<float> LargestOfSmall(DType dtype, const void* values, size_t count) {
  constexpr size_t kFew = 16;
  if (dtype == DType::kF16 || IsF8(dtype) || count > kMostOfSmall) return {};
  if (LargestMagnitude(dtype, values, std::min(kFew, count)) >= kSmall) return {};
  const float largest = LargestMagnitude(dtype, values, count);
  return largest < kSmall ? std::optional(largest) : std::nullopt;
}

namespace {

// Adds a run to `tokens`, as values of a dtype that kernels know.
void AddRun(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  if (!IsF8(dtype)) return tokens.AddDecoded(dtype, original, decoded, count);
  // F16 holds every value of the F8 types.
  constexpr size_t kRun = 4096;
  uint8_t wide_x[2 * kRun], wide_y[2 * kRun];
  for (size_t begin = 0; begin < count; begin += kRun) {
    const size_t n = std::min(kRun, count - begin);
    WidenF8(dtype, static_cast<const uint8_t*>(original) + begin, n, wide_x);
    if (original != decoded) WidenF8(dtype, static_cast<const uint8_t*>(decoded) + begin, n, wide_y);
    tokens.AddDecoded(DType::kF16, wide_x, original == decoded ? wide_x : wide_y, n);
  }
}

}  // namespace

void MeasureTokensAgain(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  // Values without errors are the same on all instruction sets in binary64 alone.
  const float largest =
      original == decoded ? std::numeric_limits<float>::infinity() : LargestMagnitude(dtype, original, count);
  tokens.MeasureAgain(largest, [&] { AddRun(dtype, original, decoded, count, tokens); });
}

void MeasureTokens(DType dtype, const void* original, const void* decoded, size_t count, TokenMeter& tokens) {
  const auto add = [&] { AddRun(dtype, original, decoded, count, tokens); };
  const std::optional<float> small = original == decoded ? std::nullopt : LargestOfSmall(dtype, original, count);
  if (small.value_or(0) > 0) return tokens.MeasureAgain(*small, add);
  add();
  if (!tokens.End()) MeasureTokensAgain(dtype, original, decoded, count, tokens);
}

}  // namespace kvcompress::simd
