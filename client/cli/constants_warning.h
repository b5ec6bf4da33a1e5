#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/simd/error_sums.h"

namespace kvcompress {

// A tensor as a codec left it.
struct MeasuredTensor {
  std::string_view name;
  std::string_view codec;
  const ErrorSums& sums;
};

// A line for each codec that loses what changes from token to token, with a good SNR all the same: constants of
// channels make up most of the variance. Of keys, and of tensors whose names do not say what they are; values need
// their constants. Empty where nothing is lost in that way.
std::vector<std::string> ConstantsWarnings(std::span<const MeasuredTensor> tensors);

}  // namespace kvcompress
