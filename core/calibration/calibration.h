#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/artifact/artifact.h"
#include "core/base/byte_source.h"
#include "core/base/tensor.h"
#include "core/base/thread_pool.h"

// From caches of a model to its artifact: the mean and the principal axes of its keys, turned back, and of its values.
// Caches are read in runs of tokens and may be larger than memory; the same caches give the same artifact with any
// number of threads.
namespace kvcompress {

// Fewer tokens give an artifact that knows the sample better than the model.
inline constexpr uint64_t kWantedTokens = 10'000;
// The first tokens of a sequence that begins at position 0 are like no others, and are left out.
inline constexpr uint64_t kSinkTokens = 4;

// Keys or values of a cache.
struct CacheTensor {
  std::string file;   // for messages
  TensorDesc tensor;  // named layer_{i}_key|value; its axes are seq, head_dim as the last, and perhaps heads and batch
  const ByteSource* values = nullptr;
  uint64_t start = 0;  // position of the first token of its sequences
};

// How much an error in each direction of a group's channels costs, [groups, dim, dim]: second moments of what it is
// multiplied with (queries, output projections), or Fisher information; of keys that are turned back.
struct WeightTensor {
  TensorDesc tensor;  // F32, named as the tensor of the cache
  const ByteSource* values = nullptr;
};

struct CalibrationOptions {
  // A group has as many heads as fit into so many channels and divide the heads; one, where a head has more.
  uint64_t group_dim = 128;
  // Of keys; without one they are taken as they are. `dims` = 0: all channels of a head from `offset` on.
  std::optional<simd::RotaryEmbedding> rotary = {};
  // Told how many bytes of all tensors are done. Called from any thread, one call at a time.
  std::function<void(uint64_t done, uint64_t total)> progress = [](uint64_t, uint64_t) {};
};

// What was learned of a tensor, and what it promises.
struct TensorCalibration {
  ArtifactKey key;
  uint64_t tokens = 0;            // that were looked at
  double int4_squared_error = 0;  // mean, of int4(group=64) on the cache's values
  double variance = 0;            // of these, about the mean of all
  // Bits a value that a Gaussian source takes for int4's error: with the variances of the channels (turned back, about
  // their means), and with those of the coefficients. Empty where int4 has no error.
  std::optional<double> channel_bits = {};
  std::optional<double> coefficient_bits = {};
};

struct Calibration {
  Artifact artifact;
  std::vector<TensorCalibration> tensors;  // in the artifact's order
};

// Reads every tensor of `caches` once. INVALID_ARGUMENT for caches that do not fit together, with file and tensor:
// other heads or channels than the first, axes that do not tell where tokens stand, values that are not finite, fewer
// tokens than a group has channels and one; and for weights that do not fit the caches. Errors of reading are passed
// on, and RESOURCE_EXHAUSTED where the pool has no threads.
absl::StatusOr<Calibration> Calibrate(std::span<const CacheTensor> caches, std::span<const WeightTensor> weights,
                                      const CalibrationOptions& options, ThreadPool& pool);

}  // namespace kvcompress
