#include "core/profile/compression_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/base/strict_json.h"

namespace kvcompress {
namespace {

using Json = nlohmann::json;

constexpr const char* kHeads = "per_layer_head";
constexpr const char* kAlgorithms[] = {"kvsplice", "pca", "none"};
constexpr uint32_t kMaxDim = 65536;

absl::Status Refused(std::string_view text) { return absl::InvalidArgumentError(std::string(text)); }

absl::Status RefuseOthers(std::string_view where, const Json& object, const std::vector<std::string>& known) {
  if (!object.is_object()) return Refused(absl::StrFormat("%s must be a JSON object", where));
  for (const auto& [field, unused] : object.items()) {
    if (std::ranges::find(known, field) != known.end()) continue;
    return Refused(
        absl::StrFormat("%s: unknown field \"%s\" (there are %s)", where, field, absl::StrJoin(known, ", ")));
  }
  return absl::OkStatus();
}

// A field that a config may leave out: `value` is then what it was.
absl::Status ReadDim(std::string_view where, const Json& object, std::string_view field, uint32_t& value) {
  const auto found = object.find(field);
  if (found == object.end()) return absl::OkStatus();
  if (!found->is_number_unsigned() || *found < 1 || *found > kMaxDim) {
    return Refused(absl::StrFormat("%s: %s is %s, not an integer from 1 to %d", where, field, found->dump(), kMaxDim));
  }
  value = found->get<uint32_t>();
  return absl::OkStatus();
}

absl::Status ReadFlag(std::string_view where, const Json& object, std::string_view field, bool& value) {
  const auto found = object.find(field);
  if (found == object.end()) return absl::OkStatus();
  if (!found->is_boolean()) return Refused(absl::StrFormat("%s: %s is not true or false", where, field));
  value = found->get<bool>();
  return absl::OkStatus();
}

absl::Status ReadAlgorithm(std::string_view where, const Json& object, std::string_view field, std::string& value) {
  const auto found = object.find(field);
  if (found == object.end()) return absl::OkStatus();
  if (std::ranges::none_of(kAlgorithms, [&](const char* known) { return *found == known; })) {
    return Refused(absl::StrFormat("%s: %s is %s, which is unknown (there are %s)", where, field, found->dump(),
                                   absl::StrJoin(kAlgorithms, ", ")));
  }
  value = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status CheckNumber(std::string_view where, const Json& object, std::string_view field) {
  const auto found = object.find(field);
  if (found == object.end() || found->is_number()) return absl::OkStatus();
  return Refused(absl::StrFormat("%s: %s is not a number", where, field));
}

absl::Status CheckMetrics(std::string_view where, const Json& head) {
  const auto metrics = head.find("metrics");
  if (metrics == head.end()) return absl::OkStatus();
  if (!metrics->is_object()) return Refused(absl::StrFormat("%s: metrics must be a JSON object", where));
  for (const auto& [name, unused] : metrics->items()) KVC_RETURN_IF_ERROR(CheckNumber(where, *metrics, name));
  return absl::OkStatus();
}

// "0/3" or "layer0/head3", or one of each.
std::optional<std::pair<int64_t, int64_t>> ParseKey(std::string_view key) {
  const auto number = [](std::string_view text, std::string_view word) -> std::optional<int64_t> {
    constexpr size_t kMaxDigits = 9;
    if (text.starts_with(word)) text.remove_prefix(word.size());
    int64_t value = 0;
    if (text.size() > kMaxDigits || text.find_first_not_of("0123456789") != text.npos) return std::nullopt;
    if (!absl::SimpleAtoi(absl::string_view(text.data(), text.size()), &value)) return std::nullopt;
    return value;
  };
  const size_t slash = std::min(key.find('/'), key.size());
  const auto layer = number(key.substr(0, slash), "layer");
  const auto head = slash < key.size() ? number(key.substr(slash + 1), "head") : std::nullopt;
  if (!layer || !head) return std::nullopt;
  return std::pair(*layer, *head);
}

std::string NameOf(const std::pair<int64_t, int64_t>& head) {
  return absl::StrFormat("layer%d/head%d", head.first, head.second);
}

// Of the axis, or 0 where there is none or several.
uint64_t ExtentOf(const TensorDesc& tensor, AxisRole role) {
  if (std::ranges::count(tensor.axes, role) != 1) return 0;
  return tensor.shape[static_cast<size_t>(std::ranges::find(tensor.axes, role) - tensor.axes.begin())];
}

}  // namespace

bool CompressionConfig::IsMeantBy(const Json& json) { return json.is_object() && json.contains(kHeads); }

absl::StatusOr<CompressionConfig> CompressionConfig::Parse(std::string_view text) {
  KVC_ASSIGN_OR_RETURN(const Json json, ParseStrictJson(text));
  return FromJson(json);
}

absl::StatusOr<CompressionConfig> CompressionConfig::FromJson(const Json& json) {
  KVC_RETURN_IF_ERROR(
      RefuseOthers("the config", json,
                   {"target_memory_reduction", "d_head", "algo_default", "global", kHeads, "compression_summary",
                    "expected_kv_memory_savings", "actual_memory_reduction", "summary_stats"}));
  const Json none = Json::object();
  const Json& global = json.contains("global") ? json["global"] : none;
  KVC_RETURN_IF_ERROR(RefuseOthers("global", global, {"target_memory_reduction", "d_head", "algo_default"}));
  Head usual{.enabled = false, .rank = 32, .d_k = 64, .d_v = 64};
  std::string algo = "kvsplice";
  for (const auto& [where, settings] : {std::pair("global", &global), std::pair("the config", &json)}) {
    KVC_RETURN_IF_ERROR(ReadDim(where, *settings, "d_head", usual.d_k));
    KVC_RETURN_IF_ERROR(ReadAlgorithm(where, *settings, "algo_default", algo));
    KVC_RETURN_IF_ERROR(CheckNumber(where, *settings, "target_memory_reduction"));
  }
  usual.d_v = usual.d_k;
  for (const auto& [field, unused] : global.items()) {
    if (json.contains(field)) return Refused(absl::StrFormat("%s is given twice, in global and beside it", field));
  }
  if (!IsMeantBy(json) || !json[kHeads].is_object()) return Refused("the config has no object per_layer_head");
  CompressionConfig config;
  for (const auto& [key, fields] : json[kHeads].items()) KVC_RETURN_IF_ERROR(config.Add(key, fields, usual, algo));
  std::map<int64_t, uint64_t> listed;
  for (const auto& [head, unused] : config.heads_) ++listed[head.first];
  config.lists_a_layer_ =
      std::ranges::any_of(listed, [&](const auto& layer) { return layer.second == config.head_count_; });
  return config;
}

absl::Status CompressionConfig::Add(std::string_view key, const Json& fields, const Head& usual,
                                    std::string_view algo) {
  const std::optional<HeadKey> head = ParseKey(key);
  if (!head) {
    return Refused(absl::StrFormat("Invalid key format: \"%s\" (a head is \"0/3\" or \"layer0/head3\")", key));
  }
  const std::string name = NameOf(*head);
  const auto [place, is_new] = heads_.emplace(*head, usual);
  if (!is_new) return Refused(absl::StrFormat("%s is given twice, the second time as \"%s\"", name, key));
  Head& own = place->second;
  std::string own_algo(algo);
  bool learn_scale_shift = true;
  KVC_RETURN_IF_ERROR(RefuseOthers(
      name, fields,
      {"enabled", "rank", "algo", "d_k", "d_v", "learn_scale_shift", "compression_ratio", "reason", "metrics"}));
  KVC_RETURN_IF_ERROR(ReadFlag(name, fields, "enabled", own.enabled));
  KVC_RETURN_IF_ERROR(ReadFlag(name, fields, "learn_scale_shift", learn_scale_shift));
  KVC_RETURN_IF_ERROR(ReadAlgorithm(name, fields, "algo", own_algo));
  KVC_RETURN_IF_ERROR(ReadDim(name, fields, "d_k", own.d_k));
  KVC_RETURN_IF_ERROR(ReadDim(name, fields, "d_v", own.d_v));
  KVC_RETURN_IF_ERROR(CheckNumber(name, fields, "compression_ratio"));
  KVC_RETURN_IF_ERROR(CheckMetrics(name, fields));
  const uint32_t d = std::min(own.d_k, own.d_v);
  own.rank = std::min(usual.rank, d);
  if (const auto rank = fields.find("rank"); rank != fields.end()) {
    if (!rank->is_number_integer() || *rank < 1 || *rank > d) {
      return Refused(absl::StrFormat("%s: rank %s is not between 1 and d %d", name, rank->dump(), d));
    }
    own.rank = rank->get<uint32_t>();
  }
  if (own.enabled && own_algo == "none")
    return Refused(absl::StrFormat("%s: it is enabled, and its algo is none", name));
  layers_.insert(head->first);
  head_count_ = std::max(head_count_, static_cast<uint64_t>(head->second) + 1);
  return absl::OkStatus();
}

absl::Status CompressionConfig::CheckMapping(const TensorDesc& tensor, uint64_t heads) const {
  if (head_count_ <= heads) return absl::OkStatus();
  if (head_count_ % heads != 0) {
    return Refused(
        absl::StrFormat("the config has %d heads, which are no whole number for each of the %d heads of \"%s\"",
                        head_count_, heads, tensor.name));
  }
  if (lists_a_layer_) return absl::OkStatus();
  return Refused(
      absl::StrFormat("the config has head %d, and \"%s\" has %d heads: it must list all query heads of a layer, so "
                      "that their number is "
                      "known",
                      head_count_ - 1, tensor.name, heads));
}

absl::StatusOr<std::vector<uint32_t>> CompressionConfig::RanksFor(const TensorDesc& tensor) const {
  const KvName kv = ParseKvName(tensor.name);
  const uint64_t dim = ExtentOf(tensor, AxisRole::kHeadDim);
  const bool has_heads = std::ranges::count(tensor.axes, AxisRole::kHeads) > 0;
  const uint64_t heads = has_heads ? ExtentOf(tensor, AxisRole::kHeads) : 1;
  // Tensors whose axes tell of no heads have no artifact either, which its codec says.
  if (!layers_.contains(kv.layer) || dim == 0 || heads == 0) return std::vector<uint32_t>();
  KVC_RETURN_IF_ERROR(CheckMapping(tensor, heads));
  const uint64_t readers = std::max<uint64_t>(head_count_ / heads, 1);
  std::vector<uint32_t> ranks;
  for (uint64_t i = 0; i < heads; ++i) {
    uint64_t rank = 1;
    for (uint64_t reader = i * readers; reader < (i + 1) * readers; ++reader) {
      const HeadKey key(kv.layer, static_cast<int64_t>(reader));
      const auto listed = heads_.find(key);
      if (listed != heads_.end() && (kv.is_key ? listed->second.d_k : listed->second.d_v) != dim) {
        return Refused(absl::StrFormat("%s: %s is %d, and the heads of \"%s\" have %d channels", NameOf(key),
                                       kv.is_key ? "d_k" : "d_v", kv.is_key ? listed->second.d_k : listed->second.d_v,
                                       tensor.name, dim));
      }
      rank = std::max(rank, listed != heads_.end() && listed->second.enabled ? listed->second.rank : dim);
    }
    ranks.push_back(static_cast<uint32_t>(rank));
  }
  if (std::ranges::all_of(ranks, [&](uint32_t rank) { return rank == ranks[0]; })) ranks.resize(1);
  if (ranks[0] == dim && ranks.size() == 1) ranks.clear();
  return ranks;
}

}  // namespace kvcompress
