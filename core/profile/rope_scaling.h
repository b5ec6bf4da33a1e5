#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/simd/rotary.h"

// How model configurations write the scaling of a rotary embedding, `rope_scaling` or `rope_parameters` of a
// config.json of transformers: {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
// "original_max_position_embeddings": 8192}.
namespace kvcompress {

// The scaling that such an object says; null, {} and the type "default" say none. The type is "rope_type" or "type": of
// "linear" it has a factor; of "llama3" and "yarn", which has beta_slow and beta_fast in place of the frequencies'
// factors, what models have as a rule stands for numbers that are left out (simd::WithUsual). attention_factor, mscale
// and other keys that change no frequency say nothing. INVALID_ARGUMENT, a sentence, for any other type, for what is
// not a number, and as of simd::FaultOf.
absl::StatusOr<simd::RotaryScaling> RopeScalingOf(const nlohmann::json& json, double theta);
// The same of a text.
absl::StatusOr<simd::RotaryScaling> ParseRopeScaling(std::string_view text, double theta);

// The inverse; null for none.
nlohmann::ordered_json RopeScalingJson(const simd::RotaryScaling& scaling);

}  // namespace kvcompress
