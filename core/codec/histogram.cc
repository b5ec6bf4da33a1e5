#include "core/codec/histogram.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/simd/histogram.h"

namespace kvcompress {
namespace {

constexpr uint32_t kQuick = 4096;
constexpr auto kLog2 = [] {
  std::array<uint16_t, kQuick + 1> logs{};
  for (uint32_t n = 1; n <= kQuick; ++n) logs[n] = static_cast<uint16_t>(FixedLog2(n));
  return logs;
}();

constexpr size_t kMaxBytes = size_t{1} << 31;
constexpr size_t kSampledBytes = size_t{1} << 15;
constexpr size_t kRun = 64;
constexpr size_t kEvery = 16;

// Equal bytes in a row would wait for each other's counter: so each of eight neighbours has its own.
constexpr size_t kWays = 8;
using Ways = std::array<Histogram, kWays>;

void CountWays(ByteSpan raw, Ways& counts) {
  size_t i = 0;
  for (; i + kWays <= raw.size(); i += kWays) {
    const auto bytes = LoadLE<uint64_t>(raw.data() + i);
    for (size_t way = 0; way < kWays; ++way) ++counts[way][bytes >> 8 * way & 0xff];
  }
  for (; i < raw.size(); ++i) ++counts[i % kWays][std::to_integer<size_t>(raw[i])];
}

// Adds every `step`th of the ways to `sum`.
void AddWays(const Ways& counts, size_t first, size_t step, Histogram& sum) {
  for (size_t way = first; way < kWays; way += step) {
    for (size_t s = 0; s < sum.size(); ++s) sum[s] += counts[way][s];
  }
}

// Part of a stream, and the second bytes of its pairs.
struct Sample {
  Histogram all = {};
  Histogram seconds = {};
};

Sample CountSample(ByteSpan raw) {
  thread_local std::vector<std::byte> bytes;
  bytes.resize(raw.size() / (kRun * kEvery) * kRun);
  for (size_t i = 0; i < bytes.size(); i += kRun) std::memcpy(bytes.data() + i, raw.data() + i * kEvery, kRun);
  Ways counts = {};
  CountWays(bytes, counts);
  Sample sample;
  AddWays(counts, 1, 2, sample.seconds);
  sample.all = sample.seconds;
  AddWays(counts, 0, 2, sample.all);
  return sample;
}

uint64_t Total(const Histogram& counts) { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }

bool Shrinks(const Histogram& sample) {
  const uint64_t size = Total(sample);
  return EntropyBits(sample) < 8 * (size - size / 128);
}

// Whether pairs are counted sooner than bytes: in a stream that is long, where the second ones of pairs are few enough
// for the counters of theirs to stay in the cache: half a KiB for each.
bool HasFewPairs(const Sample& sample, size_t size) {
  constexpr size_t kPairedBytes = size_t{1} << 16;
  constexpr uint64_t kMostBits = 25;  // in quarters
  return size >= kPairedBytes && 4 * EntropyBits(sample.seconds) < kMostBits * Total(sample.seconds);
}

// CountBytes, faster if the bytes are few different ones, or pairs of them are, as the sample of them shows.
Histogram CountBytesLike(const Sample& sample, ByteSpan raw) {
  // More bytes than these, outside of the few, are better counted one by one like the others.
  constexpr uint64_t kOthersOf = 64;
  std::array<uint8_t, 256> symbols;
  std::iota(symbols.begin(), symbols.end(), uint8_t{0});
  const auto more_often = [&all = sample.all](uint8_t a, uint8_t b) {
    return all[a] != all[b] ? all[a] > all[b] : a < b;
  };
  std::partial_sort(symbols.begin(), symbols.begin() + simd::kFewSymbols, symbols.end(), more_often);
  std::array<uint8_t, simd::kFewSymbols> few;
  std::copy_n(symbols.begin(), few.size(), few.begin());
  uint64_t others = 0;
  for (size_t i = few.size(); i < symbols.size(); ++i) others += sample.all[symbols[i]];
  const auto* const bytes = reinterpret_cast<const uint8_t*>(raw.data());
  Histogram counts = {};
  if (others <= Total(sample.all) / kOthersOf) {
    simd::CountFew(few, bytes, raw.size(), counts);
  } else if (HasFewPairs(sample, raw.size())) {
    simd::CountPairs(bytes, raw.size(), counts);
  } else {
    counts = CountBytes(raw);
  }
  return counts;
}

}  // namespace

Histogram CountBytes(ByteSpan raw) {
  Ways counts = {};
  CountWays(raw, counts);
  Histogram sum = {};
  AddWays(counts, 0, 1, sum);
  return sum;
}

uint32_t QuickLog2(uint32_t n) { return n <= kQuick ? kLog2[n] : FixedLog2(n); }

uint64_t EntropyBits(const Histogram& counts) {
  const auto size = std::accumulate(counts.begin(), counts.end(), uint32_t{0});
  if (size == 0) return 0;
  uint64_t bits = uint64_t{size} * FixedLog2(size);  // in units of 1/4096
  for (const uint32_t count : counts) bits -= count > 0 ? uint64_t{count} * QuickLog2(count) : 0;
  return bits / 4096;
}

bool SeemsToShrink(ByteSpan raw) {
  return raw.size() < kSampledBytes || (raw.size() <= kMaxBytes && Shrinks(CountSample(raw).all));
}

Histogram CountBytesSoon(ByteSpan raw) {
  return raw.size() < kSampledBytes ? CountBytes(raw) : CountBytesLike(CountSample(raw), raw);
}

std::optional<Histogram> CountIfItShrinks(ByteSpan raw) {
  if (raw.size() < kSampledBytes) return CountBytes(raw);
  if (raw.size() > kMaxBytes) return std::nullopt;
  const Sample sample = CountSample(raw);
  if (!Shrinks(sample.all)) return std::nullopt;
  return CountBytesLike(sample, raw);
}

}  // namespace kvcompress
