#include "core/profile/rope_scaling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;

using Kind = simd::RotaryScaling::Kind;

simd::RotaryScaling Scaling(std::string_view text) {
  const auto scaling = ParseRopeScaling(text, 10000);
  EXPECT_THAT(scaling, IsOk());
  return scaling.value_or(simd::RotaryScaling{});
}

std::string Fault(std::string_view text, double theta = 10000) {
  const auto scaling = ParseRopeScaling(text, theta);
  return scaling.ok() ? "" : std::string(scaling.status().message());
}

TEST(RopeScalingTest, ConfigurationsOfModelsSayIt) {
  const simd::RotaryScaling llama = {Kind::kLlama3, 8, 1, 4, 8192};
  EXPECT_EQ(Scaling(R"({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192, "rope_type": "llama3"})"),
            llama);
  EXPECT_EQ(Scaling(R"({"factor": 8, "type": "llama3", "rope_type": "llama3", "rope_theta": 500000.0})"), llama);
  EXPECT_EQ(Scaling(R"({"type": "linear", "factor": 2.5})"), (simd::RotaryScaling{Kind::kLinear, 2.5}));
  EXPECT_EQ(Scaling(R"({"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 2, "mscale": 1.0,
                        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "truncate": true})"),
            (simd::RotaryScaling{Kind::kYarn, 40, 2, 32, 4096}));
  EXPECT_EQ(Scaling(R"({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768,
                        "beta_fast": null, "attention_factor": null})"),
            (simd::RotaryScaling{Kind::kYarn, 4, 1, 32, 32768}));
  for (const std::string_view none : {"null", "{}", R"({"rope_type": "default"})", R"({"type": null})"}) {
    EXPECT_EQ(Scaling(none), simd::RotaryScaling{}) << none;
  }
}

TEST(RopeScalingTest, NothingIsGuessed) {
  EXPECT_EQ(Fault("{"), "not valid JSON: it ends too early");
  EXPECT_EQ(Fault("8"), "the scaling is not a JSON object");
  EXPECT_EQ(Fault(R"({"type": "dynamic", "factor": 2})"),
            "the scaling's type \"dynamic\" is none of \"default\", \"linear\", \"llama3\", \"yarn\"");
  EXPECT_EQ(Fault(R"({"type": 1})"), "the scaling's type 1 is none of \"default\", \"linear\", \"llama3\", \"yarn\"");
  EXPECT_EQ(Fault(R"({"factor": 2})"),
            "the scaling's type null is none of \"default\", \"linear\", \"llama3\", \"yarn\"");
  EXPECT_EQ(Fault(R"({"type": "yarn", "rope_type": "llama3", "factor": 2})"),
            "the scaling's type and rope_type differ");
  EXPECT_EQ(Fault(R"({"type": "linear"})"), "the scaling's factor is not from 1 to 1e6");
  EXPECT_EQ(Fault(R"({"type": "linear", "factor": "2"})"), "the scaling's factor is not a number");
  EXPECT_EQ(Fault(R"({"type": "linear", "factor": -2})"), "the scaling's factor is not from 1 to 1e6");
  EXPECT_EQ(Fault(R"({"type": "linear", "factor": 1e300})"), "the scaling's factor is not from 1 to 1e6");
  EXPECT_EQ(Fault(R"({"type": "yarn", "factor": 2})"), "the scaling's original is not from 1 to 1e15");
  EXPECT_EQ(Fault(R"({"type": "yarn", "factor": 2, "original_max_position_embeddings": -8})"),
            "the scaling's original_max_position_embeddings is not an integer");
  EXPECT_EQ(Fault(R"({"type": "yarn", "factor": 2, "original_max_position_embeddings": 8, "truncate": false})"),
            "yarn scaling with \"truncate\": false");
  EXPECT_EQ(Fault(R"({"type": "yarn", "factor": 2, "original_max_position_embeddings": 8})", 1),
            "yarn scaling needs a theta above 1");
  EXPECT_EQ(Fault(R"({"type": "llama3", "factor": 2, "low_freq_factor": 4})"),
            "the scaling's low and high are not from 1e-6 to 1e6, low below high");
}

TEST(RopeScalingTest, WhatIsWrittenIsRead) {
  const simd::RotaryScaling scalings[] = {
      {}, {Kind::kLinear, 2.5}, {Kind::kLlama3, 8, 1, 4.5, 8192}, {Kind::kYarn, 4, 1, 32, 32768}};
  for (const simd::RotaryScaling& scaling : scalings) EXPECT_EQ(Scaling(RopeScalingJson(scaling).dump()), scaling);
}

}  // namespace
}  // namespace kvcompress
