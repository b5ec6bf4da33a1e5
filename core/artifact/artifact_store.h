#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/artifact/artifact.h"
#include "core/artifact/artifact_file.h"

namespace kvcompress {

// Of the files of artifacts in a directory.
inline constexpr std::string_view kArtifactExtension = ".kvcal";

// The artifacts of a directory, by their ids: its files named *.kvcal. Each is loaded when it is first asked for and
// then shared. Files that come later are found without a restart; they must appear whole, which a file does that is
// written under another name and renamed. A file that is not whole yet, or that changes while it is read, is not taken.
// Safe for use by many threads at once; who asks for what is loaded waits for nobody.
class ArtifactStore {
 public:
  struct Options {
    std::string directory;
    // That the artifacts take which are loaded: those go that nobody has and that were used least recently. While one
    // is read there may be as much more as it takes.
    uint64_t max_memory_bytes = uint64_t{1} << 30;
    // The directory is looked at again no sooner than this.
    std::chrono::nanoseconds look_again = std::chrono::seconds(1);
  };
  explicit ArtifactStore(Options options) : options_(std::move(options)) {}

  // INVALID_ARGUMENT for what is no id. FAILED_PRECONDITION, naming the id and where to put its file, where there is
  // none, or none that is right. RESOURCE_EXHAUSTED where it and those in use take more than max_memory_bytes.
  absl::StatusOr<std::shared_ptr<const Artifact>> Find(const ArtifactId& id);

  // Of the files that are there, sorted.
  std::vector<ArtifactId> ids();

  struct Figures {
    uint64_t loaded = 0;  // artifacts in memory
    uint64_t memory_bytes = 0;
    uint64_t loads = 0;     // of all time
    uint64_t failures = 0;  // of Find, of all time
  };
  Figures figures() const;

 private:
  // A file as it was when it was looked at.
  struct File {
    uint64_t inode = 0;
    uint64_t bytes = 0;
    int64_t modified = 0;  // nanoseconds
    ArtifactId id;         // empty: it is none
    std::string fault;     // why

    bool IsAt(const File& other) const {
      return inode == other.inode && bytes == other.bytes && modified == other.modified;
    }
  };
  struct Loaded {
    std::shared_ptr<const Artifact> artifact;
    uint64_t bytes = 0;
    uint64_t last_use = 0;
  };

  std::shared_ptr<const Artifact> FindLoaded(const ArtifactId& id);
  absl::StatusOr<std::shared_ptr<const Artifact>> Load(const ArtifactId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(disk_mutex_);
  absl::StatusOr<std::shared_ptr<const Artifact>> Keep(const ArtifactId& id, Artifact artifact);
  void MakeRoom(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Looks at the directory, unless that was just done.
  void Look() ABSL_EXCLUSIVE_LOCKS_REQUIRED(disk_mutex_);
  std::string PathOf(const ArtifactId& id) const;
  absl::Status Missing(const ArtifactId& id, const std::string& fault) const;

  const Options options_;
  // Held while the directory or a file is read; before mutex_.
  absl::Mutex disk_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::chrono::steady_clock::time_point looked_ ABSL_GUARDED_BY(disk_mutex_);
  bool has_looked_ ABSL_GUARDED_BY(disk_mutex_) = false;

  mutable absl::Mutex mutex_;
  std::map<std::string, File> files_ ABSL_GUARDED_BY(mutex_);  // by path
  std::string fault_ ABSL_GUARDED_BY(mutex_);                  // of the directory
  std::map<ArtifactId, Loaded> loaded_ ABSL_GUARDED_BY(mutex_);
  uint64_t memory_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t loads_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t failures_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvcompress
