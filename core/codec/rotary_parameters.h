#pragma once

#include <span>

#include "absl/status/status.h"
#include "core/base/tensor.h"
#include "core/codec/chain_spec.h"
#include "core/codec/parameter.h"
#include "core/simd/rotary.h"

// What specs say of rotary embeddings: the parameters of codecs that turn keys back. Such a codec has all of these, and
// rotary_dims and perhaps rotary_offset, whose bounds are its own.
namespace kvcompress {

namespace rotary_parameters {

inline constexpr Parameter kTheta =
    Parameter::Real("theta", 0, 0, 1e15, "base of the rotary embedding that is undone; 0: none").LeftOut();
inline constexpr Parameter kPairs =
    Parameter::Word("rotary", 0, "half|interleaved", "which channels of a head turn together").LeftOut();
inline constexpr Parameter kStart =
    Parameter::Integer("start", 0, 0, 1e15, "position of a sequence's first token").LeftOut();
// The choices are those of RotaryScaling::Kind.
inline constexpr Parameter kScaling =
    Parameter::Word("scaling", 0, "none|linear|llama3|yarn", "how the embedding slows pairs down").LeftOut();
inline constexpr Parameter kFactor = Parameter::Real("factor", 0, 0, 1e6, "of scaling: how many times").LeftOut();
inline constexpr Parameter kLow =
    Parameter::Real("low", 0, 0, 1e6,
                    "of llama3 and yarn: pairs that turn less often within `original` tokens get all of it (0: 1)")
        .LeftOut();
inline constexpr Parameter kHigh =
    Parameter::Real("high", 0, 0, 1e6, "likewise: those that turn more often get nothing of it (0: 4, yarn 32)")
        .LeftOut();
inline constexpr Parameter kOriginal =
    Parameter::Integer("original", 0, 0, 1e15, "likewise: tokens that the model was first trained on (0: 8192, llama3)")
        .LeftOut();

}  // namespace rotary_parameters

// Of a stage whose codec has them. INVALID_ARGUMENT, a sentence that begins with the codec's name, for what no model
// has: a theta between 0 and 1, a scaling that simd::FaultOf names, or one without a theta.
absl::Status CheckRotaryOf(const StageSpec& stage);
// INVALID_ARGUMENT, "rotary: ...", where a tensor is a layer's keys, by its name, whose heads have fewer channels than
// those that turn.
absl::Status CheckRotaryFits(const simd::RotaryEmbedding& rotary, const TensorDesc& tensor);
// The embedding that a checked stage undoes, with the position of its first token.
simd::RotaryEmbedding RotaryOf(const StageSpec& stage);

}  // namespace kvcompress
