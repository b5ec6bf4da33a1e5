#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/simd/histogram.cc"
#include "core/simd/histogram.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "core/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvcompress::simd::HWY_NAMESPACE {
namespace {

using D8 = hn::ScalableTag<uint8_t>;
using V8 = hn::Vec<D8>;
constexpr size_t kBytes = hn::MaxLanes(D8());

// Counts the bytes of the lanes whose bits are not set in `found`.
HWY_INLINE void CountOthers(const uint8_t* raw, hn::Mask<D8> found, std::array<uint32_t, 256>& counts) {
  HWY_ALIGN uint8_t bits[8] = {};
  hn::StoreMaskBits(D8(), hn::Not(found), bits);
  uint64_t others;
  std::memcpy(&others, bits, sizeof(others));
  if constexpr (kBytes < 64) others &= (uint64_t{1} << kBytes % 64) - 1;
  for (; others != 0; others &= others - 1) ++counts[raw[std::countr_zero(others)]];
}

}  // namespace

// Counts the whole vectors, and returns where they end.
size_t CountFewVectors(const std::array<uint8_t, kFewSymbols>& symbols, const uint8_t* raw, size_t size,
                       std::array<uint32_t, 256>& counts) {
  constexpr size_t kMaxVectors = 255;  // that a counter of 8 bits takes
  const D8 d8;
  const hn::Repartition<uint64_t, D8> d64;
  size_t at = 0;
  while (size - at >= kBytes) {
    V8 seen[kFewSymbols];
    for (V8& v : seen) v = hn::Zero(d8);
    const size_t end = at + std::min(kMaxVectors, (size - at) / kBytes) * kBytes;
    for (; at < end; at += kBytes) {
      const V8 bytes = LoadAt(d8, raw + at);
      V8 found = hn::Zero(d8);
#pragma GCC unroll 16
      for (size_t s = 0; s < kFewSymbols; ++s) {
        const V8 equal = hn::VecFromMask(d8, hn::Eq(bytes, hn::Set(d8, symbols[s])));
        seen[s] = hn::Sub(seen[s], equal);  // -1 for equal
        found = hn::Or(found, equal);
      }
      const auto is_found = hn::MaskFromVec(found);
      if (!hn::AllTrue(d8, is_found)) CountOthers(raw + at, is_found, counts);
    }
    for (size_t s = 0; s < kFewSymbols; ++s) {
      counts[symbols[s]] += static_cast<uint32_t>(hn::GetLane(hn::SumOfLanes(d64, hn::SumsOf8(seen[s]))));
    }
  }
  return at;
}

// Adds pairs that are counted, by the second byte and then by the first, to the counts of both, and makes them zero.
void TakePairs(uint16_t* pairs, std::array<uint32_t, 256>& counts) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::Rebind<uint16_t, decltype(d32)> half;
  const hn::ScalableTag<uint16_t> d16;
  for (size_t second = 0; second < 256; ++second) {
    uint16_t* const row = pairs + 256 * second;
    auto any = hn::Zero(d16);
    for (size_t first = 0; first < 256; first += hn::Lanes(d16)) any = hn::Or(any, hn::LoadU(d16, row + first));
    if (hn::AllTrue(d16, hn::Eq(any, hn::Zero(d16)))) continue;
    auto of_row = hn::Zero(d32);
    for (size_t first = 0; first < 256; first += hn::Lanes(d32)) {
      const auto own = hn::PromoteTo(d32, hn::LoadU(half, row + first));
      hn::StoreU(hn::Add(hn::LoadU(d32, counts.data() + first), own), d32, counts.data() + first);
      hn::StoreU(hn::Zero(half), half, row + first);
      of_row = hn::Add(of_row, own);
    }
    counts[second] += hn::GetLane(hn::SumOfLanes(d32, of_row));
  }
}

}  // namespace kvcompress::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvcompress::simd {

HWY_EXPORT(CountFewVectors);
HWY_EXPORT(TakePairs);

namespace {

constexpr size_t kAtOnce = 8;

uint64_t WordAt(const uint8_t* raw) {
  uint64_t word;
  std::memcpy(&word, raw, sizeof(word));
  return word;
}

// Whether words at the front are those before them.
bool HasRuns(const uint8_t* raw) {
  size_t equal = 0;
  for (size_t at = kAtOnce; at < 32 * kAtOnce; at += kAtOnce) equal += WordAt(raw + at) == WordAt(raw + at - kAtOnce);
  return equal > 4;
}

// Adds `size` bytes, some words, to `pairs`. Equal pairs in a row would wait for each other's counter: with kHasRuns
// words that are those before them are added to `counts` instead, by how often they are.
template <bool kHasRuns>
void AddPairs(const uint8_t* raw, size_t size, uint16_t* pairs, std::array<uint32_t, 256>& counts) {
  uint64_t before = WordAt(raw);
  uint32_t again = 0;
  const auto count_again = [&] {
    for (int k = 0; k < 64; k += 8) counts[before >> k & 0xff] += again;
    again = 0;
  };
  for (const uint8_t* const end = raw + size; raw < end; raw += kAtOnce) {
    const uint64_t bytes = WordAt(raw);
    if (kHasRuns && bytes == before) {
      ++again;
      continue;
    }
    if (kHasRuns && again > 0) count_again();
    before = bytes;
    ++pairs[bytes & 0xffff];
    ++pairs[bytes >> 16 & 0xffff];
    ++pairs[bytes >> 32 & 0xffff];
    ++pairs[bytes >> 48];
  }
  count_again();
}

}  // namespace

void CountFew(const std::array<uint8_t, kFewSymbols>& symbols, const uint8_t* raw, size_t size,
              std::array<uint32_t, 256>& counts) {
  for (size_t i = HWY_DYNAMIC_DISPATCH(CountFewVectors)(symbols, raw, size, counts); i < size; ++i) ++counts[raw[i]];
}

void CountPairs(const uint8_t* raw, size_t size, std::array<uint32_t, 256>& counts) {
  constexpr size_t kMost = size_t{2} * 65535 / kAtOnce * kAtOnce;  // bytes whose pairs 16 bits count, were all the same
  constexpr size_t kLeast = 4096;            // are sooner counted one by one than the table is read
  thread_local std::vector<uint16_t> table;  // all zero between calls
  table.resize(65536);
  size_t i = 0;
  while (size - i >= kLeast) {
    const size_t part = std::min(kMost, (size - i) / kAtOnce * kAtOnce);
    if (HasRuns(raw + i)) {
      AddPairs<true>(raw + i, part, table.data(), counts);
    } else {
      AddPairs<false>(raw + i, part, table.data(), counts);
    }
    HWY_DYNAMIC_DISPATCH(TakePairs)(table.data(), counts);
    i += part;
  }
  for (; i < size; ++i) ++counts[raw[i]];
}

}  // namespace kvcompress::simd
#endif  // HWY_ONCE
