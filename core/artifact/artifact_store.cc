#include "core/artifact/artifact_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {
namespace {

// The id of a file that is an artifact, and whole, as far as its header tells.
absl::StatusOr<ArtifactId> IdOfWholeFile(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> file, FileSource::Open(path));
  KVC_ASSIGN_OR_RETURN(const safetensors::Header header, safetensors::ReadHeader(*file));
  if (!header.metadata.contains(std::string(kArtifactKey))) {
    return absl::InvalidArgumentError(absl::StrFormat("no artifact: its metadata has no %s", kArtifactKey));
  }
  KVC_ASSIGN_OR_RETURN(ArtifactId id, ArtifactIdOf(*file));
  KVC_RETURN_IF_ERROR(file->CheckUnchanged());
  return id;
}

absl::StatusOr<IdentifiedArtifact> ReadUnchanged(const std::string& path, uint64_t max_memory_bytes) {
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> file, FileSource::Open(path));
  KVC_ASSIGN_OR_RETURN(IdentifiedArtifact read, ReadArtifact(*file, max_memory_bytes));
  KVC_RETURN_IF_ERROR(file->CheckUnchanged());
  return read;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Artifact>> ArtifactStore::Find(const ArtifactId& id) {
  if (!IsArtifactId(id)) {
    return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is no artifact's id: 32 hex digits", id.substr(0, 40)));
  }
  if (auto artifact = FindLoaded(id)) return artifact;
  absl::MutexLock disk_lock(&disk_mutex_);
  // Another thread may have loaded it meanwhile.
  if (auto artifact = FindLoaded(id)) return artifact;
  auto artifact = Load(id);
  if (!artifact.ok()) {
    absl::MutexLock lock(&mutex_);
    ++failures_;
  }
  return artifact;
}

std::shared_ptr<const Artifact> ArtifactStore::FindLoaded(const ArtifactId& id) {
  absl::MutexLock lock(&mutex_);
  const auto found = loaded_.find(id);
  if (found == loaded_.end()) return nullptr;
  found->second.last_use = ++uses_;
  return found->second.artifact;
}

absl::StatusOr<std::shared_ptr<const Artifact>> ArtifactStore::Load(const ArtifactId& id) {
  if (PathOf(id).empty()) Look();
  std::string fault;
  for (std::string path = PathOf(id); !path.empty(); path = PathOf(id)) {
    auto read = ReadUnchanged(path, options_.max_memory_bytes);
    if (read.ok() && read->id == id) return Keep(id, std::move(read->artifact));
    if (absl::IsResourceExhausted(read.status())) {
      return absl::ResourceExhaustedError(absl::StrFormat("artifact %s: %s: %s", id, path, read.status().message()));
    }
    fault = absl::StrFormat("; %s: %s", path, read.ok() ? "has changed since it was found" : read.status().message());
    // It is looked at again with the directory.
    absl::MutexLock lock(&mutex_);
    files_.erase(path);
  }
  return Missing(id, fault);
}

absl::StatusOr<std::shared_ptr<const Artifact>> ArtifactStore::Keep(const ArtifactId& id, Artifact artifact) {
  const uint64_t bytes = artifact.tensors.size() * artifact.tensor_bytes();
  absl::MutexLock lock(&mutex_);
  MakeRoom(bytes);
  if (bytes > options_.max_memory_bytes - memory_bytes_) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("artifact %s: takes %d bytes of memory, and artifacts in use have %d of %d", id, bytes,
                        memory_bytes_, options_.max_memory_bytes));
  }
  auto shared = std::make_shared<const Artifact>(std::move(artifact));
  loaded_[id] = {shared, bytes, ++uses_};
  memory_bytes_ += bytes;
  ++loads_;
  return shared;
}

void ArtifactStore::MakeRoom(uint64_t bytes) {
  while (bytes > options_.max_memory_bytes - memory_bytes_) {
    auto oldest = loaded_.end();
    for (auto it = loaded_.begin(); it != loaded_.end(); ++it) {
      // Nobody can take what the store alone has while it holds its lock.
      if (it->second.artifact.use_count() > 1) continue;
      if (oldest == loaded_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
    }
    if (oldest == loaded_.end()) return;
    memory_bytes_ -= oldest->second.bytes;
    loaded_.erase(oldest);
  }
}

void ArtifactStore::Look() {
  const auto now = std::chrono::steady_clock::now();
  if (has_looked_ && now - looked_ < options_.look_again) return;
  has_looked_ = true;
  looked_ = now;
  std::map<std::string, File> known;
  {
    absl::MutexLock lock(&mutex_);
    known = files_;
  }
  std::map<std::string, File> files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(options_.directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string path = it->path().string();
    struct stat info;
    if (!path.ends_with(kArtifactExtension) || stat(path.c_str(), &info) != 0) continue;
    File file{.inode = info.st_ino,
              .bytes = static_cast<uint64_t>(info.st_size),
              .modified = info.st_mtim.tv_sec * int64_t{1'000'000'000} + info.st_mtim.tv_nsec,
              .id = {},
              .fault = {}};
    if (const auto found = known.find(path); found != known.end() && found->second.IsAt(file)) {
      files.insert(*found);
      continue;
    }
    const auto id = IdOfWholeFile(path);
    id.ok() ? file.id = *id : file.fault = std::string(id.status().message());
    files[path] = std::move(file);
  }
  absl::MutexLock lock(&mutex_);
  files_ = std::move(files);
  fault_ = error ? error.message() : "";
}

std::string ArtifactStore::PathOf(const ArtifactId& id) const {
  absl::MutexLock lock(&mutex_);
  for (const auto& [path, file] : files_) {
    if (file.id == id) return path;
  }
  return "";
}

absl::Status ArtifactStore::Missing(const ArtifactId& id, const std::string& fault) const {
  absl::MutexLock lock(&mutex_);
  std::string text = absl::StrFormat("artifact %s is not there: put its file into %s, as NAME%s%s", id,
                                     options_.directory, kArtifactExtension, fault);
  if (!fault_.empty()) absl::StrAppendFormat(&text, "; %s: %s", options_.directory, fault_);
  for (const auto& [path, file] : files_) {
    if (file.id.empty()) absl::StrAppendFormat(&text, "; %s: %s", path, file.fault);
    if (text.size() > 1000) break;
  }
  return absl::FailedPreconditionError(text);
}

std::vector<ArtifactId> ArtifactStore::ids() {
  // What is known will do while a file is being read.
  if (disk_mutex_.TryLock()) {
    Look();
    disk_mutex_.Unlock();
  }
  absl::MutexLock lock(&mutex_);
  std::set<ArtifactId> ids;
  for (const auto& [path, file] : files_) {
    if (!file.id.empty()) ids.insert(file.id);
  }
  return {ids.begin(), ids.end()};
}

ArtifactStore::Figures ArtifactStore::figures() const {
  absl::MutexLock lock(&mutex_);
  return {.loaded = loaded_.size(), .memory_bytes = memory_bytes_, .loads = loads_, .failures = failures_};
}

}  // namespace kvcompress
