#include "core/profile/compression_config.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Ranks = std::vector<uint32_t>;

TensorDesc Tensor(const std::string& name, uint64_t heads, uint64_t dim = 64) {
  return {.name = name, .dtype = DType::kF16, .shape = {1, heads, 10, dim}, .axes = DefaultAxes(name, 4)};
}

// Of a tensor in the config that has these heads, or the fault.
Ranks RanksOf(const std::string& config, const TensorDesc& tensor) {
  const auto parsed = CompressionConfig::Parse(config);
  EXPECT_THAT(parsed, IsOk());
  if (!parsed.ok()) return {};
  const auto ranks = parsed->RanksFor(tensor);
  EXPECT_THAT(ranks, IsOk());
  return ranks.value_or(Ranks());
}

std::string FaultOf(const std::string& config, const TensorDesc& tensor = Tensor("layer_0_key", 2)) {
  const auto parsed = CompressionConfig::Parse(config);
  if (!parsed.ok()) return std::string(parsed.status().message());
  return std::string(parsed->RanksFor(tensor).status().message());
}

std::string Heads(const std::string& heads) { return R"({"per_layer_head": {)" + heads + "}}"; }

std::string Enabled(const std::string& key, int rank) {
  return absl::StrFormat(R"("%s": {"enabled": true, "rank": %d})", key, rank);
}

TEST(CompressionConfigTest, BothShapesAndAllSpellingsOfHeads) {
  const std::string by_hand = R"({
    "global": {"target_memory_reduction": 0.5, "d_head": 32, "algo_default": "pca"},
    "per_layer_head": {
      "0/0": {"enabled": true, "rank": 8, "algo": "kvsplice", "d_k": 32, "d_v": 32, "learn_scale_shift": true},
      "layer0/1": {"enabled": true},
      "0/head2": {"rank": 4},
      "layer1/head0": {"enabled": true, "rank": 16}
    }})";
  EXPECT_THAT(RanksOf(by_hand, Tensor("layer_0_key", 4, 32)), ElementsAre(8, 32, 32, 32));
  EXPECT_THAT(RanksOf(by_hand, Tensor("layer_1_value", 4, 32)), ElementsAre(16, 32, 32, 32));
  EXPECT_THAT(RanksOf(by_hand, Tensor("layer_1_value", 1, 32)), IsEmpty()) << "it lists one query head of three";
  EXPECT_THAT(RanksOf(by_hand, Tensor("layer_2_key", 4, 32)), IsEmpty());
  EXPECT_THAT(RanksOf(by_hand, Tensor("state", 4, 32)), IsEmpty());

  const std::string generated = R"json({
    "target_memory_reduction": 0.5, "d_head": 64, "algo_default": "kvsplice",
    "per_layer_head": {
      "layer0/head0": {"enabled": false, "rank": 64, "algo": "none", "compression_ratio": 0.0,
                       "reason": "CRITICAL: trace=0.960 (>0.95)", "metrics": {"trace": 0.96, "cond": 1e5, "eigmax": 0.05}},
      "layer0/head1": {"enabled": true, "rank": 8, "algo": "kvsplice", "compression_ratio": 0.875,
                       "reason": "EXCELLENT: cond=2.00e+07, trace=0.850", "metrics": {"trace": 0.85, "cond": 2e7}}
    },
    "compression_summary": {"critical": ["layer0/head0"], "excellent": ["layer0/head1"], "good": [], "moderate": []},
    "expected_kv_memory_savings": "43.8%", "actual_memory_reduction": 0.4375,
    "summary_stats": {"total_heads": 2, "critical_heads": 1}})json";
  EXPECT_THAT(RanksOf(generated, Tensor("layer_0_key", 2)), ElementsAre(64, 8));
  EXPECT_THAT(RanksOf(generated, Tensor("layer_0_key", 1)), IsEmpty()) << "one head reads what must stay";
}

TEST(CompressionConfigTest, ARankIsTheUsualOneOrAllUnlessGiven) {
  EXPECT_THAT(RanksOf(Heads(R"("0/0": {"enabled": true})"), Tensor("layer_0_key", 1)), ElementsAre(32));
  EXPECT_THAT(RanksOf(Heads(R"("0/0": {"enabled": true, "d_k": 16})"), Tensor("layer_0_key", 1, 16)), IsEmpty());
  EXPECT_THAT(RanksOf(Heads(R"("0/0": {"enabled": true, "d_k": 16})"), Tensor("layer_0_value", 1, 64)),
              ElementsAre(16));
  EXPECT_THAT(RanksOf(Heads(Enabled("0/0", 64)), Tensor("layer_0_key", 1)), IsEmpty());
}

TEST(CompressionConfigTest, AKeyHeadTakesTheLargestRankOfItsQueryHeads) {
  const std::string config = Heads(Enabled("0/0", 8) + "," + Enabled("0/1", 16) + "," + Enabled("0/2", 8) + "," +
                                   Enabled("0/3", 4) + "," + Enabled("1/0", 4) + "," + Enabled("1/1", 4));
  EXPECT_THAT(RanksOf(config, Tensor("layer_0_key", 2)), ElementsAre(16, 8));
  EXPECT_THAT(RanksOf(config, Tensor("layer_0_key", 1)), ElementsAre(16));
  EXPECT_THAT(RanksOf(config, Tensor("layer_1_key", 2)), ElementsAre(4, 64)) << "heads that are not listed are whole";
  EXPECT_EQ(FaultOf(config, Tensor("layer_0_key", 3)),
            "the config has 4 heads, which are no whole number for each of the 3 heads of \"layer_0_key\"");
  EXPECT_EQ(FaultOf(Heads(Enabled("0/0", 8) + "," + Enabled("0/3", 8))),
            "the config has head 3, and \"layer_0_key\" has 2 heads: it must list all query heads of a layer, so that "
            "their number is known");
}

TEST(CompressionConfigTest, FaultsNameTheHead) {
  EXPECT_EQ(FaultOf(Heads(Enabled("0/3", 8) + "," + Enabled("layer0/head3", 8))),
            "layer0/head3 is given twice, the second time as \"layer0/head3\"");
  EXPECT_EQ(FaultOf(Heads(Enabled("0/3", 8) + "," + Enabled("0/3", 8))),
            "not valid JSON: the second \"0/3\" of an object at byte 61");
  EXPECT_EQ(FaultOf(Heads(Enabled("0/3", 0))), "layer0/head3: rank 0 is not between 1 and d 64");
  EXPECT_EQ(FaultOf(Heads(Enabled("0/3", -1))), "layer0/head3: rank -1 is not between 1 and d 64");
  EXPECT_EQ(FaultOf(Heads(Enabled("0/3", 65))), "layer0/head3: rank 65 is not between 1 and d 64");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"rank": 1.5})")), "layer0/head3: rank 1.5 is not between 1 and d 64");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"rank": 33, "d_v": 32})")), "layer0/head3: rank 33 is not between 1 and d 32");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"d_k": 0})")), "layer0/head3: d_k is 0, not an integer from 1 to 65536");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"enabled": 1})")), "layer0/head3: enabled is not true or false");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"algo": "svd"})")),
            "layer0/head3: algo is \"svd\", which is unknown (there are kvsplice, pca, none)");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"enabled": true, "algo": "none"})")),
            "layer0/head3: it is enabled, and its algo is none");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"ranks": 8})")),
            "layer0/head3: unknown field \"ranks\" (there are enabled, rank, algo, d_k, d_v, learn_scale_shift, "
            "compression_ratio, reason, metrics)");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": 8)")), "layer0/head3 must be a JSON object");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"metrics": {"trace": null}})")), "layer0/head3: trace is not a number");
  EXPECT_EQ(FaultOf(Heads(R"("0/3": {"metrics": {"trace": NaN}})")),
            "not valid JSON: a syntax error at byte 50, in per_layer_head.0/3.metrics.trace");
  EXPECT_EQ(FaultOf(Heads(Enabled("0/0", 8)), Tensor("layer_0_key", 1, 128)),
            "layer0/head0: d_k is 64, and the heads of \"layer_0_key\" have 128 channels");
  for (const char* key : {"", "/", "0", "0/", "/0", "0/0/0", "layer/head0", "l0/h0", "0/head", "-1/0", "0/ 1", "0/1x",
                          "head0/layer0", "0/1234567890"}) {
    EXPECT_EQ(FaultOf(Heads(Enabled(key, 8))),
              absl::StrFormat("Invalid key format: \"%s\" (a head is \"0/3\" or \"layer0/head3\")", key));
  }
}

TEST(CompressionConfigTest, FaultsOfTheWhole) {
  EXPECT_EQ(FaultOf(R"({"d_head": 64})"), "the config has no object per_layer_head");
  EXPECT_EQ(FaultOf(R"({"per_layer_head": []})"), "the config has no object per_layer_head");
  EXPECT_EQ(FaultOf("[]"), "the config must be a JSON object");
  EXPECT_EQ(FaultOf(R"({"global": 1, "per_layer_head": {}})"), "global must be a JSON object");
  EXPECT_EQ(FaultOf(R"({"global": {"d_head": 64}, "d_head": 64, "per_layer_head": {}})"),
            "d_head is given twice, in global and beside it");
  EXPECT_EQ(FaultOf(R"({"global": {"d_heads": 64}, "per_layer_head": {}})"),
            "global: unknown field \"d_heads\" (there are target_memory_reduction, d_head, algo_default)");
  EXPECT_EQ(FaultOf(R"({"algo_default": 1, "per_layer_head": {}})"),
            "the config: algo_default is 1, which is unknown (there are kvsplice, pca, none)");
  EXPECT_EQ(FaultOf(R"({"target_memory_reduction": "half", "per_layer_head": {}})"),
            "the config: target_memory_reduction is not a number");
  EXPECT_THAT(FaultOf(R"({"version": 1, "per_layer_head": {}})"),
              ::testing::StartsWith("the config: unknown field \"version\" (there are "));
}

}  // namespace
}  // namespace kvcompress
