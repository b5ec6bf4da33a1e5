#include "core/codec/tensor/channel_noise.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/buffer.h"
#include "core/base/half.h"
#include "core/simd/uniform_quant.h"

namespace kvcompress {
namespace {

constexpr size_t kGroup = 64;
constexpr size_t kMinRows = 16;  // below it, quant gives rows scales

constexpr uint64_t kExponent = uint64_t{0x7ff} << 52;  // of a double

// The value with this index, which is finite.
template <DType kT>
float FiniteAt(const std::byte* values, size_t i) {
  if constexpr (kT != DType::kF16) return LoadAsF32(kT, values, i);
  // A float's exponent has 112 more than that of its binary16.
  const uint32_t bits = LoadLE<uint16_t>(values + 2 * i);
  const float magnitude = std::bit_cast<float>((bits & 0x7fff) << 13) * 0x1p112f;
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

}  // namespace

ChannelNoise::ChannelNoise(DType dtype, uint64_t extent, ByteSpan values) {
  const size_t count = values.size() / DTypeSize(dtype);
  const double unit = std::ldexp(1, -static_cast<int>(MantissaBits(dtype)));
  if (IsF8(dtype)) {
    thread_local Buffer wide;
    wide.Resize(2 * count);
    WidenF8(dtype, values.data(), count, wide.data());
    values = wide.span();
    dtype = DType::kF16;
  }
  constexpr uint16_t kLeast = 1;
  least_scale_ = LoadAsF32(simd::ScaleDType(dtype), &kLeast, 0);
  const simd::CellLayout layout = {.row = static_cast<size_t>(std::clamp<uint64_t>(extent, 1, count)),
                                   .run = static_cast<size_t>(std::clamp<uint64_t>(extent, 1, count)),
                                   .stretch = kGroup};
  if (layout.rows(count) < kMinRows) return;
  const size_t cells = layout.cells(count);
  thread_local Buffer min, max;
  min.Resize(cells * DTypeSize(dtype));
  max.Resize(cells * DTypeSize(dtype));
  simd::CellRanges(dtype, layout, values.data(), count, min.data(), max.data());
  ranges_.resize(cells);
  steps_.resize(cells);
  VisitDType(dtype, [&](auto t) {
    for (size_t i = 0; i < cells; ++i) {
      const double low = FiniteAt<decltype(t)::value>(min.data(), i);
      const double high = FiniteAt<decltype(t)::value>(max.data(), i);
      const double magnitude = std::max(std::fabs(low), std::fabs(high));
      // Its power of two, which a float that is no normal number has as a double; 0 of 0.
      const double power = std::bit_cast<double>(std::bit_cast<uint64_t>(magnitude) & kExponent);
      ranges_[i] = high - low;
      steps_[i] = power * unit;
    }
  });
  values_per_cell_ = static_cast<double>(count) / static_cast<double>(cells);
}

double ChannelNoise::ErrorSquares(int bits) const {
  if (ranges_.empty()) return std::numeric_limits<double>::infinity();
  const double levels = std::ldexp(1, bits) - 1;
  // Sums that do not wait for each other.
  std::array<double, 8> squares = {};
  for (size_t i = 0; i < ranges_.size(); ++i) {
    const double scale = ranges_[i] / levels;
    squares[i % squares.size()] += scale > steps_[i] ? scale * scale : 0;
  }
  return std::accumulate(squares.begin(), squares.end(), 0.0) * values_per_cell_ / 12;
}

bool ChannelNoise::HasLeastScales(int bits) const {
  // A scale of 0 is of a range next to which the smallest number is large: either way all codes of its cell are 0.
  const double most = least_scale_ * (std::ldexp(1, bits) - 1);
  return std::ranges::all_of(ranges_, [most](double range) { return range <= most; });
}

}  // namespace kvcompress
