#include "core/simd/planes.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/core/simd/guarded.h"
#include "tests/core/simd/with_target.h"
#include "tests/testing/values.h"

namespace kvcompress::simd {
namespace {

using ::kvcompress::testing::Guarded;
using ::kvcompress::testing::UsableTargets;
using ::kvcompress::testing::WithTarget;

// Every target against the scalar definition, at the edge of pages that cannot be touched.
class PlanesKernelTest : public ::testing::TestWithParam<std::tuple<int64_t, DType, PlaneSplit, PlaneDelta>> {
 protected:
  void Check(size_t count, size_t distance, Guarded::Against against) {
    SCOPED_TRACE(std::to_string(count) + " values, distance " + std::to_string(distance));
    const auto [target, dtype, split, delta] = GetParam();
    const size_t width = DTypeSize(dtype);
    const PlaneFormat format{.dtype = dtype, .split = split, .delta = delta, .distance = distance};
    const auto bits = testing::MakeBits(count * width, static_cast<uint32_t>(count + distance));
    const Guarded values(bits.data(), bits.size(), against);
    std::vector<std::unique_ptr<Guarded>> got;
    std::vector<std::vector<uint8_t>> want(width, std::vector<uint8_t>(count));
    PlanesOut got_planes{}, want_planes{};
    PlanesIn in{};
    for (size_t p = 0; p < width; ++p) {
      got.push_back(std::make_unique<Guarded>(count, against));
      got_planes[p] = got[p]->data();
      want_planes[p] = want[p].data();
      in[p] = got[p]->data();
    }
    SplitPlanes(format, values.data(), count, got_planes);
    scalar::SplitPlanes(format, bits.data(), 0, count, want_planes);
    for (size_t p = 0; p < width; ++p) {
      EXPECT_TRUE(std::equal(want[p].begin(), want[p].end(), got[p]->data())) << "plane " << p;
    }
    Guarded merged(count * width, against);
    MergePlanes(format, in, count, merged.data());
    EXPECT_TRUE(std::equal(merged.bytes().begin(), merged.bytes().end(), values.data()));
    std::vector<uint8_t> scalar_merged(count * width);
    scalar::MergePlanes(format, in, 0, count, scalar_merged.data());
    EXPECT_TRUE(std::equal(scalar_merged.begin(), scalar_merged.end(), values.data()));
  }

 private:
  const WithTarget with_{std::get<0>(GetParam())};
};

TEST_P(PlanesKernelTest, EqualsTheDefinition) {
  for (const auto against : {Guarded::Against::kPageBefore, Guarded::Against::kPageAfter}) {
    for (const size_t count : {0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 200, 1000}) {
      for (const size_t distance : {1, 2, 8, 15, 16, 31, 32, 33, 64, 127, 999}) Check(count, distance, against);
    }
  }
}

std::string Name(const ::testing::TestParamInfo<PlanesKernelTest::ParamType>& test) {
  const auto [target, dtype, split, delta] = test.param;
  return std::string(hwy::TargetName(target)) + "_" + std::string(DTypeName(dtype)) +
         (split == PlaneSplit::kFields ? "_fields" : "_bytes") + "_delta" + std::to_string(static_cast<int>(delta));
}

INSTANTIATE_TEST_SUITE_P(All, PlanesKernelTest,
                         ::testing::Combine(::testing::ValuesIn(UsableTargets()), ::testing::ValuesIn(kKernelDTypes),
                                            ::testing::Values(PlaneSplit::kBytes, PlaneSplit::kFields),
                                            ::testing::Values(PlaneDelta::kNone, PlaneDelta::kToken, PlaneDelta::kXor)),
                         Name);

}  // namespace
}  // namespace kvcompress::simd
