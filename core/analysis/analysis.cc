#include "core/analysis/analysis.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/half.h"

namespace kvcompress {
namespace {

// A tensor as heads of rows (tokens) of channels.
struct Geometry {
  uint64_t heads = 0;
  uint64_t tokens = 0;
  uint64_t channels = 1;

  uint64_t elements() const { return heads * tokens * channels; }
};

Geometry GeometryOf(const TensorDesc& tensor, uint64_t elements) {
  if (elements == 0) return {};
  const std::vector<uint64_t>& shape = tensor.shape;
  Geometry geometry{.heads = 1, .tokens = elements, .channels = 1};
  if (shape.size() < 2) return geometry;
  geometry.channels = shape.back();
  geometry.tokens = shape[shape.size() - 2];
  geometry.heads = elements / (geometry.tokens * geometry.channels);
  return geometry;
}

double Entropy(std::span<const uint64_t> histogram) {
  double total = 0;
  for (const uint64_t count : histogram) total += static_cast<double>(count);
  double bits = 0;
  for (const uint64_t count : histogram) {
    if (count == 0) continue;
    const double p = static_cast<double>(count) / total;
    bits -= p * std::log2(p);
  }
  return bits;
}

void AddMoments(std::span<const float> values, TensorAnalysis& analysis) {
  analysis.finite = values.size();
  if (values.empty()) return;
  const auto n = static_cast<double>(values.size());
  double sum = 0;
  for (const float x : values) sum += x;
  analysis.mean = sum / n;
  double squares = 0;
  for (const float x : values) squares += (x - analysis.mean) * (x - analysis.mean);
  analysis.stddev = std::sqrt(squares / n);
  const auto [min, max] = std::minmax_element(values.begin(), values.end());
  analysis.min = *min;
  analysis.max = *max;
}

// Reorders and changes `values`.
void AddPercentiles(std::span<float> values, TensorAnalysis& analysis) {
  if (values.empty()) return;
  for (float& x : values) x = std::fabs(x);
  size_t begin = 0;
  for (size_t k = 0; k < kPercentiles.size(); ++k) {
    const double rank = std::ceil(kPercentiles[k] * static_cast<double>(values.size()) / 100);
    const size_t index = std::max<size_t>(static_cast<size_t>(rank), 1) - 1;
    std::nth_element(values.begin() + begin, values.begin() + index, values.end());
    analysis.abs_percentiles[k] = values[index];
    begin = index;
  }
}

void AddExponents(DType dtype, ByteSpan values, TensorAnalysis& analysis) {
  const unsigned mantissa = MantissaBits(dtype);
  const uint32_t mask = InfinityBits(dtype) >> mantissa;
  std::array<uint64_t, 256> histogram = {};
  VisitBits(dtype, [&](auto bits) {
    using Bits = decltype(bits);
    for (size_t at = 0; at < values.size(); at += sizeof(Bits)) {
      ++histogram[LoadLE<Bits>(values.data() + at) >> mantissa & mask];
    }
  });
  analysis.exponent_entropy = Entropy(histogram);
}

void AddPlanes(const Geometry& geometry, size_t size, ByteSpan values, TensorAnalysis& analysis) {
  const size_t row = geometry.channels * size;
  const size_t head = row * geometry.tokens;
  for (size_t plane = 0; plane < size; ++plane) {
    std::array<uint64_t, 256> plain = {};
    std::array<uint64_t, 256> delta = {};
    for (size_t begin = 0; begin < values.size(); begin += head) {
      for (size_t at = begin + plane; at < begin + head; at += size) {
        const auto byte = static_cast<uint8_t>(values[at]);
        const auto before = at < begin + row ? uint8_t{0} : static_cast<uint8_t>(values[at - row]);
        ++plain[byte];
        ++delta[static_cast<uint8_t>(byte - before)];
      }
    }
    analysis.plane_entropy.push_back(Entropy(plain));
    analysis.delta_entropy.push_back(Entropy(delta));
  }
}

// `values` are all of them; what is not finite is left out.
void AddChannels(const Geometry& geometry, std::span<const float> values, TensorAnalysis& analysis) {
  std::vector<float> largest(geometry.channels, 0.0f);
  for (size_t i = 0; i < values.size(); ++i) {
    float& channel = largest[i % geometry.channels];
    if (std::isfinite(values[i])) channel = std::max(channel, std::fabs(values[i]));
  }
  if (largest.empty()) return;
  const auto median = largest.begin() + static_cast<ptrdiff_t>(largest.size() / 2);
  const float most = *std::max_element(largest.begin(), largest.end());
  std::nth_element(largest.begin(), median, largest.end());
  analysis.channel_outlier = *median > 0 ? static_cast<double>(most) / *median : 0;
}

void AddLag1(const Geometry& geometry, std::span<const float> values, TensorAnalysis& analysis) {
  double covariance = 0;
  double variance = 0;  // twice, once for each of the pair
  const size_t step = geometry.channels;
  for (size_t head = 0; head < geometry.heads; ++head) {
    for (size_t channel = 0; channel < step; ++channel) {
      const float* const x = values.data() + head * geometry.tokens * step + channel;
      double sum = 0;
      uint64_t finite = 0;
      for (size_t t = 0; t < geometry.tokens; ++t) {
        if (!std::isfinite(x[t * step])) continue;
        sum += x[t * step];
        ++finite;
      }
      const double mean = finite > 0 ? sum / static_cast<double>(finite) : 0;
      for (size_t t = 1; t < geometry.tokens; ++t) {
        const double a = x[(t - 1) * step] - mean;
        const double b = x[t * step] - mean;
        if (!std::isfinite(a) || !std::isfinite(b)) continue;
        covariance += a * b;
        variance += (a * a + b * b) / 2;
      }
    }
  }
  analysis.lag1_correlation = variance > 0 ? covariance / variance : 0;
}

// `values` are finite F32 values.
TensorAnalysis::CastError CastErrorOf(std::span<const float> values, DType to) {
  TensorAnalysis::CastError error;
  for (const float x : values) {
    const float y = RoundTo(to, x);
    if (!std::isfinite(y)) {
      ++error.overflows;
      continue;
    }
    const double off = std::fabs(static_cast<double>(x) - y);
    error.mean_abs += off;
    error.max_abs = std::max(error.max_abs, off);
  }
  const uint64_t counted = values.size() - error.overflows;
  if (counted > 0) error.mean_abs /= static_cast<double>(counted);
  return error;
}

double Bound(size_t size, double bits) { return size == 0 ? 0 : 8 * static_cast<double>(size) / bits; }

double Sum(std::span<const double> terms) {
  double sum = 0;
  for (const double term : terms) sum += term;
  return sum;
}

}  // namespace

double TensorAnalysis::PlainBound() const { return Bound(plane_entropy.size(), Sum(plane_entropy)); }
double TensorAnalysis::DeltaBound() const { return Bound(delta_entropy.size(), Sum(delta_entropy)); }
double TensorAnalysis::BestBound() const {
  double bits = 0;
  for (size_t i = 0; i < plane_entropy.size(); ++i) bits += std::min(plane_entropy[i], delta_entropy[i]);
  return Bound(plane_entropy.size(), bits);
}

TensorAnalysis AnalyzeTensor(const TensorDesc& tensor, ByteSpan values) {
  TensorAnalysis analysis;
  const size_t size = DTypeSize(tensor.dtype);
  analysis.elements = values.size() / size;
  if (analysis.elements == 0) return analysis;
  const Geometry geometry = GeometryOf(tensor, analysis.elements);
  AddExponents(tensor.dtype, values, analysis);
  AddPlanes(geometry, size, values, analysis);
  std::vector<float> floats(analysis.elements);
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = LoadAsF32(tensor.dtype, values.data(), i);
  AddChannels(geometry, floats, analysis);
  AddLag1(geometry, floats, analysis);
  std::erase_if(floats, [](float x) { return !std::isfinite(x); });
  AddMoments(floats, analysis);
  if (tensor.dtype == DType::kF32) {
    analysis.f16_cast = CastErrorOf(floats, DType::kF16);
    analysis.bf16_cast = CastErrorOf(floats, DType::kBF16);
  }
  AddPercentiles(floats, analysis);
  return analysis;
}

bool CanUnrotate(const TensorDesc& tensor, const simd::RotaryEmbedding& rotary) {
  if (tensor.shape.size() < 2 || rotary.offset >= tensor.shape.back()) return false;
  const uint64_t most = tensor.shape.back() - rotary.offset;
  const uint64_t dims = rotary.dims == 0 ? most : rotary.dims;
  return dims % 2 == 0 && dims <= most;
}

std::vector<std::byte> Unrotate(const TensorDesc& tensor, ByteSpan values, const simd::RotaryEmbedding& rotary,
                                std::span<const uint64_t> first_tokens) {
  std::vector<std::byte> result(values.begin(), values.end());
  const Geometry geometry = GeometryOf(tensor, values.size() / DTypeSize(tensor.dtype));
  const size_t dims = rotary.dims == 0 ? geometry.channels - rotary.offset : rotary.dims;
  const size_t pairs = dims / 2;
  const bool interleaved = rotary.pairs == simd::RotaryPairs::kInterleaved;
  std::vector<double> frequencies(pairs);
  for (size_t i = 0; i < pairs; ++i) {
    const auto turns = static_cast<double>(simd::RotaryFrequency(rotary.theta, rotary.scaling, dims, i));
    frequencies[i] = std::ldexp(turns, -64) * 2 * std::numbers::pi;
  }
  for (size_t head = 0; head < geometry.heads; ++head) {
    const uint64_t first = rotary.start + (head < first_tokens.size() ? first_tokens[head] : 0);
    for (size_t token = 0; token < geometry.tokens; ++token) {
      const size_t row = (head * geometry.tokens + token) * geometry.channels + rotary.offset;
      const auto position = static_cast<double>(first + token);
      for (size_t i = 0; i < pairs; ++i) {
        const double angle = position * frequencies[i];
        const double c = std::cos(angle);
        const double s = std::sin(angle);
        const size_t one = row + (interleaved ? 2 * i : i);
        const size_t other = interleaved ? one + 1 : one + pairs;
        const double x = LoadAsF32(tensor.dtype, values.data(), one);
        const double y = LoadAsF32(tensor.dtype, values.data(), other);
        StoreFromF32(tensor.dtype, static_cast<float>(c * x + s * y), result.data(), one);
        StoreFromF32(tensor.dtype, static_cast<float>(c * y - s * x), result.data(), other);
      }
    }
  }
  return result;
}

double MeanDifference(DType dtype, ByteSpan a, ByteSpan b) {
  const size_t count = std::min(a.size(), b.size()) / DTypeSize(dtype);
  double sum = 0;
  uint64_t finite = 0;
  for (size_t i = 0; i < count; ++i) {
    const double difference = static_cast<double>(LoadAsF32(dtype, a.data(), i)) - LoadAsF32(dtype, b.data(), i);
    if (!std::isfinite(difference)) continue;
    sum += std::fabs(difference);
    ++finite;
  }
  return finite > 0 ? sum / static_cast<double>(finite) : 0;
}

}  // namespace kvcompress
