#include "core/codec/chain_spec.h"

#include <gmock/gmock.h>

#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "core/codec/registry.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::StatusIs;

std::string Canonical(std::string_view text) {
  const absl::StatusOr<ChainSpec> spec = ChainSpec::Parse(text);
  return spec.ok() ? spec->text() : spec.status().ToString();
}

TEST(SpecTest, CanonicalTextHasEveryParameterAndNoBlanks) {
  EXPECT_EQ(Canonical("int4"), "int4(group=64)");
  EXPECT_EQ(Canonical(" int4 ( group = 32 ) "), "int4(group=32)");
  EXPECT_EQ(Canonical("int8()"), "int8(group=64)");
  EXPECT_EQ(Canonical("sparse(ratio=0.50)|int4|zstd"), "sparse(ratio=0.5)|int4(group=64)|zstd(level=3)");
  EXPECT_EQ(Canonical("raw|zstd(level=-7)"), "raw|zstd(level=-7)");
  EXPECT_EQ(Canonical("clamp(limit=1e30)|raw"), "clamp(limit=1e+30)|raw");
  EXPECT_EQ(Canonical("heads( 0-0 : int8 , 1-3:raw | zstd,4- :int4()|rans ) | zstd"),
            "heads(0:int8(group=64),1-3:raw|zstd(level=3),4-:int4(group=64)|rans)|zstd(level=3)");
  EXPECT_EQ(Canonical("heads(0-:bounded(min_snr=30))"), "heads(0-:bounded(min_snr=30,max_error=0,min_cosine=0))");
}

TEST(SpecTest, ListsHaveNumbersWithSlashesBetween) {
  const std::string artifact = "artifact=00112233445566778899aabbccddeeff";
  EXPECT_EQ(Canonical("transform(bits=3, ranks=8/016 , " + artifact + ")"),
            "transform(bits=3," + artifact + ",ranks=8/16)");
  EXPECT_EQ(ChainSpec::Parse("transform(bits=3," + artifact + ",ranks=8/16)")->tensor_codec().list,
            (std::vector<uint32_t>{8, 16}));
  EXPECT_TRUE(ChainSpec::Parse("transform(bits=3)")->tensor_codec().list.empty());
}

// Frames whose readers do not know the parameter stay readable.
TEST(SpecTest, CanonicalTextLeavesOutWhatIsMarkedSo) {
  EXPECT_EQ(Canonical("bounded(min_snr=30,min_token_snr=0)"), "bounded(min_snr=30,max_error=0,min_cosine=0)");
  EXPECT_EQ(Canonical("bounded(min_token_snr=30.0)"), "bounded(min_snr=0,min_token_snr=30,max_error=0,min_cosine=0)");
}

TEST(SpecTest, CanonicalTextIsAFixedPoint) {
  for (const CodecRow* row : AllCodecs()) {
    ASSERT_FALSE(row->examples.empty()) << row->name;
    for (std::string_view example : row->examples) {
      EXPECT_EQ(Canonical(Canonical(example)), Canonical(example));
      EXPECT_THAT(ChainSpec::Parse(example), IsOk());
    }
  }
}

std::string WithRotary(std::string_view text, std::string_view name, const simd::RotaryEmbedding& rotary) {
  const absl::StatusOr<ChainSpec> spec = ChainSpec::Parse(text)->WithRotary(name, rotary);
  return spec.ok() ? spec->text() : std::string(spec.status().message());
}

TEST(SpecTest, RotaryEmbeddingsGoWhereThereIsNone) {
  const simd::RotaryEmbedding rotary = {
      .theta = 500000, .pairs = simd::RotaryPairs::kInterleaved, .dims = 64, .offset = 8, .start = 256};
  EXPECT_EQ(WithRotary("transform(bits=3)|rans", "layer_0_key", rotary),
            "transform(bits=3,theta=5e+05,rotary=interleaved,rotary_dims=64,rotary_offset=8,start=256)|rans");
  EXPECT_EQ(WithRotary("transform(bits=3,theta=10000)", "x", rotary), "transform(bits=3,theta=10000,start=256)");
  EXPECT_EQ(WithRotary("transform(bits=3,start=7)", "x", {.theta = 9, .start = 256}),
            "transform(bits=3,theta=9,start=7)");
  EXPECT_EQ(WithRotary("transform(bits=3)", "layer_0_value", rotary), "transform(bits=3,start=256)");
  EXPECT_EQ(WithRotary("heads(0:int4,1-:transform(step=0.5))", "x", {.theta = 9}),
            "heads(0:int4(group=64),1-:transform(step=0.5,theta=9))");
  EXPECT_EQ(WithRotary("int4|rans", "layer_0_key", rotary), "int4(group=64)|rans");
  EXPECT_EQ(WithRotary("mixed", "layer_0_key", rotary), Canonical("lossless"));
}

TEST(SpecTest, RotaryEmbeddingsStayAwayFromCodecsThatCannotUndoThem) {
  EXPECT_EQ(WithRotary("rotated(bits=4,mean=channel)", "x", {.theta = 9, .dims = 32}),
            Canonical("rotated(bits=4,mean=channel,theta=9,rotary_dims=32)"));
  EXPECT_EQ(WithRotary("rotated(bits=4,sinks=4)", "x", {.theta = 9, .start = 2}),
            Canonical("rotated(bits=4,sinks=4,start=2)"));
  for (const simd::RotaryEmbedding& rotary :
       {simd::RotaryEmbedding{.theta = 9, .offset = 8}, simd::RotaryEmbedding{.theta = 9, .dims = 2048}}) {
    EXPECT_EQ(WithRotary("rotated(bits=4,mean=channel)", "x", rotary), Canonical("rotated(bits=4,mean=channel)"));
  }
}

TEST(SpecTest, ScaledRotaryEmbeddingsSayWhatIsNotUsual) {
  using Kind = simd::RotaryScaling::Kind;
  const auto with = [](const simd::RotaryScaling& scaling) {
    return WithRotary("transform(bits=3)", "x", {.theta = 500000, .scaling = scaling});
  };
  EXPECT_EQ(with({Kind::kLinear, 4}), "transform(bits=3,theta=5e+05,scaling=linear,factor=4)");
  EXPECT_EQ(with({Kind::kLlama3, 8, 1, 4, 8192}), "transform(bits=3,theta=5e+05,scaling=llama3,factor=8)");
  EXPECT_EQ(with({Kind::kLlama3, 8, 1, 4.5, 4096}),
            "transform(bits=3,theta=5e+05,scaling=llama3,factor=8,high=4.5,original=4096)");
  EXPECT_EQ(with({Kind::kYarn, 4, 2, 32, 8192}),
            "transform(bits=3,theta=5e+05,scaling=yarn,factor=4,low=2,original=8192)");
  EXPECT_EQ(WithRotary("rotated(mean=channel)", "x", {.theta = 9, .scaling = {Kind::kLinear, 4}}),
            Canonical("rotated(bits=4,mean=channel,theta=9,scaling=linear,factor=4)"));
  for (const std::string_view text :
       {"transform(bits=3,theta=9,scaling=llama3,factor=8)", "rotated(mean=channel,theta=9,scaling=llama3,factor=8)"}) {
    EXPECT_EQ(ChainSpec::Parse(text)->rotary()->scaling, (simd::RotaryScaling{Kind::kLlama3, 8, 1, 4, 8192}));
  }
}

TEST(SpecTest, AnArtifactHasTheRotaryEmbeddingOfItsModel) {
  constexpr std::string_view kArtifact = "transform(bits=3,artifact=00112233445566778899aabbccddeeff)";
  EXPECT_EQ(WithRotary(kArtifact, "layer_0_key", {.theta = 9}), Canonical(kArtifact));
}

TEST(SpecTest, RotaryEmbeddingsThatNoModelHasAreRefused) {
  const auto fault = [](const simd::RotaryEmbedding& rotary) { return WithRotary("int4", "x", rotary); };
  EXPECT_EQ(fault({.theta = 0.5}), "rotary: theta is 0.5, not from 1 to 1e+15");
  EXPECT_EQ(fault({.theta = -1}), "rotary: theta is -1, not from 1 to 1e+15");
  EXPECT_THAT(fault({.theta = std::numeric_limits<double>::quiet_NaN()}), ::testing::StartsWith("rotary: theta is"));
  EXPECT_THAT(fault({.theta = std::numeric_limits<double>::infinity()}), ::testing::StartsWith("rotary: theta is"));
  EXPECT_EQ(fault({.theta = 9, .dims = 3}), "rotary: 3 channels turn, an odd number");
  EXPECT_EQ(fault({.theta = 9, .dims = 65538}),
            "rotary: 65538 channels from 0 on are more than the 65536 that a head can have");
  EXPECT_EQ(fault({.theta = 9, .offset = 65536}),
            "rotary: 0 channels from 65536 on are more than the 65536 that a head can have");
  EXPECT_EQ(fault({.theta = 9, .start = uint64_t{1} << 60}),
            "rotary: start is 1152921504606846976, above 1000000000000000");
  EXPECT_EQ(fault({.dims = 64}), "rotary: pairs, dims, offset or scaling without a theta");
  const simd::RotaryScaling linear = {.kind = simd::RotaryScaling::Kind::kLinear, .factor = 0};
  EXPECT_EQ(fault({.theta = 9, .scaling = linear}), "rotary: the scaling's factor is not from 1 to 1e6");
  EXPECT_EQ(fault({.scaling = linear}), "rotary: pairs, dims, offset or scaling without a theta");
}

TEST(SpecTest, SpecsAreEqualThatSayTheSame) {
  EXPECT_EQ(*ChainSpec::Parse("int4"), *ChainSpec::Parse("int4( group=64 )"));
  EXPECT_FALSE(*ChainSpec::Parse("int4") == *ChainSpec::Parse("int4(group=32)"));
  ChainSpec copy;
  {
    const ChainSpec spec = *ChainSpec::Parse("quant(per=channel,symmetric=false)|zstd(level=-1)");
    copy = spec;
  }
  ASSERT_EQ(copy.stages().size(), 2);
  EXPECT_EQ(copy.tensor_codec().Int("bits"), 8);
  EXPECT_EQ(copy.tensor_codec().Int("per"), 1);
  EXPECT_FALSE(copy.tensor_codec().Flag("symmetric"));
  EXPECT_EQ(copy.stages()[1].Number("level"), -1);
}

struct BadSpec {
  std::string_view text;
  std::string_view message;
};

class BadSpecTest : public ::testing::TestWithParam<BadSpec> {};

TEST_P(BadSpecTest, IsRefusedWithASentence) {
  EXPECT_THAT(ChainSpec::Parse(GetParam().text),
              StatusIs(absl::StatusCode::kInvalidArgument, std::string(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSpecTest,
    ::testing::Values(
        BadSpec{"", "codec spec \"\": expected a codec's name at character 1"},
        BadSpec{"int4|", "codec spec \"int4|\": expected a codec's name at character 6"},
        BadSpec{"Int4", "codec spec \"Int4\": expected a codec's name at character 1"},
        BadSpec{"int4(group", "codec spec \"int4(group\": expected '=' at character 11"},
        BadSpec{"int4(group=)", "codec spec \"int4(group=)\": expected a value at character 12"},
        BadSpec{"int4(group=64", "codec spec \"int4(group=64\": expected ',' or ')' at character 14"},
        BadSpec{"int4(group=64,)", "codec spec \"int4(group=64,)\": expected a parameter's name at character 15"},
        BadSpec{"int4(group=64,group=64)", "codec spec \"int4(group=64,group=64)\": group is given twice"},
        BadSpec{"int4;raw", "codec spec \"int4;raw\": expected '|' or the end at character 5"},
        BadSpec{"int4\n", "codec spec has a character that is not printable ASCII"},
        BadSpec{"int4(group=48)", "int4: group=48 is not one of 32, 64, 128"},
        BadSpec{"int4(group=6e1)", "int4: group=6e1 is not one of 32, 64, 128"},
        BadSpec{"int4(bits=4)", "int4 has no parameter \"bits\" (it has group)"},
        BadSpec{"int7", "unknown codec \"int7\" (similar: int2, int3, int4, int5, int6, int8)"},
        BadSpec{"blocknorm|zstdd", "unknown codec \"zstdd\" (similar: zstd)"},
        BadSpec{"loseless", "unknown codec \"loseless\" (similar: lossless)"},
        BadSpec{"rwa", "unknown codec \"rwa\" (similar: raw)"},
        BadSpec{"somethingelse", "unknown codec \"somethingelse\""},
        BadSpec{"sparse(ratio=1.5)|int4", "sparse: ratio=1.5 is not a number from 0 to 1"},
        BadSpec{"sparse(ratio=nan)|int4", "sparse: ratio=nan is not a number from 0 to 1"},
        BadSpec{"sparse(ratio=-0.1)|int4", "sparse: ratio=-0.1 is not a number from 0 to 1"},
        BadSpec{"raw|zstd(level=20)", "zstd: level=20 is not an integer from -7 to 19"},
        BadSpec{"zstd", "zstd codes bytes: a tensor codec must stand in front of it, for example raw|zstd"},
        BadSpec{"int4|sparse", "sparse must stand in front of the tensor codec"},
        BadSpec{"int4|int8", "codec spec has two tensor codecs, int4 and int8"},
        BadSpec{"sparse(ratio=0.5)",
                "codec spec \"sparse(ratio=0.5)\" has no tensor codec behind its transforms, for example int4"},
        BadSpec{"int4(0-:raw)", "int4 has no chains within it"},
        BadSpec{"heads", "heads needs ranges of heads with chains, for example heads(0-1:int8,2-:int4)"},
        BadSpec{"heads(0-:raw,group=1)", "heads has no parameter \"group\" (it has none)"},
        BadSpec{"heads(0-", "codec spec \"heads(0-\": expected ':' at character 9"},
        BadSpec{"heads(0-:", "codec spec \"heads(0-:\": expected ',' or ')' at character 10"},
        BadSpec{"heads(0-:int4(group=64", "codec spec \"heads(0-:int4(group=64\": expected ',' or ')' at character 23"},
        BadSpec{"heads(0-:)", "codec spec \"\": expected a codec's name at character 1"},
        BadSpec{"heads(0-:int9)", "unknown codec \"int9\" (similar: int2, int3, int4, int5, int6, int8)"},
        BadSpec{"heads(0-:heads(0-:raw))", "heads cannot stand within a codec"},
        BadSpec{"heads(0-:heads(0-:int4(group=64)))",
                "codec spec \"heads(0-:heads(0-:int4(group=64)))\": expected no parenthesis within another's at "
                "character 23"},
        BadSpec{"heads(0-:clip|raw)",
                "\"clip(percentile=99.9)|raw\" has to see the whole tensor, so it cannot stand within a codec"},
        BadSpec{"clamp|heads(0-:int4)", "no transform may stand in front of heads"},
        BadSpec{"raw|zstd|zstd|zstd|zstd|zstd|zstd|zstd|zstd", "codec spec has more than 8 stages"}));

TEST(SpecTest, LongSpecsAreRefused) {
  EXPECT_THAT(ChainSpec::Parse(std::string(513, 'a')),
              StatusIs(absl::StatusCode::kInvalidArgument, "codec spec of 513 bytes is above the limit of 512"));
}

TEST(SpecTest, RangesOfHeadsCoverEveryHeadOnce) {
  for (const auto& [ranges, bad] : {std::pair<std::string, std::string>{"1-:raw", "1-"},
                                    {"0:raw", "0"},
                                    {"0-3:raw", "0-3"},
                                    {"0-:raw,1-:raw", "0-"},
                                    {"0-3:raw,3-:raw", "3-"},
                                    {"0-3:raw,5-:raw", "5-"},
                                    {"0-3:raw,4-2:raw,5-:raw", "4-2"},
                                    {"0--1:raw,2-:raw", "0--1"},
                                    {"0-65536:raw,65537-:raw", "0-65536"},
                                    {"0-18446744073709551616:raw,1-:raw", "0-18446744073709551616"}}) {
    EXPECT_THAT(ChainSpec::Parse(absl::StrCat("heads(", ranges, ")")),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         ::testing::StartsWith(absl::StrCat("heads: \"", bad, "\" is not the next range of heads"))))
        << ranges;
  }
}

TEST(RegistryTest, HelpNamesEveryCodec) {
  for (const CodecRow* row : AllCodecs()) {
    EXPECT_THAT(DescribeCodecs(), ::testing::HasSubstr(std::string(row->name)));
    EXPECT_EQ(FindCodec(row->name), row);
  }
  EXPECT_EQ(FindCodec("nothing"), nullptr);
}

TEST(RegistryTest, TheDocsPageIsWhatTheRowsSay) {
  std::ifstream file(KVC_SOURCE_DIR "/docs/codecs.md");
  std::stringstream page;
  page << file.rdbuf();
  EXPECT_EQ(page.str(), CodecsMarkdown()) << "run: kv-compress -codec markdown > docs/codecs.md";
}

}  // namespace
}  // namespace kvcompress
