#include "core/profile/profile.h"

#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/base/strict_json.h"
#include "core/codec/chain_spec.h"
#include "core/codec/named_chains.h"
#include "core/codec/rotary_parameters.h"
#include "core/profile/rope_scaling.h"

namespace kvcompress {
namespace {

using Json = nlohmann::json;

absl::Status Fault(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("profile: ", what)); }

absl::StatusOr<ChainSpec> ParseCodec(const Json& value, absl::string_view where) {
  if (!value.is_string()) return Fault(absl::StrCat(where, ": a codec must be a string"));
  const NamedChain* named = FindNamedChain(value.get_ref<const std::string&>());
  if (named != nullptr && named->first_layers > 0) {
    return Fault(absl::StrCat(where, ": ", std::string(named->name), " is a profile of its own"));
  }
  absl::StatusOr<ChainSpec> spec = ChainSpec::Parse(value.get_ref<const std::string&>());
  if (!spec.ok()) return Fault(absl::StrCat(where, ": ", spec.status().message()));
  return spec;
}

bool GlobMatches(std::string_view pattern, std::string_view text) {
  // After a mismatch, the last * takes one character more.
  size_t p = 0;
  size_t t = 0;
  size_t star = pattern.npos;
  size_t star_text = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != pattern.npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::optional<std::pair<int64_t, int64_t>> ParseRange(const Json& json) {
  const bool is_range = json.is_array() && json.size() == 2 && json[0].is_number_unsigned() &&
                        json[1].is_number_unsigned() && json[0] <= json[1];
  if (!is_range) return std::nullopt;
  const auto number = [](const Json& value) {
    return static_cast<int64_t>(std::min<uint64_t>(value.get<uint64_t>(), std::numeric_limits<int64_t>::max()));
  };
  return std::pair{number(json[0]), number(json[1])};
}

absl::StatusOr<Profile::Rule> ParseRule(const Json& json, size_t index) {
  const std::string where = absl::StrCat("rule ", index + 1);
  const auto fault = [&](absl::string_view what) { return Fault(absl::StrCat(where, ": ", what)); };
  if (!json.is_object()) return fault("must be a JSON object");
  Profile::Rule rule;
  for (const auto& [key, value] : json.items()) {
    if (key == "layers") {
      rule.layers = ParseRange(value);
      if (!rule.layers) return fault("\"layers\" must be [first, last]");
    } else if (key == "heads") {
      rule.heads = ParseRange(value);
      if (!rule.heads) return fault("\"heads\" must be [first, last]");
    } else if (key == "kind") {
      if (value != "key" && value != "value") return fault("\"kind\" must be \"key\" or \"value\"");
      rule.is_key = value == "key";
    } else if (key == "name") {
      if (!value.is_string()) return fault("\"name\" must be a string");
      rule.name = value.get<std::string>();
    } else if (key == "codec") {
      KVC_ASSIGN_OR_RETURN(rule.codec, ParseCodec(value, where));
    } else {
      return fault(absl::StrCat("unknown key \"", key, "\" (a rule has codec, heads, kind, layers, name)"));
    }
  }
  if (!json.contains("codec")) return fault("\"codec\" is missing");
  return rule;
}

absl::StatusOr<simd::RotaryEmbedding> ParseRotary(const Json& json) {
  const auto fault = [](absl::string_view what) { return Fault(absl::StrCat("rotary: ", what)); };
  if (!json.is_object()) return fault("must be a JSON object");
  simd::RotaryEmbedding rotary;
  const std::map<std::string, uint64_t*> integers = {
      {"dims", &rotary.dims}, {"offset", &rotary.offset}, {"start", &rotary.start}};
  for (const auto& [key, value] : json.items()) {
    if (key == "theta") {
      if (!value.is_number()) return fault("\"theta\" must be a number");
      rotary.theta = value.get<double>();
    } else if (key == "pairs") {
      if (value != "half" && value != "interleaved") return fault("\"pairs\" must be \"half\" or \"interleaved\"");
      rotary.pairs = value == "half" ? simd::RotaryPairs::kHalf : simd::RotaryPairs::kInterleaved;
    } else if (const auto integer = integers.find(key); integer != integers.end()) {
      if (!value.is_number_unsigned()) return fault(absl::StrCat("\"", key, "\" must be an integer from 0 on"));
      *integer->second = value.get<uint64_t>();
    } else if (key != "scaling") {
      return fault(absl::StrCat("unknown key \"", key, "\""));
    }
  }
  if (rotary.theta == 0) return fault("\"theta\" is missing");
  if (const auto scaling = json.find("scaling"); scaling != json.end()) {
    absl::StatusOr<simd::RotaryScaling> parsed = RopeScalingOf(*scaling, rotary.theta);
    if (!parsed.ok()) return fault(parsed.status().message());
    rotary.scaling = *parsed;
  }
  if (const absl::Status status = CheckRotary(rotary); !status.ok()) return Fault(status.message());
  return rotary;
}

// By its name or its axes.
bool IsKeyOrValue(const TensorDesc& tensor) {
  const auto has = [&](AxisRole role) { return std::ranges::find(tensor.axes, role) != tensor.axes.end(); };
  return ParseKvName(tensor.name).layer >= 0 || (has(AxisRole::kSeq) && has(AxisRole::kHeadDim));
}

// 0 for a tensor that the codec `heads` does not take.
int64_t HeadsOf(const TensorDesc& tensor) {
  if (std::ranges::count(tensor.axes, AxisRole::kHeads) != 1) return 0;
  const auto axis = std::ranges::find(tensor.axes, AxisRole::kHeads) - tensor.axes.begin();
  return static_cast<int64_t>(std::min(tensor.shape[static_cast<size_t>(axis)], kMaxTensorElements));
}

// The first head of each part and its codec.
using HeadParts = std::vector<std::pair<int64_t, const ChainSpec*>>;

std::string SpecOfHeads(const HeadParts& parts) {
  std::string spec = "heads(";
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    absl::StrAppend(&spec, parts[i].first, "-", parts[i + 1].first - 1, ":", parts[i].second->text(), ",");
  }
  absl::StrAppend(&spec, parts.back().first, "-:", parts.back().second->text(), ")");
  return spec;
}

}  // namespace

absl::StatusOr<Profile> Profile::Uniform(std::string_view codec) {
  Profile profile;
  KVC_ASSIGN_OR_RETURN(profile.default_codec_, ChainSpec::Parse(codec));
  return profile;
}

bool Profile::asks_for_layers() const {
  return ranks_ || default_codec_.differs() || std::ranges::any_of(rules_, [](const Rule& rule) {
           return rule.layers || rule.is_key || rule.codec.differs();
         });
}

absl::StatusOr<Profile> Profile::OfRanks(const Json& config) {
  absl::StatusOr<CompressionConfig> ranks = CompressionConfig::FromJson(config);
  if (!ranks.ok()) return Fault(ranks.status().message());
  Profile profile;
  profile.ranks_ = *std::move(ranks);
  KVC_ASSIGN_OR_RETURN(profile.default_codec_, ParseCodec("raw", "default"));  // which takes no ranks
  KVC_ASSIGN_OR_RETURN(profile.others_codec_, ParseCodec("lossless", "others"));
  return profile;
}

absl::Status Profile::SetCodec(std::string_view codec) {
  KVC_ASSIGN_OR_RETURN(ChainSpec spec, ParseCodec(std::string(codec), "the codec beside a compression config"));
  for (const char* tensor : {"layer_0_key", "layer_0_value"}) {
    const absl::Status status = spec.WithRanks(tensor, {1}).status();
    if (!status.ok()) return Fault(absl::StrCat(status.message(), ": give, for example, kv(bits=4,artifact=ID)"));
  }
  default_codec_ = std::move(spec);
  return absl::OkStatus();
}

absl::StatusOr<Profile> Profile::Parse(std::string_view text) {
  const absl::StatusOr<Json> parsed = ParseStrictJson(text);
  if (!parsed.ok()) return Fault(parsed.status().message());
  const Json& json = *parsed;
  if (!json.is_object()) return Fault("must be a JSON object");
  Profile profile;
  if (CompressionConfig::IsMeantBy(json)) return OfRanks(json);
  for (const auto& [key, value] : json.items()) {
    if (key == "version") {
      if (value != 1) return Fault("\"version\" must be 1");
    } else if (key == "default") {
      KVC_ASSIGN_OR_RETURN(profile.default_codec_, ParseCodec(value, "default"));
    } else if (key == "others") {
      KVC_ASSIGN_OR_RETURN(profile.others_codec_, ParseCodec(value, "others"));
    } else if (key == "rules") {
      if (!value.is_array()) return Fault("\"rules\" must be an array");
      for (size_t i = 0; i < value.size(); ++i) {
        KVC_ASSIGN_OR_RETURN(Rule rule, ParseRule(value[i], i));
        profile.rules_.push_back(std::move(rule));
      }
    } else if (key == "rotary") {
      KVC_ASSIGN_OR_RETURN(profile.rotary_, ParseRotary(value));
    } else if (key != "description") {
      return Fault(absl::StrCat("unknown key \"", key,
                                "\" (a profile has version, description, default, others, rotary, rules)"));
    }
  }
  if (!json.contains("version")) return Fault("\"version\" is missing");
  if (!json.contains("default")) return Fault("\"default\" is missing");
  if (!profile.others_codec_) {
    KVC_ASSIGN_OR_RETURN(profile.others_codec_, ParseCodec("lossless", "others"));
  }
  return profile;
}

bool Profile::Holds(const Rule& rule, const TensorDesc& tensor) {
  const KvName kv = ParseKvName(tensor.name);
  if (rule.layers && (kv.layer < rule.layers->first || kv.layer > rule.layers->second)) return false;
  if (rule.is_key && (kv.layer < 0 || kv.is_key != *rule.is_key)) return false;
  return !rule.name || GlobMatches(*rule.name, tensor.name);
}

absl::StatusOr<std::string> Profile::RankedCodecFor(const TensorDesc& tensor) const {
  if (!IsKeyOrValue(tensor)) return others_codec_->text();
  const absl::StatusOr<std::vector<uint32_t>> ranks = ranks_->RanksFor(tensor);
  if (!ranks.ok()) return Fault(ranks.status().message());
  const absl::StatusOr<ChainSpec> spec = default_codec_.WithRanks(tensor.name, *ranks);
  if (!spec.ok()) return Fault(absl::StrCat("tensor \"", tensor.name, "\": ", spec.status().message()));
  return spec->text();
}

std::string_view Profile::PolicyFor(const TensorDesc& tensor) const {
  const auto decides = [&](const Rule& rule) { return !rule.heads && Holds(rule, tensor); };
  if (IsKeyOrValue(tensor) || std::ranges::any_of(rules_, decides)) return "";
  return others_codec_ ? "others" : "default";
}

absl::StatusOr<std::string> Profile::CodecFor(const TensorDesc& tensor) const {
  absl::StatusOr<std::string> own = ranks_ ? RankedCodecFor(tensor) : OwnCodecFor(tensor);
  if (!own.ok() || rotary_.theta == 0) return own;
  const absl::StatusOr<ChainSpec> spec = ChainSpec::ParseStages(*own)->WithRotary(tensor.name, rotary_);
  const bool has_use = spec.ok() && spec->text() != *own;
  const absl::Status status = has_use ? CheckRotaryFits(rotary_, tensor) : spec.status();
  if (!status.ok()) return Fault(absl::StrCat("tensor \"", tensor.name, "\": ", status.message()));
  return spec->text();
}

absl::StatusOr<std::string> Profile::OwnCodecFor(const TensorDesc& tensor) const {
  const int64_t heads = HeadsOf(tensor);
  std::vector<const Rule*> of_heads;  // before the first rule that holds for all heads
  const ChainSpec* rest = !others_codec_ || IsKeyOrValue(tensor) ? &default_codec_ : &*others_codec_;
  for (const Rule& rule : rules_) {
    if (!Holds(rule, tensor)) continue;
    if (!rule.heads) {
      rest = &rule.codec;
      break;
    }
    if (rule.heads->first < heads) of_heads.push_back(&rule);
  }
  struct Change {
    std::vector<size_t> begin, end;  // places in of_heads
  };
  std::map<int64_t, Change> changes = {{0, {}}};  // by the head from which on these rules hold, or no more
  for (size_t i = 0; i < of_heads.size(); ++i) {
    changes[of_heads[i]->heads->first].begin.push_back(i);
    if (of_heads[i]->heads->second < heads - 1) changes[of_heads[i]->heads->second + 1].end.push_back(i);
  }
  HeadParts parts;
  std::set<size_t> holding;
  for (const auto& [head, change] : changes) {
    for (const size_t i : change.end) holding.erase(i);
    holding.insert(change.begin.begin(), change.begin.end());
    const ChainSpec& codec = (holding.empty() ? *rest : of_heads[*holding.begin()]->codec).For(tensor.name);
    if (parts.empty() || *parts.back().second != codec) parts.emplace_back(head, &codec);
  }
  if (parts.size() == 1) return parts[0].second->text();
  const absl::StatusOr<ChainSpec> spec = ChainSpec::ParseStages(SpecOfHeads(parts));
  if (!spec.ok()) return Fault(absl::StrCat("heads of tensor \"", tensor.name, "\": ", spec.status().message()));
  return spec->text();
}

}  // namespace kvcompress
