#include "core/frame_values.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "core/tensor_compressor.h"
#include "core/tensor_decompressor.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

// Three blocks, of which the last is short.
TensorDesc Tensor() { return testing::MakeTensor("layer_0_key", DType::kF16, {1, 3, 2000, 48}); }

Bytes FrameOf(const std::string& codec) {
  const TensorDesc tensor = Tensor();
  const auto compressor = TensorCompressor::Create(tensor, codec);
  EXPECT_THAT(compressor, IsOk());
  Bytes frame(compressor->max_frame_bytes());
  const Bytes values = testing::MakeValues(tensor.dtype, 3 * 2000 * 48, testing::Distribution::kGaussian);
  const auto size = compressor->Compress(values, frame);
  EXPECT_THAT(size, IsOk());
  frame.resize(*size);
  return frame;
}

TEST(FrameValuesTest, AnyRangeIsThatOfTheWholeTensor) {
  for (const std::string codec : {"int4", "planes|rans"}) {
    const Bytes frame = FrameOf(codec);
    Bytes whole(3 * 2000 * 48 * 2);
    TensorDecompressor decompressor;
    ASSERT_THAT(decompressor.Decompress(frame, whole), IsOk());
    for (const uint64_t kept : {uint64_t{0}, uint64_t{600'000}, uint64_t{1} << 30}) {
      const MemorySource source{ByteSpan(frame)};
      const auto values = FrameValues::Open(source, kept);
      ASSERT_THAT(values, IsOk());
      ASSERT_EQ((*values)->size(), whole.size());
      EXPECT_EQ((*values)->header().tensor.shape, Tensor().shape);
      std::mt19937 random(1);
      Bytes scratch;
      for (int i = 0; i < 30; ++i) {
        const size_t begin = random() % (whole.size() + 1);
        const size_t count = random() % (whole.size() - begin + 1);
        const auto got = (*values)->Get(begin, count, scratch);
        ASSERT_THAT(got, IsOk());
        EXPECT_TRUE(std::equal(got->begin(), got->end(), whole.begin() + static_cast<ptrdiff_t>(begin),
                               whole.begin() + static_cast<ptrdiff_t>(begin + count)));
      }
      EXPECT_THAT((*values)->Get(whole.size(), 1, scratch), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("end")));
    }
  }
}

TEST(FrameValuesTest, DamageIsFound) {
  const Bytes frame = FrameOf("int4");
  const auto status_of = [](const Bytes& bytes) -> absl::Status {
    const MemorySource source{ByteSpan(bytes)};
    const auto values = FrameValues::Open(source, 0);
    if (!values.ok()) return values.status();
    Bytes scratch;
    return (*values)->Get(0, (*values)->size(), scratch).status();
  };
  EXPECT_THAT(status_of(frame), IsOk());
  for (const size_t size : {size_t{0}, size_t{7}, size_t{60}, size_t{1000}, frame.size() / 2, frame.size() - 1}) {
    EXPECT_THAT(status_of(Bytes(frame.begin(), frame.begin() + static_cast<ptrdiff_t>(size))),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("frame: ")))
        << size;
  }
  Bytes longer = frame;
  longer.push_back({});
  EXPECT_THAT(status_of(longer), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("does not end")));
  Bytes damaged = frame;
  damaged[damaged.size() / 2] ^= std::byte{1};
  EXPECT_THAT(status_of(damaged), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("block 1")));
}

}  // namespace
}  // namespace kvcompress
