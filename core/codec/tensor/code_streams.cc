#include "core/codec/tensor/code_streams.h"

#include <array>

namespace kvcompress {
namespace {

uint8_t* Bytes(std::byte* data) { return reinterpret_cast<uint8_t*>(data); }
const uint8_t* Bytes(const std::byte* data) { return reinterpret_cast<const uint8_t*>(data); }

}  // namespace

void CodeStreams::Bounds(size_t values, std::span<size_t> bounds) const {
  bounds[0] = packed_ ? simd::PackedCodeBytes(bits_, values) : values;
  if (bits_ > 8) bounds[1] = simd::PackedCodeBytes(bits_ - 8, values);
}

simd::CodeBytes CodeStreams::Begin(size_t values, std::span<StreamBuffer> streams, Buffer& scratch) const {
  scratch.Resize(values);
  if (packed_) return {Bytes(scratch.data()), nullptr};
  return {Bytes(streams[0].data), bits_ > 8 ? Bytes(scratch.data()) : nullptr};
}

void CodeStreams::Finish(size_t values, simd::CodeBytes codes, std::span<StreamBuffer> streams) const {
  if (packed_) simd::PackCodes(bits_, codes.high, values, Bytes(streams[0].data));
  if (bits_ > 8) simd::PackCodes(bits_ - 8, codes.low, values, Bytes(streams[1].data));
  std::array<size_t, 2> sizes;
  Bounds(values, sizes);
  for (size_t i = 0; i < count(); ++i) streams[i].size = sizes[i];
}

absl::Status CodeStreams::Open(size_t values, std::span<const ByteSpan> streams, Buffer& scratch,
                               simd::ConstCodeBytes& codes) const {
  std::array<size_t, 2> sizes;
  Bounds(values, sizes);
  for (size_t i = 0; i < count(); ++i) {
    if (streams[i].size() != sizes[i]) return absl::DataLossError("codes have the wrong size");
  }
  scratch.Resize(values);
  codes.high = Bytes(streams[0].data());
  codes.low = nullptr;
  if (packed_) {
    simd::UnpackCodes(bits_, codes.high, values, Bytes(scratch.data()));
    codes.high = Bytes(std::as_const(scratch).data());
  }
  if (bits_ > 8) {
    simd::UnpackCodes(bits_ - 8, Bytes(streams[1].data()), values, Bytes(scratch.data()));
    codes.low = Bytes(std::as_const(scratch).data());
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
