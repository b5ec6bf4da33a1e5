#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/sample.h"
#include "client/file/file_rotary.h"
#include "core/artifact/artifact_store.h"
#include "core/base/thread_pool.h"
#include "core/safetensors/safetensors.h"
#include "core/simd/error_sums.h"
#include "core/tensor_report.h"

// Measures codec specs on the tensors of a file, in memory.
namespace kvcompress {

// The specs to measure, each once and in canonical form: what the names of chains stand for, the registry's examples,
// and parameters that people would try. A name that means different chains for different tensors is listed as the name.
// None says how a model turns its keys, which only the file's owner knows.
std::vector<std::string> SweepSpecs();

struct TensorFigures {
  uint64_t frame_bytes = 0;
  ErrorSums sums;  // of the values as they were decoded
};

struct SpecFigures {
  std::string spec;
  std::vector<TensorFigures> tensors;  // as in the sample
  uint64_t compressed_bytes = 0;       // of a compressed file of the sample's tensors, its header included
  // For all tensors, on the sweep's threads, without measuring errors, at its best.
  double encode_seconds = 0;
  double decode_seconds = 0;
};

class Sweep {
 public:
  struct Options {
    size_t threads = 1;                  // 0: one for each CPU. They share the tensors, of which each is one thread's
    double max_seconds = 0.1;            // to repeat a codec's work in one direction: less where it is steady before
    ArtifactStore* artifacts = nullptr;  // of those that codecs name
  };
  // `header` is that of the file that `sample` is from, and `rotary` completes the codecs of its tensors; all must
  // outlive this object, and so must what `options` refer to.
  Sweep(const FileSample& sample, const safetensors::Header& header, FileRotary& rotary, const Options& options);

  size_t threads() const { return threads_; }

  // Measures a spec, or a named chain. INVALID_ARGUMENT when the codec does not take the values (a NaN, say),
  // FAILED_PRECONDITION when its artifact is not there. DATA_LOSS when a codec that says that it is lossless is not.
  absl::StatusOr<SpecFigures> Measure(std::string_view spec);

  // Seconds to copy all tensors on the same threads, at its best, to compare the codecs' times with.
  double MeasureCopy();

 private:
  // Calls work(tensor, thread) for each tensor, and returns the first error that there is.
  using Work = std::function<absl::Status(size_t tensor, size_t thread)>;
  absl::Status ForEachTensor(const Work& work);
  // Repeats that until it is not going to be faster, and returns the seconds: on one thread each tensor's best,
  // together, for all of a file seldom goes by without an interruption; on several the best repetition's.
  absl::StatusOr<double> TimeBest(const Work& work);

  const FileSample& sample_;
  const safetensors::Header& header_;
  FileRotary& rotary_;
  const Limits limits_;
  const std::unique_ptr<ThreadPool> pool_;  // null: the calling thread does it
  const size_t threads_;
  const double max_seconds_;
  // A buffer for each tensor; they grow to what the largest codec needs and stay.
  std::vector<std::vector<std::byte>> frames_;
  std::vector<std::vector<std::byte>> decoded_;
};

}  // namespace kvcompress
