#include "core/base/float_environment.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cstdlib>
#include <limits>

namespace kvcompress {
namespace {

volatile double one = 1, three = 3, smallest_normal = std::numeric_limits<double>::min();

struct Numbers {
  double read, divided, negative, subnormal;

  static Numbers Compute() {
    return {std::strtod("500000.7", nullptr), one / three, -one / three, smallest_normal / three};
  }
  bool operator==(const Numbers&) const = default;
};

TEST(UsualFloatEnvironmentTest, RoundsToNearestAndLeavesTheCallersRounding) {
  const Numbers usual = Numbers::Compute();
  EXPECT_EQ(usual.read, 500000.7);
  for (const int way : {FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO, FE_TONEAREST}) {
    std::fesetround(way);
    const Numbers before = Numbers::Compute();
    Numbers inside;
    int rounding;
    {
      const UsualFloatEnvironment environment;
      inside = Numbers::Compute();
      rounding = std::fegetround();
    }
    const Numbers after = Numbers::Compute();
    const int kept = std::fegetround();
    std::fesetround(FE_TONEAREST);
    EXPECT_EQ(inside, usual) << way;
    EXPECT_EQ(rounding, FE_TONEAREST) << way;
    EXPECT_EQ(after, before) << way;
    EXPECT_EQ(before == usual, way == FE_TONEAREST) << way;
    EXPECT_EQ(kept, way);
  }
}

#if defined(__x86_64__)
TEST(UsualFloatEnvironmentTest, ComputesWithSubnormalValues) {
  const unsigned kept = _mm_getcsr();
  constexpr unsigned kFlush = 0x8040;
  _mm_setcsr(kept | kFlush);
  double inside;
  {
    const UsualFloatEnvironment environment;
    inside = smallest_normal / three;
  }
  const double after = smallest_normal / three;
  _mm_setcsr(kept);
  EXPECT_GT(inside, 0);
  EXPECT_EQ(after, 0);
}
#endif

}  // namespace
}  // namespace kvcompress
