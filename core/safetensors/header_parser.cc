#include "core/safetensors/header_parser.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/base/utf8.h"

namespace kvcompress::safetensors {
namespace {

using nlohmann::json;

constexpr char kMetadataName[] = "__metadata__";
constexpr size_t kMaxDepth = 127;  // of nested objects and arrays, as in the reference's parser

// Receives the events of nlohmann's parser, and builds the header without a tree in between. A handler returns false to
// stop the parser; error() then tells why.
class HeaderHandler : public json::json_sax_t {
 public:
  explicit HeaderHandler(size_t header_bytes) : header_bytes_(header_bytes) {}

  Header TakeHeader() { return std::move(header_); }
  const absl::Status& error() const { return error_; }

  bool null() override {
    if (at_ == At::kTensors && name_ == kMetadataName) return BeginMetadata();  // the same as absent
    return Ignoring() || WrongType();
  }
  bool boolean(bool) override { return Ignoring() || WrongType(); }
  bool number_integer(number_integer_t) override { return Ignoring() || WrongType(); }
  bool number_float(number_float_t, const string_t&) override { return Ignoring() || WrongType(); }
  bool binary(binary_t&) override { return WrongType(); }

  bool number_unsigned(number_unsigned_t value) override {
    if (at_ == At::kShape) {
      if (entry().shape.size() == kMaxShapeRank) {
        return Fail(absl::StrCat("shape has more than ", kMaxShapeRank, " dimensions"));
      }
      entry().shape.push_back(value);
      return true;
    }
    if (at_ == At::kOffsets && offsets_ < 2) {
      (offsets_++ == 0 ? entry().begin : entry().end) = value;
      return true;
    }
    return Ignoring() || WrongType();
  }

  bool string(string_t& value) override {
    if (at_ == At::kMetadata) {
      header_.metadata[name_] = std::move(value);
      return true;
    }
    if (at_ == At::kTensor && field_ == kDType) {
      if (DTypeBits(value) == 0) return Fail(absl::StrCat("unknown dtype ", Quoted(value)));
      entry().dtype = std::move(value);
      return true;
    }
    return Ignoring() || WrongType();
  }

  bool key(string_t& value) override {
    switch (at_) {
      case At::kTensors: name_ = std::move(value); return true;
      case At::kMetadata: return MetadataKey(std::move(value));
      case At::kTensor: return TensorKey(value);
      case At::kDocument:
      case At::kShape:
      case At::kOffsets:
      case At::kIgnored: return true;
    }
    return false;
  }

  bool start_object(size_t) override {
    if (at_ == At::kDocument) {
      at_ = At::kTensors;
      return true;
    }
    if (at_ != At::kTensors) return BeginIgnored() || WrongType();
    if (name_ == kMetadataName) {
      if (!BeginMetadata()) return false;
      header_.has_metadata = true;
      at_ = At::kMetadata;
      return true;
    }
    header_.entries.emplace_back().name = std::move(name_);
    at_ = At::kTensor;
    fields_seen_ = 0;
    offsets_ = 0;
    return true;
  }

  bool end_object() override {
    switch (at_) {
      case At::kIgnored: EndIgnored(); return true;
      case At::kTensor:
        for (Field field : {kDType, kShape, kDataOffsets}) {
          if ((fields_seen_ & field) == 0) return Fail(absl::StrCat(FieldName(field), " is missing"));
        }
        at_ = At::kTensors;
        return true;
      case At::kMetadata: at_ = At::kTensors; return true;
      case At::kTensors:
      case At::kDocument:
      case At::kShape:
      case At::kOffsets: return true;
    }
    return false;
  }

  bool start_array(size_t) override {
    if (at_ == At::kTensor && field_ == kShape) {
      at_ = At::kShape;
      return true;
    }
    if (at_ == At::kTensor && field_ == kDataOffsets) {
      at_ = At::kOffsets;
      return true;
    }
    return BeginIgnored() || WrongType();
  }

  bool end_array() override {
    if (at_ == At::kIgnored) {
      EndIgnored();
      return true;
    }
    if (at_ == At::kOffsets && offsets_ != 2) return WrongType();
    at_ = At::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    error_ = absl::InvalidArgumentError(
        position > header_bytes_
            ? "parse header: invalid JSON: the header ends before its JSON does"
            : absl::StrCat("parse header: invalid JSON: syntax error at byte ", position, " of the header"));
    return false;
  }

 private:
  enum class At { kDocument, kTensors, kMetadata, kTensor, kShape, kOffsets, kIgnored };
  enum Field : unsigned { kUnknown = 0, kDType = 1, kShape = 2, kDataOffsets = 4 };

  static const char* FieldName(Field field) {
    switch (field) {
      case kDType: return "dtype";
      case kShape: return "shape";
      case kDataOffsets: return "data_offsets";
      case kUnknown: break;
    }
    return "?";
  }

  Entry& entry() { return header_.entries.back(); }

  bool BeginMetadata() {
    if (std::exchange(metadata_seen_, true)) return FailAt(kMetadataName, "is given twice");
    return true;
  }

  bool MetadataKey(std::string key) {
    name_ = std::move(key);
    if (header_.metadata.size() == kMaxMetadataEntries) {
      return FailAt(kMetadataName, absl::StrCat("has more than ", kMaxMetadataEntries, " keys"));
    }
    if (header_.metadata.contains(name_)) {
      return FailAt(kMetadataName, absl::StrCat("has the key ", Quoted(name_), " twice"));
    }
    return true;
  }

  bool TensorKey(const std::string& key) {
    field_ = kUnknown;
    for (Field field : {kDType, kShape, kDataOffsets}) {
      if (key == FieldName(field)) field_ = field;
    }
    if ((fields_seen_ & field_) != 0) return Fail(absl::StrCat(key, " is given twice"));
    fields_seen_ |= field_;
    return true;
  }

  // Values of unknown fields are skipped whatever they are.
  bool Ignoring() const { return at_ == At::kIgnored || (at_ == At::kTensor && field_ == kUnknown); }

  bool BeginIgnored() {
    constexpr size_t kDepthOfField = 2;  // the document and the tensor
    if (!Ignoring()) return false;
    if (kDepthOfField + ++ignored_depth_ > kMaxDepth) {
      return Fail(absl::StrCat("a field is nested deeper than ", kMaxDepth, " levels"));
    }
    at_ = At::kIgnored;
    return true;
  }

  void EndIgnored() {
    if (--ignored_depth_ == 0) at_ = At::kTensor;
  }

  bool WrongType() {
    if (!error_.ok()) return false;
    switch (at_) {
      case At::kDocument: return FailAt("the header", "must be an object");
      case At::kTensors:
        if (name_ == kMetadataName) return FailAt(kMetadataName, "must be an object of strings");
        return FailAt(absl::StrCat("tensor ", Quoted(name_)), "must be an object");
      case At::kMetadata:
        return FailAt(kMetadataName, absl::StrCat("must hold strings only, and ", Quoted(name_), " is none"));
      case At::kTensor:
      case At::kShape:
      case At::kOffsets:
      case At::kIgnored:
        if (field_ == kDType) return Fail("dtype must be a string");
        if (field_ == kShape) return Fail("shape must be an array of integers from 0 to 2^64 - 1");
        return Fail("data_offsets must be an array of two integers from 0 to 2^64 - 1");
    }
    return false;
  }

  bool Fail(absl::string_view what) { return FailAt(absl::StrCat("tensor ", Quoted(entry().name), ":"), what); }

  bool FailAt(absl::string_view where, absl::string_view what) {
    error_ = absl::InvalidArgumentError(absl::StrCat("parse header: ", where, " ", what));
    return false;
  }

  const size_t header_bytes_;
  Header header_;
  absl::Status error_;
  At at_ = At::kDocument;
  std::string name_;  // the last key among the tensors, or among the metadata
  Field field_ = kUnknown;
  unsigned fields_seen_ = 0;
  size_t offsets_ = 0;
  size_t ignored_depth_ = 0;
  bool metadata_seen_ = false;
};

}  // namespace

std::string Quoted(std::string_view text) {
  constexpr size_t kMaxShown = 64;
  size_t shown = std::min(text.size(), kMaxShown);
  // Not in the middle of a character.
  while (shown > 0 && shown < text.size() && (static_cast<unsigned char>(text[shown]) & 0xc0) == 0x80) --shown;
  return absl::StrCat("\"", absl::Utf8SafeCEscape(absl::string_view(text.data(), shown)),
                      shown < text.size() ? "...\"" : "\"");
}

absl::StatusOr<Header> ParseHeaderJson(std::string_view json_text) {
  const auto invalid = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("parse header: invalid JSON: ", what));
  };
  if (!IsUtf8(json_text)) return invalid("the header is not UTF-8");
  if (!json_text.starts_with('{')) return invalid("the header does not begin with '{'");
  // The parser would take a zero byte for the end of its input.
  if (const size_t at = json_text.find('\0'); at != json_text.npos) {
    return invalid(absl::StrCat("zero byte at byte ", at + 1, " of the header"));
  }
  HeaderHandler handler(json_text.size());
  if (!json::sax_parse(json_text.begin(), json_text.end(), &handler)) return handler.error();
  return handler.TakeHeader();
}

}  // namespace kvcompress::safetensors
