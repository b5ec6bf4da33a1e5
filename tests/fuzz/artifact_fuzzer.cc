#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/artifact/artifact_file.h"
#include "core/base/byte_source.h"
#include "core/base/utf8.h"

// What is read keeps every promise of its contract: it can be written, and read again.

namespace {

using kvcompress::AsBytes;
using kvcompress::MemorySource;

constexpr uint64_t kMaxMemoryBytes = uint64_t{16} << 20;

void Require(bool condition) {
  if (!condition) std::abort();
}

void ReadAndCheck(const std::string& file) {
  const MemorySource source(AsBytes(file));
  const auto read = kvcompress::ReadArtifact(source, kMaxMemoryBytes);
  if (!read.ok()) {
    Require(kvcompress::IsUtf8(std::string(read.status().message())));
    return;
  }
  Require(read->id == *kvcompress::ArtifactIdOf(source));
  const auto written = kvcompress::SerializeArtifact(read->artifact, "fuzzer");
  Require(written.ok());
  const auto again = kvcompress::ReadArtifact(MemorySource(kvcompress::ByteSpan(written->bytes)), kMaxMemoryBytes);
  Require(again.ok() && again->artifact == read->artifact && again->id == written->id);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  ReadAndCheck(input);
  // Mutations rarely keep the length of the header right: so also two bytes that tell it.
  if (size < 2) return 0;
  const size_t header_bytes = std::min(data[0] + size_t{256} * data[1], size - 2);
  std::string file(8, '\0');
  kvcompress::StoreLE<uint64_t>(header_bytes, reinterpret_cast<std::byte*>(file.data()));
  ReadAndCheck(file.append(input, 2));
  return 0;
}
