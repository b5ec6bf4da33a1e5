#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/artifact/artifact_file.h"
#include "core/base/file.h"
#include "core/calibration/calibration.h"
#include "core/profile/compression_config.h"

namespace kvcompress {

struct CalibrateOptions {
  uint64_t group_dim = 128;
  // Ranks that heads are to be cut to, for which they are taken singly, whatever group_dim.
  std::optional<CompressionConfig> config = {};
  // In place of what the files' metadata say: rope_theta, rope_pairs, rope_dims, rope_offset, rope_scaling
  // (docs/cli.md).
  std::optional<simd::RotaryEmbedding> rotary = {};
  // Position of the first token of every file, in place of seq_start in its metadata, or 0.
  std::optional<uint64_t> start = {};
  std::string weights;  // a safetensors file; empty: none
  size_t threads = 0;   // one for each CPU
  std::string tool;     // what the artifact says that it was made by
  // As in FileOptions.
  std::function<absl::StatusOr<std::unique_ptr<AtomicFile>>(const std::string& path)> create = AtomicFile::Create;
  std::function<void(uint64_t done, uint64_t total)> progress = [](uint64_t, uint64_t) {};
};

struct CalibrationReport {
  ArtifactId id;
  uint64_t bytes = 0;  // of the artifact's file
  Calibration calibration;
  // What the config keeps of a tensor, RanksFor; of tensors of which all is kept, none.
  std::map<ArtifactKey, std::vector<uint32_t>> ranks = {};
  uint64_t skipped_tensors = 0;  // that are neither keys nor values by their names
  bool keys_turn = true;         // false: all files say that they do not
};

// Calibrates on the keys and values of `inputs`, which are files as Input takes them, plain or compressed, and writes
// the artifact to `output`. Errors of Calibrate, and as of file_codec.h; those of one of several inputs name it.
// INVALID_ARGUMENT, too, for a config that is not of these caches: as of RanksFor, or with a layer that none has.
absl::StatusOr<CalibrationReport> CalibrateFiles(const std::vector<std::string>& inputs, const std::string& output,
                                                 const CalibrateOptions& options);

}  // namespace kvcompress
