#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/sample.h"
#include "client/file/file_rotary.h"
#include "core/safetensors/safetensors.h"
#include "core/simd/error_sums.h"

// Measures codec specs on the tensors of a file, in memory and on the calling thread.
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
  // For all tensors, without measuring errors, in the best repetition.
  double encode_seconds = 0;
  double decode_seconds = 0;
};

class Sweep {
 public:
  // `header` is that of the file that `sample` is from, and `rotary` completes the codecs of its tensors; all must
  // outlive this object.
  Sweep(const FileSample& sample, const safetensors::Header& header, FileRotary& rotary)
      : sample_(sample), header_(header), rotary_(rotary) {}

  // Measures a spec, or a named chain. INVALID_ARGUMENT when the codec does not take the values (a NaN, say). DATA_LOSS
  // when a codec that says that it is lossless is not.
  absl::StatusOr<SpecFigures> Measure(std::string_view spec);

  // Seconds to copy all tensors, in the best repetition, to compare the codecs' times with.
  double MeasureCopy();

 private:
  const FileSample& sample_;
  const safetensors::Header& header_;
  FileRotary& rotary_;
  // A buffer for each tensor; they grow to what the largest codec needs and stay.
  std::vector<std::vector<std::byte>> frames_;
  std::vector<std::vector<std::byte>> decoded_;
};

}  // namespace kvcompress
