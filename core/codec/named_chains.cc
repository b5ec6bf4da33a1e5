#include "core/codec/named_chains.h"

#include <array>

#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

constexpr std::string_view kLossless = "exact";

constexpr std::array kNamedChains = {
    NamedChain{.name = "lossless", .chain = kLossless, .purpose = "every bit is kept, as small as that gets"},
    NamedChain{.name = "lossless-fast",
               .chain = "planes(split=bytes,delta=none)|rans",
               .purpose = "every bit is kept, sooner"},
    NamedChain{.name = "near-lossless",
               .chain = "bounded(min_snr=40,max_error=0,min_cosine=0)|rans",
               .purpose = "each tensor keeps an SNR and a token SNR of 40 dB or more"},
    NamedChain{.name = "int8", .chain = "int8(group=64)", .purpose = "half the size of 16 bits, about 40 dB"},
    NamedChain{.name = "int4", .chain = "int4(group=64)", .purpose = "about a quarter of 16 bits, 18 dB; the default"},
    NamedChain{.name = "mixed",
               .chain = "quant(bits=10,per=block,group=64,symmetric=true,outliers=0,layout=packed)|rans",
               .purpose = "the first two layers lossless, the rest in 10 bits",
               .first_layers = 2,
               .first_chain = kLossless},
};

}  // namespace

std::span<const NamedChain> AllNamedChains() { return kNamedChains; }

const NamedChain* FindNamedChain(std::string_view name) {
  for (const NamedChain& named : kNamedChains) {
    if (named.name == name) return &named;
  }
  return nullptr;
}

std::string_view NameOfChain(std::string_view spec) {
  for (const NamedChain& named : kNamedChains) {
    if (spec == named.name || (named.first_layers == 0 && spec == named.chain)) return named.name;
  }
  return {};
}

std::string DescribeNamedChains() {
  std::string text;
  for (const NamedChain& named : kNamedChains) {
    absl::StrAppendFormat(&text, "  %-14s %s: %s\n", named.name, named.purpose, named.chain);
    if (named.first_layers > 0) {
      absl::StrAppendFormat(&text, "  %-14s layers 0 to %d: %s\n", "", named.first_layers - 1, named.first_chain);
    }
  }
  return text;
}

}  // namespace kvcompress
