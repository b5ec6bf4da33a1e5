#pragma once

#include <nlohmann/json.hpp>
#include <optional>

#include "core/quality/quality.h"

namespace kvcompress {

// An SNR as reports have it: null where it is infinite or there is none.
inline nlohmann::ordered_json DecibelsJson(std::optional<double> snr_db) {
  const std::optional<double> finite = FiniteSnrDb(snr_db);
  return finite ? nlohmann::ordered_json(*finite) : nlohmann::ordered_json(nullptr);
}

}  // namespace kvcompress
