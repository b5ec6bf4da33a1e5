#include "core/codec/named_chains.h"

#include <gmock/gmock.h>

#include <cfenv>
#include <utility>

#include "absl/strings/str_format.h"
#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

TEST(NamedChainsTest, BitsDoNotDependOnHowTheCallerRounds) {
  const std::string usual = ChainSpec::Parse("kv(bits=3.3)")->For("").text();
  std::fesetround(FE_DOWNWARD);
  const absl::StatusOr<ChainSpec> spec = ChainSpec::Parse("kv(bits=3.3)");
  std::fesetround(FE_TONEAREST);
  ASSERT_THAT(spec, IsOk());
  EXPECT_EQ(spec->For("").text(), usual);
}

TEST(NamedChainsTest, NamesStandForCanonicalChains) {
  for (const NamedChain& named : AllNamedChains()) {
    const auto spec = ChainSpec::Parse(named.name);
    ASSERT_THAT(spec, IsOk()) << named.name;
    EXPECT_EQ(spec->For("").text(), named.chain);
    EXPECT_EQ(spec->text(), named.differs() ? named.name : named.chain);
    EXPECT_EQ(spec->differs(), named.differs());
    EXPECT_EQ(*ChainSpec::Parse(spec->text()), *spec);
    EXPECT_EQ(named.first_layers > 0, !named.first_chain.empty()) << named.name;
    EXPECT_EQ(spec->For("layer_9_value").text(), named.value_chain.empty() ? named.chain : named.value_chain);
    EXPECT_THAT(DescribeNamedChains(), ::testing::HasSubstr(std::string(named.purpose)));
    // A codec of that name is what people would take the name for.
    if (const CodecRow* row = FindCodec(named.name); row != nullptr) {
      EXPECT_EQ(row->examples.front(), named.chain);
    }
  }
  EXPECT_TRUE(MakeChain("lossless").lossless());
  EXPECT_TRUE(MakeChain("lossless-fast").lossless());
  EXPECT_EQ(FindNamedChain("lossles"), nullptr);
}

TEST(NamedChainsTest, MixedDependsOnTheLayer) {
  for (const char* name : {"layer_0_key", "layer_1_value"}) {
    EXPECT_TRUE(MakeChain("mixed", MakeTensor(name, DType::kF16, {1})).lossless()) << name;
  }
  for (const char* name : {"layer_2_key", "layer_10_value", "embedding", ""}) {
    EXPECT_EQ(MakeChain("mixed", MakeTensor(name, DType::kF16, {1})).codec_name(), "quant") << name;
  }
}

std::string ChainOf(std::string_view spec, std::string_view tensor) {
  const auto parsed = ChainSpec::Parse(spec);
  EXPECT_THAT(parsed, IsOk()) << spec;
  return parsed.ok() ? parsed->For(tensor).text() : "";
}

TEST(NamedChainsTest, KeysAndValuesOfKvTakeItsBitsBetweenThem) {
  for (const auto& [name, bits] : {std::pair("kv2", 2.0), std::pair("kv3", 3.0), std::pair("kv4", 4.0)}) {
    const std::string with_bits = absl::StrFormat("kv(bits=%g)", bits);
    double sum = 0;
    for (const char* tensor : {"layer_0_key", "layer_12_value", "latent", ""}) {
      EXPECT_EQ(ChainOf(name, tensor), ChainOf(with_bits, tensor)) << name;
      const StageSpec transform = ChainSpec::ParseStages(ChainOf(name, tensor))->tensor_codec();
      EXPECT_EQ(transform.codec->name, "transform");
      if (std::string_view(tensor).starts_with("layer_")) sum += transform.Number("bits");
    }
    EXPECT_DOUBLE_EQ(sum, 2 * bits) << name;
    EXPECT_NE(ChainOf(name, "layer_0_key"), ChainOf(name, "layer_0_value")) << name;
    EXPECT_EQ(ChainOf(name, "layer_0_key"), ChainOf(name, "latent")) << name;
  }
  EXPECT_EQ(ChainSpec::Parse("kv( bits = 2.50 )")->text(), "kv(bits=2.5)");
  EXPECT_EQ(ChainSpec::Parse("kv")->text(), "kv(bits=4)");
  EXPECT_EQ(ChainSpec::Parse("kv(bits=2.5)"), ChainSpec::Parse(ChainSpec::Parse("kv(bits=2.5)")->text()));
}

TEST(NamedChainsTest, KvTakesTheModelsArtifactAndRotaryEmbedding) {
  constexpr std::string_view kId = "0123456789abcdef0123456789abcdef";
  const std::string spec = absl::StrFormat("kv(bits=3,artifact=%s)", kId);
  EXPECT_EQ(ChainSpec::Parse(spec)->text(), spec);
  for (const char* tensor : {"layer_0_key", "layer_0_value"}) {
    EXPECT_EQ(ChainSpec::ParseStages(ChainOf(spec, tensor))->tensor_codec().digest, kId) << tensor;
  }
  const std::string ranked = absl::StrFormat("kv(bits=3,artifact=%s,ranks=8/16)", kId);
  EXPECT_EQ(ChainSpec::Parse(ranked)->text(), ranked);
  EXPECT_EQ(ChainOf(ranked, "layer_0_key"), absl::StrFormat("transform(bits=2.9,artifact=%s,ranks=8/16)", kId));
  EXPECT_EQ(ChainOf(ranked, "layer_0_value"), absl::StrFormat("transform(bits=3.1,artifact=%s,ranks=8/16)", kId));
  const auto kv3 = ChainSpec::Parse("kv3");
  EXPECT_EQ(kv3->WithRotary("layer_0_key", {.theta = 500000})->rotary()->theta, 500000);
  EXPECT_EQ(kv3->WithRotary("layer_0_value", {.theta = 500000})->text(), ChainOf("kv3", "layer_0_value"));
}

TEST(NamedChainsTest, KvSaysWhatIsWrong) {
  const auto fault = [](std::string_view spec) { return std::string(ChainSpec::Parse(spec).status().message()); };
  EXPECT_EQ(fault("kv(bits=1)"), "kv: bits=1 is not a number from 1.5 to 8");
  EXPECT_EQ(fault("kv(bits=9)"), "kv: bits=9 is not a number from 1.5 to 8");
  EXPECT_EQ(fault("kv(artifact=me)"), "kv: artifact=me is not 32 hex digits");
  EXPECT_THAT(fault("kv(ranks=8)"), ::testing::HasSubstr("ranks are of coefficients in an artifact"));
  EXPECT_EQ(fault("kv(theta=10000)"), "kv has no parameter \"theta\" (it has bits, artifact, ranks)");
  EXPECT_EQ(fault("kv3|zstd"),
            absl::StrFormat("\"kv3\" stands for a whole codec spec, %s, not for a part of one", ChainOf("kv3", "")));
  for (const char* spec : {"kv|zstd", "sparse|kv(bits=3)", "heads(0-:kv(bits=3))"}) {
    EXPECT_EQ(fault(spec), "\"kv\" stands for a whole codec spec, not for a part of one") << spec;
  }
  EXPECT_EQ(fault("kv5"), "unknown codec \"kv5\" (similar: kv4, kv3, kv2)");
}

TEST(NamedChainsTest, NamesAreNoStages) {
  EXPECT_THAT(ChainSpec::ParseStages("lossless"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("\"lossless\" stands for a whole codec spec, exact")));
  EXPECT_THAT(ChainSpec::Parse("lossless|zstd"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("\"lossless\" stands for a whole codec spec, exact")));
}

}  // namespace
}  // namespace kvcompress
