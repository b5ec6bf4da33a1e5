#include <gmock/gmock.h>

#include <algorithm>

#include "core/codec/histogram.h"
#include "tests/core/codec/bytes/byte_streams.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// What huffman, arithmetic and cabac have to do alike.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

Bytes TwoSymbols(size_t count) {
  Bytes bytes = Geometric(count, 0.3);
  for (std::byte& byte : bytes) byte = byte == std::byte{0} ? std::byte{255} : std::byte{17};
  return bytes;
}

// All 256 byte values, over and over.
Bytes Ramp(size_t count) {
  Bytes bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

// Nearly constant, with each value once.
Bytes OneOfEach(size_t count) {
  Bytes bytes(count, std::byte{9});
  for (size_t s = 0; s < 256 && count >= 256; ++s) bytes[s * (count / 256)] = static_cast<std::byte>(s);
  return bytes;
}

// Statistics that change on the way.
Bytes Changing(size_t count) {
  Bytes bytes = Geometric(count, 0.5);
  for (size_t i = 0; i < count; ++i) bytes[i] ^= static_cast<std::byte>(i / (count / 5 + 1) * 50);
  return bytes;
}

std::vector<Bytes> AllDistributions(size_t size) {
  return {Bytes(size),          Bytes(size, std::byte{200}),
          TwoSymbols(size),     Geometric(size, 0.02),
          Geometric(size, 0.5), Geometric(size, 0.9),
          MakeBits(size),       Ramp(size),
          OneOfEach(size),      Changing(size)};
}

class ByteCoderTest : public ::testing::TestWithParam<const char*> {
 protected:
  const std::unique_ptr<ByteCodec> codec_ = MakeByteCodec(GetParam());

  bool is_huffman() const { return GetParam() == std::string_view("huffman"); }

  // Encodes into `room` bytes, and sees to it that none behind them changes.
  Bytes Encode(const Bytes& raw, size_t room) {
    constexpr auto kGuard = std::byte{0xa5};
    Bytes encoded(room + 64, kGuard);
    const auto size = codec_->Encode(raw, MutableByteSpan(encoded).first(room));
    EXPECT_THAT(size, IsOk());
    EXPECT_LE(*size, room);
    EXPECT_TRUE(std::all_of(encoded.begin() + static_cast<ptrdiff_t>(room), encoded.end(),
                            [&](std::byte byte) { return byte == kGuard; }));
    encoded.resize(*size);
    return encoded;
  }
  Bytes Encode(const Bytes& raw) { return Encode(raw, raw.size()); }

  void ExpectRoundTrip(const Bytes& raw) {
    // With more room than the chain gives, so that streams that grow are tried as well.
    for (const size_t room : {raw.size(), 3 * raw.size() + 1000}) {
      const Bytes encoded = Encode(raw, room);
      if (encoded.empty()) {
        ASSERT_TRUE(room == raw.size() || raw.size() < 2 || !SeemsToShrink(raw));
        continue;
      }
      Bytes decoded(raw.size());
      ASSERT_THAT(codec_->Decode(encoded, decoded), IsOk()) << raw.size();
      ASSERT_EQ(decoded, raw);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Codecs, ByteCoderTest, ::testing::Values("huffman", "arithmetic", "cabac"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(ByteCoderTest, RoundTripsSmallStreamsOfEverySize) {
  for (size_t size = 0; size <= 70; ++size) {
    for (const Bytes& raw : AllDistributions(size)) ExpectRoundTrip(raw);
  }
}

TEST_P(ByteCoderTest, RoundTripsLargeStreams) {
  for (const size_t size : {255, 256, 1000, 4093, 4095, 4096, 4097, 4098, 4099, 8191, 65537, 131072, 300'007}) {
    for (const Bytes& raw : AllDistributions(size)) ExpectRoundTrip(raw);
  }
}

TEST_P(ByteCoderTest, ComesCloseToTheEntropy) {
  for (const double base : {0.4, 0.5, 0.8, 0.95}) {
    const Bytes raw = Geometric(1 << 17, base);
    const auto size = static_cast<double>(Encode(raw).size());
    EXPECT_GT(size, 0);
    EXPECT_LT(size, EntropyBytes(raw) * 1.035) << base;
  }
}

TEST_P(ByteCoderTest, ConstantStreamsTakeAlmostNothing) {
  const Bytes raw(1 << 17, std::byte{77});
  const Bytes encoded = Encode(raw);
  EXPECT_GT(encoded.size(), 0u);
  EXPECT_LT(encoded.size(), raw.size() / 200);
}

TEST_P(ByteCoderTest, WhatDoesNotFitIsLeftOut) {
  for (const Bytes& raw : {Geometric(3001, 0.6), Geometric(20'001, 0.6)}) {
    const size_t needed = Encode(raw).size();
    ASSERT_GT(needed, 100u);
    for (size_t room = 0; room < needed; room += room < 64 || room + 64 > needed ? 1 : needed / 10) {
      EXPECT_EQ(Encode(raw, room).size(), 0u) << room;
    }
  }
  EXPECT_EQ(Encode(MakeBits(1 << 16)).size(), 0u);
  EXPECT_EQ(Encode({}).size(), 0u);
}

TEST_P(ByteCoderTest, EarlierCallsChangeNothing) {
  const Bytes raw = Geometric(10'000, 0.7);
  const Bytes first = Encode(raw);
  for (const Bytes& other : AllDistributions(50'001)) Encode(other);
  EXPECT_EQ(Encode(raw), first);
}

// Streams below are in exactly as many bytes as they have, so that a sanitizer sees reads and writes next to them.
TEST_P(ByteCoderTest, RefusesEveryTruncationAndWhatIsTooLong) {
  for (const size_t size : {300, 4500}) {
    const Bytes raw = Geometric(size, 0.5);
    const Bytes encoded = Encode(raw);
    ASSERT_GT(encoded.size(), 0u);
    Bytes decoded(raw.size());
    for (size_t keep = 0; keep < encoded.size(); ++keep) {
      if (keep == 1 && is_huffman()) continue;  // one byte, repeated: a stream in its own right
      const Bytes cut(encoded.begin(), encoded.begin() + static_cast<ptrdiff_t>(keep));
      EXPECT_THAT(codec_->Decode(cut, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)) << keep;
    }
    for (size_t more = 1; more <= 9; ++more) {
      Bytes longer = encoded;
      longer.resize(encoded.size() + more);
      EXPECT_THAT(codec_->Decode(longer, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)) << more;
    }
  }
}

TEST_P(ByteCoderTest, NoFlippedBitGoesUnnoticed) {
  for (const size_t size : {300, 4500}) {
    const Bytes raw = Geometric(size, 0.6);
    const Bytes encoded = Encode(raw);
    ASSERT_GT(encoded.size(), 0u);
    size_t refused = 0;
    for (size_t bit = 0; bit < 8 * encoded.size(); ++bit) {
      Bytes damaged = encoded;
      damaged[bit / 8] ^= std::byte{1} << bit % 8;
      Bytes decoded(raw.size());
      const absl::Status status = codec_->Decode(damaged, decoded);
      if (status.ok()) {
        EXPECT_NE(decoded, raw) << bit;
      } else {
        EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
        ++refused;
      }
    }
    // Prefix codes come back into step after a fault, and often end where they should; a range coder's state does not.
    EXPECT_GE(static_cast<double>(refused), (is_huffman() ? 0.2 : 0.99) * 8 * static_cast<double>(encoded.size()));
  }
}

TEST_P(ByteCoderTest, SurvivesAnyBytes) {
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) {
    const size_t size = random() % 200;
    Bytes bytes = MakeBits(size, static_cast<uint32_t>(random()));
    for (size_t k = 0; k < size && i % 3 > 0; ++k) bytes[k] &= std::byte{0x33};  // more often a table than at random
    Bytes decoded(random() % 10'000);
    EXPECT_THAT(codec_->Decode(bytes, decoded),
                ::testing::AnyOf(IsOk(), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)));
  }
}

// Zstandard's library would take them.
TEST(ZstdTest, AStreamOfTwoFramesIsRefused) {
  const auto codec = MakeByteCodec("zstd");
  const Bytes raw = Geometric(3000, 0.5);
  Bytes encoded(raw.size());
  encoded.resize(*codec->Encode(raw, encoded));
  Bytes decoded(raw.size());
  ASSERT_THAT(codec->Decode(encoded, decoded), IsOk());

  Bytes with_skippable = encoded;  // RFC 8878, 3.1.2: a frame of user data, here of none
  for (const int byte : {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}) with_skippable.push_back(static_cast<std::byte>(byte));
  EXPECT_THAT(codec->Decode(with_skippable, decoded),
              StatusIs(absl::StatusCode::kDataLoss, "zstd: stream is more than one frame"));

  Bytes twice = encoded;
  twice.insert(twice.end(), encoded.begin(), encoded.end());
  Bytes both(2 * raw.size());
  EXPECT_THAT(codec->Decode(twice, both), StatusIs(absl::StatusCode::kDataLoss, "zstd: stream is more than one frame"));
}

}  // namespace
}  // namespace kvcompress
