#include "core/simd/prefix_codes.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::MayPermuteBytes;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

using Bytes = std::vector<uint8_t>;

// Symbol s has s ones and a zero as its code, but for the last one, which lacks the zero.
PrefixCodes UnaryCodes(size_t symbols) {
  PrefixCodes codes = {};
  for (size_t s = 0; s < symbols; ++s) {
    codes.bits[s] = (uint64_t{1} << s) - 1;
    codes.lengths[s] = std::min(s + 1, symbols - 1);
  }
  return codes;
}

PrefixRuns RunsOf(const PrefixCodes& codes, size_t symbols, size_t most) {
  PrefixRuns runs = {};
  for (uint64_t slot = 0; slot < runs.size(); ++slot) {
    uint64_t used = 0, count = 0, bytes = 0;
    while (count < most) {
      size_t s = 0;
      while ((slot >> used & ((uint64_t{1} << codes.lengths[s]) - 1)) != codes.bits[s]) ++s;
      if (s >= symbols || used + codes.lengths[s] > kMaxPrefixBits) break;
      bytes |= s << 8 * count++;
      used += codes.lengths[s];
    }
    runs[slot] = count << 56 | bytes << 16 | used;
  }
  return runs;
}

Bytes Encoded(const PrefixCodes& codes, const Bytes& raw) {
  Bytes out;
  size_t bit = 0;
  for (const uint8_t symbol : raw) {
    for (size_t i = 0; i < codes.lengths[symbol]; ++i, ++bit) {
      if (bit % 8 == 0) out.push_back(0);
      out.back() = static_cast<uint8_t>(out.back() | (codes.bits[symbol] >> i & 1) << bit % 8);
    }
  }
  return out;
}

Bytes Draw(size_t size, size_t symbols, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes raw(size);
  for (uint8_t& symbol : raw) symbol = static_cast<uint8_t>(random() % symbols);
  return raw;
}

// Codes of 2 to 11 bits for all byte values.
PrefixCodes ManyCodes() {
  PrefixCodes codes = {};
  uint64_t slot = 0;
  for (size_t i = 0; i < 256; ++i) {
    const size_t s = i * 37 % 256;
    const uint64_t length = i < 1 ? 2 : i < 3 ? 4 : i < 7 ? 6 : i < 136 ? 8 : 11;
    codes.lengths[s] = length;
    for (uint64_t bit = 0; bit < length; ++bit) codes.bits[s] |= (slot >> (kMaxPrefixBits - 1 - bit) & 1) << bit;
    slot += uint64_t{1} << (kMaxPrefixBits - length);
  }
  EXPECT_EQ(slot, uint64_t{1} << kMaxPrefixBits);
  return codes;
}

PrefixCodes CodesFor(size_t symbols) { return symbols == 256 ? ManyCodes() : UnaryCodes(symbols); }

TEST(PrefixRunsTest, AreTheCodesThatASlotHoldsWhole) {
  const auto runs = std::make_unique<PrefixRuns>();
  for (const size_t symbols : {2u, 5u, 12u, 256u}) {
    const PrefixCodes codes = CodesFor(symbols);
    for (const size_t most : {1, 4}) {
      MakePrefixRuns(codes, *runs, most);
      EXPECT_EQ(*runs, RunsOf(codes, symbols, most)) << symbols << " " << most;
    }
  }
}

// With and without instructions that a target does not promise.
class PrefixCodesTest : public ::testing::TestWithParam<std::tuple<int64_t, bool>> {
 protected:
  const WithTarget with_{std::get<0>(GetParam())};
  const MayPermuteBytes permutes_{std::get<1>(GetParam())};
};

TEST_P(PrefixCodesTest, EncodesBitAfterBit) {
  for (const size_t symbols : {2u, 5u, 12u, 256u}) {
    const PrefixCodes codes = CodesFor(symbols);
    for (const size_t size : {0u, 1u, 4u, 5u, 6u, 39u, 40u, 63u, 64u, 65u, 127u, 128u, 129u, 191u, 192u, 10'001u}) {
      const Bytes raw = Draw(size, symbols, static_cast<uint32_t>(size));
      const Bytes expected = Encoded(codes, raw);
      const Guarded in(raw.data(), size, Guarded::Against::kPageAfter);
      Guarded out(expected.size() + 8, Guarded::Against::kPageAfter);
      ASSERT_EQ(EncodePrefixCodes(codes, in.data(), size, out.data()), out.data() + expected.size());
      EXPECT_TRUE(std::ranges::equal(expected, Bytes(out.data(), out.data() + expected.size())));
    }
  }
}

// Also where the bytes of a stream end before its symbols do, or the other way round, and where streams differ in size.
TEST_P(PrefixCodesTest, DecodesUntilAStreamIsNearItsEnd) {
  constexpr ptrdiff_t kBytesLeft = 16;                  // fewer than a step needs
  constexpr size_t kMostLeft = 8 * kBytesLeft + 5 * 4;  // their bits, and symbols of a step
  for (const size_t symbols : {2u, 5u, 12u, 256u}) {
    const PrefixCodes codes = CodesFor(symbols);
    const auto runs = std::make_unique<PrefixRuns>();
    MakePrefixRuns(codes, *runs);
    for (const size_t size : {0u, 7u, 100u, 5000u}) {
      const Bytes raw = Draw(4 * size, symbols, 3);
      std::array<PrefixStream, kPrefixStreams> streams;
      std::deque<Guarded> ins, outs;
      for (size_t k = 0; k < streams.size(); ++k) {
        const Bytes own(raw.begin() + static_cast<ptrdiff_t>(k * size),
                        raw.begin() + static_cast<ptrdiff_t>((k + 1) * size - (k == 2 ? size / 2 : 0)));
        const Bytes coded = Encoded(codes, own);
        ins.emplace_back(coded.data(), coded.size(), Guarded::Against::kPageAfter);
        outs.emplace_back(k == 3 ? own.size() / 3 : own.size(), Guarded::Against::kPageAfter);
      }
      for (size_t k = 0; k < streams.size(); ++k) {
        streams[k] = {ins[k].data(), 0, ins[k].data() + ins[k].size(), outs[k].data(), outs[k].data() + outs[k].size()};
      }
      DecodePrefixRuns(*runs, streams);
      for (size_t k = 0; k < streams.size(); ++k) {
        const auto done = static_cast<size_t>(streams[k].out - outs[k].data());
        ASSERT_LE(done, outs[k].size());
        EXPECT_TRUE(outs[k].size() - done <= kMostLeft || ins[k].data() + ins[k].size() - streams[k].in < kBytesLeft);
        EXPECT_TRUE(std::equal(outs[k].data(), outs[k].data() + done, raw.begin() + static_cast<ptrdiff_t>(k * size)));
        const Bytes before(raw.begin() + static_cast<ptrdiff_t>(k * size),
                           raw.begin() + static_cast<ptrdiff_t>(k * size + done));
        uint64_t bits = 0;
        for (const uint8_t symbol : before) bits += codes.lengths[symbol];
        EXPECT_EQ(8 * static_cast<uint64_t>(streams[k].in - ins[k].data()) + streams[k].bit, bits);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, PrefixCodesTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::Bool()),
                         [](const auto& test) {
                           return std::string(hwy::TargetName(std::get<0>(test.param))) +
                                  (std::get<1>(test.param) ? "_permutes" : "");
                         });

}  // namespace
}  // namespace kvcompress::simd
