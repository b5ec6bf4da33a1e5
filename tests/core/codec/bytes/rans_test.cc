#include <gmock/gmock.h>

#include <algorithm>

#include "tests/core/codec/bytes/byte_streams.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

class RansCodecTest : public ::testing::Test {
 protected:
  const std::unique_ptr<ByteCodec> codec_ = MakeByteCodec("rans");

  Bytes Encode(const Bytes& raw) {
    Bytes encoded(raw.size());
    const auto size = codec_->Encode(raw, encoded);
    EXPECT_THAT(size, IsOk());
    encoded.resize(*size);
    return encoded;
  }

  void ExpectRoundTrip(const Bytes& raw) {
    const Bytes encoded = Encode(raw);
    if (encoded.empty()) return;
    EXPECT_LT(encoded.size(), raw.size());
    Bytes decoded(raw.size());
    ASSERT_THAT(codec_->Decode(encoded, decoded), IsOk());
    EXPECT_EQ(decoded, raw);
  }
};

TEST_F(RansCodecTest, ReachesTheEntropyOfLargeStreams) {
  for (const double base : {0.1, 0.5, 0.8, 0.95}) {
    const Bytes raw = Geometric(1 << 17, base);
    const size_t size = Encode(raw).size();
    ASSERT_GT(size, 0u);
    // Besides the entropy: 64 states, the frequencies, and frequencies in whole slots.
    EXPECT_LT(static_cast<double>(size), EntropyBytes(raw) * 1.005 + 4 * 64 + 300) << base;
    ExpectRoundTrip(raw);
  }
}

TEST_F(RansCodecTest, RoundTripsAllSizesAroundTheChangeOfLanes) {
  for (const size_t size : {1, 2, 3, 30, 64, 100, 1000, 4096, 32767, 32768, 32769, 32831, 100'000}) {
    ExpectRoundTrip(Geometric(size, 0.6));
    ExpectRoundTrip(Bytes(size, std::byte{200}));
  }
}

// The frequencies' rounding at its worst: as many rare symbols as there are, beside one that has nearly everything.
TEST_F(RansCodecTest, RoundTripsWhereEverySymbolOccurs) {
  for (const size_t size : {256, 300, 4096, 1 << 16, 3'000'000}) {
    Bytes raw(size, std::byte{9});
    for (size_t s = 0; s < 256; ++s) raw[s * (size / 256)] = static_cast<std::byte>(s);
    ExpectRoundTrip(raw);
  }
  Bytes even(1 << 16);
  for (size_t i = 0; i < even.size(); ++i) even[i] = static_cast<std::byte>(i);
  EXPECT_EQ(Encode(even).size(), 0u);
}

TEST_F(RansCodecTest, ConstantStreamsTakeAFewBytes) {
  EXPECT_LE(Encode(Bytes(20'000, std::byte{250})).size(), 1 + 4 + 4 * 4u);
  EXPECT_LE(Encode(Bytes(100'000, std::byte{0})).size(), 1 + 2 + 4 * 64u);
}

TEST_F(RansCodecTest, LeavesOutWhatHardlyShrinks) {
  EXPECT_EQ(Encode(MakeBits(1 << 16)).size(), 0u);
  EXPECT_EQ(Encode({}).size(), 0u);
  Bytes nearly = MakeBits(1 << 16);
  for (size_t i = 0; i < nearly.size(); i += 100) nearly[i] = std::byte{0};
  EXPECT_LT(EntropyBytes(nearly), static_cast<double>(nearly.size()) * 0.9999);
  EXPECT_EQ(Encode(nearly).size(), 0u);
}

TEST_F(RansCodecTest, NeedsNoMoreRoomThanItIsGiven) {
  const Bytes raw = Geometric(50'000, 0.7);
  const size_t needed = Encode(raw).size();
  for (const size_t room : {size_t{0}, size_t{10}, needed / 2, needed - 300, needed - 1}) {
    Bytes small(room);
    const auto size = codec_->Encode(raw, small);
    ASSERT_THAT(size, IsOk());
    EXPECT_EQ(*size, 0u) << room;
  }
}

TEST_F(RansCodecTest, RefusesFrequenciesThatAreNone) {
  const Bytes raw = Geometric(1000, 0.5);
  const Bytes good = Encode(raw);
  Bytes decoded(raw.size());
  const auto expect_refused = [&](std::vector<uint8_t> head, std::string_view text) {
    Bytes bytes = good;
    for (size_t i = 0; i < head.size(); ++i) bytes[i] = static_cast<std::byte>(head[i]);
    EXPECT_THAT(codec_->Decode(bytes, decoded), StatusIs(absl::StatusCode::kDataLoss, text));
  };
  constexpr std::string_view kDamaged = "rans: frequencies are damaged";
  EXPECT_THAT(codec_->Decode({}, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
  for (const uint8_t lanes : std::vector<uint8_t>{0, 1, 3, 5, 63, 65, 255})
    expect_refused({lanes}, "rans: no such number of lanes");
  expect_refused({4, 0x0e}, kDamaged);                    // a frequency of 14 bits
  expect_refused({4, 0x1d, 0x00, 0x0d, 0x00}, kDamaged);  // 4097 slots
  expect_refused({4, 0xf0, 0xff, 0xf0, 0xff}, kDamaged);  // runs past the last symbol
  Bytes ones(1 + 128, std::byte{0x11});                   // 256 symbols of one slot each
  ones[0] = std::byte{4};
  EXPECT_THAT(codec_->Decode(ones, decoded), StatusIs(absl::StatusCode::kDataLoss, kDamaged));
  EXPECT_THAT(codec_->Decode(Bytes(ones.begin(), ones.begin() + 20), decoded),
              StatusIs(absl::StatusCode::kDataLoss, kDamaged));
  // Byte 3 alone, with all slots: whole; then with a bit behind the frequencies that belongs to nothing.
  Bytes three = {std::byte{4}, std::byte{0x20}, std::byte{0xd0}, std::byte{0x00}, std::byte{0x00}};
  for (int lane = 0; lane < 4; ++lane) {
    for (const uint8_t byte : std::vector<uint8_t>{0x00, 0x80, 0x00, 0x00}) three.push_back(std::byte{byte});
  }
  ASSERT_THAT(codec_->Decode(three, decoded), IsOk());
  EXPECT_THAT(decoded, ::testing::Each(std::byte{3}));
  three[4] = std::byte{0x10};
  EXPECT_THAT(codec_->Decode(three, decoded), StatusIs(absl::StatusCode::kDataLoss, kDamaged));
}

}  // namespace
}  // namespace kvcompress
