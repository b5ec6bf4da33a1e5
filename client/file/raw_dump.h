#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/file/input.h"

namespace kvcompress {

// Raw dumps of key/value caches: a JSON file meta_*.json beside two files of values, keys and values [seq, kv_heads,
// head_dim] of one layer. It has layer_id, seq_start, seq_len, kv_heads, head_dim, bytes_per_elem (2: F16, 4: F32; or
// "dtype": fp16, bf16, fp32), k_file and v_file. Several of one layer follow one another along the tokens.

// The paths of all meta_*.json in `folder` and the folders below it, sorted; none where it has none.
std::vector<std::string> FindRawDumps(const std::string& folder);

// The layers that `metas` describe, read into memory, as tensors layer_{i}_key and layer_{i}_value of shape
// [1, kv_heads, seq, head_dim]; the metadata has "seq_start", the first token's position, where all layers begin with
// one. INVALID_ARGUMENT, "PATH: ...", for a meta or sizes that do not fit, a packed or quantized dump, dumps of a layer
// that overlap or leave a hole, and files of values that are not plain names in the folder of their meta.
absl::StatusOr<Input::Parts> ReadRawDumps(const std::vector<std::string>& metas);

}  // namespace kvcompress
