#include "client/file/input.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/file/json_text.h"
#include "client/file/raw_dump.h"
#include "client/file/shards.h"
#include "core/base/status_macros.h"
#include "core/base/system_call.h"

namespace kvcompress {
namespace {

constexpr const char* kStandardInput = "/dev/stdin";
constexpr absl::string_view kParseHeader = "parse header: ";

absl::Status OfInput(const absl::Status& status) {
  if (status.ok() || absl::StartsWith(status.message(), kParseHeader) || absl::IsDeadlineExceeded(status))
    return status;
  return absl::Status(status.code(), absl::StrCat("read input: ", status.message()));
}

// Its errors about what the file holds name the file.
absl::StatusOr<safetensors::Header> ReadHeaderOf(const std::string& path, const ByteSource& file) {
  auto header = safetensors::ReadHeader(file);
  if (header.ok() || !absl::StartsWith(header.status().message(), kParseHeader)) return header;
  const absl::string_view what = absl::StripPrefix(header.status().message(), kParseHeader);
  return absl::Status(header.status().code(), absl::StrCat(kParseHeader, path, ": ", what));
}

// All bytes of a pipe until its writers close it.
absl::StatusOr<std::vector<std::byte>> ReadPipe(const std::string& path, absl::Time deadline) {
  // Without O_NONBLOCK a pipe that nobody writes to could not be given up.
  int fd = RetryOnEintr([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  if (fd < 0) return ErrnoError("open", path, errno);
  constexpr size_t kStep = size_t{1} << 20;
  std::vector<std::byte> bytes;
  absl::Status status;
  while (status.ok()) {
    pollfd entry = {fd, POLLIN, 0};
    const auto left = absl::ToInt64Milliseconds(std::min(deadline - absl::Now(), absl::Hours(1)));
    const int ready = left > 0 ? poll(&entry, 1, static_cast<int>(left)) : 0;
    if (ready == 0 && absl::Now() >= deadline) status = absl::DeadlineExceededError("deadline exceeded");
    if (ready <= 0) continue;
    const size_t have = bytes.size();
    bytes.resize(have + kStep);
    const ssize_t got = RetryOnEintr([&] { return read(fd, bytes.data() + have, kStep); });
    bytes.resize(have + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got == 0) break;
    if (got < 0 && errno != EAGAIN) status = ErrnoError("read", path, errno);
    if (bytes.size() > Input::kMaxPipeBytes) {
      status = absl::ResourceExhaustedError(
          absl::StrFormat("%s: more than %d MiB through a pipe, which is read into memory: write them to a file first",
                          path, Input::kMaxPipeBytes >> 20));
    }
  }
  close(fd);
  if (!status.ok()) return status;
  return bytes;
}

absl::StatusOr<Input::Parts> OpenJson(const std::string& path) {
  KVC_ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonObject(path));
  if (json.contains("weight_map")) return OpenShards(path, json);
  if (json.contains("k_file") || json.contains("v_file")) return ReadRawDumps({path});
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": JSON that is neither an index of shards (weight_map) nor the meta of a raw dump (k_file, v_file)"));
}

// Whether the file's first byte that is not blank is '{'.
absl::StatusOr<bool> IsJson(const ByteSource& file) {
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan first, file.Get(0, std::min<uint64_t>(file.size(), 64), scratch));
  const std::string_view text = AsText(first);
  const size_t at = text.find_first_not_of(" \t\r\n");
  return at != text.npos && text[at] == '{';
}

absl::StatusOr<Input::Parts> OpenParts(const std::string& path, absl::Time deadline) {
  struct stat info;
  const bool exists = stat(path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) {
    const std::vector<std::string> metas = FindRawDumps(path);
    if (metas.empty()) return ErrnoError("read", path, EISDIR);
    return ReadRawDumps(metas);
  }
  if (exists && S_ISCHR(info.st_mode) && path == kStandardInput) {
    return absl::InvalidArgumentError("standard input is neither a file nor a pipe");
  }
  Input::Parts parts;
  if (exists && S_ISFIFO(info.st_mode)) {
    KVC_ASSIGN_OR_RETURN(std::vector<std::byte> bytes, ReadPipe(path, deadline));
    parts.bytes = std::make_unique<MemorySource>(std::move(bytes));
    KVC_ASSIGN_OR_RETURN(parts.header, ReadHeaderOf(path, *parts.bytes));
    return parts;
  }
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<FileSource> file, FileSource::Open(path));
  if (path.ends_with(".json")) {
    KVC_ASSIGN_OR_RETURN(const bool is_json, IsJson(*file));
    if (is_json) return OpenJson(path);
  }
  KVC_ASSIGN_OR_RETURN(parts.header, ReadHeaderOf(path, *file));
  parts.files.push_back(std::move(file));
  return parts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Input>> Input::Open(const std::string& path, absl::Time deadline) {
  auto parts = OpenParts(path == "-" ? kStandardInput : path, deadline);
  if (!parts.ok()) return OfInput(parts.status());
  return std::unique_ptr<Input>(new Input(*std::move(parts)));
}

absl::StatusOr<ByteSpan> Input::Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const {
  auto found = bytes().Get(offset, count, scratch);
  if (!found.ok()) return OfInput(found.status());
  return found;
}

absl::Status Input::CheckUnchanged() const {
  for (const std::unique_ptr<FileSource>& file : parts_.files) KVC_RETURN_IF_ERROR(OfInput(file->CheckUnchanged()));
  return absl::OkStatus();
}

absl::Status Input::CheckOutput(const std::string& output) const {
  for (const std::string& path : parts_.paths) {
    std::error_code error;
    if (output.empty() || !std::filesystem::equivalent(output, path, error) || error) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("write output: ", output, " is one of the files that the input consists of"));
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
