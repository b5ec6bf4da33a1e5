#include <gmock/gmock.h>

#include <cstring>
#include <limits>

#include "absl/strings/str_format.h"
#include "core/base/half.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using Bytes = std::vector<std::byte>;

constexpr std::string_view kSpec = "heads(0-1:raw,2:int8(group=64)|rans,3-:int4(group=32))";

struct Encoded {
  absl::Status status;
  Bytes payload;
};

Encoded EncodeAt(const CodecChain& chain, const TensorDesc& tensor, uint64_t first, ByteSpan values) {
  const size_t count = values.size() / DTypeSize(tensor.dtype);
  const ChainState state = *chain.Analyze(tensor, MemorySource(values), count);
  Bytes payload(chain.MaxPayloadBytes(tensor, count));
  const absl::StatusOr<size_t> size = chain.EncodeBlock({tensor, first, count, values}, state, payload, nullptr);
  payload.resize(size.value_or(0));
  return {size.status(), payload};
}

// What a part's chain makes of values: nothing, where they are no larger than their payload.
Bytes Through(std::string_view spec, const TensorDesc& tensor, const Bytes& values) {
  const CodecChain chain = MakeChain(spec);
  const Bytes payload = EncodeAt(chain, tensor, 0, values).payload;
  if (payload.size() >= values.size()) return values;
  Bytes decoded(values.size());
  EXPECT_THAT(chain.DecodeBlock(tensor, payload, decoded), IsOk());
  return decoded;
}

TensorDesc Tensor(std::vector<uint64_t> shape, std::vector<AxisRole> axes) {
  return {.name = "t", .dtype = DType::kF16, .shape = std::move(shape), .axes = std::move(axes)};
}

constexpr AxisRole kHeadsAxis = AxisRole::kHeads;
constexpr AxisRole kOther = AxisRole::kOther;

// Blocks of every kind, against the definition: each part's values, together, through its chain.
TEST(HeadsTest, EachHeadGoesThroughItsOwnChain) {
  const CodecChain chain = MakeChain(kSpec);
  const auto part_of = [](uint64_t head) { return head < 2 ? 0 : head == 2 ? 1 : 2; };
  constexpr std::string_view kParts[] = {"raw", "int8(group=64)|rans", "int4(group=32)"};
  for (const TensorDesc& tensor :
       {Tensor({2, 5, 37, 4}, {AxisRole::kBatch, kHeadsAxis, AxisRole::kSeq, AxisRole::kHeadDim}),
        Tensor({1, 60, 5, 8}, {AxisRole::kBatch, AxisRole::kSeq, kHeadsAxis, AxisRole::kHeadDim}),
        Tensor({1480}, {kHeadsAxis}), Tensor({740, 2}, {kOther, kHeadsAxis}), Tensor({3, 500}, {kHeadsAxis, kOther})}) {
    const size_t total = *NumElements(tensor.shape);
    const auto axis = static_cast<size_t>(std::ranges::find(tensor.axes, kHeadsAxis) - tensor.axes.begin());
    size_t stride = 1;
    for (size_t i = axis + 1; i < tensor.shape.size(); ++i) stride *= tensor.shape[i];
    const Bytes all = MakeValues(DType::kF16, total, Distribution::kGaussian);
    for (const auto& [first, count] :
         {std::pair<size_t, size_t>{0, total}, {0, 1}, {1, 600}, {777, 256}, {1279, 201}}) {
      SCOPED_TRACE(absl::StrFormat("%s from %d, %d values", DescribeTensor(tensor), first, count));
      const Bytes values(all.begin() + 2 * static_cast<ptrdiff_t>(first),
                         all.begin() + 2 * static_cast<ptrdiff_t>(std::min(first + count, total)));
      Bytes parts[3];
      const auto part_at = [&, start = first](size_t i) { return part_of((start + i) / stride % tensor.shape[axis]); };
      for (size_t i = 0; i < values.size() / 2; ++i) {
        parts[part_at(i)].insert(parts[part_at(i)].end(), &values[2 * i], &values[2 * i] + 2);
      }
      for (size_t p = 0; p < 3; ++p) parts[p] = Through(kParts[p], tensor, parts[p]);

      const Encoded encoded = EncodeAt(chain, tensor, first, values);
      ASSERT_THAT(encoded.status, IsOk());
      Bytes decoded(values.size());
      ASSERT_THAT(chain.DecodeBlock(tensor, encoded.payload, decoded), IsOk());
      size_t next[3] = {};
      for (size_t i = 0; i < values.size() / 2; ++i) {
        const size_t p = static_cast<size_t>(part_at(i));
        ASSERT_EQ(std::memcmp(&decoded[2 * i], &parts[p][next[p]], 2), 0) << "value " << i << ", part " << p;
        next[p] += 2;
      }
    }
  }
}

TEST(HeadsTest, OnlyChainsThatKeepEveryBitMakeOneThatDoes) {
  EXPECT_TRUE(MakeChain("heads(0:raw,1-:planes|rans)").lossless());
  EXPECT_FALSE(MakeChain("heads(0:raw,1-:int8)").lossless());
}

TEST(HeadsTest, TensorsMustHaveOneHeadsAxis) {
  const CodecChain chain = MakeChain(kSpec);
  for (const TensorDesc& tensor : {Tensor({8}, {kOther}), Tensor({}, {}), Tensor({2, 4}, {kHeadsAxis, kHeadsAxis})}) {
    EXPECT_THAT(ChainSpec::Parse(kSpec)->Resolve({}, tensor),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         "heads takes tensors with one heads axis only (the axis roles tell which it is)"));
    EXPECT_FALSE(EncodeAt(chain, tensor, 0, Bytes(16)).status.ok());
  }
}

TEST(HeadsTest, AValueThatAChainCannotHoldIsNamedByItsPlaceInTheTensor) {
  const CodecChain chain = MakeChain("heads(0:raw,1-:int8)");
  const TensorDesc tensor = Tensor({100, 2, 4}, {kOther, kHeadsAxis, kOther});
  Bytes values = MakeValues(DType::kF16, 400, Distribution::kGaussian);
  StoreFromF32(DType::kF16, std::numeric_limits<float>::infinity(), values.data(), 128);  // of head 0
  EXPECT_THAT(EncodeAt(chain, tensor, 80, values).status, IsOk());
  StoreFromF32(DType::kF16, std::numeric_limits<float>::infinity(), values.data(), 255);
  EXPECT_THAT(EncodeAt(chain, tensor, 80, values).status,
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "tensor \"t\": value 335 is infinity, which int8 cannot hold (on_nonfinite=lossless stores its "
                       "block as it is; clamp|int8(group=64) makes it finite)"));
}

// What no encoder writes, field by field.
TEST(HeadsTest, DamagedTablesAreRefused) {
  const CodecChain chain = MakeChain("heads(0:int8,1-:int4)");
  const TensorDesc tensor = Tensor({2, 128}, {kHeadsAxis, kOther});
  const Bytes good = EncodeAt(chain, tensor, 0, MakeValues(DType::kF16, 256, Distribution::kGaussian)).payload;
  constexpr size_t kStream = 4;  // after the chain's own table
  Bytes values(512);
  const auto decode_with = [&](size_t at, uint64_t number, size_t width) {
    Bytes payload = good;
    std::memcpy(payload.data() + kStream + at, &number, width);
    return chain.DecodeBlock(tensor, payload, values);
  };
  ASSERT_THAT(decode_with(0, 128, 8), IsOk());
  const auto no_heads = StatusIs(absl::StatusCode::kDataLoss, "heads: no tensor has such heads");
  for (const uint64_t number : {uint64_t{0}, (uint64_t{1} << 47) + 1, ~uint64_t{0}}) {
    EXPECT_THAT(decode_with(0, number, 8), no_heads) << number;
    EXPECT_THAT(decode_with(8, number, 8), no_heads) << number;
  }
  for (const uint64_t number : {uint64_t{256}, ~uint64_t{0}}) EXPECT_THAT(decode_with(16, number, 8), no_heads);
  // Other heads than the payloads are of.
  EXPECT_THAT(decode_with(0, 127, 8), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
  EXPECT_THAT(decode_with(24, 257, 4), StatusIs(absl::StatusCode::kDataLoss, "heads: payload has the wrong size"));
  EXPECT_THAT(decode_with(28, 79, 4), StatusIs(absl::StatusCode::kDataLoss, ::testing::_));
}

}  // namespace
}  // namespace kvcompress
