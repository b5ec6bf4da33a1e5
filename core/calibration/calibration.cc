#include "core/calibration/calibration.h"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "core/base/elementary.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/calibration/basis.h"
#include "core/calibration/moments.h"
#include "core/calibration/rows.h"
#include "core/simd/rotary.h"

namespace kvcompress {
namespace {

constexpr uint64_t kRunTokens = 512;

// A tensor of a cache, and where its rows lie.
struct Source {
  const CacheTensor* cache;
  RowLayout layout;

  // The first token of a sequence that counts.
  uint64_t first() const { return cache->start == 0 ? std::min(kSinkTokens, layout.tokens) : 0; }
  uint64_t tokens() const { return layout.sequences * (layout.tokens - first()); }
  uint64_t bytes() const { return cache->values->size(); }
};

// All that there is of one layer's keys or values.
struct Subject {
  std::vector<Source> sources;
  const WeightTensor* weight = nullptr;

  uint64_t tokens() const {
    uint64_t sum = 0;
    for (const Source& source : sources) sum += source.tokens();
    return sum;
  }
};
using Subjects = std::map<ArtifactKey, Subject>;

absl::Status OfCache(const CacheTensor& cache, const absl::Status& status) {
  const absl::Status named = OfTensor(cache.tensor.name, status);
  return absl::Status(named.code(), absl::StrFormat("%s: %s", cache.file, named.message()));
}

std::optional<ArtifactKey> KeyOf(std::string_view name) {
  const KvName kv = ParseKvName(name);
  if (kv.layer < 0 || static_cast<uint64_t>(kv.layer) >= kMaxArtifactLayers) return std::nullopt;
  return ArtifactKey{static_cast<uint64_t>(kv.layer), !kv.is_key};
}

absl::StatusOr<Subjects> SubjectsOf(std::span<const CacheTensor> caches) {
  Subjects subjects;
  std::optional<Source> first;
  for (const CacheTensor& cache : caches) {
    const std::optional<ArtifactKey> key = KeyOf(cache.tensor.name);
    if (!key) {
      return OfCache(cache,
                     absl::InvalidArgumentError(absl::StrFormat(
                         "its name is not layer_{i}_key or layer_{i}_value of a layer below %d", kMaxArtifactLayers)));
    }
    const absl::StatusOr<RowLayout> layout = RowLayoutOf(cache.tensor);
    if (!layout.ok()) return OfCache(cache, layout.status());
    subjects[*key].sources.push_back({&cache, *layout});
    if (!first) first = Source{&cache, *layout};
    if (layout->heads == first->layout.heads && layout->head_dim == first->layout.head_dim) continue;
    return OfCache(cache,
                   absl::InvalidArgumentError(absl::StrFormat(
                       "it has %d heads of %d channels, and %s of %s has %d of %d", layout->heads, layout->head_dim,
                       first->cache->tensor.name, first->cache->file, first->layout.heads, first->layout.head_dim)));
  }
  if (subjects.empty()) {
    return absl::InvalidArgumentError(
        "there is no tensor to calibrate on: none is named layer_{i}_key or layer_{i}_value");
  }
  return subjects;
}

// The artifact's fields beside its tensors.
absl::StatusOr<Artifact> Outline(const Subjects& subjects, const CalibrationOptions& options) {
  const RowLayout& layout = subjects.begin()->second.sources.front().layout;
  Artifact artifact;
  artifact.heads = layout.heads;
  artifact.head_dim = layout.head_dim;
  artifact.group_heads = GroupHeads(layout.heads, layout.head_dim, options.group_dim);
  artifact.rotary = options.rotary;
  if (artifact.rotary && artifact.rotary->dims == 0 && artifact.rotary->offset < artifact.head_dim) {
    artifact.rotary->dims = artifact.head_dim - artifact.rotary->offset;
  }
  KVC_RETURN_IF_ERROR(CheckShape(artifact));
  artifact.tokens = subjects.begin()->second.tokens();
  for (const auto& [key, subject] : subjects) {
    artifact.tokens = std::min(artifact.tokens, subject.tokens());
    if (subject.tokens() > artifact.group_dim()) continue;
    return OfCache(*subject.sources.front().cache,
                   absl::InvalidArgumentError(absl::StrFormat(
                       "%d tokens are not enough for groups of %d channels: %d are the least, and %d are wanted",
                       subject.tokens(), artifact.group_dim(), artifact.group_dim() + 1, kWantedTokens)));
  }
  return artifact;
}

absl::Status AddWeights(std::span<const WeightTensor> weights, const Artifact& artifact, Subjects& subjects) {
  const std::vector<uint64_t> shape = {artifact.groups(), artifact.group_dim(), artifact.group_dim()};
  const auto refuse = [](const WeightTensor& weight, const std::string& text) {
    return absl::InvalidArgumentError(absl::StrFormat("weights: tensor \"%s\": %s", weight.tensor.name, text));
  };
  for (const WeightTensor& weight : weights) {
    const std::optional<ArtifactKey> key = KeyOf(weight.tensor.name);
    const auto found = key ? subjects.find(*key) : subjects.end();
    if (found == subjects.end()) return refuse(weight, "no cache has such a tensor");
    if (weight.tensor.dtype != DType::kF32 || weight.tensor.shape != shape) {
      return refuse(weight, absl::StrFormat("%s [%s] in place of F32 [%s]", DTypeName(weight.tensor.dtype),
                                            absl::StrJoin(weight.tensor.shape, ", "), absl::StrJoin(shape, ", ")));
    }
    found->second.weight = &weight;
  }
  for (const auto& [key, subject] : subjects) {
    if (weights.empty() || subject.weight != nullptr) continue;
    return absl::InvalidArgumentError(absl::StrFormat("weights: there is none for %s", key.name()));
  }
  return absl::OkStatus();
}

// Reports progress, one call at a time.
class Progress {
 public:
  Progress(const CalibrationOptions& options, uint64_t total) : options_(options), total_(total) {}

  void Add(uint64_t bytes) {
    absl::MutexLock lock(&mutex_);
    done_ += bytes;
    options_.progress(done_, total_);
  }

 private:
  const CalibrationOptions& options_;
  const uint64_t total_;
  absl::Mutex mutex_;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Reads all sources of a subject, from the first to the last, and makes a tensor of them.
class Learner {
 public:
  Learner(const Artifact& outline, bool turns, Progress& progress)
      : outline_(outline),
        rotary_(turns ? outline.rotary : std::nullopt),
        progress_(progress),
        groups_(outline.groups(), GroupMoments(outline.group_heads, outline.head_dim)) {}

  absl::Status Read(const Source& source) {
    const uint64_t runs = source.layout.sequences * ((source.layout.tokens + kRunTokens - 1) / kRunTokens);
    for (uint64_t sequence = 0; sequence < source.layout.sequences; ++sequence) {
      for (uint64_t token = source.first(); token < source.layout.tokens; token += kRunTokens) {
        KVC_RETURN_IF_ERROR(AddRun(source, sequence, token, std::min(kRunTokens, source.layout.tokens - token)));
        progress_.Add(source.bytes() / runs);
      }
    }
    return absl::OkStatus();
  }

  // `weights` may be empty.
  void Finish(std::span<const double> weights, ArtifactTensor& tensor, TensorCalibration& figures) const {
    const size_t dim = outline_.group_dim();
    std::vector<double> channel_variances;
    std::vector<double> variances;
    std::vector<double> scales;
    for (size_t group = 0; group < groups_.size(); ++group) {
      const GroupMoments& moments = groups_[group];
      const std::vector<double> covariance = moments.Covariance();
      const Basis basis =
          MakeBasis(covariance, weights.empty() ? weights : weights.subspan(group * dim * dim, dim * dim), dim);
      for (size_t i = 0; i < dim; ++i) {
        channel_variances.push_back(covariance[i * dim + i]);
        variances.push_back(std::pow(static_cast<double>(basis.sigma[i]), 2));
        double scale = 0;  // that the coefficient's error has among the channels
        for (size_t j = 0; j < dim; ++j) scale += std::pow(static_cast<double>(basis.inverse[j * dim + i]), 2);
        scales.push_back(scale);
      }
      tensor.mean.insert(tensor.mean.end(), moments.mean().begin(), moments.mean().end());
      tensor.forward.insert(tensor.forward.end(), basis.forward.begin(), basis.forward.end());
      tensor.inverse.insert(tensor.inverse.end(), basis.inverse.begin(), basis.inverse.end());
      tensor.sigma.insert(tensor.sigma.end(), basis.sigma.begin(), basis.sigma.end());
    }
    figures.tokens = groups_.front().tokens();
    figures.int4_squared_error = int4_.mean_squared_error();
    figures.variance = int4_.variance();
    if (figures.int4_squared_error <= 0) return;
    figures.channel_bits =
        GaussianBits(channel_variances, std::vector<double>(variances.size(), 1.0), figures.int4_squared_error);
    figures.coefficient_bits = GaussianBits(variances, scales, figures.int4_squared_error);
  }

 private:
  absl::Status AddRun(const Source& source, uint64_t sequence, uint64_t first, size_t count) {
    const size_t head_dim = outline_.head_dim;
    KVC_RETURN_IF_ERROR(ReadRows(*source.cache->values, source.cache->tensor.dtype, source.layout, sequence, first,
                                 count, scratch_, rows_));
    const size_t run = count * head_dim;
    for (size_t head = 0; head < outline_.heads; ++head) int4_.Add(&rows_[head * run], run);
    if (rotary_) {
      table_.Make(*rotary_, rotary_->dims, source.cache->start + first, count);
      for (size_t head = 0; head < outline_.heads; ++head) {
        simd::TurnRows(table_, 0, rotary_->pairs, simd::RotaryTurn::kBack, &rows_[head * run + rotary_->offset], count,
                       head_dim);
      }
    }
    const size_t stride = outline_.group_heads * run;
    for (size_t group = 0; group < groups_.size(); ++group) groups_[group].Add(&rows_[group * stride], count);
    return absl::OkStatus();
  }

  const Artifact& outline_;
  const std::optional<simd::RotaryEmbedding> rotary_;
  Progress& progress_;
  std::vector<GroupMoments> groups_;
  Int4Error int4_;
  simd::RotaryTable table_;
  std::vector<std::byte> scratch_;
  std::vector<float> rows_;
};

absl::StatusOr<std::vector<double>> ReadWeights(const WeightTensor& weight, size_t dim) {
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, weight.values->Get(0, weight.values->size(), scratch));
  std::vector<double> values(bytes.size() / sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) values[i] = LoadAsF32(DType::kF32, bytes.data(), i);
  for (size_t at = 0; at < values.size(); at += dim * dim) {
    const absl::Status status = CheckWeight(std::span(values).subspan(at, dim * dim), dim);
    if (status.ok()) continue;
    return absl::InvalidArgumentError(absl::StrFormat("weights: tensor \"%s\": group %d: %s", weight.tensor.name,
                                                      at / (dim * dim), status.message()));
  }
  return values;
}

// The mean of the diagonals.
double MeanWeight(std::span<const double> weights, size_t dim) {
  double sum = 0;
  for (size_t at = 0; at < weights.size(); at += dim * dim) {
    for (size_t i = 0; i < dim; ++i) sum += weights[at + i * (dim + 1)];
  }
  const size_t diagonals = weights.size() / dim;
  return sum / static_cast<double>(diagonals);
}

// A subject, and what becomes of it.
struct Task {
  const Subject* subject;
  ArtifactTensor* tensor;
  TensorCalibration* figures;
  double mean_weight = 1;
  absl::Status status = {};

  absl::Status Do(const Artifact& outline, Progress& progress) {
    std::vector<double> weights;
    if (subject->weight != nullptr) {
      KVC_ASSIGN_OR_RETURN(weights, ReadWeights(*subject->weight, outline.group_dim()));
      mean_weight = MeanWeight(weights, outline.group_dim());
    }
    Learner learner(outline, !figures->key.is_value, progress);
    for (const Source& source : subject->sources) {
      if (const absl::Status read = learner.Read(source); !read.ok()) return OfCache(*source.cache, read);
    }
    learner.Finish(weights, *tensor, *figures);
    return absl::OkStatus();
  }
};

// Does all tasks; the error is that of the first in order.
absl::Status DoAll(std::vector<Task>& tasks, const Artifact& outline, Progress& progress, ThreadPool& pool) {
  KVC_RETURN_IF_ERROR(pool.status());
  // Sums would otherwise be cut to the size of this machine's caches.
  static std::once_flag once;
  std::call_once(once, [] { Eigen::setCpuCacheSizes(32 << 10, 256 << 10, 2 << 20); });
  ThreadPool::Queue queue(pool);
  absl::BlockingCounter left(static_cast<int>(tasks.size()));
  for (Task& task : tasks) {
    queue.Push([&] {
      task.status = task.Do(outline, progress);
      left.DecrementCount();
    });
  }
  left.Wait();
  for (const Task& task : tasks) KVC_RETURN_IF_ERROR(task.status);
  return absl::OkStatus();
}

// Tensors whose errors cost more get smaller steps: g = weight^-1/2, about a geometric mean of 1. The same on every
// machine, for an artifact's id is that of its bytes.
void SetSteps(std::vector<Task>& tasks) {
  double sum = 0;
  for (const Task& task : tasks) sum += Log2(task.mean_weight);
  const double mean = sum / static_cast<double>(tasks.size());
  for (Task& task : tasks) {
    task.tensor->step = static_cast<float>(Exp2(0.5 * (mean - Log2(task.mean_weight))));
  }
}

}  // namespace

absl::StatusOr<Calibration> Calibrate(std::span<const CacheTensor> caches, std::span<const WeightTensor> weights,
                                      const CalibrationOptions& options, ThreadPool& pool) {
  KVC_ASSIGN_OR_RETURN(Subjects subjects, SubjectsOf(caches));
  Calibration calibration;
  KVC_ASSIGN_OR_RETURN(calibration.artifact, Outline(subjects, options));
  KVC_RETURN_IF_ERROR(AddWeights(weights, calibration.artifact, subjects));
  calibration.artifact.weighted = !weights.empty();
  const Artifact outline = calibration.artifact;

  calibration.tensors.reserve(subjects.size());
  std::vector<Task> tasks;
  uint64_t bytes = 0;
  for (const auto& [key, subject] : subjects) {
    calibration.tensors.push_back({.key = key});
    tasks.push_back({&subject, &calibration.artifact.tensors[key], &calibration.tensors.back()});
    for (const Source& source : subject.sources) bytes += source.bytes();
  }
  Progress progress(options, bytes);
  KVC_RETURN_IF_ERROR(DoAll(tasks, outline, progress, pool));
  if (outline.weighted) SetSteps(tasks);
  return calibration;
}

}  // namespace kvcompress
