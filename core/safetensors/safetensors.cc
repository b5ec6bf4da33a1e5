#include "core/safetensors/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/bytes.h"
#include "core/base/dtype.h"
#include "core/base/status_macros.h"
#include "core/safetensors/foreign.h"
#include "core/safetensors/header_parser.h"

namespace kvcompress::safetensors {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kAlignment = 8;
static_assert((kLengthBytes + kMaxHeaderBytes) % kAlignment == 0);

absl::Status Invalid(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("parse header: ", what));
}

absl::Status InvalidTensor(const Entry& entry, absl::string_view what) {
  return Invalid(absl::StrCat("tensor ", Quoted(entry.name), ": ", what));
}

std::string DescribeType(const Entry& entry) {
  return absl::StrCat(entry.dtype, " [", absl::StrJoin(entry.shape, ", "), "]");
}

// The length field, checked against the limit and the file.
absl::StatusOr<uint64_t> ReadHeaderLength(const ByteSource& file) {
  if (file.size() < kLengthBytes) {
    return Invalid(absl::StrFormat("a safetensors file begins with an 8-byte length, and this one has %d bytes in all",
                                   file.size()));
  }
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, file.Get(0, kLengthBytes, scratch));
  const auto length = LoadLE<uint64_t>(bytes.data());
  if (length > kMaxHeaderBytes) {
    return Invalid(absl::StrFormat("header length %d is above the limit of %d bytes; is this a safetensors file?",
                                   length, kMaxHeaderBytes));
  }
  if (length > file.size() - kLengthBytes) {
    return Invalid(absl::StrFormat("header length %d is more than the %d bytes that follow it", length,
                                   file.size() - kLengthBytes));
  }
  return length;
}

absl::Status CheckNamesUnique(const std::vector<Entry>& entries) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const Entry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) return Invalid(absl::StrCat("two tensors have the name ", Quoted(*twice)));
  return absl::OkStatus();
}

// Whether the tensor's bytes are what its dtype and shape need.
absl::Status CheckSize(const Entry& entry) {
  // Left to right, as the reference multiplies: [2^63, 4, 0] overflows, [0, 2^63, 4] does not.
  uint64_t bits = 1;
  bool overflow = false;
  for (uint64_t extent : entry.shape) overflow |= __builtin_mul_overflow(bits, extent, &bits);
  overflow |= __builtin_mul_overflow(bits, uint64_t{DTypeBits(entry.dtype)}, &bits);
  if (overflow) return InvalidTensor(entry, absl::StrCat("the size of ", DescribeType(entry), " overflows"));
  if (bits % 8 != 0) {
    return InvalidTensor(entry, absl::StrCat(DescribeType(entry), " is not a whole number of bytes"));
  }
  if (entry.bytes() != bits / 8) {
    return InvalidTensor(entry, absl::StrFormat("data_offsets [%d, %d] hold %d bytes, and %s needs %d", entry.begin,
                                                entry.end, entry.bytes(), DescribeType(entry), bits / 8));
  }
  return absl::OkStatus();
}

// Whether `entries`, which are sorted by offset, cover `data_bytes` exactly.
absl::Status CheckLayout(const std::vector<Entry>& entries, uint64_t data_bytes) {
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.end < entry.begin) {
      return InvalidTensor(entry,
                           absl::StrFormat("data_offsets [%d, %d] end before they begin", entry.begin, entry.end));
    }
    if (entry.begin != covered) {
      return InvalidTensor(
          entry, absl::StrFormat("data_offsets [%d, %d] %s: the tensor before ends at %d", entry.begin, entry.end,
                                 entry.begin < covered ? "overlap another tensor" : "leave a hole", covered));
    }
    KVC_RETURN_IF_ERROR(CheckSize(entry));
    covered = entry.end;
  }
  if (covered > data_bytes) {
    return Invalid(absl::StrFormat("the tensors need %d bytes of data, and the file has %d: it was cut short", covered,
                                   data_bytes));
  }
  if (covered < data_bytes) {
    return Invalid(absl::StrFormat("%d bytes follow the last tensor", data_bytes - covered));
  }
  return absl::OkStatus();
}

std::string JsonString(std::string_view text) {
  // Replacing what is not UTF-8, which the contract excludes, keeps the library from throwing.
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

absl::StatusOr<Header> ReadOwnHeader(const ByteSource& file) {
  KVC_ASSIGN_OR_RETURN(const uint64_t length, ReadHeaderLength(file));
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan json, file.Get(kLengthBytes, length, scratch));
  KVC_ASSIGN_OR_RETURN(Header header, ParseHeaderJson(AsText(json)));
  header.data_start = kLengthBytes + length;

  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  KVC_RETURN_IF_ERROR(CheckNamesUnique(header.entries));
  KVC_RETURN_IF_ERROR(CheckLayout(header.entries, file.size() - header.data_start));
  return header;
}

}  // namespace

const Entry* Header::Find(std::string_view name) const {
  const auto found =
      std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) { return entry.name == name; });
  return found == entries.end() ? nullptr : &*found;
}

unsigned DTypeBits(std::string_view dtype) {
  const std::optional<DType> known = DTypeFromName(dtype);
  return known ? ElementBits(*known) : 0;
}

absl::StatusOr<Header> ReadHeader(const ByteSource& file) {
  absl::StatusOr<Header> header = ReadOwnHeader(file);
  if (!absl::IsInvalidArgument(header.status())) return header;
  std::vector<std::byte> scratch;
  KVC_ASSIGN_OR_RETURN(const ByteSpan first, file.Get(0, std::min<uint64_t>(file.size(), kForeignBytes), scratch));
  const std::string_view foreign = ForeignFormat(first);
  if (!foreign.empty()) return Invalid(absl::StrCat("this is ", absl::string_view(foreign.data(), foreign.size())));
  return header;
}

absl::StatusOr<std::string> SerializeHeader(const std::vector<Entry>& entries,
                                            const std::map<std::string, std::string>& metadata, bool has_metadata,
                                            uint64_t min_bytes) {
  std::string out(kLengthBytes, '\0');
  const char* comma = "";
  out += '{';
  if (has_metadata) {
    absl::StrAppend(&out, "\"__metadata__\":{",
                    absl::StrJoin(metadata, ",",
                                  [](std::string* text, const auto& pair) {
                                    absl::StrAppend(text, JsonString(pair.first), ":", JsonString(pair.second));
                                  }),
                    "}");
    comma = ",";
  }
  for (const Entry& entry : entries) {
    absl::StrAppend(&out, comma, JsonString(entry.name), ":{\"dtype\":", JsonString(entry.dtype), ",\"shape\":[",
                    absl::StrJoin(entry.shape, ","), "],\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
    comma = ",";
  }
  out += '}';

  const uint64_t wanted = std::max<uint64_t>(out.size(), min_bytes);
  if (wanted > kLengthBytes + kMaxHeaderBytes) {
    return absl::ResourceExhaustedError(absl::StrFormat("the safetensors header needs %d bytes, above the limit of %d",
                                                        wanted - kLengthBytes, kMaxHeaderBytes));
  }
  out.resize((wanted + kAlignment - 1) / kAlignment * kAlignment, ' ');
  StoreLE<uint64_t>(out.size() - kLengthBytes, reinterpret_cast<std::byte*>(out.data()));
  return out;
}

}  // namespace kvcompress::safetensors
