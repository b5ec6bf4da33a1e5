#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "server/session/admission.h"
#include "server/session/stream_work.h"

namespace kvcompress {

struct BuildInfo {
  std::string version;
  std::string compiler;
  std::string simd_target;
};
BuildInfo ThisBuild();
void ToMessage(const BuildInfo& build, v1::BuildInfo& message);

// Figures that are read when somebody asks for the metrics.
struct LiveFigures {
  uint64_t streams = 0;
  uint64_t bytes = 0;
  uint64_t memory_budget = 0;
  uint64_t jobs_queued = 0;
  size_t threads = 0;
  bool draining = false;
  size_t shared_memory_regions = 0;
  uint64_t shared_memory_bytes = 0;
  size_t connections = 0;
  std::optional<absl::Time> certificate_expiry;
  uint64_t log_lines_dropped = 0;
  uint64_t artifacts_loaded = 0;
  uint64_t artifact_bytes = 0;
  uint64_t artifact_loads = 0;     // of all time
  uint64_t artifact_failures = 0;  // of all time
};

// What the daemon counts: Prometheus metrics, from which both /metrics and the Metrics call are answered. Every label
// has a bounded number of values. Thread-safe.
class Metrics final : public SessionObserver, public prometheus::Collectable {
 public:
  // Where the time of a call goes. kRead: waiting for the client's next message. kCodec: a tensor's time on pool
  // threads. kWrite: handing a response to the transport, which waits for a slow client. kFinish: from the client's
  // last message to the last report.
  enum class Stage { kRead, kCodec, kWrite, kFinish };
  static constexpr std::array kStageNames = {"read", "codec", "write", "finish"};  // by Stage

  // `link_bandwidth`: bytes a second of the link that caches go over; 0: not known.
  explicit Metrics(std::function<LiveFigures()> live, double link_bandwidth = 0);

  void OnCallStart(std::string_view method);
  void OnCallEnd(std::string_view method, absl::StatusCode code, double seconds);
  void OnReject(RejectReason reason);
  void OnStage(Stage stage, double seconds);

  void OnCompressed(const TensorReport& report, const Quality& quality,
                    const std::vector<Violation>& violations) override;
  void OnDecompressed(const TensorReport& report) override;

  std::vector<prometheus::MetricFamily> Collect() const override;
  v1::MetricsResponse ToMessage() const;

 private:
  using Counters = prometheus::Family<prometheus::Counter>;
  using Gauges = prometheus::Family<prometheus::Gauge>;
  using Histograms = prometheus::Family<prometheus::Histogram>;

  // The series that every call and tensor counts in, by pointer: to find one by its labels takes about a microsecond.
  struct MethodSeries {
    prometheus::Gauge* in_flight;
    prometheus::Counter* ok;
    prometheus::Histogram* seconds;
  };
  struct TensorSeries {
    prometheus::Counter* tensors;
    prometheus::Counter* tensor_bytes;
    prometheus::Counter* frame_bytes;
    prometheus::Counter* codec_seconds;
    prometheus::Gauge* net_saved_seconds;  // null where the link is not known
  };
  struct QualitySeries {
    std::array<prometheus::Counter*, kQualityLevels.size()> levels;
    prometheus::Histogram* cosine;
  };
  struct CodecSeries {
    std::optional<TensorSeries> compress;
    std::optional<TensorSeries> decompress;
    std::optional<QualitySeries> quality;
    // Where such tensors have come.
    prometheus::Histogram* snr_db = nullptr;
    std::array<prometheus::Histogram*, kTensorKinds.size()> token_snr_db = {};
  };

  Counters& NewCounters(const char* name, const char* help);
  Gauges& NewGauges(const char* name, const char* help);
  Histograms& NewHistograms(const char* name, const char* help);
  MethodSeries NewMethodSeries(std::string_view method);
  TensorSeries NewTensorSeries(std::string_view method, const std::string& codec);
  QualitySeries NewQualitySeries(const std::string& codec);

  MethodSeries OfMethod(std::string_view method);
  void CountTensor(const TensorSeries& series, const TensorReport& report);
  void AddMethods(v1::MetricsResponse& message) const;
  void AddCodecs(v1::MetricsResponse& message) const;

  const std::function<LiveFigures()> live_;
  const double link_bandwidth_;
  const BuildInfo build_ = ThisBuild();
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  prometheus::Registry registry_;
  Counters& requests_ = NewCounters("kvcompress_requests_total", "Calls that have ended, by status code.");
  Histograms& request_seconds_ =
      NewHistograms("kvcompress_request_duration_seconds", "Time from a call's start to its status.");
  Gauges& requests_in_flight_ = NewGauges("kvcompress_requests_in_flight", "Calls that have not ended.");
  Counters& rejected_ = NewCounters(
      "kvcompress_rejected_requests_total",
      "Connections, calls and tensors turned away by a limit, a budget, the drain, or for want of a token.");
  Histograms& stage_seconds_ = NewHistograms(
      "kvcompress_stage_duration_seconds",
      "Time by stage: read and write are one message, codec is a tensor's time on pool threads, finish is "
      "from a call's last message to its last report.");
  Counters& tensors_ = NewCounters("kvcompress_tensors_total", "Tensors done, by tensor codec.");
  Counters& tensor_bytes_ = NewCounters("kvcompress_tensor_bytes_total", "Bytes of those tensors in their own dtypes.");
  Counters& frame_bytes_ = NewCounters("kvcompress_frame_bytes_total", "Bytes of their frames.");
  Counters& codec_seconds_ =
      NewCounters("kvcompress_codec_seconds_total", "Time that pool threads have spent on them.");
  Gauges& bandwidth_ = NewGauges("kvcompress_link_bandwidth_bytes_per_second",
                                 "Bandwidth of the link that caches go over, as it was configured.");
  Gauges& net_saved_seconds_ =
      NewGauges("kvcompress_net_saved_seconds",
                "Time that this link takes less for their frames than for them, less the time that pool threads have "
                "spent on them; below 0 where the codec costs more than it saves.");
  Counters& levels_ = NewCounters("kvcompress_tensors_by_level_total", "Compressed tensors by quality level.");
  Counters& violations_ =
      NewCounters("kvcompress_threshold_violations_total", "Quality thresholds that compressed tensors missed.");
  prometheus::Counter& nonfinite_ =
      NewCounters(
          "kvcompress_nonfinite_tensors_total",
          "Compressed tensors of which blocks are stored as they are: their codec refuses a value, NaN perhaps.")
          .Add({});
  Histograms& snr_db_ =
      NewHistograms("kvcompress_quality_snr_db",
                    "Signal-to-noise ratio of compressed tensors, in dB, 0 where it is below; tensors without any "
                    "loss or without variance are left out.");
  Histograms& token_snr_db_ =
      NewHistograms("kvcompress_quality_token_snr_db",
                    "The same of what changes from token to token, of tensors that have tokens, by what their names "
                    "say that they are: key, value or other.");
  Histograms& cosine_ = NewHistograms("kvcompress_quality_cosine_similarity",
                                      "Cosine similarity of compressed tensors to their originals.");
  std::map<std::string_view, MethodSeries> methods_;  // of the service's methods; not changed after construction
  std::array<prometheus::Histogram*, kStageNames.size()> stages_ = {};  // by Stage
  std::array<prometheus::Counter*, kViolationKinds.size()> violation_kinds_ = {};
  absl::Mutex codecs_mutex_;
  std::map<std::string, CodecSeries, std::less<>> codecs_ ABSL_GUARDED_BY(codecs_mutex_);
};

}  // namespace kvcompress
