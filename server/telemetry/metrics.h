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
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvcompress/v1/kvcompress.pb.h"
#include "server/session/admission.h"
#include "server/session/sinks.h"

namespace kvcompress {

struct BuildInfo {
  std::string version;
  std::string compiler;
  std::string simd_target;
};
BuildInfo ThisBuild();
void ToMessage(const BuildInfo& build, v1::BuildInfo& message);

// Figures that are read when somebody asks.
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
};

// What the daemon counts: one set of Prometheus metrics, which /metrics and the Metrics call both read. Every label has
// a bounded number of values. Thread-safe.
class Metrics final : public SessionObserver, public prometheus::Collectable {
 public:
  // Where the time of a call goes: waiting for the client's next message; of pool threads in the codec, for a tensor;
  // handing a response to the transport, which waits for a slow client; from the last message to the last report.
  enum class Stage { kRead, kCodec, kWrite, kFinish };
  static constexpr size_t kStageCount = 4;

  explicit Metrics(std::function<LiveFigures()> live);

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

  // The series behind every call and tensor, by pointer: finding one by its labels takes about a microsecond.
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
  };
  struct QualitySeries {
    std::array<prometheus::Counter*, kQualityLevels.size()> levels;
    prometheus::Histogram* cosine;
  };
  struct CodecSeries {
    std::optional<TensorSeries> compress;
    std::optional<TensorSeries> decompress;
    std::optional<QualitySeries> quality;
    prometheus::Histogram* snr_db = nullptr;  // of lossy codecs only
  };

  const MethodSeries& OfMethod(std::string_view method) const;
  TensorSeries NewTensorSeries(std::string_view method, const std::string& codec);
  QualitySeries NewQualitySeries(const std::string& codec);
  void CountTensor(const TensorSeries& series, const TensorReport& report);

  const std::function<LiveFigures()> live_;
  const BuildInfo build_ = ThisBuild();
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  prometheus::Registry registry_;
  Counters& requests_;
  Histograms& request_seconds_;
  Gauges& requests_in_flight_;
  Counters& rejected_;
  Histograms& stage_seconds_;
  Counters& tensors_;
  Counters& tensor_bytes_;
  Counters& frame_bytes_;
  Counters& codec_seconds_;
  Counters& levels_;
  Counters& violations_;
  Histograms& snr_db_;
  Histograms& cosine_;
  std::map<std::string_view, MethodSeries> methods_;             // all there are, from the start
  std::array<prometheus::Histogram*, kStageCount> stages_ = {};  // by Stage
  std::array<prometheus::Counter*, kViolationKinds.size()> violation_kinds_ = {};
  absl::Mutex codecs_mutex_;
  std::map<std::string, CodecSeries, std::less<>> codecs_ ABSL_GUARDED_BY(codecs_mutex_);
};

}  // namespace kvcompress
