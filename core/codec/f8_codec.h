#pragma once

#include "core/codec/registry.h"

namespace kvcompress {

// The tensor codec of `args.stage`. For a tensor of an F8 type, a codec that computes with values is given them as
// F16, and what it decodes is rounded back (docs/format.md, "Tensor codecs").
MadeCodec<TensorCodec> MakeTensorCodec(const CodecArgs& args);

}  // namespace kvcompress
