#include "kvcompress/profile/profile.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kvcompress/base/status_macros.h"
#include "kvcompress/codec/chain.h"
#include "kvcompress/codec/named_chains.h"

namespace kvcompress {
namespace {

using Json = nlohmann::json;

absl::Status Fault(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("profile: ", what)); }

absl::StatusOr<std::string> CanonicalCodec(const Json& value, absl::string_view where) {
  if (!value.is_string()) return Fault(absl::StrCat(where, ": \"codec\" must be a string"));
  const NamedChain* named = FindNamedChain(value.get_ref<const std::string&>());
  if (named != nullptr && named->first_layers > 0) {
    return Fault(absl::StrCat(where, ": ", std::string(named->name), " is a profile of its own"));
  }
  const absl::StatusOr<CodecChain> chain = CodecChain::Parse(value.get_ref<const std::string&>());
  if (!chain.ok()) return Fault(absl::StrCat(where, ": ", chain.status().message()));
  return chain->spec();
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

absl::StatusOr<Profile::Rule> ParseRule(const Json& json, size_t index) {
  const std::string where = absl::StrCat("rule ", index + 1);
  const auto fault = [&](absl::string_view what) { return Fault(absl::StrCat(where, ": ", what)); };
  if (!json.is_object()) return fault("must be a JSON object");
  Profile::Rule rule;
  for (const auto& [key, value] : json.items()) {
    if (key == "layers") {
      const bool is_range = value.is_array() && value.size() == 2 && value[0].is_number_unsigned() &&
                            value[1].is_number_unsigned() && value[0] <= value[1];
      if (!is_range) return fault("\"layers\" must be [first, last]");
      rule.layers = {value[0].get<int64_t>(), value[1].get<int64_t>()};
    } else if (key == "kind") {
      if (value != "key" && value != "value") return fault("\"kind\" must be \"key\" or \"value\"");
      rule.is_key = value == "key";
    } else if (key == "name") {
      if (!value.is_string()) return fault("\"name\" must be a string");
      rule.name = value.get<std::string>();
    } else if (key == "codec") {
      KVC_ASSIGN_OR_RETURN(rule.codec, CanonicalCodec(value, where));
    } else {
      return fault(absl::StrCat("unknown key \"", key, "\""));
    }
  }
  if (rule.codec.empty()) return fault("\"codec\" is missing");
  return rule;
}

}  // namespace

absl::StatusOr<Profile> Profile::Uniform(std::string_view codec) {
  KVC_ASSIGN_OR_RETURN(const CodecChain chain, CodecChain::Parse(codec));
  Profile profile;
  profile.default_codec_ = chain.spec();
  if (const NamedChain* named = FindNamedChain(codec); named != nullptr && named->first_layers > 0) {
    KVC_ASSIGN_OR_RETURN(const CodecChain first, CodecChain::ParseStages(named->first_chain));
    profile.rules_.push_back(
        {.layers = {{0, named->first_layers - 1}}, .is_key = {}, .name = {}, .codec = first.spec()});
  }
  return profile;
}

absl::StatusOr<Profile> Profile::Parse(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return Fault("not valid JSON");
  if (!json.is_object()) return Fault("must be a JSON object");
  Profile profile;
  for (const auto& [key, value] : json.items()) {
    if (key == "version") {
      if (value != 1) return Fault("\"version\" must be 1");
    } else if (key == "default") {
      KVC_ASSIGN_OR_RETURN(profile.default_codec_, CanonicalCodec(value, "default"));
    } else if (key == "rules") {
      if (!value.is_array()) return Fault("\"rules\" must be an array");
      for (size_t i = 0; i < value.size(); ++i) {
        KVC_ASSIGN_OR_RETURN(Rule rule, ParseRule(value[i], i));
        profile.rules_.push_back(std::move(rule));
      }
    } else if (key != "description") {
      return Fault(absl::StrCat("unknown key \"", key, "\""));
    }
  }
  if (!json.contains("version")) return Fault("\"version\" is missing");
  if (profile.default_codec_.empty()) return Fault("\"default\" is missing");
  return profile;
}

const std::string& Profile::CodecFor(std::string_view tensor_name) const {
  const KvName kv = ParseKvName(tensor_name);
  for (const Rule& rule : rules_) {
    if (rule.layers && (kv.layer < rule.layers->first || kv.layer > rule.layers->second)) continue;
    if (rule.is_key && (kv.layer < 0 || kv.is_key != *rule.is_key)) continue;
    if (rule.name && !GlobMatches(*rule.name, tensor_name)) continue;
    return rule.codec;
  }
  return default_codec_;
}

}  // namespace kvcompress
