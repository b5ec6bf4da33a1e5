#pragma once

#include <vector>

#include "core/codec/tensor/transform/sample.h"
#include "core/codec/tensor/transform/search.h"

namespace kvcompress {

// What a tensor's frame may take.
struct Budget {
  double bits;  // of a value, all that a frame has included
  uint64_t elements;
  size_t block_elements;
};

// Blocks of a tensor beyond which not all are looked at.
inline constexpr uint64_t kBudgetBlocks = 16;

// The step with which the blocks of `sample` take about what the budget leaves them, by the classes of their channels
// and the coding of a small part of them; and, of a tensor that is in the sample as a whole, what each block may take.
FoundStep StepForBudget(const TransformFormat& format, bool sinks, const Budget& budget, const TensorDesc& tensor,
                        const std::vector<SampleBlock>& sample);

}  // namespace kvcompress
