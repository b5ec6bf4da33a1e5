#include "client/file/raw_dump.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/file/json_text.h"
#include "core/base/dtype.h"
#include "core/base/status_macros.h"
#include "core/base/tensor.h"

namespace kvcompress {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

absl::Status DumpFault(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// A run of tokens of a layer.
struct Chunk {
  std::string meta;
  int64_t layer = 0;
  uint64_t first = 0;  // position of the first token
  uint64_t tokens = 0;
  uint64_t heads = 0;
  uint64_t head_dim = 0;
  DType dtype = DType::kF16;
  std::string files[2] = {};  // of keys, of values

  uint64_t bytes() const { return tokens * heads * head_dim * DTypeSize(dtype); }  // of each of the files
};

absl::StatusOr<uint64_t> Number(const std::string& path, const Json& meta, const char* key, uint64_t least) {
  constexpr uint64_t kMost = 1'000'000'000;
  const auto found = meta.find(key);
  const bool is_number = found != meta.end() && found->is_number_unsigned();
  const uint64_t value = is_number ? found->get<uint64_t>() : 0;
  if (is_number && value >= least && value <= kMost) return value;
  return DumpFault(path, absl::StrFormat("\"%s\" is no number from %d to %d", key, least, kMost));
}

absl::StatusOr<std::string> FileOf(const std::string& path, const Json& meta, const char* key) {
  const auto found = meta.find(key);
  const std::string name = found != meta.end() && found->is_string() ? found->get<std::string>() : "";
  if (name.empty() || name == "." || name == ".." || name.find('/') != name.npos || name.find('\0') != name.npos) {
    return DumpFault(path, absl::StrFormat("\"%s\" is not the name of a file in the folder of the meta", key));
  }
  return (fs::path(path).parent_path() / name).native();
}

absl::StatusOr<DType> DTypeOf(const std::string& path, const Json& meta) {
  KVC_ASSIGN_OR_RETURN(const uint64_t bytes, Number(path, meta, "bytes_per_elem", 1));
  const auto found = meta.find("dtype");
  std::string name = bytes == 2 ? "fp16" : bytes == 4 ? "fp32" : "";
  if (found != meta.end() && found->is_string()) name = found->get<std::string>();
  constexpr std::pair<std::string_view, DType> kNames[] = {
      {"fp16", DType::kF16}, {"bf16", DType::kBF16}, {"fp32", DType::kF32}};
  for (const auto& [known, dtype] : kNames) {
    if (known == name && DTypeSize(dtype) == bytes) return dtype;
  }
  return DumpFault(
      path, absl::StrFormat("values of %d bytes and dtype \"%s\": expected fp16 or bf16 of 2 bytes, or fp32 of 4",
                            bytes, name));
}

absl::StatusOr<Chunk> ParseMeta(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const Json meta, ReadJsonObject(path));
  const auto is = [&](const char* key) { return meta.contains(key) && meta[key] == true; };
  if (meta.contains("layout"))
    return DumpFault(path, "a dump with a layout of its own (packed): dump the logical layout");
  if (is("quant_key") || is("quant_value")) return DumpFault(path, "a dump of quantized values, which says no scales");
  Chunk chunk{.meta = path};
  KVC_ASSIGN_OR_RETURN(const uint64_t layer, Number(path, meta, "layer_id", 0));
  chunk.layer = static_cast<int64_t>(layer);
  KVC_ASSIGN_OR_RETURN(chunk.first, Number(path, meta, "seq_start", 0));
  KVC_ASSIGN_OR_RETURN(chunk.tokens, Number(path, meta, "seq_len", 1));
  KVC_ASSIGN_OR_RETURN(chunk.heads, Number(path, meta, "kv_heads", 1));
  KVC_ASSIGN_OR_RETURN(chunk.head_dim, Number(path, meta, "head_dim", 1));
  KVC_ASSIGN_OR_RETURN(chunk.dtype, DTypeOf(path, meta));
  KVC_ASSIGN_OR_RETURN(chunk.files[0], FileOf(path, meta, "k_file"));
  KVC_ASSIGN_OR_RETURN(chunk.files[1], FileOf(path, meta, "v_file"));
  const absl::StatusOr<uint64_t> elements = NumElements({chunk.tokens, chunk.heads, chunk.head_dim});
  if (!elements.ok()) return DumpFault(path, elements.status().message());
  // Before anything is allocated for them.
  for (const std::string& file : chunk.files) {
    KVC_ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> values, FileSource::Open(file));
    if (values->size() == chunk.bytes()) continue;
    return DumpFault(file, absl::StrFormat("it has %d bytes, and %s says %d", values->size(), path, chunk.bytes()));
  }
  return chunk;
}

// Sorts the chunks of a layer along the tokens and checks that they are one run.
absl::Status CheckRun(std::vector<Chunk>& chunks) {
  std::sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) { return a.first < b.first; });
  for (size_t i = 1; i < chunks.size(); ++i) {
    const Chunk& a = chunks[i - 1];
    const Chunk& b = chunks[i];
    if (a.heads != b.heads || a.head_dim != b.head_dim || a.dtype != b.dtype) {
      return DumpFault(b.meta, absl::StrCat("kv_heads, head_dim or dtype differ from those of ", a.meta));
    }
    if (b.first == a.first + a.tokens) continue;
    return DumpFault(b.meta, absl::StrFormat("begins at token %d, and %s ends at token %d: name the folder of one run",
                                             b.first, a.meta, a.first + a.tokens));
  }
  return absl::OkStatus();
}

// Appends the keys (0) or values (1) of a layer, a head after the other, to `bytes`.
absl::Status AppendTensor(const std::vector<Chunk>& chunks, int kind, std::vector<std::byte>& bytes) {
  const size_t row = chunks[0].head_dim * DTypeSize(chunks[0].dtype);
  uint64_t tokens = 0;
  for (const Chunk& chunk : chunks) tokens += chunk.tokens;
  const size_t begin = bytes.size();
  bytes.resize(begin + chunks[0].heads * tokens * row);
  uint64_t token = 0;
  std::vector<std::byte> scratch;
  for (const Chunk& chunk : chunks) {
    KVC_ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> file, FileSource::Open(chunk.files[kind]));
    KVC_ASSIGN_OR_RETURN(const ByteSpan values, file->Get(0, chunk.bytes(), scratch));
    KVC_RETURN_IF_ERROR(file->CheckUnchanged());
    for (uint64_t t = 0; t < chunk.tokens; ++t) {
      for (uint64_t head = 0; head < chunk.heads; ++head) {
        const auto from = values.begin() + static_cast<ptrdiff_t>((t * chunk.heads + head) * row);
        std::copy_n(from, row, bytes.begin() + static_cast<ptrdiff_t>(begin + (head * tokens + token + t) * row));
      }
    }
    token += chunk.tokens;
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::string> FindRawDumps(const std::string& folder) {
  std::vector<std::string> metas;
  std::error_code error;
  for (fs::recursive_directory_iterator at(folder, fs::directory_options::skip_permission_denied, error), end;
       !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().native();
    if (name.starts_with("meta_") && name.ends_with(".json")) metas.push_back(at->path().native());
  }
  std::sort(metas.begin(), metas.end());
  return metas;
}

absl::StatusOr<Input::Parts> ReadRawDumps(const std::vector<std::string>& metas) {
  std::map<int64_t, std::vector<Chunk>> layers;
  for (const std::string& meta : metas) {
    KVC_ASSIGN_OR_RETURN(Chunk chunk, ParseMeta(meta));
    layers[chunk.layer].push_back(std::move(chunk));
  }
  Input::Parts parts;
  std::vector<std::byte> bytes;
  bool same_start = true;
  for (auto& [layer, chunks] : layers) {
    KVC_RETURN_IF_ERROR(CheckRun(chunks));
    same_start = same_start && chunks[0].first == layers.begin()->second[0].first;
    uint64_t tokens = 0;
    for (const Chunk& chunk : chunks) tokens += chunk.tokens;
    for (const int kind : {0, 1}) {
      const uint64_t begin = bytes.size();
      KVC_RETURN_IF_ERROR(AppendTensor(chunks, kind, bytes));
      parts.header.entries.push_back({absl::StrFormat("layer_%d_%s", layer, kind == 0 ? "key" : "value"),
                                      std::string(DTypeName(chunks[0].dtype)),
                                      {1, chunks[0].heads, tokens, chunks[0].head_dim},
                                      begin,
                                      bytes.size()});
    }
    for (const Chunk& chunk : chunks)
      parts.paths.insert(parts.paths.end(), {chunk.meta, chunk.files[0], chunk.files[1]});
  }
  if (same_start) {
    parts.header.has_metadata = true;
    parts.header.metadata["seq_start"] = absl::StrCat(layers.begin()->second[0].first);
  }
  parts.bytes = std::make_unique<MemorySource>(std::move(bytes));
  return parts;
}

}  // namespace kvcompress
