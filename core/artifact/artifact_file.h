#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/artifact/artifact.h"
#include "core/base/byte_source.h"

// The file of an artifact: safetensors (docs/format.md, "Artifacts").
namespace kvcompress {

inline constexpr std::string_view kArtifactKey = "kvcompress.artifact";  // of the metadata: the version
inline constexpr uint64_t kMaxArtifactBytes = uint64_t{1} << 30;

// 32 hex digits: XXH3 with 128 bits of the whole file, as `xxh128sum` prints it.
using ArtifactId = std::string;
bool IsArtifactId(std::string_view text);
absl::StatusOr<ArtifactId> ArtifactIdOf(const ByteSource& file);

struct IdentifiedArtifact {
  ArtifactId id;
  Artifact artifact;
};

// Reads every byte of `file` once and checks all that the format promises. INVALID_ARGUMENT for what is no artifact,
// "artifact: ..." or, from its safetensors header, "parse header: ..."; UNIMPLEMENTED for a version, or a scaling of
// the rotary embedding, that this build does not know; RESOURCE_EXHAUSTED above kMaxArtifactBytes, and before anything
// is allocated where its vectors would take more than `max_memory_bytes`. Errors of reading are passed on.
absl::StatusOr<IdentifiedArtifact> ReadArtifact(const ByteSource& file,
                                                uint64_t max_memory_bytes = 4 * kMaxArtifactBytes);

struct SerializedArtifact {
  ArtifactId id;
  std::vector<std::byte> bytes;
};
// `tool` is what made it. INVALID_ARGUMENT for what ReadArtifact would refuse.
absl::StatusOr<SerializedArtifact> SerializeArtifact(const Artifact& artifact, std::string_view tool);

}  // namespace kvcompress
