#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "client/file/file_codec.h"
#include "client/file/file_rotary.h"
#include "core/simd/rotary.h"

// What a run of compression says of rotary embeddings: which one was undone, who said so, and what that brought.
namespace kvcompress {

// theta, pairs, dims, offset, start, scaling, from (docs/cli.md).
nlohmann::ordered_json RotaryJson(const RotaryUse& use);
// The same with what undoing it brought; null where no codec undoes one.
nlohmann::ordered_json RotaryJson(const FileReport& report);
// Of a tensor that can be turned back.
nlohmann::ordered_json RotaryGainJson(const simd::RotaryGain& gain);
// A line for people, empty where no codec undoes one.
std::string RotaryLine(const FileReport& report);
// Of keys that would have been turned back, had anybody said how.
inline constexpr std::string_view kUnknownRotary =
    "the keys' rotary embedding is not known, so none was undone: -rope-theta or the file's metadata (rope_theta) say "
    "it";
// That, or about keys that are no better off without their embedding, where these are most of them; else empty.
std::string RotaryWarning(const FileReport& report);

}  // namespace kvcompress
