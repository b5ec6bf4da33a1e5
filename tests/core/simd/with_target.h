#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "core/base/dtype.h"
#include "core/simd/cpu_features.h"

namespace kvcompress::testing {

// The instruction sets that this CPU has and that the library is compiled for.
inline std::vector<int64_t> UsableTargets() { return hwy::SupportedAndGeneratedTargets(); }

// Makes the kernels run on one instruction set while it lives.
class WithTarget {
 public:
  explicit WithTarget(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  WithTarget(const WithTarget&) = delete;
  WithTarget& operator=(const WithTarget&) = delete;
  ~WithTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

// Lets the kernels permute bytes, where this CPU does, or keeps them from it while it lives.
class MayPermuteBytes {
 public:
  explicit MayPermuteBytes(bool may) { simd::SetPermutesBytesForTest(may && permutes_); }
  MayPermuteBytes(const MayPermuteBytes&) = delete;
  MayPermuteBytes& operator=(const MayPermuteBytes&) = delete;
  ~MayPermuteBytes() { simd::SetPermutesBytesForTest(permutes_); }

 private:
  const bool permutes_ = simd::PermutesBytes();
};

// The name of an instance of a suite over instruction sets and element types.
inline std::string TargetAndDTypeName(const ::testing::TestParamInfo<std::tuple<int64_t, DType>>& param) {
  return std::string(hwy::TargetName(std::get<0>(param.param))) + "_" +
         std::string(DTypeName(std::get<1>(param.param)));
}
// The same, and whether kernels may permute bytes.
inline std::string TargetDTypeAndPermutesName(const ::testing::TestParamInfo<std::tuple<int64_t, DType, bool>>& param) {
  const auto& [target, dtype, permutes] = param.param;
  return TargetAndDTypeName({{target, dtype}, param.index}) + (permutes ? "_permutes" : "");
}

}  // namespace kvcompress::testing
