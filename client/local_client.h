#pragma once

#include <memory>

#include "client/codec_client.h"

namespace kvcompress {

// The codec in this process, on `threads` threads (0: one for each CPU). What the environment refers to must outlive
// it.
std::unique_ptr<CodecClient> MakeLocalClient(size_t threads, const CodecEnvironment& environment = {});

}  // namespace kvcompress
