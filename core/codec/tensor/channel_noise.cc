#include "core/codec/tensor/channel_noise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/buffer.h"
#include "core/base/half.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress {
namespace {

constexpr size_t kGroup = 64;
constexpr size_t kMinRows = 16;  // below it, quant gives rows scales

}  // namespace

ChannelNoise::ChannelNoise(DType dtype, uint64_t extent, ByteSpan values) {
  const size_t count = values.size() / DTypeSize(dtype);
  const auto mantissa = static_cast<int>(MantissaBits(dtype));
  if (IsF8(dtype)) {
    thread_local Buffer wide;
    wide.Resize(2 * count);
    WidenF8(dtype, values.data(), count, wide.data());
    values = wide.span();
    dtype = DType::kF16;
  }
  const simd::CellLayout layout = {.row = static_cast<size_t>(std::clamp<uint64_t>(extent, 1, count)),
                                   .run = static_cast<size_t>(std::clamp<uint64_t>(extent, 1, count)),
                                   .stretch = kGroup};
  if (layout.rows(count) < kMinRows) return;
  const size_t cells = layout.cells(count);
  thread_local Buffer min, max;
  min.Resize(cells * DTypeSize(dtype));
  max.Resize(cells * DTypeSize(dtype));
  simd::CellRanges(dtype, layout, values.data(), count, min.data(), max.data());
  cells_.reserve(cells);
  for (size_t i = 0; i < cells; ++i) {
    const double low = LoadAsF32(dtype, min.data(), i);
    const double high = LoadAsF32(dtype, max.data(), i);
    const double magnitude = std::max(std::fabs(low), std::fabs(high));
    const double step = magnitude > 0 ? std::ldexp(1, std::ilogb(magnitude) - mantissa) : 0;
    cells_.push_back({high - low, step});
  }
  values_per_cell_ = static_cast<double>(count) / static_cast<double>(cells);
}

double ChannelNoise::ErrorSquares(int bits) const {
  if (cells_.empty()) return std::numeric_limits<double>::infinity();
  const double levels = std::ldexp(1, bits) - 1;
  double squares = 0;
  for (const Cell& cell : cells_) {
    const double scale = cell.range / levels;
    if (scale > cell.step) squares += scale * scale;
  }
  return squares * values_per_cell_ / 12;
}

}  // namespace kvcompress
