#include "core/profile/rope_scaling.h"

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/base/strict_json.h"

namespace kvcompress {
namespace {

using Json = nlohmann::json;
using Kind = simd::RotaryScaling::Kind;

absl::Status NoScaling(std::string_view what) { return absl::InvalidArgumentError(std::string(what)); }

// The value of a key; null where it lacks.
Json ValueOf(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found == json.end() ? Json() : *found;
}

// A number, or 0 where it lacks.
absl::StatusOr<double> NumberOf(const Json& json, const char* key) {
  const Json value = ValueOf(json, key);
  if (value.is_null()) return 0;
  if (!value.is_number()) return NoScaling(absl::StrFormat("the scaling's %s is not a number", key));
  return value.get<double>();
}

absl::StatusOr<uint64_t> IntegerOf(const Json& json, const char* key) {
  const Json value = ValueOf(json, key);
  if (value.is_null()) return 0;
  if (!value.is_number_unsigned()) return NoScaling(absl::StrFormat("the scaling's %s is not an integer", key));
  return value.get<uint64_t>();
}

absl::StatusOr<Kind> KindOf(const Json& json) {
  const Json type = ValueOf(json, "rope_type");
  const Json other = ValueOf(json, "type");
  if (!type.is_null() && !other.is_null() && type != other) return NoScaling("the scaling's type and rope_type differ");
  const Json& kind = type.is_null() ? other : type;
  if (kind == "default" || (kind.is_null() && ValueOf(json, "factor").is_null())) return Kind::kNone;
  if (kind == "linear") return Kind::kLinear;
  if (kind == "llama3") return Kind::kLlama3;
  if (kind == "yarn") return Kind::kYarn;
  return NoScaling(absl::StrFormat("the scaling's type %s is none of \"default\", \"linear\", \"llama3\", \"yarn\"",
                                   kind.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 40)));
}

}  // namespace

absl::StatusOr<simd::RotaryScaling> RopeScalingOf(const Json& json, double theta) {
  if (json.is_null()) return simd::RotaryScaling{};
  if (!json.is_object()) return NoScaling("the scaling is not a JSON object");
  simd::RotaryScaling scaling;
  KVC_ASSIGN_OR_RETURN(scaling.kind, KindOf(json));
  if (scaling.kind == Kind::kNone) return scaling;
  KVC_ASSIGN_OR_RETURN(scaling.factor, NumberOf(json, "factor"));
  if (scaling.kind != Kind::kLinear) {
    const bool is_yarn = scaling.kind == Kind::kYarn;
    KVC_ASSIGN_OR_RETURN(scaling.low, NumberOf(json, is_yarn ? "beta_slow" : "low_freq_factor"));
    KVC_ASSIGN_OR_RETURN(scaling.high, NumberOf(json, is_yarn ? "beta_fast" : "high_freq_factor"));
    KVC_ASSIGN_OR_RETURN(scaling.original, IntegerOf(json, "original_max_position_embeddings"));
    if (is_yarn && ValueOf(json, "truncate") == false) return NoScaling("yarn scaling with \"truncate\": false");
  }
  scaling = simd::WithUsual(scaling);
  if (const std::string_view fault = simd::FaultOf(scaling, theta); !fault.empty()) return NoScaling(fault);
  return scaling;
}

absl::StatusOr<simd::RotaryScaling> ParseRopeScaling(std::string_view text, double theta) {
  KVC_ASSIGN_OR_RETURN(const Json json, ParseStrictJson(text));
  return RopeScalingOf(json, theta);
}

nlohmann::ordered_json RopeScalingJson(const simd::RotaryScaling& scaling) {
  switch (scaling.kind) {
    case Kind::kNone: break;
    case Kind::kLinear: return {{"rope_type", "linear"}, {"factor", scaling.factor}};
    case Kind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", scaling.factor},
              {"low_freq_factor", scaling.low},
              {"high_freq_factor", scaling.high},
              {"original_max_position_embeddings", scaling.original}};
    case Kind::kYarn:
      return {{"rope_type", "yarn"},
              {"factor", scaling.factor},
              {"beta_slow", scaling.low},
              {"beta_fast", scaling.high},
              {"original_max_position_embeddings", scaling.original}};
  }
  return nullptr;
}

}  // namespace kvcompress
