#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/byte_source.h"

// The safetensors file format, as strict as its reference implementation (safetensors 0.8, tensor.rs): an 8-byte
// little-endian header length N, N bytes of JSON, then the tensors' bytes without a gap.
namespace kvcompress::safetensors {

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// What bounds the memory of a hostile header to a few times its size. The reference has no such limits; no real file
// comes near them.
inline constexpr size_t kMaxShapeRank = 64;
inline constexpr size_t kMaxMetadataEntries = 1'000'000;

struct Entry {
  std::string name;
  std::string dtype;  // as the file has it: "F16", "U8", ...; one of kAllDTypes, the format's known types
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // byte offsets into the data section
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
  bool operator==(const Entry&) const = default;
};

struct Header {
  std::vector<Entry> entries;                   // by ascending (begin, end); equal ones (empty tensors) in file order
  std::map<std::string, std::string> metadata;  // "__metadata__"; empty when absent
  bool has_metadata = false;
  uint64_t data_start = 0;  // byte offset of the data section in the file

  // The entry called `name`, or null. Linear in the number of entries.
  const Entry* Find(std::string_view name) const;
};

// Bits of one element of the safetensors type `dtype`; 0 when it is none of them.
unsigned DTypeBits(std::string_view dtype);

// Reads and checks the header of `file`. INVALID_ARGUMENT for everything that the reference reader refuses: a header
// shorter than 8 bytes or longer than kMaxHeaderBytes or the file; JSON that is malformed, not UTF-8 or deeper than 127
// levels; fields that are missing, repeated or of the wrong type; unknown dtypes; shapes that overflow; sizes that are
// not shape times dtype, or not whole bytes; holes, overlaps, trailing bytes. Also for what it lets pass: duplicate
// names and metadata keys, tensors that are not JSON objects, a header that does not begin with '{', the limits above.
// Messages begin with "parse header: ", those about the JSON itself with "parse header: invalid JSON: "; they name the
// tensor, and quote what the file says escaped and shortened; of a file of another kind that its first bytes tell (a
// zip archive, a pickle, GGUF, a Git LFS pointer, ...) they name the kind, "parse header: this is ...". Errors of
// reading `file` are passed on as they are. Unknown fields of a tensor are ignored, as the reference does.
absl::StatusOr<Header> ReadHeader(const ByteSource& file);

// The header of a file that holds `entries` in this order (offsets must be gapless from 0; names and metadata UTF-8):
// length, JSON, and spaces up to a multiple of 8 and to at least `min_bytes` in total. The same arguments give the same
// bytes. RESOURCE_EXHAUSTED when it would be longer than a reader accepts (kMaxHeaderBytes).
absl::StatusOr<std::string> SerializeHeader(const std::vector<Entry>& entries,
                                            const std::map<std::string, std::string>& metadata, bool has_metadata,
                                            uint64_t min_bytes = 0);

}  // namespace kvcompress::safetensors
