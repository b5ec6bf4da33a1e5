#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcompress/base/byte_source.h"

// The safetensors file format, as strict as its reference implementation (safetensors 0.4, tensor.rs): an 8-byte
// little-endian header length N, N bytes of JSON, then the tensors' bytes without a gap.
namespace kvcompress::safetensors {

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct Entry {
  std::string name;
  std::string dtype;  // as the file has it: "F16", "U8", ...; one of the format's known types
  std::vector<uint64_t> shape;
  uint64_t begin = 0;  // byte offsets into the data section
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
};

struct Header {
  std::vector<Entry> entries;                   // by ascending offset; equal offsets (empty tensors) in file order
  std::map<std::string, std::string> metadata;  // "__metadata__"; empty when absent
  bool has_metadata = false;
  uint64_t data_start = 0;  // byte offset of the data section in the file

  const Entry* Find(std::string_view name) const;
};

// Bits of one element of the safetensors type `dtype`; 0 when it is none of them.
unsigned DTypeBits(std::string_view dtype);

// Reads and checks the header of `file`. INVALID_ARGUMENT (messages begin with "parse header: ") for everything that
// the reference reader refuses, and for duplicate names, which it does not see: a header shorter than 8 bytes or longer
// than kMaxHeaderBytes or the file; JSON that is not UTF-8, does not begin with '{', or is malformed; unknown dtypes;
// shapes that overflow; sizes that are not shape times dtype; holes, overlaps, trailing bytes.
absl::StatusOr<Header> ReadHeader(const ByteSource& file);

// The header of a file that holds `entries` in this order (offsets must be gapless from 0): length, JSON, and spaces up
// to a multiple of 8 and to at least `min_bytes` in total.
std::string SerializeHeader(const std::vector<Entry>& entries, const std::map<std::string, std::string>& metadata,
                            bool has_metadata, uint64_t min_bytes = 0);

}  // namespace kvcompress::safetensors
