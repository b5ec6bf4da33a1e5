#include "client/cli/text_file.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "core/base/file.h"
#include "core/base/status_macros.h"

namespace kvcompress {

absl::StatusOr<std::string> ReadText(std::string_view what, const std::string& path, uint64_t max_mebibytes) {
  const auto file = FileSource::Open(path);
  if (!file.ok()) {
    return absl::Status(file.status().code(), absl::StrFormat("read %s: %s", what, file.status().message()));
  }
  if ((*file)->size() > max_mebibytes << 20) {
    return absl::InvalidArgumentError(absl::StrFormat("read %s: larger than %d MiB", what, max_mebibytes));
  }
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan text, (*file)->Get(0, (*file)->size(), scratch));
  return std::string(AsText(text));
}

}  // namespace kvcompress
