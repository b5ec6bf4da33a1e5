#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/sample.h"
#include "core/safetensors/safetensors.h"
#include "core/simd/error_sums.h"

// Measures codec specs on the tensors of a file, in memory and on the calling thread.
namespace kvcompress {

// Canonical specs worth a look: the registry's examples, what the names of chains stand for, and parameters that people
// would try. None twice. A name that means another chain for another tensor stands for itself.
std::vector<std::string> SweepSpecs();

struct TensorFigures {
  uint64_t frame_bytes = 0;
  ErrorSums sums;  // of the values as they were decoded
};

struct SpecFigures {
  std::string spec;
  std::vector<TensorFigures> tensors;  // as in the sample
  uint64_t compressed_bytes = 0;       // of a compressed file of the sample's tensors, its header included
  // Of all tensors, without measuring errors; the best repetition.
  double encode_seconds = 0;
  double decode_seconds = 0;
};

class Sweep {
 public:
  // `header` is the file's that `sample` was made of; both must outlive this object.
  Sweep(const FileSample& sample, const safetensors::Header& header) : sample_(sample), header_(header) {}

  // INVALID_ARGUMENT when the codec does not take the values (a NaN, say). DATA_LOSS when a codec that says that it is
  // lossless is not.
  absl::StatusOr<SpecFigures> Measure(std::string_view spec);  // or a name of one

  // Seconds of copying all tensors, the best repetition: what the codecs' times are to be compared with.
  double MeasureCopy();

 private:
  const FileSample& sample_;
  const safetensors::Header& header_;
  // Of each tensor; they grow to what the largest codec needs and stay.
  std::vector<std::vector<std::byte>> frames_;
  std::vector<std::vector<std::byte>> decoded_;
};

}  // namespace kvcompress
