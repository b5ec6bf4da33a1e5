#pragma once

#include <memory>

#include "core/codec/chain_spec.h"
#include "core/codec/codec.h"

namespace kvcompress {

// `rotated` with mean=channel (docs/format.md): it is given values about each channel's mean, as F32, of keys without
// their rotary embedding where the spec has one. The parameters are those of its stage.
std::unique_ptr<TensorCodec> Centered(const StageSpec& stage, std::unique_ptr<TensorCodec> rotated);

}  // namespace kvcompress
