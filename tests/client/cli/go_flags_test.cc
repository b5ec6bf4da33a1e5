#include "client/cli/go_flags.h"

#include <gmock/gmock.h>

#include <cmath>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The flags that the tests parse, and what parsing left in them.
struct Parsed {
  Parsed() {
    flags.String("input", &input, "string", "Input path");
    flags.Int("group-size", &group_size, "Group size");
    flags.Float("sparsity", &sparsity, "Sparsity");
    flags.Bool("verbose", &verbose, "Verbose");
    flags.Duration("timeout", &timeout, "Timeout");
  }

  absl::Status Parse(std::vector<const char*> words) { return flags.Parse(words); }

  GoFlags flags{"prog"};
  std::string input;
  int64_t group_size = 64;
  double sparsity = 0;
  bool verbose = false;
  absl::Duration timeout;
};

std::string FaultOf(std::vector<const char*> words) {
  Parsed parsed;
  const absl::Status status = parsed.Parse(std::move(words));
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

TEST(GoFlags, OneDashOrTwoWithOrWithoutEquals) {
  for (const std::vector<const char*>& words : std::vector<std::vector<const char*>>{
           {"-input", "a"}, {"--input", "a"}, {"-input=a"}, {"--input=a"}, {"-input=b", "-input", "a"}}) {
    Parsed parsed;
    ASSERT_THAT(parsed.Parse(words), IsOk());
    EXPECT_EQ(parsed.input, "a");
    EXPECT_TRUE(parsed.flags.IsSet("input"));
    EXPECT_FALSE(parsed.flags.IsSet("verbose"));
    EXPECT_THAT(parsed.flags.rest(), IsEmpty());
  }
}

TEST(GoFlags, AValueMayBeginWithADashBeEmptyOrHoldEquals) {
  Parsed parsed;
  ASSERT_THAT(parsed.Parse({"-input", "-verbose"}), IsOk());
  EXPECT_EQ(parsed.input, "-verbose");
  EXPECT_FALSE(parsed.verbose);
  ASSERT_THAT(parsed.Parse({"-input=a=b"}), IsOk());
  EXPECT_EQ(parsed.input, "a=b");
  ASSERT_THAT(parsed.Parse({"-input="}), IsOk());
  EXPECT_EQ(parsed.input, "");
}

TEST(GoFlags, BoolsTakeTheirValueOnlyBehindEquals) {
  for (const char* word : {"-verbose", "-verbose=true", "-verbose=1", "-verbose=t", "-verbose=T", "-verbose=True"}) {
    Parsed parsed;
    ASSERT_THAT(parsed.Parse({word}), IsOk());
    EXPECT_TRUE(parsed.verbose) << word;
  }
  for (const char* word : {"-verbose=false", "-verbose=0", "-verbose=f", "-verbose=F", "-verbose=FALSE"}) {
    Parsed parsed;
    parsed.verbose = true;
    ASSERT_THAT(parsed.Parse({word}), IsOk());
    EXPECT_FALSE(parsed.verbose) << word;
  }
  Parsed parsed;
  ASSERT_THAT(parsed.Parse({"-verbose", "false", "-input", "a"}), IsOk());
  EXPECT_TRUE(parsed.verbose);
  EXPECT_THAT(parsed.flags.rest(), ElementsAre("false", "-input", "a"));
  EXPECT_EQ(FaultOf({"-verbose=maybe"}), "invalid boolean value \"maybe\" for -verbose: parse error");
  EXPECT_EQ(FaultOf({"-verbose="}), "invalid boolean value \"\" for -verbose: parse error");
}

TEST(GoFlags, IntegersOfEveryBase) {
  const std::vector<std::pair<const char*, int64_t>> good = {{"32", 32},
                                                             {"0x40", 64},
                                                             {"0X40", 64},
                                                             {"-0x1f", -31},
                                                             {"+7", 7},
                                                             {"0b101", 5},
                                                             {"0o17", 15},
                                                             {"017", 15},
                                                             {"0", 0},
                                                             {"9223372036854775807", INT64_MAX},
                                                             {"-9223372036854775808", INT64_MIN}};
  for (const auto& [text, value] : good) {
    Parsed parsed;
    ASSERT_THAT(parsed.Parse({"-group-size", text}), IsOk());
    EXPECT_EQ(parsed.group_size, value) << text;
  }
  for (const char* text : {"abc", "", "64x", "6 4", " 64", "0x", "-", "--5", "+-5", "08", "1.5", "1e3"}) {
    EXPECT_EQ(FaultOf({"-group-size", text}),
              "invalid value \"" + std::string(text) + "\" for flag -group-size: parse error");
  }
  for (const char* text : {"9223372036854775808", "-9223372036854775809", "99999999999999999999999"}) {
    EXPECT_EQ(FaultOf({"-group-size", text}),
              "invalid value \"" + std::string(text) + "\" for flag -group-size: value out of range");
  }
}

TEST(GoFlags, Floats) {
  const std::vector<std::pair<const char*, double>> good = {{"0.5", 0.5}, {".5", 0.5},       {"1e-3", 1e-3},
                                                            {"-2", -2.0}, {"inf", INFINITY}, {"0x1p-2", 0.25}};
  for (const auto& [text, value] : good) {
    Parsed parsed;
    ASSERT_THAT(parsed.Parse({"-sparsity", text}), IsOk());
    EXPECT_EQ(parsed.sparsity, value) << text;
  }
  Parsed parsed;
  ASSERT_THAT(parsed.Parse({"-sparsity", "nan"}), IsOk());
  EXPECT_TRUE(std::isnan(parsed.sparsity));
  for (const char* text : {"", "half", "0.5x", " 0.5", "0,5", "nan(1)"}) {
    EXPECT_EQ(FaultOf({"-sparsity", text}),
              "invalid value \"" + std::string(text) + "\" for flag -sparsity: parse error");
  }
  EXPECT_EQ(FaultOf({"-sparsity", "1e999"}), "invalid value \"1e999\" for flag -sparsity: value out of range");
}

TEST(GoFlags, Durations) {
  Parsed parsed;
  ASSERT_THAT(parsed.Parse({"-timeout", "1m30.5s"}), IsOk());
  EXPECT_EQ(parsed.timeout, absl::Milliseconds(90500));
  ASSERT_THAT(parsed.Parse({"-timeout", "0"}), IsOk());
  EXPECT_EQ(parsed.timeout, absl::ZeroDuration());
  for (const char* text : {"", "30", "s", "inf", "-inf", "1d"}) {
    EXPECT_EQ(FaultOf({"-timeout", text}),
              "invalid value \"" + std::string(text) + "\" for flag -timeout: parse error");
  }
}

TEST(GoFlags, FaultsHaveTheWordsOfGo) {
  EXPECT_EQ(FaultOf({"-x"}), "flag provided but not defined: -x");
  EXPECT_EQ(FaultOf({"--x=3"}), "flag provided but not defined: -x");
  EXPECT_EQ(FaultOf({"-input"}), "flag needs an argument: -input");
  EXPECT_EQ(FaultOf({"-verbose", "--group-size"}), "flag needs an argument: -group-size");
  EXPECT_EQ(FaultOf({"---input"}), "bad flag syntax: ---input");
  EXPECT_EQ(FaultOf({"-=a"}), "bad flag syntax: -=a");
}

TEST(GoFlags, ParsingStopsAtTheFirstWordAndAtTwoDashes) {
  for (const std::vector<const char*>& words : std::vector<std::vector<const char*>>{
           {"-verbose", "word", "-input", "a"}, {"-verbose", "--", "word", "-input", "a"}}) {
    Parsed parsed;
    ASSERT_THAT(parsed.Parse(words), IsOk());
    EXPECT_THAT(parsed.flags.rest(), ElementsAre("word", "-input", "a"));
    EXPECT_EQ(parsed.input, "");
  }
  Parsed dash;
  ASSERT_THAT(dash.Parse({"-", "-verbose"}), IsOk());
  EXPECT_THAT(dash.flags.rest(), ElementsAre("-", "-verbose"));
  Parsed empty;
  ASSERT_THAT(empty.Parse({"", "-verbose"}), IsOk());
  EXPECT_THAT(empty.flags.rest(), ElementsAre("", "-verbose"));
}

TEST(GoFlags, HelpEndsParsing) {
  for (const char* word : {"-h", "-help", "--help", "-h=1"}) {
    Parsed parsed;
    ASSERT_THAT(parsed.Parse({word, "-x"}), IsOk());
    EXPECT_TRUE(parsed.flags.help()) << word;
  }
  Parsed parsed;
  ASSERT_THAT(parsed.Parse({"-verbose"}), IsOk());
  EXPECT_FALSE(parsed.flags.help());
}

TEST(GoFlags, UsageIsInTheOrderOfDeclarationAndShowsDefaultsThatAreNotZero) {
  EXPECT_EQ(Parsed().flags.Usage(),
            "Usage of prog:\n"
            "  -input string\n    \tInput path\n"
            "  -group-size int\n    \tGroup size (default 64)\n"
            "  -sparsity float\n    \tSparsity\n"
            "  -verbose\n    \tVerbose\n"
            "  -timeout duration\n    \tTimeout\n");
}

TEST(GoFlags, UsageHasFlagsBelowTheTitleAndExampleOfTheirGroup) {
  GoFlags flags("prog");
  bool first = false, second = false, third = false;
  flags.Bool("z", &first, "Alone");
  flags.Group("Copy", "prog -y FILE");
  flags.Bool("y", &second, "Copies");
  flags.Group("Other", "prog -a");
  flags.Bool("a", &third, "Else");
  EXPECT_EQ(flags.Usage(),
            "Usage of prog:\n"
            "  -z\n    \tAlone\n"
            "\nCopy: prog -y FILE\n"
            "  -y\n    \tCopies\n"
            "\nOther: prog -a\n"
            "  -a\n    \tElse\n");
}

}  // namespace
}  // namespace kvcompress
