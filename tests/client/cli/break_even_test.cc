#include "client/cli/break_even.h"

#include <gtest/gtest.h>

namespace kvcompress {
namespace {

constexpr double kBytes = 8e6;

TEST(BreakEven, SecondsOfACodecAndALink) {
  const CodecFigures codec = {.ratio = 4, .encode = 2e9, .decode = 4e9};
  const BothWays store = StoreSeconds(codec, kBytes, 1e9);
  EXPECT_DOUBLE_EQ(store.serial, 0.004 + 0.002);
  EXPECT_DOUBLE_EQ(store.pipelined, 0.004);
  const BothWays load = LoadSeconds(codec, kBytes, 0.5e9);
  EXPECT_DOUBLE_EQ(load.serial, 0.002 + 0.004);
  EXPECT_DOUBLE_EQ(load.pipelined, 0.004);
}

// At the break-even a codec takes the time that sending uncompressed does, a little below it less, a little above more.
TEST(BreakEven, IsWhereTheTimesAreEqual) {
  const CodecFigures codecs[] = {{.ratio = 4, .encode = 2e9, .decode = 4e9},
                                 {.ratio = 4, .encode = 0.1e9, .decode = 10e9},  // loading waits for the link
                                 {.ratio = 4, .encode = 10e9, .decode = 0.1e9},
                                 {.ratio = 1.3, .encode = 9e9, .decode = 14e9},
                                 {.ratio = 1.3, .encode = 1e9, .decode = 8e9}};
  for (const CodecFigures& codec : codecs) {
    const BreakEven at = BreakEvenOf(codec);
    const auto saved = [&](double bandwidth, bool store, bool load) {
      const double raw = kBytes / bandwidth * (int{store} + int{load});
      const BothWays stored = StoreSeconds(codec, kBytes, bandwidth);
      const BothWays loaded = LoadSeconds(codec, kBytes, bandwidth);
      return BothWays{
          .serial = raw - (store ? stored.serial : 0) - (load ? loaded.serial : 0),
          .pipelined = raw - (store ? stored.pipelined : 0) - (load ? loaded.pipelined : 0),
      };
    };
    for (const auto& [bandwidth, store, load] :
         {std::tuple(at.store, true, false), std::tuple(at.load, false, true), std::tuple(at.both, true, true)}) {
      EXPECT_GT(saved(bandwidth.serial * 0.999, store, load).serial, 0);
      EXPECT_LT(saved(bandwidth.serial * 1.001, store, load).serial, 0);
      EXPECT_GT(saved(bandwidth.pipelined * 0.999, store, load).pipelined, 0);
      EXPECT_LT(saved(bandwidth.pipelined * 1.001, store, load).pipelined, 0);
      EXPECT_GT(bandwidth.pipelined, bandwidth.serial);
    }
  }
}

TEST(BreakEven, WhatSavesNothingNeverPays) {
  for (const double ratio : {0.9, 1.0}) {
    const BreakEven at = BreakEvenOf({.ratio = ratio, .encode = 1e9, .decode = 1e9});
    EXPECT_EQ(at.both.serial, 0);
    EXPECT_EQ(at.store.pipelined, 0);
    EXPECT_EQ(at.load.pipelined, 0);
  }
}

}  // namespace
}  // namespace kvcompress
