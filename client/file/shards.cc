#include "client/file/shards.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/file/compressed_file.h"

namespace kvcompress {
namespace {

using safetensors::Entry;
using safetensors::Header;

absl::Status IndexFault(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// The data sections of several files, one after the other.
class DataSections final : public ByteSource {
 public:
  void Add(const ByteSource& file, uint64_t data_start) {
    sections_.push_back({file, data_start, size_});
    size_ += file.size() - data_start;
  }

  uint64_t size() const override { return size_; }

  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override {
    if (offset > size_ || count > size_ - offset) return absl::OutOfRangeError("read past the end of the shards");
    if (count == 0) return ByteSpan();
    auto section = std::prev(std::upper_bound(sections_.begin(), sections_.end(), offset,
                                              [](uint64_t at, const Section& one) { return at < one.begin; }));
    if (offset + count <= EndOf(section)) {
      return section->file.Get(section->data_start + offset - section->begin, count, scratch);
    }
    std::vector<std::byte> all;
    std::vector<std::byte> part;
    all.reserve(count);
    for (; all.size() < count; ++section) {
      const uint64_t at = offset + all.size();
      const uint64_t left = std::min<uint64_t>(count - all.size(), EndOf(section) - at);
      KVC_ASSIGN_OR_RETURN(const ByteSpan bytes,
                           section->file.Get(section->data_start + at - section->begin, left, part));
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    scratch = std::move(all);
    return ByteSpan(scratch);
  }

 private:
  struct Section {
    const ByteSource& file;
    uint64_t data_start;
    uint64_t begin;  // of the section in this source
  };
  uint64_t EndOf(std::vector<Section>::const_iterator section) const {
    return section + 1 == sections_.end() ? size_ : (section + 1)->begin;
  }

  std::vector<Section> sections_;
  uint64_t size_ = 0;
};

// What each shard holds, by the index.
absl::StatusOr<std::map<std::string, std::set<std::string>>> ShardsOf(const std::string& path,
                                                                      const nlohmann::json& index) {
  std::map<std::string, std::set<std::string>> shards;
  const nlohmann::json& map = index.at("weight_map");
  if (!map.is_object() || map.empty()) return IndexFault(path, "its weight_map names no tensor");
  for (const auto& [tensor, file] : map.items()) {
    if (!file.is_string()) {
      return IndexFault(path, absl::StrCat("weight_map: \"", tensor, "\" must be a file's name, a string"));
    }
    const auto& name = file.get_ref<const std::string&>();
    if (name.empty() || name == "." || name == ".." || name.find('/') != name.npos || name.find('\0') != name.npos) {
      return IndexFault(path,
                        absl::StrCat("weight_map: \"", name, "\" is not the name of a file in the index's folder"));
    }
    shards[name].insert(tensor);
  }
  return shards;
}

absl::Status AddMetadata(const std::string& path, const Header& shard, Header& whole) {
  whole.has_metadata |= shard.has_metadata;
  for (const auto& [key, value] : shard.metadata) {
    if (whole.metadata.emplace(key, value).first->second == value) continue;
    return IndexFault(path, absl::StrCat("its metadata \"", key, "\" differs from another shard's"));
  }
  return absl::OkStatus();
}

absl::Status AddEntries(const std::string& path, const Header& shard, std::set<std::string> expected, uint64_t begin,
                        Header& whole) {
  for (const Entry& entry : shard.entries) {
    if (expected.erase(entry.name) == 0) {
      return IndexFault(path, absl::StrCat("tensor \"", entry.name, "\" is not of this shard by the index"));
    }
    whole.entries.push_back({entry.name, entry.dtype, entry.shape, begin + entry.begin, begin + entry.end});
  }
  if (expected.empty()) return absl::OkStatus();
  return IndexFault(path,
                    absl::StrCat("there is no tensor \"", *expected.begin(), "\", which the index says is there"));
}

}  // namespace

absl::StatusOr<Input::Parts> OpenShards(const std::string& path, const nlohmann::json& index) {
  KVC_ASSIGN_OR_RETURN(const auto shards, ShardsOf(path, index));
  Input::Parts parts;
  auto bytes = std::make_unique<DataSections>();
  parts.paths.push_back(path);
  for (const auto& [name, tensors] : shards) {
    const std::string shard = (std::filesystem::path(path).parent_path() / name).native();
    KVC_ASSIGN_OR_RETURN(std::unique_ptr<FileSource> file, FileSource::Open(shard));
    const absl::StatusOr<Header> header = safetensors::ReadHeader(*file);
    if (!header.ok()) return absl::Status(header.status().code(), absl::StrCat(shard, ": ", header.status().message()));
    if (IsCompressedFile(*header)) return IndexFault(shard, "a compressed file, and an index is of plain ones");
    KVC_RETURN_IF_ERROR(AddMetadata(shard, *header, parts.header));
    KVC_RETURN_IF_ERROR(AddEntries(shard, *header, tensors, bytes->size(), parts.header));
    bytes->Add(*file, header->data_start);
    parts.files.push_back(std::move(file));
    parts.paths.push_back(shard);
  }
  parts.bytes = std::move(bytes);
  return parts;
}

}  // namespace kvcompress
