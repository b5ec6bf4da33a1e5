#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_format.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

// The least F16, or BF16, that is not below `value`.
float ScaleUp(DType dtype, float value) {
  const DType scale_type = dtype == DType::kF16 ? DType::kF16 : DType::kBF16;
  uint16_t bits = dtype == DType::kF16 ? F32ToF16(value) : F32ToBF16(value);
  if (LoadAsF32(scale_type, &bits, 0) < value) ++bits;
  return LoadAsF32(scale_type, &bits, 0);
}

// docs/format.md, "blocknorm", in the plainest words.
std::vector<std::byte> Reference(DType dtype, ByteSpan values, size_t row, size_t block, double topk, int bits) {
  struct Cell {
    size_t first, count;
    float scale, exact_scale, energy;
  };
  const size_t count = values.size() / DTypeSize(dtype);
  const auto x = [&](size_t i) { return LoadAsF32(dtype, values.data(), i); };
  const auto qmax = static_cast<float>((1 << (bits - 1)) - 1);
  std::vector<Cell> cells;
  for (size_t begin = 0; begin < count; begin += row) {
    const size_t end = std::min(begin + row, count);
    for (size_t first = begin; first < end; first += block) {
      Cell cell{first, std::min(block, end - first), 0, 0, 0};
      float largest = 0;
      float lanes[16] = {};
      for (size_t i = 0; i < cell.count; ++i) {
        largest = std::max(largest, std::fabs(x(first + i)));
        lanes[i % 16] += x(first + i) * x(first + i);
      }
      for (const int half : {8, 4, 2, 1}) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      cell.energy = lanes[0];
      cell.exact_scale = largest / qmax;
      cell.scale = ScaleUp(dtype, cell.exact_scale);
      cells.push_back(cell);
    }
  }
  std::vector<size_t> order(cells.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return cells[a].energy > cells[b].energy; });
  const auto top = std::max<size_t>(1, static_cast<size_t>(topk * static_cast<double>(cells.size())));
  for (size_t k = 0; k < top; ++k) cells[order[k]].scale = cells[order[k]].exact_scale;

  std::vector<std::byte> decoded(values.size());
  for (const Cell& cell : cells) {
    for (size_t i = cell.first; i < cell.first + cell.count; ++i) {
      const float q = cell.scale == 0 ? 0 : std::nearbyint(x(i) / cell.scale);
      const float y = std::min(std::max(q, -qmax), qmax) * cell.scale;
      StoreFromF32(dtype, std::min(std::max(y, -MaxFinite(dtype)), MaxFinite(dtype)), decoded.data(), i);
    }
  }
  return decoded;
}

TEST(BlockNormTest, DecodesToWhatTheDefinitionSays) {
  for (const DType dtype : kKernelDTypes) {
    for (const Distribution distribution : kAllDistributions) {
      for (const size_t row : {64, 80, 128, 200}) {
        const size_t count = 37 * row + 5;
        const auto values = MakeValues(dtype, count, distribution, static_cast<uint32_t>(row));
        for (const size_t block : {32, 64, 128, 256}) {
          for (const double topk : {0.0, 0.02, 0.3, 1.0}) {
            for (const int bits : {2, 7, 10, 12}) {
              const auto chain = MakeChain(absl::StrFormat("blocknorm(block=%d,topk=%g,bits=%d)", block, topk, bits));
              const TensorDesc tensor = MakeTensor("t", dtype, {37, row});
              const auto payload = EncodeOneBlock(chain, tensor, values, nullptr);
              ASSERT_THAT(payload, IsOk());
              std::vector<std::byte> decoded(values.size());
              ASSERT_THAT(chain.DecodeBlock(tensor, *payload, decoded), IsOk());
              const auto want = Reference(dtype, values, row, block, topk, bits);
              for (size_t i = 0; i < count; ++i) {  // numbers, because signs of zero may differ
                ASSERT_EQ(LoadAsF32(dtype, decoded.data(), i), LoadAsF32(dtype, want.data(), i))
                    << chain.spec() << " " << DTypeName(dtype) << " row " << row << " value " << i;
              }
            }
          }
        }
      }
    }
  }
}

TEST(BlockNormTest, SizesAreThoseOfTheFormulas) {
  const size_t count = 128 * 64;
  const auto values = MakeValues(DType::kF16, count, Distribution::kGaussian);
  const auto payload = EncodeOneBlock(MakeChain("blocknorm(topk=0.02)"),
                                      MakeTensor("layer_0_key", DType::kF16, {1, 2, 64, 64}), values, nullptr);
  ASSERT_THAT(payload, IsOk());
  // Five streams: 128 scales, two exact ones with an index of one byte each, ten bits a code.
  const size_t fixed = 5 * 4 + 4 + 2 * 128 + 2 * 4 + count * 10 / 8;
  EXPECT_GE(payload->size(), fixed + 2);
  EXPECT_LE(payload->size(), fixed + 4);
}

}  // namespace
}  // namespace kvcompress
