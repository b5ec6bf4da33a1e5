#include "core/frame/spec_words.h"

#include <algorithm>
#include <array>

namespace kvcompress {
namespace {

constexpr size_t kFirstByte = 0x80;

// Frozen: byte 80 + i is word i. Others may be added at the end.
constexpr std::array<std::string_view, 26> kWords = {
    "fallback|",
    "transform(bits=",
    "transform(snr=",
    "transform(step=",
    ",trellis=false",
    ",sinks=",
    "false",
    ",theta=",
    ",rotary=",
    "interleaved",
    ",rotary_dims=",
    ",rotary_offset=",
    ",start=",
    ",artifact=",
    "rotated(bits=",
    ",mean=channel",
    "000",
    "00",
    "|zstd(level=",
    "|rans",
    ",scaling=linear,factor=",
    ",scaling=llama3,factor=",
    ",scaling=yarn,factor=",
    ",low=",
    ",high=",
    ",original=",
};

}  // namespace

std::string PackSpec(std::string_view spec) {
  std::string packed;
  while (!spec.empty()) {
    const auto* const word = std::ranges::find_if(kWords, [&](std::string_view w) { return spec.starts_with(w); });
    if (word == kWords.end()) {
      packed.push_back(spec.front());
      spec.remove_prefix(1);
    } else {
      packed.push_back(static_cast<char>(kFirstByte + static_cast<size_t>(word - kWords.begin())));
      spec.remove_prefix(word->size());
    }
  }
  return packed;
}

std::optional<std::string> UnpackSpec(ByteSpan packed) {
  std::string spec;
  for (const std::byte byte : packed) {
    const auto value = std::to_integer<size_t>(byte);
    if (value < kFirstByte) {
      spec.push_back(static_cast<char>(value));
    } else if (value - kFirstByte < kWords.size()) {
      spec.append(kWords[value - kFirstByte]);
    } else {
      return std::nullopt;
    }
  }
  return spec;
}

}  // namespace kvcompress
