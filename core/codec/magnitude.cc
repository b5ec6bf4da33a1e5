#include "core/codec/magnitude.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

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

absl::StatusOr<std::vector<uint32_t>> SampleKeys(const ByteSource& source, DType dtype, size_t block_elements,
                                                 KeyOrder order) {
  constexpr uint64_t kMaxSamples = 16384;
  constexpr uint64_t kMinSamples = 512;
  const uint64_t count = source.size() / DTypeSize(dtype);
  const uint64_t wanted = std::clamp(count / 64, kMinSamples, kMaxSamples);
  std::vector<uint32_t> samples;
  samples.reserve(wanted + source.size() / (block_elements * DTypeSize(dtype)) + 1);
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
  return samples;
}

// Keys of samples, of which those at some places in their order are asked for. By buckets of the keys' first bits, most
// samples are told apart without a branch that nobody foresees.
class SampledKeys {
 public:
  SampledKeys(std::vector<uint32_t> keys, uint32_t largest) : keys_(std::move(keys)), near_(keys_.size()) {
    while (largest >> shift_ >= counts_.size()) ++shift_;
    for (const uint32_t key : keys_) ++counts_[key >> shift_];
  }

  size_t size() const { return keys_.size(); }

  // The one at this place, from 0, below size().
  uint32_t At(size_t place) {
    uint32_t bucket = 0;
    while (counts_[bucket] <= place) place -= counts_[bucket++];
    size_t count = 0;
    for (const uint32_t key : keys_) {
      near_[count] = key;
      count += key >> shift_ == bucket ? 1 : 0;
    }
    const auto nth = near_.begin() + static_cast<ptrdiff_t>(place);
    std::nth_element(near_.begin(), nth, near_.begin() + static_cast<ptrdiff_t>(count));
    return *nth;
  }

 private:
  std::vector<uint32_t> keys_;
  std::vector<uint32_t> near_;  // keys of a bucket, and what is overwritten
  int shift_ = 0;
  std::array<uint32_t, 1024> counts_ = {};
};

// A key that is sought: the keys about the ends of a range are counted, which becomes smaller until the key is known:
// after one look at the values, most often, and nearly always where keys have 16 bits and the sample told the truth.
class Search {
 public:
  Search(RankedKey& wanted, uint64_t count, KeyRange all, SampledKeys& samples)
      : wanted_(&wanted), count_(count), possible_(all), range_{all.upper, all.upper} {
    if (wanted.rank >= count) return;
    // Between which keys the one at `rank` is likely to lie.
    const double part = static_cast<double>(wanted.rank) / static_cast<double>(count);
    const auto size = static_cast<double>(samples.size());
    // Deviations of how many of the samples come before the one at `rank`: with more of them, counting more keys costs
    // more than the second looks that it spares.
    const double doubt = 3.5 * std::sqrt(size * part * (1 - part)) + 2;
    const auto key_at = [&](double place) { return samples.At(static_cast<size_t>(place)); };
    range_ = all;
    if (part * size - doubt >= 0) range_.lower = key_at(part * size - doubt);
    if (part * size + doubt < size) range_.upper = key_at(part * size + doubt);
  }

  KeyCounts NewCounts() const {
    // More of them than there are values to count cost more than they tell.
    const uint64_t buckets = std::clamp<uint64_t>(count_, 1u << 12, 1u << 15);
    int shift = 0;
    while ((range_.upper - range_.lower) >> shift > buckets) ++shift;
    return {range_.lower, range_.upper, shift};
  }

  // Whether `counts` of all values tell the key; else the range is smaller.
  bool Finds(const KeyCounts& counts) {
    if (wanted_->rank < counts.below && range_.lower > possible_.lower) {
      return Narrow({possible_.lower, range_.lower - 1});
    }
    uint64_t left = wanted_->rank - counts.below;
    if (left < counts.at_lower || range_.lower == possible_.upper) return Set(range_.lower, left);
    left -= counts.at_lower;
    size_t bucket = 0;
    while (bucket < counts.between.size() && counts.between[bucket] <= left) left -= counts.between[bucket++];
    if (bucket < counts.between.size()) {
      const auto first = static_cast<uint32_t>(range_.lower + (bucket << counts.shift));
      if (counts.shift == 0) return Set(first, left);
      return Narrow({first, std::min(range_.upper, first + (1u << counts.shift) - 1)});
    }
    if (left < counts.at_upper || range_.upper == possible_.upper) return Set(range_.upper, left);
    return Narrow({range_.upper + 1, possible_.upper});
  }

 private:
  bool Set(uint32_t key, uint64_t place) {
    *wanted_ = {.rank = place, .key = key};
    return true;
  }
  bool Narrow(KeyRange range) {
    range_ = possible_ = range;
    return false;
  }

  RankedKey* wanted_;
  uint64_t count_;
  KeyRange possible_;
  KeyRange range_;
};

}  // namespace

absl::Status SelectKeys(const ByteSource& source, DType dtype, size_t block_elements, KeyOrder order,
                        std::span<RankedKey> wanted) {
  const uint64_t count = source.size() / DTypeSize(dtype);
  std::vector<Search> searches;
  {  // What is counted takes the memory of the samples: with both at once the heap would grow, and shrink after each
     // call.
    const KeyRange all{0, LargestKey(order, dtype)};
    KVC_ASSIGN_OR_RETURN(std::vector<uint32_t> keys, SampleKeys(source, dtype, block_elements, order));
    SampledKeys samples(std::move(keys), all.upper);
    for (RankedKey& one : wanted) searches.emplace_back(one, count, all, samples);
  }
  while (!searches.empty()) {
    std::vector<KeyCounts> counts;
    counts.reserve(searches.size());
    for (const Search& search : searches) counts.push_back(search.NewCounts());
    KVC_RETURN_IF_ERROR(ForEachBlock(source, dtype, block_elements, [&](const std::byte* values, size_t n) {
      for (KeyCounts& own : counts) simd::CountKeys(order, dtype, values, n, own);
    }));
    std::vector<Search> left;
    for (size_t i = 0; i < searches.size(); ++i) {
      if (!searches[i].Finds(counts[i])) left.push_back(searches[i]);
    }
    searches = std::move(left);
  }
  return absl::OkStatus();
}

absl::Status SelectKey(const ByteSource& source, DType dtype, size_t block_elements, KeyOrder order, uint64_t& rank,
                       uint32_t& key) {
  RankedKey wanted{.rank = rank};
  KVC_RETURN_IF_ERROR(SelectKeys(source, dtype, block_elements, order, {&wanted, 1}));
  rank = wanted.rank;
  key = wanted.key;
  return absl::OkStatus();
}

}  // namespace kvcompress
