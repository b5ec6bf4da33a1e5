#include "core/tensor_decompressor.h"

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"

namespace kvcompress {

absl::Status TensorDecompressor::ReadHeader(ByteSpan frame, std::string_view fingerprint) {
  return TakeHeader(frame, fingerprint);
}

absl::Status TensorDecompressor::TakeHeader(ByteSpan& rest, std::string_view fingerprint) {
  reader_.Restart();
  KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader_.Next(rest));
  if (part == FrameReader::Part::kNeedMore) return reader_.Truncated();
  const FrameHeader& header = reader_.header();
  KVC_RETURN_IF_ERROR(CheckFingerprint(header.tensor, fingerprint));
  tensor_.fingerprint = header.tensor.fingerprint;  // no chain depends on it
  if (!chain_.has_value() || header.codec != codec_ || header.tensor != tensor_) {
    KVC_ASSIGN_OR_RETURN(chain_, ChainOfFrame(header, limits_.environment));
    codec_ = header.codec;
    tensor_ = header.tensor;
  }
  reader_.set_max_payload_bytes(chain_->MaxPayloadBytes(header.tensor, header.BlockElements(0)));
  return CheckTensorBytes(header.tensor_bytes(), limits_);
}

// Of the block that was read last.
absl::Status TensorDecompressor::DecodeInto(StridedSpan<std::byte>& values) {
  const FrameHeader& header = reader_.header();
  const FrameBlock& block = reader_.block();
  const size_t bytes = header.BlockElements(block.index) * DTypeSize(header.tensor.dtype);
  if (const MutableByteSpan together = values.Together(); together.size() >= bytes) {
    values.Skip(bytes);
    return DecodeFrameBlock(header, *chain_, block, together.first(bytes));
  }
  block_values_.Resize(bytes);
  KVC_RETURN_IF_ERROR(DecodeFrameBlock(header, *chain_, block, block_values_.span()));
  values.Write(block_values_.span());
  return absl::OkStatus();
}

absl::StatusOr<size_t> TensorDecompressor::Decompress(ByteSpan frame, StridedSpan<std::byte> values,
                                                      std::string_view fingerprint) {
  const size_t size = frame.size();
  KVC_RETURN_IF_ERROR(TakeHeader(frame, fingerprint));
  const uint64_t total = reader_.header().tensor_bytes();
  if (values.left() < total) {
    return absl::InvalidArgumentError(
        absl::StrFormat("frame: room for %d bytes of values that take %d", values.left(), total));
  }
  while (true) {
    KVC_ASSIGN_OR_RETURN(const FrameReader::Part part, reader_.Next(frame));
    switch (part) {
      case FrameReader::Part::kBlock: KVC_RETURN_IF_ERROR(DecodeInto(values)); break;
      case FrameReader::Part::kEnd:
        if (frame.empty()) return total;
        return FrameEndsEarly(size - frame.size(), size);
      case FrameReader::Part::kHeader:
      case FrameReader::Part::kNeedMore: return reader_.Truncated();
    }
  }
}

}  // namespace kvcompress
