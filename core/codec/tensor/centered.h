#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "core/base/bytes.h"
#include "core/codec/chain_spec.h"
#include "core/codec/codec.h"

namespace kvcompress {

// What a codec of rows decodes, some of a block's values after the other.
class RowReader {
 public:
  virtual ~RowReader() = default;
  // The next `count` values, whole rows or all that are left.
  virtual void Read(size_t count, std::byte* values) = 0;
};

class RowCodec : public TensorCodec {
 public:
  // Of a block of `count` values; the streams outlive the reader.
  virtual absl::StatusOr<std::unique_ptr<RowReader>> Open(const TensorDesc& tensor, std::span<const ByteSpan> streams,
                                                          size_t count) const = 0;
};

// `rotated` with mean=channel (docs/format.md): it is given values about each channel's mean, as F32, of keys without
// their rotary embedding where the spec has one. The parameters are those of its stage.
std::unique_ptr<TensorCodec> Centered(const StageSpec& stage, std::unique_ptr<RowCodec> rotated);

}  // namespace kvcompress
