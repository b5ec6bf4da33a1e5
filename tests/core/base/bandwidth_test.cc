#include "core/base/bandwidth.h"

#include <gmock/gmock.h>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::HasSubstr;

TEST(ParseBandwidth, BitsAndBytesASecond) {
  const std::pair<const char*, double> cases[] = {
      {"25Gbit/s", 3.125e9}, {"25 Gb/s", 3.125e9}, {"25Gbps", 3.125e9},   {"3GB/s", 3e9},   {" 3  GB/s", 3e9},
      {"800Mbit/s", 1e8},    {"0.5MB/s", 5e5},     {"1.5e2kB/s", 150000}, {"8b/s", 1},      {"7B/s", 7},
      {"1Tbit/s", 1.25e11},  {"2GiB/s", 0x2p30},   {"1Mibit/s", 0x1p17},  {"1KiB/s", 1024}, {"1bit/s", 0.125},
  };
  for (const auto& [text, bytes] : cases) {
    const absl::StatusOr<double> parsed = ParseBandwidth(text);
    ASSERT_THAT(parsed.status(), IsOk());
    EXPECT_DOUBLE_EQ(*parsed, bytes) << text;
  }
}

TEST(ParseBandwidth, ForAnythingElseTheErrorSaysWhatIsAccepted) {
  for (const char* text :
       {"",        "3",        "GB/s",      "3GB",       "3gb/s",       "3KB/s",      "3Gb/S",  "3GB/h",
        "0GB/s",   "-1GB/s",   "nanGB/s",   "infGB/s",   "1e300GB/s",   "1e-999GB/s", "3GB/s ", "3GB/sB/s",
        "3,5GB/s", "0x10GB/s", "99999TB/s", "1e-300B/s", "1e-320bit/s", "0.9bit/s"}) {
    EXPECT_THAT(ParseBandwidth(text).status(),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("for example 25Gbit/s, 800Mb/s or 3GB/s")))
        << text;
  }
}

}  // namespace
}  // namespace kvcompress
