#include "server/telemetry/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/wire/grpc/error_details.h"
#include "proto/wire/methods.h"
#include "server/rpc/call.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAreArray;

TensorReport Report(std::string codec_name, uint64_t tensor_bytes, uint64_t frame_bytes) {
  return {.tensor = {.name = "secret", .shape = {}, .axes = {}},
          .codec = codec_name + "(group=64)",
          .codec_name = codec_name,
          .policy = {},
          .elements = tensor_bytes / 2,
          .tensor_bytes = tensor_bytes,
          .frame_bytes = frame_bytes,
          .sums = {},
          .codec_seconds = 0.25};
}

// The texts in backquotes of a row of a table in docs/operations.md.
std::vector<std::string> Quoted(absl::string_view row) {
  std::vector<std::string> parts = absl::StrSplit(row, '`');
  std::vector<std::string> quoted;
  for (size_t i = 1; i < parts.size(); i += 2) quoted.push_back(parts[i]);
  return quoted;
}

// The cells of the rows of the manual's table of metrics.
std::vector<std::vector<std::string>> ManualRows() {
  std::ifstream manual(KVC_SOURCE_DIR "/docs/operations.md");
  std::vector<std::vector<std::string>> rows;
  for (std::string line; std::getline(manual, line);) {
    if (line.starts_with("| `kvcompress_")) rows.push_back(absl::StrSplit(line, " | "));
  }
  return rows;
}

class MetricsTest : public ::testing::Test {
 protected:
  void CountSome() {
    metrics_.OnCallStart("Compress");
    metrics_.OnCallStart("Compress");
    metrics_.OnCallEnd("Compress", absl::StatusCode::kDataLoss, 0.003);
    metrics_.OnReject(RejectReason::kMaxStreams);
    const Quality poor = {.rmse = 0.3,
                          .mean_abs_error = 0.2,
                          .snr_db = 12.0,
                          .cosine_similarity = 0.97,
                          .max_error = 0.7,
                          .token_snr_db = 16.0};
    metrics_.OnCompressed(Report("int4", 4000, 1000), poor, CheckThresholds(poor));
    metrics_.OnCompressed(Report("raw", 100, 150), {}, {});
    metrics_.OnDecompressed(Report("int4", 8000, 2000));
  }

  Metrics metrics_{[] {
                     return LiveFigures{.streams = 3,
                                        .bytes = 70,
                                        .memory_budget = 1000,
                                        .jobs_queued = 5,
                                        .threads = 2,
                                        .draining = true,
                                        .shared_memory_regions = 4,
                                        .shared_memory_bytes = 8192,
                                        .connections = 5,
                                        .certificate_expiry = absl::FromUnixSeconds(1'800'000'000),
                                        .log_lines_dropped = 6,
                                        .artifacts_loaded = 7,
                                        .artifact_bytes = 4096,
                                        .artifact_loads = 8,
                                        .artifact_failures = 9};
                   },
                   /*link_bandwidth=*/1000};
};

TEST_F(MetricsTest, SeriesThatAreKnownBeforehandBeginAtZero) {
  const std::string page = prometheus::TextSerializer().Serialize(metrics_.Collect());
  for (const char* line : {
           "kvcompress_requests_total{code=\"OK\",method=\"Decompress\"} 0",
           "kvcompress_requests_total{code=\"DATA_LOSS\",method=\"DecompressTensor\"} 0",
           "kvcompress_threshold_violations_total{kind=\"snr\"} 0",
           "kvcompress_nonfinite_tensors_total 0",
       }) {
    EXPECT_THAT(page, HasSubstr(line));
  }
  for (std::string_view method : AllMethods()) {
    EXPECT_THAT(page, HasSubstr("kvcompress_requests_in_flight{method=\"" + std::string(method) + "\"} 0\n"));
  }
  ASSERT_EQ(AllRejectReasons().back(), RejectReason::kStreamIdle);
  for (RejectReason reason : AllRejectReasons()) {
    const std::string name(RejectReasonName(reason));
    EXPECT_THAT(page, HasSubstr("kvcompress_rejected_requests_total{reason=\"" + name + "\"} 0\n"));
  }
  EXPECT_EQ(metrics_.ToMessage().methods_size(), 0);
  EXPECT_TRUE(metrics_.ToMessage().rejected_by_reason().empty());
}

TEST_F(MetricsTest, AMethodOutsideTheServiceIsCountedToo) {
  metrics_.OnCallStart("Explain");
  metrics_.OnCallStart("Explain");
  metrics_.OnCallEnd("Explain", absl::StatusCode::kOk, 0.003);
  const std::string page = prometheus::TextSerializer().Serialize(metrics_.Collect());
  EXPECT_THAT(page, HasSubstr("kvcompress_requests_in_flight{method=\"Explain\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("kvcompress_requests_total{code=\"OK\",method=\"Explain\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("kvcompress_request_duration_seconds_count{method=\"Explain\"} 1\n"));
}

TEST_F(MetricsTest, TheManualListsEveryMetric) {
  std::vector<std::string> listed;
  for (const std::vector<std::string>& row : ManualRows()) {
    for (const std::string& name : Quoted(row[0])) {
      if (name != "process_*") listed.push_back(name);
    }
  }
  CountSome();
  std::vector<std::string> served;
  for (const prometheus::MetricFamily& family : metrics_.Collect()) {
    if (!family.name.starts_with("process_")) served.push_back(family.name);
  }
  EXPECT_THAT(listed, UnorderedElementsAreArray(served));
}

TEST_F(MetricsTest, TheManualListsTheValuesOfLabels) {
  std::map<std::string, std::vector<std::string>> values = {
      {"stage", {Metrics::kStageNames.begin(), Metrics::kStageNames.end()}}};
  for (RejectReason reason : AllRejectReasons()) values["reason"].emplace_back(RejectReasonName(reason));
  for (ViolationKind kind : kViolationKinds) values["kind"].emplace_back(ViolationKindName(kind));
  size_t checked = 0;
  for (const std::vector<std::string>& row : ManualRows()) {
    const auto expected = values.find(row[1]);
    if (expected == values.end()) continue;
    EXPECT_THAT(Quoted(row[2]), UnorderedElementsAreArray(expected->second)) << row[0];
    ++checked;
  }
  EXPECT_EQ(checked, values.size());
}

TEST_F(MetricsTest, PageHasWhatWasCounted) {
  CountSome();
  const std::string page = prometheus::TextSerializer().Serialize(metrics_.Collect());
  for (const char* line : {
           "kvcompress_requests_total{code=\"DATA_LOSS\",method=\"Compress\"} 1",
           "kvcompress_requests_in_flight{method=\"Compress\"} 1",
           "kvcompress_connections 5",
           "kvcompress_log_lines_dropped_total 6",
           "kvcompress_artifacts_loaded 7",
           "kvcompress_artifact_memory_bytes 4096",
           "kvcompress_artifact_loads_total 8",
           "kvcompress_artifact_failures_total 9",
           "kvcompress_tls_certificate_expiry_timestamp_seconds 1800000000",
           "kvcompress_request_duration_seconds_bucket{method=\"Compress\",le=\"0.0025\"} 0",
           "kvcompress_request_duration_seconds_bucket{method=\"Compress\",le=\"0.005\"} 1",
           "kvcompress_rejected_requests_total{reason=\"max_streams\"} 1",
           "kvcompress_tensors_total{codec=\"int4\",method=\"Compress\"} 1",
           "kvcompress_tensor_bytes_total{codec=\"int4\",method=\"Decompress\"} 8000",
           "kvcompress_frame_bytes_total{codec=\"raw\",method=\"Compress\"} 150",
           "kvcompress_stage_duration_seconds_count{stage=\"codec\"} 3",
           "kvcompress_link_bandwidth_bytes_per_second 1000",
           "kvcompress_net_saved_seconds{codec=\"int4\",method=\"Compress\"} 2.75",
           "kvcompress_net_saved_seconds{codec=\"int4\",method=\"Decompress\"} 5.75",
           "kvcompress_net_saved_seconds{codec=\"raw\",method=\"Compress\"} -0.3",
           "kvcompress_tensors_by_level_total{codec=\"int4\",level=\"POOR\"} 1",
           "kvcompress_tensors_by_level_total{codec=\"raw\",level=\"EXCELLENT\"} 1",
           "kvcompress_threshold_violations_total{kind=\"snr\"} 1",
           "kvcompress_quality_snr_db_bucket{codec=\"int4\",le=\"15\"} 1",
           "kvcompress_quality_token_snr_db_bucket{codec=\"int4\",kind=\"other\",le=\"18\"} 1",
           "kvcompress_quality_cosine_similarity_bucket{codec=\"int4\",le=\"0.98\"} 1",
           "kvcompress_quality_cosine_similarity_bucket{codec=\"int4\",le=\"0.95\"} 0",
           "kvcompress_in_flight_bytes 70",
           "kvcompress_memory_budget_bytes 1000",
           "kvcompress_queue_depth 5",
           "kvcompress_draining 1",
           "kvcompress_shared_memory_regions 4",
           "kvcompress_shared_memory_bytes 8192",
       }) {
    EXPECT_THAT(page, HasSubstr(std::string(line) + "\n"));
  }
  EXPECT_THAT(page, HasSubstr("kvcompress_build_info{version="));
  EXPECT_THAT(page, HasSubstr("\nprocess_resident_memory_bytes "));
  for (const char* backing : {"anonymous", "file", "shared"}) {
    EXPECT_THAT(page, HasSubstr(absl::StrCat("\nkvcompress_resident_memory_bytes{backing=\"", backing, "\"} ")));
  }
  // A tensor without loss has no finite SNR, and names are nobody's labels.
  EXPECT_THAT(page, Not(HasSubstr("kvcompress_quality_snr_db_count{codec=\"raw\"}")));
  EXPECT_THAT(page, Not(HasSubstr("secret")));
}

TEST(MetricsWithoutALinkTest, SayNothingOfWhatItSaves) {
  Metrics metrics([] { return LiveFigures{}; });
  metrics.OnDecompressed(Report("int4", 8000, 2000));
  const std::string page = prometheus::TextSerializer().Serialize(metrics.Collect());
  EXPECT_THAT(page, HasSubstr("kvcompress_codec_seconds_total{codec=\"int4\",method=\"Decompress\"} 0.25\n"));
  EXPECT_THAT(page, Not(HasSubstr("kvcompress_link_bandwidth")));
  EXPECT_THAT(page, Not(HasSubstr("kvcompress_net_saved_seconds")));
}

TEST_F(MetricsTest, HistogramsObserveNothingThatIsNegativeOrNotFinite) {
  const auto count = [&](std::optional<double> snr_db, std::optional<double> token_snr_db, double cosine) {
    const Quality quality = {.rmse = 1,
                             .snr_db = snr_db,
                             .cosine_similarity = cosine,
                             .max_error = 1,
                             .token_snr_db = token_snr_db,
                             .kind = TensorKind::kKey};
    metrics_.OnCompressed(Report("int2", 4000, 1000), quality, {});
  };
  count(kMinSnrDb, -3.7, -1);
  count(std::nullopt, std::nullopt, 0);
  count(kInfiniteSnrDb, kInfiniteSnrDb, 1);
  count(24, 6, 1);
  const std::string page = prometheus::TextSerializer().Serialize(metrics_.Collect());
  for (const char* line : {
           "kvcompress_quality_snr_db_count{codec=\"int2\"} 2",
           "kvcompress_quality_snr_db_sum{codec=\"int2\"} 24",
           "kvcompress_quality_snr_db_bucket{codec=\"int2\",le=\"5\"} 1",
           "kvcompress_quality_token_snr_db_count{codec=\"int2\",kind=\"key\"} 2",
           "kvcompress_quality_token_snr_db_sum{codec=\"int2\",kind=\"key\"} 6",
           "kvcompress_quality_token_snr_db_bucket{codec=\"int2\",kind=\"key\",le=\"5\"} 1",
           "kvcompress_quality_cosine_similarity_sum{codec=\"int2\"} 2",
       }) {
    EXPECT_THAT(page, HasSubstr(std::string(line) + "\n"));
  }
}

TEST_F(MetricsTest, MessageHasTheSameFigures) {
  CountSome();
  const v1::MetricsResponse message = metrics_.ToMessage();
  ASSERT_EQ(message.methods_size(), 1);
  EXPECT_EQ(message.methods(0).method(), "Compress");
  EXPECT_EQ(message.methods(0).calls_by_code().at("DATA_LOSS"), 1u);
  ASSERT_EQ(message.codecs_size(), 2);
  EXPECT_EQ(message.codecs(0).codec(), "int4");
  EXPECT_EQ(message.codecs(0).tensors_compressed(), 1u);
  EXPECT_EQ(message.codecs(0).tensors_decompressed(), 1u);
  EXPECT_EQ(message.codecs(0).tensor_bytes_in(), 4000u);
  EXPECT_EQ(message.codecs(0).frame_bytes_out(), 1000u);
  EXPECT_EQ(message.codecs(0).frame_bytes_in(), 2000u);
  EXPECT_EQ(message.codecs(0).tensor_bytes_out(), 8000u);
  EXPECT_DOUBLE_EQ(message.codecs(0).codec_seconds(), 0.5);
  EXPECT_EQ(message.tensors_by_level().at("POOR"), 1u);
  EXPECT_EQ(message.violations_by_kind().at("rmse"), 1u);
  EXPECT_EQ(message.rejected_by_reason().at("max_streams"), 1u);
  EXPECT_EQ(message.streams_in_flight(), 3u);
  EXPECT_EQ(message.bytes_in_flight(), 70u);
  EXPECT_EQ(message.jobs_queued(), 5u);
  EXPECT_TRUE(message.draining());
  EXPECT_EQ(message.build().frame_version(), 3u);
}

TEST(StatusTest, LongMessagesAreCutAtACharacter) {
  EXPECT_EQ(ToGrpcStatus(absl::DataLossError("x")).error_message(), "x");
  EXPECT_EQ(ToGrpcStatus(absl::DataLossError("x")).error_code(), grpc::StatusCode::DATA_LOSS);
  std::string text = "x";
  for (int i = 0; i < 2000; ++i) text += "\u00fc";
  const std::string cut = ToGrpcStatus(absl::DataLossError(text)).error_message();
  EXPECT_EQ(cut, text.substr(0, 2047) + "...");
}

TEST(StatusTest, RefusalsThatPassSayWhenToTryAgain) {
  Admission admission({.max_streams = 0});
  EXPECT_EQ(DetailsOf(ToGrpcStatus(admission.AdmitStream().status())).retry_delay, absl::Milliseconds(100));
  admission.StartDraining();
  EXPECT_EQ(DetailsOf(ToGrpcStatus(admission.AdmitStream().status())).retry_delay, std::nullopt);
}

}  // namespace
}  // namespace kvcompress
