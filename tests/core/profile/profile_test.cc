#include "core/profile/profile.h"

#include <gmock/gmock.h>

#include <cfenv>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/codec/chain.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;

// Of a tensor of this name; of the shape [1, heads, 10, 64] where that is given.
std::string CodecOf(const Profile& profile, const std::string& name, uint64_t heads = 0) {
  TensorDesc tensor{.name = name, .dtype = DType::kF16, .shape = {}, .axes = {}};
  if (heads > 0) tensor.shape = {1, heads, 10, 64};
  tensor.axes = DefaultAxes(name, tensor.shape.size());
  const auto codec = profile.CodecFor(tensor);
  return codec.ok() ? *codec : codec.status().ToString();
}

TEST(ProfileTest, TheFirstRuleThatHoldsDecides) {
  const auto profile = Profile::Parse(R"json({
    "version": 1,
    "description": "first layers exact",
    "default": "int4",
    "others": "int4",
    "rules": [
      {"layers": [0, 1], "codec": "raw|zstd(level=1)"},
      {"kind": "key", "layers": [2, 4], "codec": "int8(group=32)"},
      {"kind": "value", "codec": "int3"},
      {"name": "enc?der_*_w", "codec": "raw"}
    ]
})json");
  ASSERT_THAT(profile, IsOk());
  EXPECT_EQ(CodecOf(*profile, "layer_0_key"), "raw|zstd(level=1)");
  EXPECT_EQ(CodecOf(*profile, "layer_1_value"), "raw|zstd(level=1)");
  EXPECT_EQ(CodecOf(*profile, "layer_2_key"), "int8(group=32)");
  EXPECT_EQ(CodecOf(*profile, "layer_4_key"), "int8(group=32)");
  EXPECT_EQ(CodecOf(*profile, "layer_5_key"), "int4(group=64)");
  EXPECT_EQ(CodecOf(*profile, "layer_2_value"), "int3(group=64)");
  EXPECT_EQ(CodecOf(*profile, "encoder_1_w"), "raw");
  EXPECT_EQ(CodecOf(*profile, "encoder_1_w_"), "int4(group=64)");
  EXPECT_EQ(CodecOf(*profile, "anything"), "int4(group=64)");
}

TEST(ProfileTest, TheFirstRuleThatHoldsDecidesForEachHead) {
  const auto profile = Profile::Parse(R"json({
    "version": 1,
    "default": "int4",
    "rules": [
      {"layers": [0, 0], "heads": [2, 3], "codec": "raw"},
      {"layers": [0, 0], "heads": [0, 5], "codec": "int8"},
      {"heads": [7, 18446744073709551615], "codec": "int3"},
      {"layers": [2, 2], "codec": "int5"},
      {"layers": [2, 2], "heads": [0, 0], "codec": "raw"},
      {"layers": [3, 3], "heads": [0, 0], "codec": "int4"},
      {"layers": [4, 4], "heads": [0, 0], "codec": "sparse(ratio=0.5)|int4"}
    ]
})json");
  ASSERT_THAT(profile, IsOk());
  EXPECT_EQ(CodecOf(*profile, "layer_0_key", 9),
            "heads(0-1:int8(group=64),2-3:raw,4-5:int8(group=64),6:int4(group=64),7-:int3(group=64))");
  EXPECT_EQ(CodecOf(*profile, "layer_0_key", 4), "heads(0-1:int8(group=64),2-:raw)");
  EXPECT_EQ(CodecOf(*profile, "layer_0_key", 2), "int8(group=64)");
  EXPECT_EQ(CodecOf(*profile, "layer_1_key", 8), "heads(0-6:int4(group=64),7-:int3(group=64))");
  EXPECT_EQ(CodecOf(*profile, "layer_1_key", 7), "int4(group=64)");
  EXPECT_EQ(CodecOf(*profile, "layer_2_key", 8), "heads(0-6:int5(group=64),7-:int3(group=64))");
  EXPECT_EQ(CodecOf(*profile, "layer_3_key", 2), "int4(group=64)");
  EXPECT_THAT(CodecOf(*profile, "layer_4_key", 2),
              ::testing::HasSubstr("profile: heads of tensor \"layer_4_key\": \"sparse(ratio=0.5)|int4(group=64)\" has "
                                   "to see the whole tensor"));
  // No heads, no rules of heads.
  EXPECT_EQ(CodecOf(*profile, "layer_0_key"), "int4(group=64)");
  EXPECT_EQ(CodecOf(*profile, "other", 9), ChainSpec::Parse("lossless")->text());
}

TEST(ProfileTest, WhatIsNeitherKeyNorValueIsLosslessUnlessARuleSaysOtherwise) {
  const std::string lossless = ChainSpec::Parse("lossless")->text();
  const auto profile = Profile::Parse(R"json({
    "version": 1,
    "default": "int4",
    "rules": [{"name": "conv_*", "codec": "int8"}]
})json");
  ASSERT_THAT(profile, IsOk());
  EXPECT_FALSE(profile->is_uniform());
  const auto policy = [&](const Profile& of, std::string name, std::vector<AxisRole> axes = {AxisRole::kOther}) {
    return of.PolicyFor({.name = std::move(name), .dtype = DType::kF16, .shape = {axes.size(), 2}, .axes = axes});
  };
  for (const char* name : {"ssm_state", "layer_0_ssm_state", "model.layers.0.recurrent"}) {
    EXPECT_EQ(CodecOf(*profile, name), lossless) << name;
    EXPECT_EQ(policy(*profile, name), "others") << name;
  }
  EXPECT_EQ(CodecOf(*profile, "layer_3_key"), "int4(group=64)");
  EXPECT_EQ(policy(*profile, "layer_3_key"), "");
  EXPECT_EQ(CodecOf(*profile, "conv_state"), "int8(group=64)");
  EXPECT_EQ(policy(*profile, "conv_state"), "");
  const std::vector<AxisRole> axes = {AxisRole::kSeq, AxisRole::kHeadDim};
  EXPECT_EQ(*profile->CodecFor({.name = "k", .dtype = DType::kF16, .shape = {4, 8}, .axes = axes}), "int4(group=64)");
  EXPECT_EQ(policy(*profile, "k", axes), "");
  const auto given = Profile::Parse(R"json({"version": 1, "default": "int4", "others": "int8"})json");
  EXPECT_EQ(CodecOf(*given, "ssm_state"), "int8(group=64)");
  EXPECT_EQ(policy(*given, "ssm_state"), "others");
  EXPECT_EQ(CodecOf(*Profile::Uniform("int4"), "ssm_state"), "int4(group=64)");
  for (const char* codec : {"int4", "mixed"}) {
    EXPECT_EQ(policy(*Profile::Uniform(codec), "ssm_state"), "default");
    EXPECT_EQ(policy(*Profile::Uniform(codec), "layer_3_key"), "");
  }
}

TEST(ProfileTest, NamesStandForChainsAndForRules) {
  const auto near = Profile::Uniform("near-lossless");
  ASSERT_THAT(near, IsOk());
  EXPECT_TRUE(near->is_uniform());
  EXPECT_EQ(CodecOf(*near, "layer_0_key"), ChainSpec::Parse("near-lossless")->text());
  const auto mixed = Profile::Uniform("mixed");
  ASSERT_THAT(mixed, IsOk());
  EXPECT_FALSE(mixed->is_uniform());
  for (const char* name : {"layer_0_key", "layer_1_value", "layer_2_key", "other"}) {
    EXPECT_EQ(CodecOf(*mixed, name), ChainSpec::Parse("mixed")->For(name).text()) << name;
  }
  EXPECT_NE(CodecOf(*mixed, "layer_1_key"), CodecOf(*mixed, "layer_2_key"));
  EXPECT_EQ(CodecOf(*Profile::Parse(R"json({"version": 1, "default": "lossless"})json"), "t"),
            ChainSpec::Parse("lossless")->text());
  EXPECT_THAT(Profile::Parse(R"json({"version": 1, "default": "mixed"})json"),
              StatusIs(absl::StatusCode::kInvalidArgument, "profile: default: mixed is a profile of its own"));
}

TEST(ProfileTest, NamesThatTellKeysFromValuesStandInProfiles) {
  const auto uniform = Profile::Uniform("kv3");
  ASSERT_THAT(uniform, IsOk());
  EXPECT_FALSE(uniform->is_uniform());
  EXPECT_TRUE(uniform->asks_for_layers());
  const auto profile = Profile::Parse(R"json({
    "version": 1, "default": "kv3", "rotary": {"theta": 10000},
    "rules": [{"layers": [0, 1], "codec": "kv(bits=4.5)"}, {"layers": [2, 2], "heads": [0, 0], "codec": "int8"}]})json");
  ASSERT_THAT(profile, IsOk());
  EXPECT_TRUE(profile->asks_for_layers());
  const auto chain = [](std::string_view name, std::string_view tensor) {
    return ChainSpec::Parse(name)->For(tensor).text();
  };
  EXPECT_EQ(CodecOf(*uniform, "layer_9_key"), chain("kv3", "layer_9_key"));
  EXPECT_EQ(CodecOf(*uniform, "layer_9_value"), chain("kv3", "layer_9_value"));
  EXPECT_NE(CodecOf(*uniform, "layer_9_key"), CodecOf(*uniform, "layer_9_value"));
  EXPECT_EQ(CodecOf(*profile, "layer_1_value"), chain("kv(bits=4.5)", "layer_1_value"));
  EXPECT_EQ(CodecOf(*profile, "layer_9_value"), chain("kv3", "layer_9_value"));
  EXPECT_EQ(CodecOf(*profile, "layer_9_key"),
            ChainSpec::Parse("kv3")->WithRotary("layer_9_key", {.theta = 10000})->text());
  EXPECT_EQ(CodecOf(*profile, "ssm_state"), ChainSpec::Parse("lossless")->text());
}

TEST(ProfileTest, UniformIsOneCodecForAll) {
  const auto profile = Profile::Uniform("int8");
  ASSERT_THAT(profile, IsOk());
  EXPECT_EQ(CodecOf(*profile, "layer_0_key"), "int8(group=64)");
  EXPECT_EQ(CodecOf(*profile, "x"), "int8(group=64)");
  EXPECT_THAT(Profile::Uniform("int1"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "unknown codec \"int1\" (similar: int2, int3, int4, int5, int6, int8)"));
}

Profile ShippedProfile(const std::string& name) {
  std::ifstream file(KVC_SOURCE_DIR "/deploy/profiles/" + name);
  std::stringstream text;
  text << file.rdbuf();
  const auto profile = Profile::Parse(text.str());
  EXPECT_THAT(profile, IsOk()) << name;
  return profile.value_or(*Profile::Uniform("raw"));
}

TEST(ProfileTest, ShippedProfilesSayWhatTheirNamesDo) {
  const Profile mixed = ShippedProfile("mixed-n2-q10.json");
  for (const char* name : {"layer_0_key", "layer_0_value", "layer_1_key", "layer_1_value"}) {
    const TensorDesc tensor{.name = name, .dtype = DType::kF16, .shape = {}, .axes = {}};
    EXPECT_TRUE(ChainSpec::Parse(CodecOf(mixed, name))->Resolve({}, tensor)->lossless()) << name;
  }
  for (const char* name : {"layer_2_key", "layer_31_value"}) {
    EXPECT_THAT(CodecOf(mixed, name), ::testing::StartsWith("quant(bits=10,")) << name;
  }
  EXPECT_EQ(CodecOf(mixed, "anything"), ChainSpec::Parse("lossless")->text());
  EXPECT_EQ(CodecOf(ShippedProfile("blocknorm-strict.json"), "layer_0_key"),
            "blocknorm(block=128,topk=0.02,bits=10)|rans");
  const Profile kv3 = ShippedProfile("kv3-llama3.json");
  const ChainSpec named = *ChainSpec::Parse("kv3");
  EXPECT_EQ(CodecOf(kv3, "layer_4_key"), named.WithRotary("layer_4_key", {.theta = 500000})->text());
  EXPECT_EQ(CodecOf(kv3, "layer_4_value"), named.For("layer_4_value").text());
}

TEST(ProfileTest, EveryShippedProfileParses) {
  int tested = 0;
  for (const auto& entry : std::filesystem::directory_iterator(KVC_SOURCE_DIR "/deploy/profiles")) {
    EXPECT_EQ(entry.path().extension(), ".json") << entry.path();
    ShippedProfile(entry.path().filename().string());
    ++tested;
  }
  EXPECT_GE(tested, 2);
}

struct BadProfile {
  std::string_view json;
  std::string_view message;
};

class BadProfileTest : public ::testing::TestWithParam<BadProfile> {};

TEST_P(BadProfileTest, IsRefusedWithASentence) {
  EXPECT_THAT(Profile::Parse(GetParam().json),
              StatusIs(absl::StatusCode::kInvalidArgument, std::string(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadProfileTest,
    ::testing::Values(
        BadProfile{"", "profile: not valid JSON: it ends too early"},
        BadProfile{"{\"version\": 1", "profile: not valid JSON: it ends too early"},
        BadProfile{"{\"version\": 1,}", "profile: not valid JSON: a syntax error at byte 15"},
        BadProfile{std::string_view("{\"version\": 1, \"default\": \"int4\"}\0rubbish", 42),
                   "profile: not valid JSON: a zero byte at byte 34"},
        BadProfile{R"({"version": 1, "default": "int4"} rubbish)",
                   "profile: not valid JSON: a syntax error at byte 35"},
        BadProfile{R"({"version": 1, "default": "int4", "default": "raw"})",
                   "profile: not valid JSON: the second \"default\" of an object at byte 43"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"codec": "int4", "codec": "raw"}]})",
                   "profile: not valid JSON: the second \"codec\" of an object at byte 69"},
        BadProfile{R"({"version": 1, "version": 1, "version": 1)",
                   "profile: not valid JSON: the second \"version\" of an object at byte 24"},
        BadProfile{"[]", "profile: must be a JSON object"},
        BadProfile{R"({"default": "int4"})", "profile: \"version\" is missing"},
        BadProfile{R"({"version": 2, "default": "int4"})", "profile: \"version\" must be 1"},
        BadProfile{R"({"version": 1})", "profile: \"default\" is missing"},
        BadProfile{R"({"version": 1, "default": "int9"})",
                   "profile: default: unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"},
        BadProfile{R"({"version": 1, "default": 4})", "profile: default: a codec must be a string"},
        BadProfile{R"({"version": 1, "default": "int4", "others": 5})", "profile: others: a codec must be a string"},
        BadProfile{
            R"({"version": 1, "default": "int4", "rule": []})",
            "profile: unknown key \"rule\" (a profile has version, description, default, others, rotary, rules)"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": {}})", "profile: \"rules\" must be an array"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [1]})", "profile: rule 1: must be a JSON object"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"codec": "raw"}, {"kind": "key"}]})",
                   "profile: rule 2: \"codec\" is missing"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"layer": 1, "codec": "raw"}]})",
                   "profile: rule 1: unknown key \"layer\" (a rule has codec, heads, kind, layers, name)"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"layers": [2, 1], "codec": "raw"}]})",
                   "profile: rule 1: \"layers\" must be [first, last]"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"layers": [-1, 1], "codec": "raw"}]})",
                   "profile: rule 1: \"layers\" must be [first, last]"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"heads": [2, 1], "codec": "raw"}]})",
                   "profile: rule 1: \"heads\" must be [first, last]"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"heads": 3, "codec": "raw"}]})",
                   "profile: rule 1: \"heads\" must be [first, last]"},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"kind": "keys", "codec": "raw"}]})",
                   "profile: rule 1: \"kind\" must be \"key\" or \"value\""},
        BadProfile{R"({"version": 1, "default": "int4", "rules": [{"name": 1, "codec": "raw"}]})",
                   "profile: rule 1: \"name\" must be a string"}));

TEST(ProfileTest, NumbersDoNotDependOnHowTheCallerRounds) {
  const std::string text =
      R"json({"version": 1, "default": "rotated(bits=4,mean=channel)", "rotary": {"theta": 500000.7}})json";
  const std::string usual = CodecOf(*Profile::Parse(text), "layer_0_key", 2);
  EXPECT_THAT(usual, ::testing::HasSubstr("theta=500000.7)"));
  for (const int way : {FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO}) {
    std::fesetround(way);
    const absl::StatusOr<Profile> profile = Profile::Parse(text);
    const int kept = std::fegetround();
    std::fesetround(FE_TONEAREST);
    EXPECT_EQ(kept, way);
    ASSERT_THAT(profile, IsOk());
    EXPECT_EQ(CodecOf(*profile, "layer_0_key", 2), usual);
  }
}

TEST(ProfileTest, NumbersThatNoDoubleHoldsAreRefusedHoweverTheCallerRounds) {
  const auto is_json = [](const std::string& number) {
    const auto profile = Profile::Parse(R"({"version": 1, "default": "int4", "rotary": {"theta": )" + number + "}}");
    return profile.status().message().find("not valid JSON: a syntax error") == std::string::npos;
  };
  for (const int way : {FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO, FE_TONEAREST}) {
    std::fesetround(way);
    const bool holds_largest = is_json("1.7976931348623158e308"), holds_above = is_json("1.79769313486231585e308");
    const bool holds_large = is_json("1e400"), holds_negative = is_json("-1e400");
    std::fesetround(FE_TONEAREST);
    EXPECT_TRUE(holds_largest) << way;
    EXPECT_FALSE(holds_above || holds_large || holds_negative) << way;
  }
}

std::string RotaryFault(const std::string& rotary) {
  const auto profile = Profile::Parse(R"({"version": 1, "default": "int4", "rotary": )" + rotary + "}");
  return profile.ok() ? "" : std::string(profile.status().message());
}

TEST(ProfileTest, TheRotaryEmbeddingGoesIntoCodecsThatTurnKeysBack) {
  const auto profile = Profile::Parse(R"json({
    "version": 1, "default": "transform(bits=3)",
    "rotary": {"theta": 500000, "pairs": "interleaved", "dims": 32, "offset": 4, "start": 7},
    "rules": [{"layers": [0, 0], "codec": "int4"}, {"layers": [1, 1], "codec": "transform(bits=2,theta=100)"}]
})json");
  ASSERT_THAT(profile, IsOk());
  EXPECT_EQ(CodecOf(*profile, "layer_0_key"), "int4(group=64)");
  EXPECT_EQ(CodecOf(*profile, "layer_1_key"), "transform(bits=2,theta=100,start=7)");
  EXPECT_EQ(CodecOf(*profile, "layer_2_key"),
            "transform(bits=3,theta=5e+05,rotary=interleaved,rotary_dims=32,rotary_offset=4,start=7)");
  EXPECT_EQ(CodecOf(*profile, "layer_2_value"), "transform(bits=3,start=7)");
}

TEST(ProfileTest, ARotaryEmbeddingThatNoModelHasIsRefused) {
  EXPECT_EQ(RotaryFault("1"), "profile: rotary: must be a JSON object");
  EXPECT_EQ(RotaryFault("{}"), "profile: rotary: \"theta\" is missing");
  EXPECT_EQ(RotaryFault(R"({"theta": "9"})"), "profile: rotary: \"theta\" must be a number");
  EXPECT_EQ(RotaryFault(R"({"theta": 0.5})"), "profile: rotary: theta is 0.5, not from 1 to 1e+15");
  EXPECT_EQ(RotaryFault(R"({"theta": 9, "dims": 3})"), "profile: rotary: 3 channels turn, an odd number");
  EXPECT_EQ(RotaryFault(R"({"theta": 9, "dims": -2})"), "profile: rotary: \"dims\" must be an integer from 0 on");
  EXPECT_EQ(RotaryFault(R"({"theta": 9, "pairs": 1})"),
            "profile: rotary: \"pairs\" must be \"half\" or \"interleaved\"");
  EXPECT_EQ(RotaryFault(R"({"theta": 9, "base": 1})"), "profile: rotary: unknown key \"base\"");
}

}  // namespace
}  // namespace kvcompress
