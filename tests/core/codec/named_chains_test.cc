#include "core/codec/named_chains.h"

#include <gmock/gmock.h>

#include "core/codec/chain.h"
#include "core/codec/registry.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

TEST(NamedChainsTest, NamesStandForCanonicalChains) {
  for (const NamedChain& named : AllNamedChains()) {
    const auto chain = CodecChain::Parse(named.name);
    ASSERT_THAT(chain, IsOk()) << named.name;
    EXPECT_EQ(chain->spec(), named.chain);
    EXPECT_EQ(named.first_layers > 0, !named.first_chain.empty()) << named.name;
    EXPECT_THAT(DescribeNamedChains(), ::testing::HasSubstr(std::string(named.purpose)));
    // A codec of that name is what people would take the name for.
    if (const CodecRow* row = FindCodec(named.name); row != nullptr) {
      EXPECT_EQ(row->examples.front(), named.chain);
    }
  }
  EXPECT_TRUE(CodecChain::Parse("lossless")->lossless());
  EXPECT_TRUE(CodecChain::Parse("lossless-fast")->lossless());
  EXPECT_EQ(FindNamedChain("lossles"), nullptr);
}

TEST(NamedChainsTest, MixedDependsOnTheLayer) {
  for (const char* name : {"layer_0_key", "layer_1_value"}) {
    EXPECT_TRUE(CodecChain::Parse("mixed", name)->lossless()) << name;
  }
  for (const char* name : {"layer_2_key", "layer_10_value", "embedding", ""}) {
    EXPECT_EQ(CodecChain::Parse("mixed", name)->codec_name(), "quant") << name;
  }
}

TEST(NamedChainsTest, NamesAreNoStages) {
  EXPECT_THAT(CodecChain::ParseStages("lossless"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("\"lossless\" stands for a whole codec spec, planes")));
  EXPECT_THAT(CodecChain::Parse("lossless|zstd"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("\"lossless\" stands for a whole codec spec, planes")));
}

}  // namespace
}  // namespace kvcompress
