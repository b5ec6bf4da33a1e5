#include "core/codec/registry.h"

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace kvcompress {

// Each in the file of its codec.
extern const CodecRow kCast, kClamp, kClip, kClipRange, kClipSigma, kFallback, kSparse, kTruncate, kInt2, kInt3, kInt4,
    kInt5, kInt6, kInt8, kRotated, kExact, kPlanes, kQuant, kBlockNorm, kRaw, kBounded, kHeads, kArithmetic, kCabac,
    kHuffman, kRans, kSmallest, kLz4, kStored, kTransform, kZstd;

namespace {

// In the order of the help text.
constexpr const CodecRow* kRows[] = {&kCast,       &kClamp, &kClip,    &kClipRange, &kClipSigma, &kFallback,  &kSparse,
                                     &kTruncate,   &kInt2,  &kInt3,    &kInt4,      &kInt5,      &kInt6,      &kInt8,
                                     &kRotated,    &kExact, &kPlanes,  &kQuant,     &kBlockNorm, &kTransform, &kRaw,
                                     &kArithmetic, &kCabac, &kHuffman, &kRans,      &kSmallest,  &kBounded,   &kLz4,
                                     &kStored,     &kHeads, &kZstd};

// What stands in place of parameters for a codec that has chains within it.
constexpr std::string_view kParts = "FIRST-LAST:CHAIN,...,FIRST-:CHAIN";
constexpr std::string_view kPartsMeaning = "every head once, such as heads(0-1:int8,2-:int4)";

}  // namespace

std::span<const CodecRow* const> AllCodecs() { return kRows; }

const CodecRow* FindCodec(std::string_view name) {
  for (const CodecRow* row : kRows) {
    if (row->name == name) return row;
  }
  return nullptr;
}

std::string_view StageKindName(StageKind kind) {
  switch (kind) {
    case StageKind::kTransform: return "transform";
    case StageKind::kTensorCodec: return "tensor codec";
    case StageKind::kByteCodec: return "byte codec";
  }
  return "";
}

std::string DescribeCodecs() {
  std::string text;
  const auto add = [&](const std::string& parameter, std::string_view meaning) {
    absl::StrAppendFormat(&text, "  %-10s   %s: %s\n", "", parameter, meaning);
  };
  for (const CodecRow* row : kRows) {
    absl::StrAppendFormat(&text, "  %-10s %s\n", row->name, row->summary);
    for (const Parameter& parameter : row->parameters) {
      add(absl::StrFormat("%s=%s (%s)", parameter.name, parameter.Bounds(), parameter.Print(parameter.fallback)),
          parameter.meaning);
    }
    if (row->takes_parts) add(std::string(kParts), kPartsMeaning);
  }
  return text;
}

std::string CodecsMarkdown() {
  std::string text =
      "# Codecs\n\n"
      "A codec spec is a chain, `transform|...|tensor codec|byte codec|...`: any number of transforms, one tensor "
      "codec,\n"
      "any number of byte codecs. [format.md](format.md) says what each writes. `kv-compress -codec markdown` prints "
      "this\n"
      "page.\n";
  for (const StageKind kind : {StageKind::kTransform, StageKind::kTensorCodec, StageKind::kByteCodec}) {
    absl::StrAppendFormat(&text, "\n## Stage: %s\n\n| Codec | Parameter | Values | Default | Meaning |\n|-|-|-|-|-|\n",
                          StageKindName(kind));
    for (const CodecRow* row : kRows) {
      if (row->kind() != kind) continue;
      absl::StrAppendFormat(&text, "| `%s` | | | | %s |\n", row->name, row->summary);
      if (row->takes_parts) absl::StrAppendFormat(&text, "| | `%s` | | | %s |\n", kParts, kPartsMeaning);
      for (const Parameter& parameter : row->parameters) {
        absl::StrAppendFormat(&text, "| | `%s` | %s | %s | %s |\n", parameter.name,
                              absl::StrReplaceAll(parameter.Bounds(), {{"|", ", "}}),
                              parameter.Print(parameter.fallback), parameter.meaning);
      }
    }
  }
  return text;
}

}  // namespace kvcompress
