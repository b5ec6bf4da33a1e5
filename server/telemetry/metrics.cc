#include "server/telemetry/metrics.h"

#include <prometheus/client_metric.h>

#include "core/frame/frame.h"
#include "core/simd/group_quant.h"
#include "server/telemetry/process_metrics.h"

namespace kvcompress {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;
using Buckets = prometheus::Histogram::BucketBoundaries;

constexpr std::string_view kCompress = "Compress";
constexpr std::string_view kDecompress = "Decompress";

const Buckets kCallSeconds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};
const Buckets kStageSeconds = {0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10};
const Buckets kSnrDb = {5, 10, 15, 18, 20, 25, 30, 35, 40, 50, 60, 80};
const Buckets kCosine = {0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999, 1};

template <typename Builder>
auto& Family(Builder builder, prometheus::Registry& registry, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

std::string Text(std::string_view text) { return std::string(text); }

std::string_view StageName(Metrics::Stage stage) {
  switch (stage) {
    case Metrics::Stage::kRead:
      return "read";
    case Metrics::Stage::kCodec:
      return "codec";
    case Metrics::Stage::kWrite:
      return "write";
    case Metrics::Stage::kFinish:
      return "finish";
  }
  return "?";
}

MetricFamily Gauge(const char* name, const char* help, double value,
                   std::vector<prometheus::ClientMetric::Label> labels = {}) {
  MetricFamily family{.name = name, .help = help, .type = MetricType::Gauge, .metric = {}};
  family.metric.emplace_back();
  family.metric[0].label = std::move(labels);
  family.metric[0].gauge.value = value;
  return family;
}

std::string_view Label(const prometheus::ClientMetric& metric, std::string_view name) {
  for (const auto& label : metric.label) {
    if (label.name == name) return label.value;
  }
  return {};
}

// Calls visit(metric, value) for each counter of the family of this name that has counted something.
template <typename Visit>
void ForEachCounter(const std::vector<MetricFamily>& families, std::string_view name, Visit visit) {
  for (const MetricFamily& family : families) {
    if (family.name != name) continue;
    for (const auto& metric : family.metric) {
      if (metric.counter.value > 0) visit(metric, metric.counter.value);
    }
  }
}

}  // namespace

BuildInfo ThisBuild() {
#ifdef __clang__
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
  return {.version = KVC_VERSION, .compiler = compiler, .simd_target = simd::TargetName()};
}

void ToMessage(const BuildInfo& build, v1::BuildInfo& message) {
  message.set_version(build.version);
  message.set_compiler(build.compiler);
  message.set_simd_target(build.simd_target);
  message.set_frame_version(kFrameVersion);
}

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;

Metrics::Metrics(std::function<LiveFigures()> live)
    : live_(std::move(live)),
      requests_(
          Family(BuildCounter(), registry_, "kvcompress_requests_total", "Calls that have ended, by status code.")),
      request_seconds_(Family(BuildHistogram(), registry_, "kvcompress_request_duration_seconds",
                              "Time from a call's start to its status.")),
      requests_in_flight_(
          Family(BuildGauge(), registry_, "kvcompress_requests_in_flight", "Calls that have not ended.")),
      rejected_(Family(
          BuildCounter(), registry_, "kvcompress_rejected_requests_total",
          "Connections, calls and tensors turned away by a limit, a budget, the drain, or for want of a token.")),
      stage_seconds_(Family(BuildHistogram(), registry_, "kvcompress_stage_duration_seconds",
                            "Time by stage: read and write are one message, codec is a tensor's time on pool threads, "
                            "finish is from a call's last message to its last report.")),
      tensors_(Family(BuildCounter(), registry_, "kvcompress_tensors_total", "Tensors done, by tensor codec.")),
      tensor_bytes_(Family(BuildCounter(), registry_, "kvcompress_tensor_bytes_total",
                           "Bytes of those tensors in their own dtypes.")),
      frame_bytes_(Family(BuildCounter(), registry_, "kvcompress_frame_bytes_total", "Bytes of their frames.")),
      codec_seconds_(Family(BuildCounter(), registry_, "kvcompress_codec_seconds_total",
                            "Time that pool threads have spent on them.")),
      levels_(Family(BuildCounter(), registry_, "kvcompress_tensors_by_level_total",
                     "Compressed tensors by quality level.")),
      violations_(Family(BuildCounter(), registry_, "kvcompress_threshold_violations_total",
                         "Quality thresholds that compressed tensors missed.")),
      snr_db_(Family(BuildHistogram(), registry_, "kvcompress_quality_snr_db",
                     "Signal-to-noise ratio of compressed tensors, in dB; tensors without any loss are left out.")),
      cosine_(Family(BuildHistogram(), registry_, "kvcompress_quality_cosine_similarity",
                     "Cosine similarity of compressed tensors to their originals.")) {
  // Series that are known beforehand exist from the start: a rate misses the event that a series begins with.
  for (const char* method :
       {"Compress", "Decompress", "CompressTensor", "DecompressTensor", "Metrics", "Capabilities", "SharedMemory"}) {
    methods_[method] = {&requests_in_flight_.Add({{"method", method}}),
                        &requests_.Add({{"method", method}, {"code", "OK"}}),
                        &request_seconds_.Add({{"method", method}}, kCallSeconds)};
  }
  for (const char* method : {"Decompress", "DecompressTensor"}) {
    requests_.Add({{"method", method}, {"code", "DATA_LOSS"}});
  }
  for (Stage stage : {Stage::kRead, Stage::kCodec, Stage::kWrite, Stage::kFinish}) {
    stages_[static_cast<size_t>(stage)] = &stage_seconds_.Add({{"stage", Text(StageName(stage))}}, kStageSeconds);
  }
  for (RejectReason reason :
       {RejectReason::kDraining, RejectReason::kMaxStreams, RejectReason::kMaxStreamsPerClient,
        RejectReason::kMaxCallRatePerClient, RejectReason::kMemoryBudget, RejectReason::kTensorTooLarge,
        RejectReason::kMaxConnections, RejectReason::kUnauthenticated}) {
    rejected_.Add({{"reason", Text(RejectReasonName(reason))}});
  }
  for (ViolationKind kind : kViolationKinds) {
    violation_kinds_[static_cast<size_t>(kind)] = &violations_.Add({{"kind", Text(ViolationKindName(kind))}});
  }
}

const Metrics::MethodSeries& Metrics::OfMethod(std::string_view method) const { return methods_.find(method)->second; }

void Metrics::OnCallStart(std::string_view method) { OfMethod(method).in_flight->Increment(); }

void Metrics::OnCallEnd(std::string_view method, absl::StatusCode code, double seconds) {
  const MethodSeries& series = OfMethod(method);
  series.in_flight->Decrement();
  series.seconds->Observe(seconds);
  if (code == absl::StatusCode::kOk) return series.ok->Increment();
  requests_.Add({{"method", Text(method)}, {"code", absl::StatusCodeToString(code)}}).Increment();
}

void Metrics::OnReject(RejectReason reason) { rejected_.Add({{"reason", Text(RejectReasonName(reason))}}).Increment(); }

void Metrics::OnStage(Stage stage, double seconds) { stages_[static_cast<size_t>(stage)]->Observe(seconds); }

Metrics::TensorSeries Metrics::NewTensorSeries(std::string_view method, const std::string& codec) {
  const std::map<std::string, std::string> labels = {{"method", Text(method)}, {"codec", codec}};
  return {&tensors_.Add(labels), &tensor_bytes_.Add(labels), &frame_bytes_.Add(labels), &codec_seconds_.Add(labels)};
}

Metrics::QualitySeries Metrics::NewQualitySeries(const std::string& codec) {
  QualitySeries series = {.levels = {}, .cosine = &cosine_.Add({{"codec", codec}}, kCosine)};
  for (QualityLevel level : kQualityLevels) {
    series.levels[static_cast<size_t>(level)] =
        &levels_.Add({{"codec", codec}, {"level", Text(QualityLevelName(level))}});
  }
  return series;
}

void Metrics::CountTensor(const TensorSeries& series, const TensorReport& report) {
  series.tensors->Increment();
  series.tensor_bytes->Increment(static_cast<double>(report.tensor_bytes));
  series.frame_bytes->Increment(static_cast<double>(report.frame_bytes));
  series.codec_seconds->Increment(report.codec_seconds);
  OnStage(Stage::kCodec, report.codec_seconds);
}

void Metrics::OnCompressed(const TensorReport& report, const Quality& quality,
                           const std::vector<Violation>& violations) {
  CodecSeries series;
  {
    absl::MutexLock lock(&codecs_mutex_);
    CodecSeries& known = codecs_[report.codec_name];
    if (!known.compress) known.compress = NewTensorSeries(kCompress, report.codec_name);
    if (!known.quality) known.quality = NewQualitySeries(report.codec_name);
    if (quality.snr_db && known.snr_db == nullptr) known.snr_db = &snr_db_.Add({{"codec", report.codec_name}}, kSnrDb);
    series = known;
  }
  CountTensor(*series.compress, report);
  series.quality->levels[static_cast<size_t>(LevelOf(quality))]->Increment();
  for (const Violation& violation : violations) violation_kinds_[static_cast<size_t>(violation.kind)]->Increment();
  if (quality.snr_db) series.snr_db->Observe(*quality.snr_db);
  series.quality->cosine->Observe(quality.cosine_similarity);
}

void Metrics::OnDecompressed(const TensorReport& report) {
  TensorSeries series;
  {
    absl::MutexLock lock(&codecs_mutex_);
    CodecSeries& known = codecs_[report.codec_name];
    if (!known.decompress) known.decompress = NewTensorSeries(kDecompress, report.codec_name);
    series = *known.decompress;
  }
  CountTensor(series, report);
}

std::vector<MetricFamily> Metrics::Collect() const {
  std::vector<MetricFamily> families = registry_.Collect();
  const LiveFigures live = live_();
  families.push_back(
      Gauge("kvcompress_in_flight_bytes", "Memory promised to streams.", static_cast<double>(live.bytes)));
  families.push_back(Gauge("kvcompress_memory_budget_bytes", "Memory that streams may be promised together.",
                           static_cast<double>(live.memory_budget)));
  families.push_back(
      Gauge("kvcompress_queue_depth", "Jobs that wait for a pool thread.", static_cast<double>(live.jobs_queued)));
  families.push_back(Gauge("kvcompress_pool_threads", "Threads that run codecs.", static_cast<double>(live.threads)));
  families.push_back(
      Gauge("kvcompress_draining", "1 while the daemon is on its way to its end.", live.draining ? 1 : 0));
  families.push_back(Gauge("kvcompress_shared_memory_regions", "Regions of shared memory that clients have registered.",
                           static_cast<double>(live.shared_memory_regions)));
  families.push_back(Gauge("kvcompress_shared_memory_bytes", "Bytes of those regions.",
                           static_cast<double>(live.shared_memory_bytes)));
  families.push_back(Gauge("kvcompress_connections", "Connections that are open, also those in their handshake.",
                           static_cast<double>(live.connections)));
  if (live.certificate_expiry) {
    families.push_back(Gauge("kvcompress_tls_certificate_expiry_timestamp_seconds",
                             "When the certificate in use expires, in seconds since 1970.",
                             absl::ToDoubleSeconds(*live.certificate_expiry - absl::UnixEpoch())));
  }
  families.push_back(Gauge("kvcompress_build_info", "What was built; always 1.", 1,
                           {{"version", build_.version}, {"compiler", build_.compiler}, {"simd", build_.simd_target}}));
  AppendProcessMetrics(families);
  return families;
}

v1::MetricsResponse Metrics::ToMessage() const {
  v1::MetricsResponse message;
  kvcompress::ToMessage(build_, *message.mutable_build());
  message.set_uptime_seconds(std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  const LiveFigures live = live_();
  message.set_draining(live.draining);
  message.set_streams_in_flight(live.streams);
  message.set_bytes_in_flight(live.bytes);
  message.set_memory_budget_bytes(live.memory_budget);
  message.set_jobs_queued(live.jobs_queued);
  message.set_threads(static_cast<uint32_t>(live.threads));

  using Metric = prometheus::ClientMetric;
  const std::vector<MetricFamily> families = registry_.Collect();
  std::map<std::string, v1::MethodMetrics, std::less<>> methods;
  ForEachCounter(families, "kvcompress_requests_total", [&](const Metric& metric, double value) {
    auto& calls = *methods[Text(Label(metric, "method"))].mutable_calls_by_code();
    calls[Text(Label(metric, "code"))] = static_cast<uint64_t>(value);
  });
  for (auto& [name, method] : methods) {
    method.set_method(name);
    *message.add_methods() = std::move(method);
  }

  std::map<std::string, v1::CodecMetrics, std::less<>> codecs;
  using Setter = void (v1::CodecMetrics::*)(uint64_t);
  const auto collect = [&](std::string_view family, Setter of_compress, Setter of_decompress) {
    ForEachCounter(families, family, [&](const Metric& metric, double value) {
      v1::CodecMetrics& codec = codecs[Text(Label(metric, "codec"))];
      const bool compress = Label(metric, "method") == kCompress;
      (codec.*(compress ? of_compress : of_decompress))(static_cast<uint64_t>(value));
    });
  };
  using Codec = v1::CodecMetrics;
  collect("kvcompress_tensors_total", &Codec::set_tensors_compressed, &Codec::set_tensors_decompressed);
  collect("kvcompress_tensor_bytes_total", &Codec::set_tensor_bytes_in, &Codec::set_tensor_bytes_out);
  collect("kvcompress_frame_bytes_total", &Codec::set_frame_bytes_out, &Codec::set_frame_bytes_in);
  ForEachCounter(families, "kvcompress_codec_seconds_total", [&](const Metric& metric, double value) {
    v1::CodecMetrics& codec = codecs[Text(Label(metric, "codec"))];
    codec.set_codec_seconds(codec.codec_seconds() + value);
  });
  for (auto& [name, codec] : codecs) {
    codec.set_codec(name);
    *message.add_codecs() = std::move(codec);
  }

  const auto count = [&](std::string_view family, std::string_view label, auto& map) {
    ForEachCounter(families, family, [&](const Metric& metric, double value) {
      map[Text(Label(metric, label))] += static_cast<uint64_t>(value);
    });
  };
  count("kvcompress_tensors_by_level_total", "level", *message.mutable_tensors_by_level());
  count("kvcompress_threshold_violations_total", "kind", *message.mutable_violations_by_kind());
  count("kvcompress_rejected_requests_total", "reason", *message.mutable_rejected_by_reason());
  return message;
}

}  // namespace kvcompress
