#include "server/telemetry/metrics.h"

#include <prometheus/client_metric.h>

#include <algorithm>

#include "core/frame/frame.h"
#include "core/simd/group_quant.h"
#include "proto/wire/methods.h"
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

std::string Text(std::string_view text) { return std::string(text); }

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

// Calls visit(metric, value) for each of the counters that has counted something.
template <typename Visit>
void ForEachCount(const prometheus::Family<prometheus::Counter>& counters, Visit visit) {
  for (const MetricFamily& family : counters.Collect()) {
    for (const auto& metric : family.metric) {
      if (metric.counter.value > 0) visit(metric, metric.counter.value);
    }
  }
}

// Adds up the counters by the values of one of their labels.
void AddCounts(const prometheus::Family<prometheus::Counter>& counters, std::string_view label,
               google::protobuf::Map<std::string, uint64_t>& sums) {
  ForEachCount(counters, [&](const prometheus::ClientMetric& metric, double value) {
    sums[Text(Label(metric, label))] += static_cast<uint64_t>(value);
  });
}

// What is below 0, by convention (kMinSnrDb) or in truth, counts as 0: the sum of a histogram must not fall.
void ObserveRatio(double ratio, prometheus::Histogram& histogram) { histogram.Observe(std::max(0.0, ratio)); }

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

Metrics::Counters& Metrics::NewCounters(const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
}

Metrics::Gauges& Metrics::NewGauges(const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
}

Metrics::Histograms& Metrics::NewHistograms(const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_);
}

// Series whose labels are known beforehand exist from the start: a rate misses the event that a series begins with.
Metrics::Metrics(std::function<LiveFigures()> live, double link_bandwidth)
    : live_(std::move(live)), link_bandwidth_(link_bandwidth) {
  if (link_bandwidth_ > 0) bandwidth_.Add({}).Set(link_bandwidth_);
  for (std::string_view method : AllMethods()) methods_[method] = NewMethodSeries(method);
  for (std::string_view method : {MethodName<v1::DecompressRequest>(), MethodName<v1::DecompressTensorRequest>()}) {
    requests_.Add({{"method", Text(method)}, {"code", "DATA_LOSS"}});
  }
  for (size_t i = 0; i < stages_.size(); ++i) {
    stages_[i] = &stage_seconds_.Add({{"stage", kStageNames[i]}}, kStageSeconds);
  }
  for (RejectReason reason : AllRejectReasons()) rejected_.Add({{"reason", Text(RejectReasonName(reason))}});
  for (ViolationKind kind : kViolationKinds) {
    violation_kinds_[static_cast<size_t>(kind)] = &violations_.Add({{"kind", Text(ViolationKindName(kind))}});
  }
}

Metrics::MethodSeries Metrics::NewMethodSeries(std::string_view method) {
  return {&requests_in_flight_.Add({{"method", Text(method)}}),
          &requests_.Add({{"method", Text(method)}, {"code", "OK"}}),
          &request_seconds_.Add({{"method", Text(method)}}, kCallSeconds)};
}

Metrics::MethodSeries Metrics::OfMethod(std::string_view method) {
  const auto found = methods_.find(method);
  return found != methods_.end() ? found->second : NewMethodSeries(method);
}

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
  return {&tensors_.Add(labels), &tensor_bytes_.Add(labels), &frame_bytes_.Add(labels), &codec_seconds_.Add(labels),
          link_bandwidth_ > 0 ? &net_saved_seconds_.Add(labels) : nullptr};
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
  if (series.net_saved_seconds != nullptr) {
    const double saved_bytes = static_cast<double>(report.tensor_bytes) - static_cast<double>(report.frame_bytes);
    series.net_saved_seconds->Increment(saved_bytes / link_bandwidth_ - report.codec_seconds);
  }
  OnStage(Stage::kCodec, report.codec_seconds);
}

void Metrics::OnCompressed(const TensorReport& report, const Quality& quality,
                           const std::vector<Violation>& violations) {
  const std::optional<double> snr_db = FiniteSnrDb(quality.snr_db);
  const std::optional<double> token_snr_db = FiniteSnrDb(quality.token_snr_db);
  const auto kind = static_cast<size_t>(quality.kind);
  CodecSeries series;
  {
    absl::MutexLock lock(&codecs_mutex_);
    CodecSeries& known = codecs_[report.codec_name];
    if (!known.compress) known.compress = NewTensorSeries(kCompress, report.codec_name);
    if (!known.quality) known.quality = NewQualitySeries(report.codec_name);
    if (snr_db && known.snr_db == nullptr) known.snr_db = &snr_db_.Add({{"codec", report.codec_name}}, kSnrDb);
    prometheus::Histogram*& of_tokens = known.token_snr_db[kind];
    if (token_snr_db && of_tokens == nullptr) {
      of_tokens =
          &token_snr_db_.Add({{"codec", report.codec_name}, {"kind", Text(TensorKindName(quality.kind))}}, kSnrDb);
    }
    series = known;
  }
  CountTensor(*series.compress, report);
  if (report.nonfinite_blocks > 0) nonfinite_.Increment();
  if (report.passed_through) return;
  series.quality->levels[static_cast<size_t>(LevelOf(quality))]->Increment();
  for (const Violation& violation : violations) violation_kinds_[static_cast<size_t>(violation.kind)]->Increment();
  if (snr_db) ObserveRatio(*snr_db, *series.snr_db);
  if (token_snr_db) ObserveRatio(*token_snr_db, *series.token_snr_db[kind]);
  ObserveRatio(quality.cosine_similarity, *series.quality->cosine);
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
  const auto add = [&families](const char* name, const char* help, auto value) {
    families.push_back(Gauge(name, help, static_cast<double>(value)));
  };
  add("kvcompress_in_flight_bytes", "Memory promised to streams.", live.bytes);
  add("kvcompress_memory_budget_bytes", "Memory that streams may be promised together.", live.memory_budget);
  add("kvcompress_queue_depth", "Jobs that wait for a pool thread.", live.jobs_queued);
  add("kvcompress_pool_threads", "Threads that run codecs.", live.threads);
  add("kvcompress_draining", "1 while the daemon is on its way to its end.", live.draining);
  add("kvcompress_shared_memory_regions", "Regions of shared memory that clients have registered.",
      live.shared_memory_regions);
  add("kvcompress_shared_memory_bytes", "Bytes of those regions.", live.shared_memory_bytes);
  add("kvcompress_connections", "Connections that are open, also those in their handshake.", live.connections);
  if (live.certificate_expiry) {
    add("kvcompress_tls_certificate_expiry_timestamp_seconds",
        "When the certificate in use expires, in seconds since 1970.",
        absl::ToDoubleSeconds(*live.certificate_expiry - absl::UnixEpoch()));
  }
  add("kvcompress_artifacts_loaded", "Artifacts in memory.", live.artifacts_loaded);
  add("kvcompress_artifact_memory_bytes", "Memory that they take.", live.artifact_bytes);
  const auto count = [&families](const char* name, const char* help, uint64_t value) {
    MetricFamily family{.name = name, .help = help, .type = MetricType::Counter, .metric = {}};
    family.metric.emplace_back().counter.value = static_cast<double>(value);
    families.push_back(std::move(family));
  };
  count("kvcompress_artifact_loads_total", "Artifacts that were read, one that was read again once more.",
        live.artifact_loads);
  count("kvcompress_artifact_failures_total", "Artifacts that were asked for and could not be had.",
        live.artifact_failures);
  count("kvcompress_log_lines_dropped_total", "Lines of the log that were dropped, because nobody read them in time.",
        live.log_lines_dropped);
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

  AddMethods(message);
  AddCodecs(message);
  AddCounts(levels_, "level", *message.mutable_tensors_by_level());
  AddCounts(violations_, "kind", *message.mutable_violations_by_kind());
  AddCounts(rejected_, "reason", *message.mutable_rejected_by_reason());
  return message;
}

void Metrics::AddMethods(v1::MetricsResponse& message) const {
  std::map<std::string, v1::MethodMetrics, std::less<>> methods;
  ForEachCount(requests_, [&](const prometheus::ClientMetric& metric, double value) {
    auto& calls = *methods[Text(Label(metric, "method"))].mutable_calls_by_code();
    calls[Text(Label(metric, "code"))] = static_cast<uint64_t>(value);
  });
  for (auto& [name, method] : methods) {
    method.set_method(name);
    *message.add_methods() = std::move(method);
  }
}

void Metrics::AddCodecs(v1::MetricsResponse& message) const {
  using Codec = v1::CodecMetrics;
  using Setter = void (Codec::*)(uint64_t);
  std::map<std::string, Codec, std::less<>> codecs;
  const auto collect = [&](const Counters& counters, Setter of_compress, Setter of_decompress) {
    ForEachCount(counters, [&](const prometheus::ClientMetric& metric, double value) {
      const bool compress = Label(metric, "method") == kCompress;
      (codecs[Text(Label(metric, "codec"))].*(compress ? of_compress : of_decompress))(static_cast<uint64_t>(value));
    });
  };
  collect(tensors_, &Codec::set_tensors_compressed, &Codec::set_tensors_decompressed);
  collect(tensor_bytes_, &Codec::set_tensor_bytes_in, &Codec::set_tensor_bytes_out);
  collect(frame_bytes_, &Codec::set_frame_bytes_out, &Codec::set_frame_bytes_in);
  ForEachCount(codec_seconds_, [&](const prometheus::ClientMetric& metric, double value) {
    Codec& codec = codecs[Text(Label(metric, "codec"))];
    codec.set_codec_seconds(codec.codec_seconds() + value);
  });
  for (auto& [name, codec] : codecs) {
    codec.set_codec(name);
    *message.add_codecs() = std::move(codec);
  }
}

}  // namespace kvcompress
