#include "core/simd/prefix_codes.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
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

PrefixRuns RunsOf(const PrefixCodes& codes, size_t symbols) {
  PrefixRuns runs = {};
  for (uint64_t slot = 0; slot < runs.size(); ++slot) {
    uint64_t used = 0, count = 0, bytes = 0;
    while (count < 4) {
      size_t s = 0;
      while ((slot >> used & ((uint64_t{1} << codes.lengths[s]) - 1)) != codes.bits[s]) ++s;
      if (s >= symbols || used + codes.lengths[s] > kMaxPrefixBits) break;
      bytes |= s << 8 * count++;
      used += codes.lengths[s];
    }
    runs[slot] = bytes << 32 | count << 8 | used;
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

class PrefixCodesTest : public ::testing::TestWithParam<int64_t> {
 protected:
  const WithTarget with_{GetParam()};
};

TEST_P(PrefixCodesTest, EncodesBitAfterBit) {
  for (const size_t symbols : {2u, 5u, 12u}) {
    const PrefixCodes codes = UnaryCodes(symbols);
    for (const size_t size : {0u, 1u, 4u, 5u, 6u, 39u, 40u, 10'001u}) {
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
  constexpr size_t kMostLeft = 8 * 8 + 5 * 4;  // bits of 8 bytes, and symbols of a step
  for (const size_t symbols : {2u, 5u, 12u}) {
    const PrefixCodes codes = UnaryCodes(symbols);
    const PrefixRuns runs = RunsOf(codes, symbols);
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
      DecodePrefixRuns(runs, streams);
      for (size_t k = 0; k < streams.size(); ++k) {
        const auto done = static_cast<size_t>(streams[k].out - outs[k].data());
        ASSERT_LE(done, outs[k].size());
        EXPECT_TRUE(outs[k].size() - done <= kMostLeft || ins[k].data() + ins[k].size() - streams[k].in <= 8);
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

INSTANTIATE_TEST_SUITE_P(Targets, PrefixCodesTest, ::testing::ValuesIn(UsableTargets()),
                         [](const auto& test) { return std::string(hwy::TargetName(test.param)); });

}  // namespace
}  // namespace kvcompress::simd
