#include "core/codec/named_chains.h"

#include <gmock/gmock.h>

#include "tests/core/codec/chain_harness.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

TEST(NamedChainsTest, NamesStandForCanonicalChains) {
  for (const NamedChain& named : AllNamedChains()) {
    const auto spec = ChainSpec::Parse(named.name);
    ASSERT_THAT(spec, IsOk()) << named.name;
    EXPECT_EQ(spec->For("").text(), named.chain);
    EXPECT_EQ(spec->text(), named.first_layers > 0 ? named.name : named.chain);
    EXPECT_EQ(*ChainSpec::Parse(spec->text()), *spec);
    EXPECT_EQ(named.first_layers > 0, !named.first_chain.empty()) << named.name;
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
