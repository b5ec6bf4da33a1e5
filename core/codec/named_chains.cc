#include "core/codec/named_chains.h"

#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/codec/registry.h"

namespace kvcompress {
namespace {

constexpr std::string_view kLossless = "exact";

constexpr std::array kNamedChains = {
    NamedChain{.name = "kv4",
               .chain = "transform(bits=3.9)",
               .purpose = "keys and values in 4 bits a value, about 25 dB",
               .value_chain = "transform(bits=4.1)"},
    NamedChain{.name = "kv3",
               .chain = "transform(bits=2.9)",
               .purpose = "keys and values in 3 bits a value, as near as int4 is in 4.25",
               .value_chain = "transform(bits=3.1)"},
    NamedChain{.name = "kv2",
               .chain = "transform(bits=1.9)",
               .purpose = "keys and values in 2 bits a value, where memory matters more",
               .value_chain = "transform(bits=2.1)"},
    NamedChain{.name = "lossless", .chain = kLossless, .purpose = "every bit is kept, as small as that gets"},
    NamedChain{.name = "lossless-fast",
               .chain = "planes(split=bytes,delta=none)|rans",
               .purpose = "every bit is kept, sooner"},
    NamedChain{.name = "near-lossless",
               .chain = "bounded(min_snr=40,max_error=0,min_cosine=0)|rans",
               .purpose = "each tensor keeps an SNR and a token SNR of 40 dB or more; slow: encodes at 1 GB/s"},
    NamedChain{.name = "int8", .chain = "int8(group=64)", .purpose = "half the size of 16 bits, about 40 dB"},
    NamedChain{.name = "int4", .chain = "int4(group=64)", .purpose = "about a quarter of 16 bits, 18 dB; the default"},
    NamedChain{.name = "mixed",
               .chain = "quant(bits=10,per=block,group=64,symmetric=true,outliers=0,layout=packed)|rans",
               .purpose = "the first two layers lossless, the rest in 10 bits",
               .first_layers = 2,
               .first_chain = kLossless},
};

// Values get so many bits more than the mean of both, and keys fewer: there the damage to a model is least.
constexpr double kValuesMoreBits = 0.1;

constexpr double kMinKvBits = 1.5;
constexpr double kMaxKvBits = 8;

constexpr Parameter kKvParameters[] = {
    Parameter::Real("bits", 4, kMinKvBits, kMaxKvBits, "of a value, all that frames have included, of keys and values"),
    Parameter::Digest("artifact", "id of what calibration learned of the model"),
    Parameter::List("ranks", 1, 1024, "how many of a head's coefficients in the artifact are kept, as of transform"),
};

std::string TransformOf(double bits, const StageSpec& kv) {
  constexpr double kDigits = 1e4;  // that are written
  std::string text = absl::StrCat("transform(bits=", FormatReal(std::round(bits * kDigits) / kDigits));
  if (!kv.digest.empty()) absl::StrAppend(&text, ",artifact=", kv.digest);
  if (!kv.list.empty()) absl::StrAppend(&text, ",ranks=", absl::StrJoin(kv.list, "/"));
  return text + ")";
}

}  // namespace

constinit const CodecRow kKv = {.name = "kv",
                                .summary = "keys and values in B bits a value, values in a few more than keys",
                                .parameters = kKvParameters,
                                .examples = {}};

KvChains ChainsOfKv(const StageSpec& kv) {
  const double bits = kv.Number("bits");
  return {.of_values = TransformOf(bits + kValuesMoreBits, kv), .of_others = TransformOf(bits - kValuesMoreBits, kv)};
}

std::span<const NamedChain> AllNamedChains() { return kNamedChains; }

const NamedChain* FindNamedChain(std::string_view name) {
  for (const NamedChain& named : kNamedChains) {
    if (named.name == name) return &named;
  }
  return nullptr;
}

std::string_view NameOfChain(std::string_view spec) {
  for (const NamedChain& named : kNamedChains) {
    if (spec == named.name || (!named.differs() && spec == named.chain)) return named.name;
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
    if (!named.value_chain.empty()) absl::StrAppendFormat(&text, "  %-14s values: %s\n", "", named.value_chain);
  }
  absl::StrAppendFormat(&text, "  %-14s %s; parameters:\n", kKv.name, kKv.summary);
  for (const Parameter& parameter : kKv.parameters) {
    absl::StrAppendFormat(&text, "  %-14s   %s=%s (%s): %s\n", "", parameter.name, parameter.Bounds(),
                          parameter.Print(parameter.fallback), parameter.meaning);
  }
  return text;
}

}  // namespace kvcompress
