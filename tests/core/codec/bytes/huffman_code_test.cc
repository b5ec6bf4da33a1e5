#include "core/codec/bytes/huffman_code.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

namespace kvcompress {
namespace {

uint64_t Cost(const Histogram& counts, const CodeLengths& lengths) {
  uint64_t bits = 0;
  for (size_t s = 0; s < 256; ++s) bits += uint64_t{counts[s]} * lengths[s];
  return bits;
}

// The fewest bits of any code, by trying every length for every symbol: best[n] is the least for the symbols so far in
// n slots.
uint64_t LeastCost(const Histogram& counts) {
  constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
  std::vector<uint64_t> best(kCodeSlots + 1, kNone);
  best[0] = 0;
  for (const uint32_t count : counts) {
    if (count == 0) continue;
    std::vector<uint64_t> next(kCodeSlots + 1, kNone);
    for (int bits = 1; bits <= kMaxCodeBits; ++bits) {
      const uint32_t slots = kCodeSlots >> bits;
      for (uint32_t n = slots; n <= kCodeSlots; ++n) {
        if (best[n - slots] != kNone) next[n] = std::min(next[n], best[n - slots] + uint64_t{count} * bits);
      }
    }
    best = next;
  }
  return *std::min_element(best.begin(), best.end());
}

uint32_t SlotSum(const CodeLengths& lengths) {
  uint32_t sum = 0;
  for (const uint8_t bits : lengths) sum += bits > 0 ? kCodeSlots >> bits : 0;
  return sum;
}

std::vector<Histogram> Histograms() {
  std::vector<Histogram> all;
  Histogram fibonacci = {};  // whose best code without a limit has 39 bits
  fibonacci[0] = fibonacci[1] = 1;
  for (size_t s = 2; s < 40; ++s) fibonacci[s] = fibonacci[s - 1] + fibonacci[s - 2];
  all.push_back(fibonacci);
  Histogram even;
  even.fill(7);
  all.push_back(even);
  even[255] = 1u << 31;
  all.push_back(even);
  std::mt19937 random(1);
  for (const uint32_t symbols : {2u, 3u, 5u, 40u, 255u}) {
    for (const uint32_t spread : {2u, 10u, 25u}) {
      Histogram counts = {};
      for (uint32_t i = 0; i < symbols; ++i) {
        const auto drawn = static_cast<uint32_t>(random());
        counts[(7 + 3 * i) % 256] = 1 + (drawn >> (7 + random() % spread));
      }
      all.push_back(counts);
    }
  }
  return all;
}

TEST(HuffmanCodeTest, LengthsAreTheBestWithinTheLimit) {
  for (const Histogram& counts : Histograms()) {
    const CodeLengths lengths = OptimalLengths(counts);
    EXPECT_LE(*std::max_element(lengths.begin(), lengths.end()), kMaxCodeBits);
    EXPECT_EQ(SlotSum(lengths), kCodeSlots);
    for (size_t s = 0; s < 256; ++s) EXPECT_EQ(lengths[s] > 0, counts[s] > 0);
    EXPECT_EQ(Cost(counts, lengths), LeastCost(counts));
  }
}

TEST(HuffmanCodeTest, TextsOfLengthsReadBack) {
  for (const Histogram& counts : Histograms()) {
    const CodeLengths lengths = OptimalLengths(counts);
    std::vector<std::byte> text(kMaxLengthsBytes);
    auto* begin = reinterpret_cast<uint8_t*>(text.data());
    text.resize(static_cast<size_t>(WriteLengths(lengths, begin) - begin));
    CodeLengths read;
    EXPECT_EQ(ReadLengths(text, read), text.size());
    EXPECT_EQ(read, lengths);
    for (size_t keep = 0; keep < text.size(); ++keep) EXPECT_EQ(ReadLengths(ByteSpan(text).first(keep), read), 0u);
  }
}

TEST(HuffmanCodeTest, TheLongestTextOfLengthsFits) {
  CodeLengths lengths = {};
  for (size_t s = 1; s < 256; s += 2) lengths[s] = 7;
  std::vector<uint8_t> text(kMaxLengthsBytes + 1);
  EXPECT_EQ(static_cast<size_t>(WriteLengths(lengths, text.data()) - text.data()), kMaxLengthsBytes);
}

TEST(HuffmanCodeTest, RefusesLengthsThatMakeNoCode) {
  CodeLengths lengths;
  const auto refused = [&](const std::vector<int>& text) {
    std::vector<std::byte> bytes;
    for (const int byte : text) bytes.push_back(static_cast<std::byte>(byte));
    return ReadLengths(bytes, lengths) == 0;
  };
  EXPECT_FALSE(refused({0x11}));
  EXPECT_FALSE(refused({0x21, 0x02}));
  EXPECT_TRUE(refused({}));
  EXPECT_TRUE(refused({0x01}));                    // ends within a run
  EXPECT_TRUE(refused({0x21}));                    // ends before the code is complete
  EXPECT_TRUE(refused({0x2c}));                    // 12 bits
  EXPECT_TRUE(refused({0x12, 0x11}));              // 2, 1, 1: more than complete
  EXPECT_TRUE(refused({0xf0, 0xff, 0xf0, 0xff}));  // runs past the last value
  EXPECT_TRUE(refused({0x21, 0x12}));              // a bit behind the lengths that belongs to nothing
}

}  // namespace
}  // namespace kvcompress
