#include "client/cli/constants_warning.h"

#include <gmock/gmock.h>

#include <cmath>

namespace kvcompress {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Values of the two SNRs, with a channel whose constant is 354 times its deviation.
ErrorSums SumsOf(double snr_db, double token_snr_db) {
  return {.count = 100,
          .sum_squares = std::pow(10, snr_db / 10),
          .sum_deviations = std::pow(10, snr_db / 10),
          .sum_error_squares = 1,
          .sum_abs_error = 10,
          .max_abs_error = 0.1,
          .token_count = 100,
          .token_deviations = std::pow(10, token_snr_db / 10),
          .token_error_deviations = 1,
          .max_channel_constant = 354,
          .rotary = {}};
}

TEST(ConstantsWarningTest, KeysWhoseConstantsDrownThemAreNamed) {
  const ErrorSums lost = SumsOf(24, -3.7), worse = SumsOf(30, -5), fine = SumsOf(25, 21);
  const std::vector<MeasuredTensor> tensors = {{"layer_0_key", "int4", lost},   {"layer_1_key", "int4", worse},
                                               {"layer_2_key", "int4", fine},   {"layer_3_key", "int4", lost},
                                               {"layer_0_value", "int4", lost}, {"layer_10_key", "int4", lost},
                                               {"layer_11_key", "int4", lost}};
  EXPECT_THAT(ConstantsWarnings(tensors),
              ElementsAre("keys of layers 0-1, 3, 10-11 have channels whose constant is up to 354 times their "
                          "deviation: int4 loses them (token SNR -5.0 dB, SNR 30.0 dB); "
                          "kv4, quant(bits=4,per=channel,symmetric=false) or -min-snr keep them"));
}

TEST(ConstantsWarningTest, NothingIsSaidWhereNothingIsLostByConstants) {
  const ErrorSums kept = SumsOf(40, 18.1), bad_anyway = SumsOf(12, 11);
  ErrorSums without_tokens = SumsOf(30, 3);
  without_tokens.token_count = 0;
  without_tokens.token_deviations = without_tokens.token_error_deviations = 0;
  const ErrorSums empty = {};
  const std::vector<MeasuredTensor> tensors = {{"layer_0_key", "int4", kept},
                                               {"layer_1_key", "int4", bad_anyway},
                                               {"layer_2_key", "int4", without_tokens},
                                               {"layer_3_key", "int4", empty}};
  EXPECT_THAT(ConstantsWarnings(tensors), IsEmpty());
}

TEST(ConstantsWarningTest, EachCodecHasALineAndNamesAreShort) {
  const ErrorSums lost = SumsOf(24, 3);
  std::vector<MeasuredTensor> tensors = {{"layer_7_key", "int8", lost}};
  for (const char* name : {"a\n", "b", "c", "d", "e"}) tensors.push_back({name, "int4", lost});
  const std::vector<std::string> warnings = ConstantsWarnings(tensors);
  ASSERT_EQ(warnings.size(), 2);
  EXPECT_THAT(warnings[0], HasSubstr("tensors \"a\\n\", \"b\", \"c\" and 2 more have"));
  EXPECT_THAT(warnings[0], Not(HasSubstr("keys")));
  EXPECT_THAT(warnings[1], HasSubstr("keys of layer 7 have"));
  EXPECT_THAT(warnings[1], HasSubstr("int8 loses them"));
}

}  // namespace
}  // namespace kvcompress
