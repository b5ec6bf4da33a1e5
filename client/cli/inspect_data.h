#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "client/cli/file_analysis.h"
#include "core/file/compressed_file.h"

// What -inspect finds, for programs: JSON, and CSV (RFC 4180) with a line for each of the analysis's rows, or for each
// compressed tensor. docs/analysis.md names the fields.
namespace kvcompress {

// `artifact`: the id of a file that is one, else empty.
std::string PlainJson(const safetensors::Header& header, uint64_t file_bytes, std::string_view artifact,
                      const FileAnalysis& analysis);
std::string PlainCsv(const FileAnalysis& analysis);

// Errors are those of reading the frames of `file`.
absl::StatusOr<std::string> CompressedJson(const CompressedFile& compressed, const ByteSource& file);
absl::StatusOr<std::string> CompressedCsv(const CompressedFile& compressed, const ByteSource& file);

}  // namespace kvcompress
