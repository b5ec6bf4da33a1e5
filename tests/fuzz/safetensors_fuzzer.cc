#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "core/base/byte_source.h"
#include "core/base/utf8.h"
#include "core/safetensors/safetensors.h"

// A header that is read keeps every promise of its contract, and survives being written and read again.

namespace {

using kvcompress::AsBytes;
using kvcompress::MemorySource;
using kvcompress::safetensors::Entry;
using kvcompress::safetensors::Header;

void Require(bool condition) {
  if (!condition) std::abort();
}

void RequireInvariants(const Header& header, uint64_t file_bytes) {
  std::set<std::string> names;
  uint64_t covered = 0;
  for (const Entry& entry : header.entries) {
    Require(names.insert(entry.name).second);
    Require(kvcompress::IsUtf8(entry.name));
    Require(entry.begin == covered && entry.end >= entry.begin);
    covered = entry.end;
    unsigned __int128 bits = kvcompress::safetensors::DTypeBits(entry.dtype);
    Require(bits > 0);
    Require(entry.shape.size() <= kvcompress::safetensors::kMaxShapeRank);
    for (uint64_t extent : entry.shape) bits = extent == 0 ? 0 : bits * extent;
    Require(bits == static_cast<unsigned __int128>(entry.bytes()) * 8);
    Require(header.Find(entry.name) == &entry);
  }
  Require(header.data_start >= 8 && header.data_start + covered == file_bytes);
  Require(header.has_metadata || header.metadata.empty());
  for (const auto& [key, value] : header.metadata) Require(kvcompress::IsUtf8(key) && kvcompress::IsUtf8(value));
}

void ReadAndCheck(const std::string& file) {
  const auto header = kvcompress::safetensors::ReadHeader(MemorySource(AsBytes(file)));
  if (!header.ok()) {
    Require(header.status().code() == absl::StatusCode::kInvalidArgument);
    Require(kvcompress::IsUtf8(std::string(header.status().message())));
    return;
  }
  RequireInvariants(*header, file.size());

  auto written = kvcompress::safetensors::SerializeHeader(header->entries, header->metadata, header->has_metadata);
  Require(written.ok() && written->size() % 8 == 0);
  const std::string again = *written + file.substr(header->data_start);
  const auto reread = kvcompress::safetensors::ReadHeader(MemorySource(AsBytes(again)));
  Require(reread.ok());
  Require(reread->entries == header->entries && reread->metadata == header->metadata);
  Require(reread->has_metadata == header->has_metadata && reread->data_start == written->size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  ReadAndCheck(input);
  // Mutations rarely keep the two lengths of a file right: so also two bytes that tell the size of the data, and JSON.
  if (size < 2) return 0;
  const size_t data_bytes = data[0] + size_t{256} * data[1];
  std::string file(8, '\0');
  kvcompress::StoreLE<uint64_t>(size - 2, reinterpret_cast<std::byte*>(file.data()));
  ReadAndCheck(file.append(input, 2).append(data_bytes, '\0'));
  return 0;
}
