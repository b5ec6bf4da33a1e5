#include "core/artifact/artifact_file.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/artifact/artifact_parts.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/base/tensor.h"
#include "core/base/xxh3.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {
namespace {

using artifact_file::BadFile;
using artifact_file::kParts;
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
using safetensors::Entry;
using safetensors::Header;

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;

// The digest of bytes that come in pieces.
class Identifier {
 public:
  Identifier() : state_(XXH3_createState(), XXH3_freeState) { XXH3_128bits_reset(state_.get()); }

  void Update(ByteSpan bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }
  ArtifactId id() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_.get());
    return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
  }

 private:
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

// Hands the bytes [begin, end) of `file` to `visit` in pieces of a multiple of 4 bytes, the last one perhaps shorter.
template <typename Visit>
absl::Status ForEachPiece(const ByteSource& file, uint64_t begin, uint64_t end, std::vector<std::byte>& scratch,
                          const Visit& visit) {
  for (uint64_t at = begin; at < end;) {
    KVC_ASSIGN_OR_RETURN(const ByteSpan piece, file.Get(at, std::min(kPieceBytes, end - at), scratch));
    visit(piece);
    at += piece.size();
  }
  return absl::OkStatus();
}

struct PartName {
  ArtifactKey key;
  PartIndex part;
};

std::optional<PartName> ParsePartName(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == name.npos) return std::nullopt;
  const KvName kv = ParseKvName(name.substr(0, dot));
  if (kv.layer < 0) return std::nullopt;
  PartName parsed{{static_cast<uint64_t>(kv.layer), !kv.is_key}, kMean};
  const auto* const found = std::find_if(kPartTable.begin(), kPartTable.end(),
                                         [&](const Part& part) { return part.name == name.substr(dot + 1); });
  // A number has one form only.
  if (found == kPartTable.end() || parsed.key.name() != name.substr(0, dot)) return std::nullopt;
  parsed.part = static_cast<PartIndex>(found - kPartTable.begin());
  return parsed;
}

// The values of a header's metadata. Of several faults the first is kept.
class Metadata {
 public:
  explicit Metadata(const Header& header) : values_(header.metadata) {}

  const absl::Status& status() const { return status_; }

  std::string Text(const std::string& key) {
    const auto found = values_.find(key);
    if (found != values_.end()) return found->second;
    Refuse(absl::StrFormat("its metadata has no %s", key));
    return "";
  }

  uint64_t Integer(const std::string& key) {
    const std::string text = Text(key);
    uint64_t value = 0;
    // Digits alone, in their one form.
    if (!absl::SimpleAtoi(text, &value) || absl::StrCat(value) != text) Refuse(NotOne(key, "an integer", text));
    return value;
  }

  double Real(const std::string& key) {
    const std::string text = Text(key);
    double value = 0;
    if (!absl::SimpleAtod(text, &value)) Refuse(NotOne(key, "a number", text));
    return value;
  }

  // The index of the value among `choices`.
  size_t Choice(const std::string& key, std::span<const char* const> choices) {
    const std::string text = Text(key);
    const auto found = std::find(choices.begin(), choices.end(), text);
    if (found != choices.end()) return static_cast<size_t>(found - choices.begin());
    Refuse(NotOne(key, absl::StrCat("one of ", absl::StrJoin(choices, ", ")), text));
    return 0;
  }

  void Refuse(const std::string& text) { status_.Update(BadFile(text)); }

 private:
  static std::string NotOne(std::string_view key, std::string_view what, std::string_view text) {
    return absl::StrFormat("its metadata's %s is not %s: \"%s\"", key, what, text.substr(0, 40));
  }

  const std::map<std::string, std::string>& values_;
  absl::Status status_;
};

// UNIMPLEMENTED for a kind that a later version may have; `metadata` keeps other faults.
absl::StatusOr<simd::RotaryScaling> ReadScaling(Metadata& metadata) {
  const std::string kind = metadata.Text("rotary_scaling");
  KVC_RETURN_IF_ERROR(metadata.status());
  const auto found = std::find(kScaling.begin(), kScaling.end(), kind);
  if (found == kScaling.end()) return absl::UnimplementedError("artifact: rotary_scaling: " + kind.substr(0, 40));
  simd::RotaryScaling scaling = {.kind = static_cast<simd::RotaryScaling::Kind>(found - kScaling.begin())};
  if (scaling.kind == simd::RotaryScaling::Kind::kNone) return scaling;
  scaling.factor = metadata.Real("rotary_factor");
  if (scaling.kind == simd::RotaryScaling::Kind::kLinear) return scaling;
  scaling.low = metadata.Real("rotary_low");
  scaling.high = metadata.Real("rotary_high");
  scaling.original = metadata.Integer("rotary_original");
  return scaling;
}

// An artifact without tensors, and how many layers it may have.
absl::StatusOr<std::pair<Artifact, uint64_t>> FromMetadata(const Header& header) {
  Metadata metadata(header);
  const std::string version = metadata.Text(std::string(kArtifactKey));
  KVC_RETURN_IF_ERROR(metadata.status());
  if (version != kVersion) {
    return absl::UnimplementedError(absl::StrFormat("artifact: version \"%s\", and this program reads version %s",
                                                    version.substr(0, 40), kVersion));
  }
  Artifact artifact;
  artifact.heads = metadata.Integer("heads");
  artifact.head_dim = metadata.Integer("head_dim");
  artifact.group_heads = metadata.Integer("group_heads");
  artifact.tokens = metadata.Integer("tokens");
  artifact.weighted = metadata.Choice("weights", kWeights) == 1;
  const uint64_t layers = metadata.Integer("layers");
  if (layers > kMaxArtifactLayers)
    metadata.Refuse(absl::StrFormat("%d layers are above the limit of %d", layers, kMaxArtifactLayers));
  if (const size_t pairs = metadata.Choice("rotary", kRotary); pairs > 0) {
    artifact.rotary = simd::RotaryEmbedding{
        .theta = metadata.Real("rotary_theta"),
        .pairs = pairs == 1 ? simd::RotaryPairs::kHalf : simd::RotaryPairs::kInterleaved,
        .dims = metadata.Integer("rotary_dims"),
        .offset = metadata.Integer("rotary_offset"),
    };
    KVC_ASSIGN_OR_RETURN(artifact.rotary->scaling, ReadScaling(metadata));
  }
  KVC_RETURN_IF_ERROR(metadata.status());
  KVC_RETURN_IF_ERROR(CheckShape(artifact));
  return std::pair(std::move(artifact), layers);
}

// Makes the artifact's tensors, still without values, of the entries' names. INVALID_ARGUMENT for a name, a dtype or a
// shape that it cannot have, and for a part that lacks.
absl::Status AddTensors(const Header& header, uint64_t layers, Artifact& artifact) {
  std::map<ArtifactKey, std::array<bool, kParts>> found;
  for (const Entry& entry : header.entries) {
    const std::optional<PartName> name = ParsePartName(entry.name);
    if (!name || name->key.layer >= layers)
      return OfTensor(entry.name, BadFile("no tensor of an artifact has this name"));
    const std::vector<uint64_t> shape = ShapeOf(artifact, name->part);
    const std::string_view dtype = DTypeName(kPartTable[name->part].dtype);
    if (entry.dtype != dtype || entry.shape != shape) {
      return OfTensor(entry.name,
                      BadFile(absl::StrFormat("%s [%s] in place of %s [%s]", entry.dtype,
                                              absl::StrJoin(entry.shape, ", "), dtype, absl::StrJoin(shape, ", "))));
    }
    found[name->key][name->part] = true;
  }
  for (const auto& [key, parts] : found) {
    for (const PartIndex part : {kMean, kSigma, kStep, kForward}) {
      if (!parts[part]) return OfTensor(key.name(), BadFile(absl::StrFormat("has no %s", kPartTable[part].name)));
    }
    artifact.tensors[key];
  }
  if (artifact.tensors.empty()) return BadFile("has no tensors");
  return absl::OkStatus();
}

// Appends values as they lie in a file.
void TakeValues(DType dtype, ByteSpan piece, std::vector<float>& values) {
  const size_t count = piece.size() / DTypeSize(dtype);
  for (size_t i = 0; i < count; ++i) values.push_back(LoadAsF32(dtype, piece.data(), i));
}

// Reads the entries' values; `identifier` is given every byte.
absl::Status ReadValues(const ByteSource& file, const Header& header, Identifier& identifier, Artifact& artifact) {
  std::vector<std::byte> scratch;
  KVC_RETURN_IF_ERROR(
      ForEachPiece(file, 0, header.data_start, scratch, [&](ByteSpan piece) { identifier.Update(piece); }));
  for (const Entry& entry : header.entries) {
    const PartName name = *ParsePartName(entry.name);
    ArtifactTensor& tensor = artifact.tensors[name.key];
    std::vector<float> step;
    std::vector<float>& values = name.part == kStep ? step : VectorOf(tensor, name.part);
    const DType dtype = kPartTable[name.part].dtype;
    values.reserve(entry.bytes() / DTypeSize(dtype));
    KVC_RETURN_IF_ERROR(ForEachPiece(file, header.data_start + entry.begin, header.data_start + entry.end, scratch,
                                     [&](ByteSpan piece) {
                                       identifier.Update(piece);
                                       TakeValues(dtype, piece, values);
                                     }));
    if (name.part == kStep) tensor.step = step.front();
  }
  return absl::OkStatus();
}

}  // namespace

bool IsArtifactId(std::string_view text) {
  return text.size() == 32 &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

absl::StatusOr<ArtifactId> ArtifactIdOf(const ByteSource& file) {
  Identifier identifier;
  std::vector<std::byte> scratch;
  KVC_RETURN_IF_ERROR(ForEachPiece(file, 0, file.size(), scratch, [&](ByteSpan piece) { identifier.Update(piece); }));
  return identifier.id();
}

absl::StatusOr<IdentifiedArtifact> ReadArtifact(const ByteSource& file, uint64_t max_memory_bytes) {
  if (file.size() > kMaxArtifactBytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("artifact: %d bytes are above the limit of %d", file.size(), kMaxArtifactBytes));
  }
  KVC_ASSIGN_OR_RETURN(const Header header, safetensors::ReadHeader(file));
  KVC_ASSIGN_OR_RETURN(auto described, FromMetadata(header));
  auto& [artifact, layers] = described;
  KVC_RETURN_IF_ERROR(AddTensors(header, layers, artifact));
  if (const uint64_t bytes = artifact.tensors.size() * artifact.tensor_bytes(); bytes > max_memory_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("artifact: takes %d bytes of memory, above the limit of %d", bytes, max_memory_bytes));
  }
  Identifier identifier;
  KVC_RETURN_IF_ERROR(ReadValues(file, header, identifier, artifact));
  for (auto& [key, tensor] : artifact.tensors) {
    if (tensor.inverse.empty()) tensor.inverse = Transposed(tensor.forward, artifact.group_dim());
    if (const absl::Status status = CheckTensor(artifact, tensor); !status.ok()) return OfTensor(key.name(), status);
  }
  return IdentifiedArtifact{identifier.id(), std::move(artifact)};
}

}  // namespace kvcompress
