#pragma once

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/codec/chain_spec.h"
#include "core/codec/parameter.h"
#include "core/codec/registry.h"
#include "core/simd/group_quant.h"

namespace kvcompress {

// The speeds of chains with usual values, in the cache of one core: at least 2 GB/s encoded, with figures, and 4
// decoded with AVX-512, half of it with AVX2 and a quarter with less, unless a help text calls the chain slow.
class UsualSpeeds {
 public:
  void Add(bool decodes, const std::string& chain, double gb_per_s) {
    const double least = Least(decodes);
    if (gb_per_s >= least) return;
    const auto spec = ChainSpec::Parse(chain);
    below_.push_back({decodes, chain, gb_per_s, gb_per_s / least, spec.ok() && IsCalledSlow(decodes, *spec)});
  }

  // Whether a help text calls a stage slow: that of its codec, or of a parameter whose value it is about.
  static bool IsCalledSlow(bool decodes, const StageSpec& stage) {
    bool is_slow = SaysSlow(decodes, stage.codec->summary);
    for (size_t i = 0; i < stage.values.size(); ++i) {
      const Parameter& parameter = stage.codec->parameters[i];
      is_slow = is_slow || (SaysSlow(decodes, parameter.meaning) && IsAbout(parameter, stage.values[i]));
    }
    return is_slow || std::ranges::any_of(stage.parts, [decodes](const StageSpec::Part& part) {
             return IsCalledSlow(decodes, part.chain);
           });
  }

  // Whether all that are below are called slow; lists what is below.
  bool Check() {
    std::ranges::sort(below_, {}, [](const Below& one) { return std::pair(one.is_called_slow, one.part); });
    const auto misses = std::ranges::count(below_, false, &Below::is_called_slow);
    std::printf("\n%zu chains are below %g GB/s encoded or %g decoded, %td of them not called slow\n", below_.size(),
                Least(false), Least(true), misses);
    for (const Below& one : below_) std::printf("%7.3f GB/s  %s\n", one.gb_per_s, one.Name().c_str());
    return misses == 0;
  }

  // What is below, and the targets of the page.
  nlohmann::json Slow() const {
    nlohmann::json slow = nlohmann::json::array();
    for (const Below& one : below_) slow.push_back({{"name", one.Name()}, {"usual", one.gb_per_s}});
    return slow;
  }
  nlohmann::json Targets() const {
    nlohmann::json targets;
    for (const bool decodes : {false, true}) {
      const auto misses = std::ranges::count_if(
          below_, [decodes](const Below& one) { return one.decodes == decodes && !one.is_called_slow; });
      targets.push_back({{"what", absl::StrFormat("chains that %s less than %g GB/s and that no help text calls slow",
                                                  Verb(decodes), Least(decodes))},
                         {"value", misses},
                         {"wanted", "none"},
                         {"met", misses == 0}});
    }
    return targets;
  }

 private:
  struct Below {
    bool decodes;
    std::string chain;
    double gb_per_s, part;
    bool is_called_slow;

    std::string Name() const {
      return absl::StrFormat("%s %s%s", Verb(decodes), chain, is_called_slow ? " (called slow)" : "");
    }
  };

  static std::string_view Verb(bool decodes) { return decodes ? "decode" : "encode"; }

  static double Least(bool decodes) {
    const std::string_view target = simd::TargetName();
    const bool has_avx512 = target.starts_with("AVX3") || target.starts_with("AVX10");
    return (decodes ? 4 : 2) * (has_avx512 ? 1 : target == "AVX2" ? 0.5 : 0.25);
  }

  // A text that speaks of one direction says nothing of the other. "slower" is no "slow".
  static bool SaysSlow(bool decodes, std::string_view text) {
    static const std::regex slow(R"(\bslow(est)?\b)");
    const bool has_other = text.find(Verb(!decodes)) != std::string_view::npos;
    const bool has_this = text.find(Verb(decodes)) != std::string_view::npos;
    return std::regex_search(text.begin(), text.end(), slow) && (has_this || !has_other);
  }

  // Whether what a parameter's help text calls slow is this value: "of 32 are slow", "from 3 on", "where it is large",
  // which is above what it is by default; else any but that.
  static bool IsAbout(const Parameter& parameter, double value) {
    static const std::regex one(R"(\bof (\d+) (?:is|are) slow\b)"), least(R"(\bfrom (\d+) on\b[^;]*\bslow\b)"),
        large(R"(\bslow where it is large\b)");
    const std::string text(parameter.meaning);
    std::smatch found;
    if (std::regex_search(text, found, one)) return value == std::stod(found[1]);
    if (std::regex_search(text, found, least)) return value >= std::stod(found[1]);
    if (std::regex_search(text, large)) return value > parameter.fallback;
    return value != parameter.fallback;
  }

  static bool IsCalledSlow(bool decodes, const ChainSpec& spec) {
    return std::ranges::any_of(spec.stages(),
                               [decodes](const StageSpec& stage) { return IsCalledSlow(decodes, stage); });
  }

  std::vector<Below> below_;
};

}  // namespace kvcompress
