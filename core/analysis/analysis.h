#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/tensor.h"
#include "core/simd/rotary.h"

// What a tensor's values are like, for people who choose codecs. Figures are of the finite values unless they speak of
// bytes. Deterministic, one thread, some hundred MB/s.
namespace kvcompress {

// Percentiles of |x| that are given.
inline constexpr std::array<double, 4> kPercentiles = {50, 90, 99, 99.9};

struct TensorAnalysis {
  uint64_t elements = 0;
  uint64_t finite = 0;
  double mean = 0;
  double stddev = 0;  // about the mean, divided by the number of values
  double min = 0;
  double max = 0;
  // The smallest |x| that at least so many percent of the values do not exceed.
  std::array<double, kPercentiles.size()> abs_percentiles = {};

  double exponent_entropy = 0;  // bits: of the exponent field alone, without the sign
  // Order-0 entropy in bits of each byte plane, the least significant first; of the bytes, and of their differences
  // modulo 256 to the token before in the same head (a head's first token as it is).
  std::vector<double> plane_entropy;
  std::vector<double> delta_entropy;

  // max|x| of the largest channel (index on the last axis) over that of the median channel; 0 when that is 0.
  double channel_outlier = 0;
  // Of F32 values: what rounding them to F16 and to bfloat16 would cost, each value that stays finite in it counted;
  // and how many would not.
  struct CastError {
    double mean_abs = 0;
    double max_abs = 0;
    uint64_t overflows = 0;
  };
  CastError f16_cast;
  CastError bf16_cast;

  // Correlation of a value and the next token's in the same channel and head, each sequence's own mean removed.
  double lag1_correlation = 0;

  // The best ratio of coders that know the planes' order-0 statistics and nothing else: of plain planes, of delta
  // planes, and of the better one for each plane. 0 without values, infinity when all planes are constant.
  double PlainBound() const;
  double DeltaBound() const;
  double BestBound() const;
};

// `values` are those of `tensor`. Tokens are on the last axis but one, channels on the last one; a tensor of rank 0 or
// 1 has one channel.
TensorAnalysis AnalyzeTensor(const TensorDesc& tensor, ByteSpan values);

// Whether the tensor can have this rotary embedding: rank 2 or more, and as many channels, in pairs.
bool CanUnrotate(const TensorDesc& tensor, const simd::RotaryEmbedding& rotary);

// Undoes the embedding. Positions count along the tokens from rotary.start, or, where `first_tokens` has an entry for
// each head, from that many tokens later. The result is rounded to the tensor's dtype, so that turning it back does not
// give the same bits. Only for a tensor that CanUnrotate.
std::vector<std::byte> Unrotate(const TensorDesc& tensor, ByteSpan values, const simd::RotaryEmbedding& rotary,
                                std::span<const uint64_t> first_tokens = {});

// The mean of |a - b| over the values that are finite in both; 0 without any.
double MeanDifference(DType dtype, ByteSpan a, ByteSpan b);

}  // namespace kvcompress
