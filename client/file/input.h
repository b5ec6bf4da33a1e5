#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/byte_source.h"
#include "core/base/file.h"
#include "core/safetensors/safetensors.h"

namespace kvcompress {

// Where tensors come from, as the bytes and the header of one safetensors file. Its errors say that they are the
// input's, wherever they come up: they begin with "read input: " or "parse header: " and name the file.
class Input final : public ByteSource {
 public:
  // What `path` may name:
  // - a safetensors file, which is read by range;
  // - "-" for standard input, or a pipe: read into memory, at most kMaxPipeBytes, until `deadline`;
  // - an index of shards (*.json with a "weight_map"): all tensors of the shards in its folder (shards.h);
  // - the meta_*.json of a raw dump, or a folder with some (raw_dump.h).
  static absl::StatusOr<std::unique_ptr<Input>> Open(const std::string& path,
                                                     absl::Time deadline = absl::InfiniteFuture());
  static constexpr uint64_t kMaxPipeBytes = uint64_t{512} << 20;

  const safetensors::Header& header() const { return parts_.header; }
  // Whether it is an index of shards or a raw dump.
  bool is_several_files() const { return !parts_.paths.empty(); }

  uint64_t size() const override { return bytes().size(); }
  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override;

  // DATA_LOSS when somebody has written to a file that is read by range since it was opened.
  absl::Status CheckUnchanged() const;
  // INVALID_ARGUMENT where an output at this path would replace one of several files that the input consists of.
  absl::Status CheckOutput(const std::string& output) const;

  // What the ways to read an input give.
  struct Parts {
    std::vector<std::unique_ptr<FileSource>> files;  // that are read by range
    std::unique_ptr<ByteSource> bytes;               // null: those of the one file
    safetensors::Header header;
    std::vector<std::string> paths;  // of all files, where they are several
  };

 private:
  explicit Input(Parts parts) : parts_(std::move(parts)) {}
  const ByteSource& bytes() const { return parts_.bytes != nullptr ? *parts_.bytes : *parts_.files.front(); }

  const Parts parts_;
};

}  // namespace kvcompress
