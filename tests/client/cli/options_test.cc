#include "client/cli/options.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/cli/flags.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

class OptionsTest : public ::testing::Test {
 protected:
  void SetUp() override { unsetenv("KV_COMPRESS_SERVER"); }
  void TearDown() override { unsetenv("KV_COMPRESS_SERVER"); }

  // What CompleteOptions says against a command line that parses; empty for nothing.
  std::string FaultOf(std::vector<const char*> words) {
    options_ = {};
    GoFlags flags("kv-compress");
    DeclareFlags(flags, options_);
    EXPECT_THAT(flags.Parse(words), IsOk());
    const absl::Status status = CompleteOptions(flags, options_);
    EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  }

  CliOptions options_;
};

TEST_F(OptionsTest, DefaultsOfTheReference) {
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b"}), "");
  EXPECT_EQ(options_.codec, "int4(group=64)");
  EXPECT_EQ(options_.server, "");
  EXPECT_EQ(options_.threads, 0);
}

TEST_F(OptionsTest, GroupSizeAndSparsityMakeTheCodec) {
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-group-size", "0x80"}), "");
  EXPECT_EQ(options_.codec, "int4(group=128)");
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-group-size=32", "-sparsity=0.1"}), "");
  EXPECT_EQ(options_.codec, "sparse(ratio=0.1)|int4(group=32)");
}

TEST_F(OptionsTest, BoundsMakeTheCodec) {
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-min-snr", "40"}), "");
  EXPECT_EQ(options_.codec, "bounded(min_snr=40,max_error=0,min_cosine=0)|rans");
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "--max-error=1e-3", "-min-cosine", ".999", "-min-snr=17.5"}), "");
  EXPECT_EQ(options_.codec, "bounded(min_snr=17.5,max_error=0.001,min_cosine=0.999)|rans");
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-min-token-snr", "30"}), "");
  EXPECT_EQ(options_.codec, "bounded(min_snr=0,min_token_snr=30,max_error=0,min_cosine=0)|rans");
}

TEST_F(OptionsTest, BoundsExcludeWhatElseChoosesACodec) {
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-codec", "raw", "-max-error", "1"}),
            "-max-error and -codec exclude each other: write it into the codec, for example bounded(min_snr=40)");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-profile", "p", "-min-snr", "1"}),
            "-min-snr and -profile exclude each other: write it into the codec, for example bounded(min_snr=40)");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-group-size", "64", "-min-cosine", "0.9"}),
            "-group-size and -min-cosine exclude each other: a bound chooses the codec");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-decompress", "-min-snr", "30"}),
            "-min-snr and -decompress exclude each other: the file says how it was compressed");
}

TEST_F(OptionsTest, BitsAreABudget) {
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-bits", "3"}), "");
  EXPECT_EQ(options_.codec, "kv(bits=3)");
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "--bits=2.25"}), "");
  EXPECT_EQ(options_.codec, "kv(bits=2.25)");
  for (const auto& [value, shown] : {std::pair("1.4", "1.4"), {"8.1", "8.1"}, {"-3", "-3"}, {"nan", "nan"}}) {
    EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-bits", value}),
              absl::StrFormat("-bits must be between 1.5 and 8, not %s", shown));
  }
}

TEST_F(OptionsTest, BitsExcludeWhatElseChoosesACodec) {
  const auto fault = [&](const char* flag, const char* value) {
    return FaultOf({"-input", "a", "-output", "b", "-bits", "3", flag, value});
  };
  EXPECT_EQ(fault("-codec", "raw"),
            "-bits and -codec exclude each other: write it into the codec, for example kv(bits=3)");
  EXPECT_EQ(fault("-profile", "p"),
            "-bits and -profile exclude each other: write it into the codec, for example kv(bits=3)");
  EXPECT_EQ(fault("-min-snr", "30"),
            "-bits and -min-snr exclude each other: a budget says what is written, a bound what is kept");
  EXPECT_EQ(fault("-max-error", "1"),
            "-bits and -max-error exclude each other: a budget says what is written, a bound what is kept");
  EXPECT_EQ(fault("-group-size", "64"), "-group-size and -bits exclude each other: a budget chooses the codec");
  EXPECT_EQ(fault("-sparsity", "0.5"), "-sparsity and -bits exclude each other: a budget chooses the codec");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-decompress", "-bits", "3"}),
            "-bits and -decompress exclude each other: the file says how it was compressed");
}

TEST_F(OptionsTest, BoundsOutsideTheirRange) {
  const auto fault = [&](const char* flag, const char* value) {
    return FaultOf({"-input", "a", "-output", "b", flag, value});
  };
  EXPECT_EQ(fault("-min-snr", "0"), "-min-snr must be above 0 and at most 200 dB, not 0");
  EXPECT_EQ(fault("-min-snr", "nan"), "-min-snr must be above 0 and at most 200 dB, not nan");
  EXPECT_EQ(fault("-min-token-snr", "201"), "-min-token-snr must be above 0 and at most 200 dB, not 201");
  EXPECT_EQ(fault("-max-error", "-1"), "-max-error must be above 0 and finite, not -1");
  EXPECT_EQ(fault("-max-error", "1e39"), "-max-error must be above 0 and finite, not 1e+39");
  EXPECT_EQ(fault("-min-cosine", "1.5"), "-min-cosine must be above 0 and at most 1, not 1.5");
}

TEST_F(OptionsTest, WhatIsRequired) {
  EXPECT_EQ(FaultOf({}), "-input is required");
  EXPECT_EQ(FaultOf({"-output", "b"}), "-input is required");
  EXPECT_EQ(FaultOf({"-input", "a"}), "-output is required");
  EXPECT_EQ(FaultOf({"-input", "a", "-decompress"}), "-output is required");
  EXPECT_EQ(FaultOf({"-input", "a", "-metrics-only"}), "");
  ASSERT_EQ(FaultOf({"-input", "a", "-metrics-only", "-output", "b"}), "");
  EXPECT_EQ(options_.output, "");
}

TEST_F(OptionsTest, ValuesOutsideTheirRange) {
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-group-size", "48"}), "-group-size must be 32, 64 or 128, not 48");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-sparsity", "1.5"}), "-sparsity must be between 0 and 1, not 1.5");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-sparsity", "-0.1"}),
            "-sparsity must be between 0 and 1, not -0.1");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-sparsity", "nan"}), "-sparsity must be between 0 and 1, not nan");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-threads", "-1"}), "-threads must be between 0 and 1024, not -1");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-timeout", "-3s"}), "-timeout must not be negative");
}

TEST_F(OptionsTest, AFingerprintIsBytesInHexadecimal) {
  const std::string most(128, 'a');
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-fingerprint", most.c_str()}), "");
  EXPECT_EQ(options_.fingerprint, std::string(64, '\xaa'));
  EXPECT_EQ(FaultOf({"-decompress", "-input", "a", "-output", "b", "-fingerprint", "00Ff"}), "");
  EXPECT_EQ(options_.fingerprint, std::string("\0\xff", 2));
  for (const std::string& text : {std::string(), std::string("abc"), std::string("0g"), most + "aa"}) {
    EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-fingerprint", text.c_str()}),
              absl::StrFormat("-fingerprint must be 1 to 64 bytes in hexadecimal, not \"%s\"", text));
  }
}

TEST_F(OptionsTest, Conflicts) {
  // Which the profile decides: of one that says ranks alone, the codec stands beside it.
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-codec", "raw", "-profile", "p"}), "");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-codec", "raw", "-group-size", "64"}),
            "-group-size and -codec exclude each other: write it into the codec, for example int4(group=32)");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-profile", "p", "-sparsity", "0"}),
            "-sparsity and -profile exclude each other: write it into the codec, for example sparse(ratio=0.5)|int4");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-decompress", "-codec", "raw"}),
            "-codec and -decompress exclude each other: the file says how it was compressed");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-server", "h:1", "-threads", "2"}),
            "-threads and -server exclude each other: the daemon has threads of its own");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "c", "-verbose"}), "unexpected argument \"c\"");
}

TEST_F(OptionsTest, TheEnvironmentNamesTheDaemonUnlessTheFlagDoes) {
  setenv("KV_COMPRESS_SERVER", "env:1", 1);
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-threads", "2"}), "");
  EXPECT_EQ(options_.server, "env:1");
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-server", "flag:2"}), "");
  EXPECT_EQ(options_.server, "flag:2");
  ASSERT_EQ(FaultOf({"-input", "a", "-output", "b", "-server="}), "");
  EXPECT_EQ(options_.server, "");
}

TEST_F(OptionsTest, InspectTakesItsFileEitherWay) {
  ASSERT_EQ(FaultOf({"-inspect", "a"}), "");
  EXPECT_EQ(options_.input, "a");
  ASSERT_EQ(FaultOf({"-inspect", "-input", "a"}), "");
  EXPECT_EQ(options_.input, "a");
  EXPECT_EQ(FaultOf({"-inspect"}), "-input is required");
  EXPECT_EQ(FaultOf({"-inspect", "a", "b"}), "unexpected argument \"b\"");
  EXPECT_EQ(FaultOf({"-inspect", "a", "-rope-theta", "1"}),
            "unexpected argument \"-rope-theta\": flags stand before all other arguments");
  EXPECT_EQ(FaultOf({"-inspect", "-input", "a", "b"}), "-inspect takes one file, and two are given");
  EXPECT_EQ(FaultOf({"-inspect", "-output", "b", "a"}), "-inspect and -output exclude each other");
  EXPECT_EQ(FaultOf({"-inspect", "-threads", "2", "a"}), "-inspect and -threads exclude each other");
  EXPECT_EQ(FaultOf({"-inspect", "-verbose", "-input", "a"}), "");
}

TEST_F(OptionsTest, SweepMeasuresInThisProcessAndWritesNoOutput) {
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-report", "r.html"}), "");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a"}), "");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-rope-theta", "1e6", "-rope-pairs", "interleaved"}), "");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-rope-dims", "64"}), "-rope-dims needs -rope-theta");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-bits", "3"}), "-sweep and -bits exclude each other");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-codec", "  "}), "-codec of -sweep names no codec");
  EXPECT_EQ(FaultOf({"-sweep"}), "-input is required");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "word"}), "unexpected argument \"word\"");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-output", "b"}), "-sweep and -output exclude each other");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-server", "b:1"}), "-sweep and -server exclude each other");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-profile", "p"}), "-sweep and -profile exclude each other");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-report", "r.html"}), "-report needs -sweep");
}

TEST_F(OptionsTest, SweepTakesACodecListThreadsAndAFormat) {
  ASSERT_EQ(FaultOf({"-sweep", "-input", "a"}), "");
  EXPECT_TRUE(options_.sweep_specs.empty());
  EXPECT_EQ(options_.threads, 1);
  EXPECT_EQ(options_.format, "json");
  ASSERT_EQ(
      FaultOf({"-sweep", "-input", "a", "-codec", " kv3 int4  int4(group=64)", "-threads", "0", "-format", "table"}),
      "");
  EXPECT_THAT(options_.sweep_specs, ::testing::ElementsAre("kv3", "int4(group=64)"));
  EXPECT_EQ(options_.threads, 0);
  EXPECT_EQ(options_.format, "table");
  EXPECT_THAT(FaultOf({"-sweep", "-input", "a", "-codec", "kv3 int9"}), ::testing::HasSubstr("int9"));
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-format", "csv"}), "-format of -sweep must be table or json, not csv");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-artifacts", "d"}), "-artifacts needs -codec, which names them");
}

TEST_F(OptionsTest, BandwidthsOfASweep) {
  ASSERT_EQ(FaultOf({"-sweep", "-input", "a", "-bandwidth", "25Gbit/s, 3 GB/s"}), "");
  ASSERT_EQ(options_.links.size(), 2u);
  EXPECT_EQ(options_.links[0].text, "25Gbit/s");
  EXPECT_EQ(options_.links[0].bandwidth, 3.125e9);
  EXPECT_EQ(options_.links[1].text, "3 GB/s");
  EXPECT_EQ(options_.links[1].bandwidth, 3e9);
  EXPECT_EQ(options_.context_tokens, 32768);
  EXPECT_THAT(FaultOf({"-sweep", "-input", "a", "-bandwidth", "25Gbit/s,3"}),
              ::testing::StartsWith("-bandwidth: \"3\" is no bandwidth: expected a number above 0 and a unit"));
  EXPECT_THAT(FaultOf({"-sweep", "-input", "a", "-bandwidth", ""}), ::testing::StartsWith("-bandwidth: \"\" is no"));
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-context-tokens", "9"}), "-context-tokens needs -bandwidth");
  EXPECT_EQ(FaultOf({"-sweep", "-input", "a", "-bandwidth", "1B/s", "-context-tokens", "0"}),
            "-context-tokens must be a number of tokens, not 0");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-bandwidth", "1B/s"}), "-bandwidth needs -sweep");
}

TEST_F(OptionsTest, CalibrateTakesSeveralInputs) {
  ASSERT_EQ(FaultOf({"-calibrate", "-input", "a,b,,c", "-output", "m.kvcal"}), "");
  EXPECT_THAT(options_.caches, ::testing::ElementsAre("a", "b", "c"));
  EXPECT_EQ(options_.group_dim, 128);
  EXPECT_EQ(
      FaultOf({"-calibrate", "-input",       "a",   "-output",     "b",   "-weights",    "w",           "-group-dim",
               "256",        "-threads",     "2",   "-rope-theta", "1e6", "-rope-pairs", "interleaved", "-rope-dims",
               "64",         "-rope-offset", "512", "-rope-start", "7",   "-verbose"}),
      "");
  EXPECT_EQ(FaultOf({"-calibrate", "-output", "b"}), "-input is required");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", ",", "-output", "b"}), "-input is required");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a"}), "-output is required");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "c"}), "unexpected argument \"c\"");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-group-dim", "100"}),
            "-group-dim must be 64, 128 or 256, not 100");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-rope-theta", "0.5"}),
            "-rope-theta must be at least 1, not 0.5");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-rope-dims", "2"}), "-rope-dims needs -rope-theta");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-rope-theta", "9", "-rope-offset", "-1"}),
            "-rope-offset must be a channel, not -1");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-codec", "raw"}),
            "-calibrate and -codec exclude each other");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-server", "c:1"}),
            "-calibrate and -server exclude each other");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-weights", "w"}), "-weights needs -calibrate");
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "9", "-rope-offset", "2", "a"}), "");
}

TEST_F(OptionsTest, RopeFlagsAreChecked) {
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "10000", "a"}), "");
  EXPECT_EQ(options_.rope_theta, 10000);
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "0.5", "a"}), "-rope-theta must be at least 1, not 0.5");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-rope-theta", "10000", "-rope-offset", "512"}), "");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-rope-start", "256"}), "");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-rope-offset", "512"}), "-rope-offset needs -rope-theta");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-rope-theta", "0.5"}), "-rope-theta must be at least 1, not 0.5");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-rope-theta", "9", "-rope-dims", "3"}),
            "-rope-dims must be an even number of channels, not 3");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-decompress", "-rope-theta", "10000"}),
            "-rope-theta and -decompress exclude each other: the file says how it was compressed");
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "0.5", "a"}), "-rope-theta must be at least 1, not 0.5");
  EXPECT_EQ(FaultOf({"-inspect", "-rope-start", "5", "a"}), "-rope-start needs -rope-theta");
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "-1", "a"}), "-rope-theta must not be negative");
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "inf", "a"}), "-rope-theta must not be negative");
}

TEST_F(OptionsTest, TheScalingIsThatOfAModelsConfiguration) {
  using Kind = simd::RotaryScaling::Kind;
  const auto fault = [&](const char* scaling) {
    return FaultOf({"-input", "a", "-output", "b", "-rope-theta", "10000", "-rope-scaling", scaling});
  };
  EXPECT_EQ(fault(R"({"rope_type": "llama3", "factor": 8})"), "");
  EXPECT_EQ(options_.scaling, (simd::RotaryScaling{Kind::kLlama3, 8, 1, 4, 8192}));
  EXPECT_EQ(fault("null"), "");
  EXPECT_EQ(options_.scaling, simd::RotaryScaling{});
  EXPECT_EQ(fault("llama3"), "-rope-scaling: not valid JSON: a syntax error at byte 1");
  EXPECT_EQ(fault(R"({"type": "linear", "factor": 0})"), "-rope-scaling: the scaling's factor is not from 1 to 1e6");
  EXPECT_EQ(FaultOf({"-input", "a", "-output", "b", "-rope-scaling", "{}"}), "-rope-scaling needs -rope-theta");
  EXPECT_EQ(FaultOf({"-inspect", "-rope-theta", "10000", "-rope-scaling", "{}", "a"}), "");
  EXPECT_EQ(FaultOf({"-calibrate", "-input", "a", "-output", "b", "-rope-theta", "10000", "-rope-scaling", "{}"}), "");
}

}  // namespace
}  // namespace kvcompress
