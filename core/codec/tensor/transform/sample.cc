#include "core/codec/tensor/transform/sample.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/elementary.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"

namespace kvcompress {

absl::StatusOr<std::vector<SampleBlock>> SampleBlocks(const TransformFormat& format, const TensorDesc& tensor,
                                                      const ByteSource& values, size_t block_elements, uint64_t most) {
  const size_t width = DTypeSize(tensor.dtype);
  const uint64_t elements = values.size() / width;
  const uint64_t blocks = (elements + block_elements - 1) / block_elements;
  const uint64_t taken = std::min(blocks, most);
  std::vector<SampleBlock> sample(taken);
  for (uint64_t i = 0; i < taken; ++i) {
    SampleBlock& block = sample[i];
    block.index = (2 * i + 1) * blocks / (2 * taken);
    // Every second one mirrored in its part of the tensor: else all may be of the same part of a head.
    if (i % 2 != 0) block.index = i * blocks / taken + (i + 1) * blocks / taken - 1 - block.index;
    const uint64_t first = block.index * block_elements;
    const auto count = static_cast<size_t>(std::min<uint64_t>(block_elements, elements - first));
    KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, values.Get(first * width, count * width, block.read));
    block.tokens = {TokenLayoutOf(tensor), first};
    block.input = {tensor.dtype, LayoutOf(format, tensor, block.tokens, count), count, bytes.data()};
  }
  return sample;
}

double LogSize(const std::vector<SampleBlock>& sample) {
  constexpr size_t kEvery = 61;
  double squares = 0;
  double count = 0;
  for (const SampleBlock& block : sample) {
    for (size_t i = 0; i < block.input.count; i += kEvery) {
      const double x = LoadAsF32(block.input.dtype, block.input.values, i);
      if (!(std::fabs(x) <= kMaxTransformable)) continue;
      squares += x * x;
      ++count;
    }
  }
  if (squares == 0) return 0;
  return 0.5 * Log2(std::max(squares / count, 0x1p-1000));
}

}  // namespace kvcompress
