// How the streams of a block lie in its payload, and how they are decoded.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/base/float_environment.h"
#include "core/base/status_macros.h"
#include "core/codec/chain.h"
#include "core/codec/chain_scratch.h"
#include "core/codec/stream_table.h"

namespace kvcompress {

CodecChain::Scratch& CodecChain::ThreadScratch() const {
  thread_local Scratch scratch, inner;
  return inner_ ? inner : scratch;
}

void CodecChain::StreamBounds(const TensorDesc& tensor, size_t count, std::vector<size_t>& bounds) const {
  bounds.resize(stream_count());
  for (size_t i = 0; i < transforms_.size(); ++i) bounds[i] = transforms_[i]->MaxSideBytes(tensor, count);
  codec_->StreamBounds(tensor, count, std::span(bounds).subspan(transforms_.size()));
}

size_t CodecChain::MaxPayloadBytes(const TensorDesc& tensor, size_t count) const {
  std::vector<size_t>& bounds = ThreadScratch().bounds;
  StreamBounds(tensor, count, bounds);
  return std::accumulate(bounds.begin(), bounds.end(), MaxTableBytes(table_sizes()));
}

// Gives every stream of the tensor codec room to be written to: in the payload, where it will stay, when no other stage
// needs it elsewhere first.
void CodecChain::PlaceStreams(const TensorDesc& tensor, size_t count, MutableByteSpan payload, Scratch& scratch) const {
  const size_t transforms = transforms_.size();
  StreamBounds(tensor, count, scratch.bounds);
  scratch.out.resize(stream_count());
  scratch.streams.resize(std::max(scratch.streams.size(), stream_count()));
  const bool in_payload = byte_codecs_.empty() && is_plain() && (transforms == 0 || scratch.sides[0].size() == 0);
  std::byte* at = payload.data() + MaxTableBytes(table_sizes());
  for (size_t i = 0; i < transforms; ++i) scratch.out[i] = {scratch.sides[i].data(), scratch.sides[i].size()};
  for (size_t i = transforms; i < stream_count(); ++i) {
    if (in_payload) {
      scratch.out[i] = {at, 0};
      at += scratch.bounds[i];
    } else {
      scratch.streams[i].Resize(scratch.bounds[i]);
      scratch.out[i] = {scratch.streams[i].data(), 0};
    }
  }
}

// Runs the byte codecs, of which the last writes to a stream's place after the table, and moves streams there that none
// makes smaller. Returns the payload's size.
absl::StatusOr<size_t> CodecChain::PackStreams(MutableByteSpan payload, Scratch& scratch) const {
  scratch.coded.resize(std::max(scratch.coded.size(), byte_codecs_.size()));
  scratch.sizes.clear();
  std::byte* at = payload.data() + MaxTableBytes(table_sizes());
  for (const StreamBuffer& out : scratch.out) {
    ByteSpan stream{out.data, out.size};
    scratch.sizes.push_back(static_cast<uint32_t>(stream.size()));
    for (size_t k = 0; k < byte_codecs_.size(); ++k) {
      if (!stream.empty()) {  // an empty one cannot get smaller, and not every library bears it
        const bool is_last = k + 1 == byte_codecs_.size();
        if (!is_last) scratch.coded[k].Resize(stream.size());
        const MutableByteSpan coded = is_last ? MutableByteSpan(at, stream.size()) : scratch.coded[k].span();
        KVC_ASSIGN_OR_RETURN(const size_t size, byte_codecs_[k]->Encode(stream, coded));
        if (size > 0 && size < stream.size()) stream = coded.first(size);
      }
      scratch.sizes.push_back(static_cast<uint32_t>(stream.size()));
    }
    if (stream.data() != at && !stream.empty()) std::memmove(at, stream.data(), stream.size());
    at += stream.size();
  }
  return WriteStreamTable(scratch.sizes, compact_, payload.first(static_cast<size_t>(at - payload.data())));
}

// Checks the payload's table and undoes the byte codecs: scratch.in[i] becomes stream i. A stream that is all values of
// a block is decoded to `values`, where it belongs, if these are not empty.
absl::Status CodecChain::UnpackStreams(ByteSpan payload, MutableByteSpan values, Scratch& scratch) const {
  const size_t stages = byte_codecs_.size();
  if (!ReadStreamTable(compact_, stream_count(), stages, payload, scratch.sizes)) {
    return absl::DataLossError("payload is shorter than its stream table");
  }
  scratch.in.resize(stream_count());
  scratch.streams.resize(std::max(scratch.streams.size(), stream_count()));
  scratch.coded.resize(std::max(scratch.coded.size(), stages));
  for (size_t i = 0; i < stream_count(); ++i) {
    // The stream's size after the first k byte codecs; an equal size says that codec k was left out.
    const uint32_t* const size_after = scratch.sizes.data() + i * (1 + stages);
    if (size_after[0] > scratch.bounds[i]) return absl::DataLossError("stream is larger than its block allows");
    for (size_t k = 0; k < stages; ++k) {
      if (size_after[k + 1] > size_after[k]) return absl::DataLossError("stream grows in a byte codec");
    }
    if (size_after[stages] > payload.size()) return absl::DataLossError("stream ends behind its payload");
    ByteSpan stream = payload.first(size_after[stages]);
    payload = payload.subspan(stream.size());
    const bool is_refused_block = has_fallback_ && is_plain() && i == 0 && size_after[0] == values.size();
    Buffer* holder = nullptr;
    for (size_t k = stages; k-- > 0;) {
      if (size_after[k] == stream.size()) continue;
      MutableByteSpan decoded = values;
      if (k > 0 || !is_refused_block) {
        holder = k == 0 ? &scratch.streams[i] : &scratch.coded[k];
        holder->Resize(size_after[k]);
        decoded = holder->span();
      }
      KVC_RETURN_IF_ERROR(byte_codecs_[k]->Decode(stream, decoded));
      stream = decoded;
    }
    // The next stream uses the holder again.
    if (holder != nullptr && holder != &scratch.streams[i]) std::swap(*holder, scratch.streams[i]);
    scratch.in[i] = stream;
  }
  if (!payload.empty()) return absl::DataLossError("payload has bytes behind its last stream");
  return absl::OkStatus();
}

bool CodecChain::FellBack(ByteSpan payload) const {
  std::vector<uint32_t>& sizes = ThreadScratch().sizes;
  return has_fallback_ && ReadStreamTable(compact_, stream_count(), byte_codecs_.size(), payload, sizes) &&
         sizes[(transforms_.size() - 1) * (1 + byte_codecs_.size())] > 0;
}

absl::StatusOr<std::string> CodecChain::ChosenCodec(const TensorDesc& tensor, size_t count, ByteSpan payload) const {
  Scratch& scratch = ThreadScratch();
  StreamBounds(tensor, count, scratch.bounds);
  KVC_RETURN_IF_ERROR(UnpackStreams(payload, {}, scratch));
  if (!chooses()) return spec_.tensor_codec().text();
  return codec_->Chosen(std::span(scratch.in).subspan(transforms_.size()));
}

absl::Status CodecChain::DecodeBlock(const TensorDesc& tensor, ByteSpan payload, MutableByteSpan values) const {
  const UsualFloatEnvironment environment;
  Scratch& scratch = ThreadScratch();
  StreamBounds(tensor, values.size() / DTypeSize(tensor.dtype), scratch.bounds);
  KVC_RETURN_IF_ERROR(UnpackStreams(payload, values, scratch));
  return DecodeStreams(tensor, scratch, {}, values);
}

// Decodes scratch.in. `known`, if not empty, is what the tensor codec decodes to.
absl::Status CodecChain::DecodeStreams(const TensorDesc& tensor, Scratch& scratch, ByteSpan known,
                                       MutableByteSpan values) const {
  const size_t transforms = transforms_.size(), width = DTypeSize(tensor.dtype);
  size_t inner = values.size() / width;
  // How many values each transform made, from the front; then the inverses from the back.
  std::vector<size_t>& undone = scratch.undone;
  undone.clear();
  scratch.values.resize(std::max(scratch.values.size(), transforms));
  for (size_t i = 0; i < transforms; ++i) {
    if (scratch.in[i].empty()) continue;  // there is nothing to undo
    KVC_ASSIGN_OR_RETURN(inner, transforms_[i]->InnerCount(inner, scratch.in[i]));
    if (known.empty()) scratch.values[i].Resize(inner * width);
    undone.push_back(i);
  }
  const auto made = [&](size_t k) { return k == 0 ? values : scratch.values[undone[k - 1]].span(); };
  if (known.empty()) {
    KVC_RETURN_IF_ERROR(codec_->Decode(tensor, std::span(scratch.in).subspan(transforms), made(undone.size())));
  }
  for (size_t k = undone.size(); k-- > 0;) {
    const bool is_known = !known.empty() && k + 1 == undone.size();
    const ByteSpan from = is_known ? known : ByteSpan(made(k + 1));
    KVC_RETURN_IF_ERROR(transforms_[undone[k]]->Inverse(tensor, scratch.in[undone[k]], from, made(k)));
  }
  return absl::OkStatus();
}

}  // namespace kvcompress
