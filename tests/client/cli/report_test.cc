#include "client/cli/report.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

std::vector<std::string> Keys(const Json& json) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  return keys;
}

TensorReport MakeReport(std::string name, const ErrorSums& sums) {
  return {.tensor = MakeTensor(std::move(name), DType::kF16, {4}),
          .codec = "int4(group=64)",
          .codec_name = "int4",
          .policy = {},
          .elements = 4,
          .tensor_bytes = 8,
          .frame_bytes = 5,
          .sums = sums};
}

// Values 1, -1, 1, -1 with errors of `error` each.
ErrorSums SumsWithError(double error) {
  return {.count = 4,
          .sum = 0,
          .sum_squares = 4,
          .sum_deviations = 4,
          .sum_error_squares = 4 * error * error,
          .sum_abs_error = 4 * error,
          .sum_cross = 0,
          .max_abs_error = error,
          .rotary = {}};
}

FileReport MakeFileReport(double first_error, double second_error) {
  return {.codec = "int4(group=64)",
          .tensors = {MakeReport("a", SumsWithError(first_error)), MakeReport("b", SumsWithError(second_error))},
          .tensor_bytes = 16,
          .compressed_bytes = 10};
}

TEST(ReportJson, KeysInTheOrderOfTheReferenceThenOurs) {
  const std::string text = ReportJson(MakeFileReport(0.1, 0.2), true, true, 1.5);
  EXPECT_THAT(Keys(Json::parse(text)),
              ElementsAre("compression_ratio", "original_size_bytes", "compressed_size_bytes", "rmse", "snr_db",
                          "cosine_similarity", "max_error", "quality_level", "processing_time_ms", "quality_passed",
                          "violations", "tensor_metrics", "token_snr_db", "judged_snr_db", "mean_abs_error",
                          "worst_tensor", "element_weighted", "warnings", "codec", "rotary", "theoretical_ratio",
                          "bits_per_value", "tensors", "elements", "passed_through_tensors", "passed_through_bytes"));
  EXPECT_THAT(text, ::testing::StartsWith("{\n  \"compression_ratio\": 1.6,\n  \"original_size_bytes\": 16,\n"));
  EXPECT_THAT(text, EndsWith("\n}\n"));
}

TEST(ReportJson, FiguresOfTheFileAndOfItsTensors) {
  const Json json = Json::parse(ReportJson(MakeFileReport(0.01, 0.1), true, true, 1.5));
  EXPECT_DOUBLE_EQ(json["rmse"], 0.055);
  EXPECT_DOUBLE_EQ(json["snr_db"], 30.0);  // the mean of 40 and 20
  EXPECT_DOUBLE_EQ(json["judged_snr_db"], 30.0);
  EXPECT_DOUBLE_EQ(json["max_error"], 0.1);
  EXPECT_DOUBLE_EQ(json["mean_abs_error"], 0.055);
  EXPECT_EQ(json["quality_level"], "ACCEPTABLE");
  EXPECT_EQ(json["quality_passed"], true);
  EXPECT_EQ(json["violations"], Json::array());
  EXPECT_EQ(json["worst_tensor"], "b");
  EXPECT_DOUBLE_EQ(json["element_weighted"]["rmse"], std::sqrt((0.01 * 0.01 + 0.1 * 0.1) / 2));
  EXPECT_DOUBLE_EQ(json["theoretical_ratio"], 64.0 / 17);
  EXPECT_DOUBLE_EQ(json["bits_per_value"], 10.0);
  EXPECT_EQ(json["processing_time_ms"], 1.5);
  EXPECT_THAT(Keys(json["tensor_metrics"]), ElementsAre("a_rmse", "a_snr_db", "a_cosine_similarity", "a_max_error",
                                                        "b_rmse", "b_snr_db", "b_cosine_similarity", "b_max_error"));
  EXPECT_DOUBLE_EQ(json["tensor_metrics"]["b_rmse"], 0.1);
}

TEST(ReportJson, CodecsOfBlocksStandBehindTheFiguresOfTheirTensor) {
  FileReport report = MakeFileReport(0.01, 0.1);
  report.block_codecs = {{{"raw", 1}, {"int4(group=64)", 12}}, {}};
  const Json json = Json::parse(ReportJson(report, true, true, 1.5));
  EXPECT_THAT(Keys(json["tensor_metrics"]),
              ElementsAre("a_rmse", "a_snr_db", "a_cosine_similarity", "a_max_error", "a_codecs", "b_rmse", "b_snr_db",
                          "b_cosine_similarity", "b_max_error"));
  EXPECT_EQ(json["tensor_metrics"]["a_codecs"], Json::parse(R"json({"int4(group=64)": 12, "raw": 1})json"));
}

TEST(ReportJson, TensorsThatAreKeptCountInTheSizesAlone) {
  FileReport report = MakeFileReport(0.01, 0.1);
  const Json without = Json::parse(ReportJson(report, true, true, 1.5));
  report.tensors.push_back(MakeReport("ids", {}));
  report.tensors.back().passed_through = true;
  Json json = Json::parse(ReportJson(report, true, true, 1.5));
  EXPECT_EQ(json["passed_through_tensors"], 1);
  EXPECT_EQ(json["passed_through_bytes"], 8);
  EXPECT_EQ(json["tensor_metrics"]["ids_passed_through"], true);
  EXPECT_EQ(json["tensor_metrics"].size(), without["tensor_metrics"].size() + 1);
  for (const char* key : {"rmse", "snr_db", "cosine_similarity", "max_error", "mean_abs_error", "element_weighted"}) {
    EXPECT_EQ(json[key], without[key]) << key;
  }
}

TEST(ReportJson, DoublesAreNotRounded) {
  const double error = 0.1234567890123456;
  const Json json = Json::parse(ReportJson(MakeFileReport(error, error), true, false, 0));
  EXPECT_DOUBLE_EQ(json["rmse"], error);
  EXPECT_FALSE(json.contains("tensor_metrics"));
  EXPECT_TRUE(json["original_size_bytes"].is_number_integer());
  EXPECT_TRUE(json["compression_ratio"].is_number_float());
}

TEST(ReportJson, ViolationsAreNamed) {
  const Json json = Json::parse(ReportJson(MakeFileReport(0.6, 0.6), true, false, 0));
  EXPECT_EQ(json["quality_passed"], false);
  EXPECT_EQ(json["quality_level"], "POOR");
  EXPECT_THAT(json["violations"].get<std::vector<std::string>>(),
              ::testing::IsSupersetOf({"RMSE 0.6000 > 0.1000", "MaxError 0.6000 > 0.5000", "SNR 4.44dB < 18.00dB"}));
}

TEST(ReportJson, LosslessHasNullForItsInfiniteSnr) {
  FileReport report = MakeFileReport(0, 0);
  report.codec = "raw|zstd(level=3)";
  const Json json = Json::parse(ReportJson(report, true, true, 0));
  EXPECT_TRUE(json["snr_db"].is_null());
  EXPECT_TRUE(json["tensor_metrics"]["a_snr_db"].is_null());
  EXPECT_TRUE(json["element_weighted"]["snr_db"].is_null());
  EXPECT_TRUE(json["theoretical_ratio"].is_null());
  EXPECT_EQ(json["quality_level"], "EXCELLENT");
  EXPECT_EQ(json["worst_tensor"], "");
}

TEST(ReportJson, AConstantWithAnErrorHasNoSnrAndDoesNotMakeTheFilePoor) {
  FileReport report = MakeFileReport(0.005, 0.005);
  ErrorSums scale = {.count = 1,
                     .sum = 1000,
                     .sum_squares = 1e6,
                     .sum_error_squares = 4,
                     .sum_abs_error = 2,
                     .sum_cross = -2000,
                     .max_abs_error = 2,
                     .rotary = {}};
  report.tensors.push_back(MakeReport("k_scale", scale));
  const Json json = Json::parse(ReportJson(report, true, true, 0));
  EXPECT_TRUE(json["tensor_metrics"]["k_scale_snr_db"].is_null());
  EXPECT_NEAR(json["snr_db"].get<double>(), 46.02, 0.01);
  EXPECT_EQ(json["quality_level"], "EXCELLENT");
  EXPECT_EQ(json["violations"], Json::array());
}

TEST(ReportJson, TokenSnrStandsBesideTheSnr) {
  FileReport report = MakeFileReport(0.001, 0.001);
  ErrorSums& key = report.tensors[0].sums;
  report.tensors[0].tensor.name = "layer_0_key";
  key.token_count = 4;
  key.token_deviations = 1e-5;
  key.token_error_deviations = 1e-6;
  key.max_channel_constant = 300;
  const Json json = Json::parse(ReportJson(report, true, true, 0));
  EXPECT_NEAR(json["snr_db"].get<double>(), 60, 1e-9);
  EXPECT_NEAR(json["token_snr_db"].get<double>(), 10, 1e-9);
  EXPECT_NEAR(json["element_weighted"]["token_snr_db"].get<double>(), 10, 1e-9);
  EXPECT_NEAR(json["tensor_metrics"]["layer_0_key_token_snr_db"].get<double>(), 10, 1e-9);
  EXPECT_FALSE(json["tensor_metrics"].contains("b_token_snr_db"));
  EXPECT_EQ(json["worst_tensor"], "layer_0_key");
  EXPECT_EQ(json["quality_level"], "GOOD");  // by the mean of 10 and 60
  ASSERT_EQ(json["warnings"].size(), 1);
  EXPECT_THAT(json["warnings"][0].get<std::string>(), HasSubstr("keys of layer 0 have channels"));
}

TEST(ReportJson, DecompressionDoesNotKnowTheQuality) {
  const Json json = Json::parse(ReportJson(MakeFileReport(0, 0), false, false, 2));
  EXPECT_THAT(Keys(json), ElementsAre("compression_ratio", "original_size_bytes", "compressed_size_bytes", "rmse",
                                      "snr_db", "cosine_similarity", "max_error", "quality_level", "processing_time_ms",
                                      "quality_passed", "violations", "codec", "theoretical_ratio", "bits_per_value",
                                      "tensors", "elements", "passed_through_tensors", "passed_through_bytes"));
  for (const char* key : {"rmse", "snr_db", "cosine_similarity", "max_error", "quality_passed"}) {
    EXPECT_TRUE(json[key].is_null()) << key;
  }
  EXPECT_EQ(json["quality_level"], "UNKNOWN");
  EXPECT_EQ(json["violations"], Json::array());
}

TEST(ReportJson, AFileWithoutTensors) {
  const Json json =
      Json::parse(ReportJson({.codec = "int4(group=64)", .tensors = {}, .compressed_bytes = 100}, true, true, 0));
  EXPECT_EQ(json["compression_ratio"], 0.0);
  EXPECT_TRUE(json["bits_per_value"].is_null());
  EXPECT_EQ(json["tensor_metrics"], Json::object());
  EXPECT_EQ(json["tensors"], 0);
  EXPECT_FALSE(json.contains("quality_level"));
}

TEST(ReportJson, NamesAreEscaped) {
  FileReport report = MakeFileReport(0, 0);
  report.tensors[0].tensor.name = "a\"\\\n\xc3\xa9";
  const Json json = Json::parse(ReportJson(report, true, true, 0));
  EXPECT_TRUE(json["tensor_metrics"].contains("a\"\\\n\xc3\xa9_rmse"));
}

}  // namespace
}  // namespace kvcompress
