#include <kvcompress/core/artifact/artifact_file.h>
#include <kvcompress/core/calibration/calibration.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <vector>

namespace kvc = kvcompress;

// Calibrates on keys in memory, whose channels differ by a constant, and reads the artifact that it has made.
int main() {
  const std::vector<uint64_t> shape = {1, 2, 1024, 16};
  std::vector<float> values(2 * 1024 * 16);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = std::sin(static_cast<float>(i * i % 1009)) + static_cast<float>(i % 16);
  }
  const kvc::MemorySource source(std::as_bytes(std::span(values)));
  const std::vector<kvc::CacheTensor> caches = {{.file = "memory",
                                                 .tensor = {.name = "layer_0_key",
                                                            .dtype = kvc::DType::kF32,
                                                            .shape = shape,
                                                            .axes = kvc::DefaultAxes("layer_0_key", 4)},
                                                 .values = &source}};
  kvc::ThreadPool pool(2);
  const auto made = kvc::Calibrate(caches, {}, {.group_dim = 64}, pool);
  if (!made.ok()) return std::printf("%s\n", made.status().ToString().c_str()), 1;
  const auto file = kvc::SerializeArtifact(made->artifact, "example");
  if (!file.ok()) return std::printf("%s\n", file.status().ToString().c_str()), 1;
  const kvc::MemorySource bytes(file->bytes);
  const auto read = kvc::ReadArtifact(bytes);
  if (!read.ok()) return std::printf("%s\n", read.status().ToString().c_str()), 1;

  const std::vector<float>& mean = read->artifact.tensors.at({.layer = 0, .is_value = false}).mean;
  std::printf("artifact %s of %zu bytes, means of %zu channels\n", read->id.c_str(), file->bytes.size(), mean.size());
  bool right = read->id == file->id && mean.size() == 32;
  for (size_t i = 0; right && i < mean.size(); ++i) right = std::fabs(mean[i] - static_cast<float>(i % 16)) < 0.2F;
  return right ? 0 : 1;
}
