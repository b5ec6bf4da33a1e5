#include "core/codec/magnitude.h"

#include <cmath>

namespace kvcompress {
namespace {

using simd::KeyCounts;
using simd::KeyOrder;

struct KeyRange {
  uint32_t lower;
  uint32_t upper;
};

uint32_t LargestKey(KeyOrder order, DType dtype) {
  return VisitBits(dtype, [&](auto zero) -> uint32_t { return simd::MaxKey<decltype(zero)>(order); });
}

// Keys between which the one at `rank` is likely to lie, by a sample of the values.
absl::StatusOr<KeyRange> GuessRange(const ByteSource& source, DType dtype, size_t block_elements, KeyOrder order,
                                    uint64_t rank) {
  constexpr uint64_t kMaxSamples = 16384;
  constexpr uint64_t kMinSamples = 512;
  const uint64_t count = source.size() / DTypeSize(dtype);
  const uint64_t wanted = std::clamp(count / 64, kMinSamples, kMaxSamples);
  std::vector<uint32_t> samples;
  uint64_t random = 0x9e3779b97f4a7c15;
  KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
    VisitBits(dtype, [&](auto zero) {
      using Bits = decltype(zero);
      for (uint64_t share = wanted * n / count + 1; share > 0; --share) {
        random = random * 6364136223846793005 + 1442695040888963407;  // Knuth's generator
        const auto at = static_cast<size_t>((random >> 32) * n >> 32);
        samples.push_back(simd::KeyOf(order, LoadLE<Bits>(values + at * sizeof(Bits))));
      }
    });
  }));
  const double part = static_cast<double>(rank) / static_cast<double>(count);
  const auto size = static_cast<double>(samples.size());
  // Five deviations of how many of the samples come before the one at `rank`.
  const double doubt = 5 * std::sqrt(size * part * (1 - part)) + 2;
  const auto key_at = [&](double place) {
    const auto nth = samples.begin() + static_cast<ptrdiff_t>(place);
    std::nth_element(samples.begin(), nth, samples.end());
    return *nth;
  };
  KeyRange range{0, LargestKey(order, dtype)};
  if (part * size - doubt >= 0) range.lower = key_at(part * size - doubt);
  if (part * size + doubt < size) range.upper = key_at(part * size + doubt);
  return range;
}

}  // namespace

// Counts the keys about the ends of a range, which becomes smaller until the key at `rank` is known: after one look at
// the values, most often, and always where keys have 16 bits and the sample told the truth.
absl::Status SelectKey(const ByteSource& source, DType dtype, size_t block_elements, KeyOrder order, uint64_t& rank,
                       uint32_t& key) {
  constexpr uint32_t kBuckets = 1u << 15;
  KeyRange possible{0, LargestKey(order, dtype)};
  KeyRange range{possible.upper, possible.upper};
  if (rank < source.size() / DTypeSize(dtype)) {
    KVC_ASSIGN_OR_RETURN(range, GuessRange(source, dtype, block_elements, order, rank));
  }
  for (;;) {
    int shift = 0;
    while ((range.upper - range.lower) >> shift >= kBuckets) ++shift;
    KeyCounts counts(range.lower, range.upper, shift);
    KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
      simd::CountKeys(order, dtype, values, n, counts);
    }));
    if (rank < counts.below && range.lower > possible.lower) {
      range = possible = {possible.lower, range.lower - 1};
      continue;
    }
    uint64_t left = rank - counts.below;
    const auto found = [&](uint32_t found_key) {
      key = found_key;
      rank = left;
      return absl::OkStatus();
    };
    if (left < counts.at_lower || range.lower == possible.upper) return found(range.lower);
    left -= counts.at_lower;
    size_t bucket = 0;
    while (bucket < counts.between.size() && counts.between[bucket] <= left) left -= counts.between[bucket++];
    if (bucket < counts.between.size()) {
      const auto first = static_cast<uint32_t>(range.lower + (bucket << shift));
      if (shift == 0) return found(first);
      range = possible = {first, std::min(range.upper, first + (1u << shift) - 1)};
    } else if (left < counts.at_upper || range.upper == possible.upper) {
      return found(range.upper);
    } else {
      range = possible = {range.upper + 1, possible.upper};
    }
  }
}

}  // namespace kvcompress
