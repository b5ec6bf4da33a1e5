#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/artifact/artifact_file.h"
#include "core/artifact/artifact_parts.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {
namespace {

using artifact_file::BadFile;
using artifact_file::kPartTable;
using artifact_file::kRotary;
using artifact_file::kScaling;
using artifact_file::kVersion;
using artifact_file::kWeights;
using artifact_file::Part;
using artifact_file::PartIndex;
using artifact_file::ShapeOf;
using artifact_file::Transposed;
using artifact_file::VectorOf;
using enum artifact_file::PartIndex;

std::string RealText(double value) {
  std::array<char, 64> text;
  return {text.data(), std::to_chars(text.data(), text.data() + text.size(), value).ptr};
}

void AddScaling(const simd::RotaryScaling& scaling, std::map<std::string, std::string>& values) {
  values["rotary_scaling"] = kScaling[static_cast<size_t>(scaling.kind)];
  if (scaling.factor > 0) values["rotary_factor"] = RealText(scaling.factor);
  if (scaling.original == 0) return;
  values["rotary_low"] = RealText(scaling.low);
  values["rotary_high"] = RealText(scaling.high);
  values["rotary_original"] = absl::StrCat(scaling.original);
}

std::map<std::string, std::string> ToMetadata(const Artifact& artifact, std::string_view tool) {
  std::map<std::string, std::string> values = {
      {std::string(kArtifactKey), std::string(kVersion)},
      {"heads", absl::StrCat(artifact.heads)},
      {"head_dim", absl::StrCat(artifact.head_dim)},
      {"group_heads", absl::StrCat(artifact.group_heads)},
      {"layers", absl::StrCat(artifact.tensors.empty() ? 0 : artifact.tensors.rbegin()->first.layer + 1)},
      {"tokens", absl::StrCat(artifact.tokens)},
      {"weights", kWeights[artifact.weighted ? 1 : 0]},
      {"rotary", "none"},
      {"tool", std::string(tool)},
  };
  if (artifact.rotary) {
    values["rotary"] = kRotary[artifact.rotary->pairs == simd::RotaryPairs::kHalf ? 1 : 2];
    values["rotary_theta"] = RealText(artifact.rotary->theta);
    values["rotary_dims"] = absl::StrCat(artifact.rotary->dims);
    values["rotary_offset"] = absl::StrCat(artifact.rotary->offset);
    AddScaling(artifact.rotary->scaling, values);
  }
  return values;
}

// Lays out the entries of a file.
struct Layout {
  std::vector<safetensors::Entry> entries;
  std::vector<std::pair<const ArtifactTensor*, PartIndex>> parts;  // of each of them
  uint64_t bytes = 0;

  void Add(const Artifact& artifact, const ArtifactKey& key, const ArtifactTensor& tensor, PartIndex part) {
    const Part& row = kPartTable[part];
    const std::vector<uint64_t> shape = ShapeOf(artifact, part);
    uint64_t end = DTypeSize(row.dtype);
    for (const uint64_t extent : shape) end *= extent;
    end += bytes;
    entries.push_back(
        {absl::StrFormat("%s.%s", key.name(), row.name), std::string(DTypeName(row.dtype)), shape, bytes, end});
    parts.emplace_back(&tensor, part);
    bytes = end;
  }
};

}  // namespace

absl::StatusOr<SerializedArtifact> SerializeArtifact(const Artifact& artifact, std::string_view tool) {
  KVC_RETURN_IF_ERROR(CheckShape(artifact));
  if (artifact.tensors.empty()) return BadFile("has no tensors");
  Layout layout;
  for (const auto& [key, tensor] : artifact.tensors) {
    if (key.layer >= kMaxArtifactLayers) return BadFile(absl::StrFormat("layer %d is above the limit", key.layer));
    if (const absl::Status status = CheckTensor(artifact, tensor); !status.ok()) return OfTensor(key.name(), status);
    for (const PartIndex part : {kMean, kSigma, kStep, kForward}) layout.Add(artifact, key, tensor, part);
    if (tensor.inverse != Transposed(tensor.forward, artifact.group_dim())) layout.Add(artifact, key, tensor, kInverse);
  }
  KVC_ASSIGN_OR_RETURN(const std::string header,
                       safetensors::SerializeHeader(layout.entries, ToMetadata(artifact, tool), true));
  if (header.size() + layout.bytes > kMaxArtifactBytes) {
    return BadFile(
        absl::StrFormat("%d bytes are above the limit of %d", header.size() + layout.bytes, kMaxArtifactBytes));
  }
  SerializedArtifact serialized;
  serialized.bytes.resize(header.size() + layout.bytes);
  std::copy_n(AsBytes(header).begin(), header.size(), serialized.bytes.begin());
  for (size_t i = 0; i < layout.entries.size(); ++i) {
    const auto [tensor, part] = layout.parts[i];
    const std::span<const float> values =
        part == kStep ? std::span(&tensor->step, 1) : std::span<const float>(VectorOf(*tensor, part));
    std::byte* const to = serialized.bytes.data() + header.size() + layout.entries[i].begin;
    for (size_t k = 0; k < values.size(); ++k) StoreFromF32(kPartTable[part].dtype, values[k], to, k);
  }
  KVC_ASSIGN_OR_RETURN(serialized.id, ArtifactIdOf(MemorySource(ByteSpan(serialized.bytes))));
  return serialized;
}

}  // namespace kvcompress
