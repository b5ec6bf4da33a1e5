#include <gmock/gmock.h>

#include <random>

#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

constexpr size_t kSizeOfStream = 4;  // the size of the only stream

Bytes Encode(const TensorDesc& tensor, const Bytes& values) {
  const auto payload = EncodeOneBlock(MakeChain("exact", tensor), tensor, values, nullptr);
  EXPECT_THAT(payload, IsOk());
  return *payload;
}

absl::Status Decode(const TensorDesc& tensor, const Bytes& payload, Bytes& values) {
  return MakeChain("exact", tensor).DecodeBlock(tensor, payload, values);
}

TEST(ExactTest, AnyBitsComeBackAtAnySize) {
  for (const DType dtype : kAllDTypes) {
    for (const size_t count : {0, 1, 2, 7, 127, 128, 129, 1000, 40'001, 1 << 17}) {
      const TensorDesc tensor = MakeTensor("t", dtype, {count});
      for (const Bytes& values :
           {MakeBits(count * DTypeSize(dtype)), MakeValues(dtype, count, Distribution::kOutliers)}) {
        const Bytes payload = Encode(tensor, values);
        EXPECT_LE(payload.size(), kSizeOfStream + 1 + 4 * (DTypeSize(dtype) - 1) + 4 + values.size());
        Bytes decoded(values.size());
        ASSERT_THAT(Decode(tensor, payload, decoded), IsOk());
        EXPECT_EQ(decoded, values);
      }
    }
  }
}

TEST(ExactTest, EveryTruncationAndWhatIsTooLongIsRefused) {
  const TensorDesc tensor = MakeTensor("t", DType::kF32, {700});
  const Bytes values = MakeValues(DType::kF32, 700, Distribution::kGaussian);
  const Bytes payload = Encode(tensor, values);
  Bytes decoded(values.size());
  for (size_t size = 0; size <= payload.size() + 9; ++size) {
    if (size == payload.size()) continue;
    Bytes other = payload;
    other.resize(size);
    if (size >= kSizeOfStream) StoreLE(static_cast<uint32_t>(size - kSizeOfStream), other.data());
    EXPECT_THAT(Decode(tensor, other, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)) << size;
  }
}

TEST(ExactTest, ModesAndSizesThatNobodyWritesAreRefused) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {700});
  const Bytes values = MakeValues(DType::kF16, 700, Distribution::kGaussian);
  const Bytes payload = Encode(tensor, values);
  Bytes decoded(values.size());
  const auto refused = [&](size_t at, int byte) {
    Bytes damaged = payload;
    damaged[at] = static_cast<std::byte>(byte);
    EXPECT_THAT(Decode(tensor, damaged, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)) << at << byte;
  };
  // The lower plane is stored: nobody stores the higher one in its place, both, or one that values of 2 bytes have not.
  const int mode = std::to_integer<int>(payload[kSizeOfStream]);
  ASSERT_EQ(mode >> 3, 2);
  for (const int stored : {0, 1, 3, 4, 6, 8, 16, 18}) refused(kSizeOfStream, (mode & 7) | stored << 3);
  for (const int delta : {1, 2, 3}) refused(kSizeOfStream, (mode & ~6) | delta << 1);
}

TEST(ExactTest, SizesThatDoNotComeToTheStreamAreRefused) {
  const TensorDesc tensor = MakeTensor("t", DType::kF16, {700});
  Bytes values(1400);
  std::mt19937 random(1);
  for (std::byte& byte : values) byte = static_cast<std::byte>(random() % 5);
  const Bytes payload = Encode(tensor, values);
  ASSERT_EQ(std::to_integer<int>(payload[kSizeOfStream]) >> 3, 0);  // both planes are coded
  Bytes decoded(values.size());
  const auto size = LoadLE<uint32_t>(payload.data() + payload.size() - 4);
  for (const uint32_t other : {0u, 1u, size - 1, size + 1, 699u, 700u, 701u, 1u << 31, ~0u}) {
    Bytes damaged = payload;
    StoreLE(other, damaged.data() + damaged.size() - 4);
    EXPECT_THAT(Decode(tensor, damaged, decoded), StatusIs(absl::StatusCode::kDataLoss, ::testing::_)) << other;
  }
  EXPECT_THAT(Decode(tensor, payload, decoded), IsOk());
  EXPECT_EQ(decoded, values);
}

}  // namespace
}  // namespace kvcompress
