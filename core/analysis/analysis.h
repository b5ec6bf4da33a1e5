#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/tensor.h"

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

// Whether the tensor can have a rotary embedding: rank 2 or more and an even number of channels.
bool CanUnrotate(const TensorDesc& tensor);

// Undoes a rotary position embedding by the half-split convention (Llama in transformers, vLLM): channels i and
// i + d/2 of d are a pair, turned by position * theta^(-2i/d). Positions count along the tokens from 0, or, where
// `first_positions` has an entry for each head, from that. The result is rounded to the tensor's dtype, so that turning
// it back does not give the same bits. Only for a tensor that CanUnrotate.
std::vector<std::byte> Unrotate(const TensorDesc& tensor, ByteSpan values, double theta,
                                std::span<const uint64_t> first_positions = {});

}  // namespace kvcompress
