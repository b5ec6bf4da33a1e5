#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "server/session/outbox.h"
#include "server/session/shared_ranges.h"

namespace kvcompress {

// Between a stream's outbox and its client: output that is asked for in rooms goes there, and what is left are
// responses that tell where it lies. One goes in by Put; Next gives what it has become, until that is nothing. One
// thread at a time.
template <typename Direction>
class RoomOutput {
 public:
  using Response = typename Direction::Response;

  explicit RoomOutput(SharedRanges& ranges) : ranges_(ranges) {}

  // While Next gives nothing. `to_room`: whether the bytes of its tensor go to rooms.
  void Put(Outgoing<Response> outgoing, bool to_room) {
    if (outgoing.response.has_tensor()) ranges_.EndTensor();
    if (to_room && !outgoing.bytes.empty()) {
      placing_ = std::move(outgoing.bytes);
    } else {
      passing_ = std::move(outgoing);
    }
  }

  enum class Outcome { kResponse, kNothing, kNoRoom };

  // kNoRoom: the client has to give one first.
  Outcome Next(Outgoing<Response>& outgoing) {
    while (!placing_.empty()) {
      if (!ranges_.has_room()) return Outcome::kNoRoom;
      if (Fill()) return Tell(outgoing);
    }
    if (!passing_) return Outcome::kNothing;
    // A tensor's report comes behind all of its output.
    if (passing_->response.has_tensor() && placed_.byte_size() > 0) return Tell(outgoing);
    outgoing = *std::exchange(passing_, std::nullopt);
    return Outcome::kResponse;
  }

  // Whether Next gives a response that needs no room.
  bool has_next() const { return placing_.empty() && passing_.has_value(); }

  void Clear() {
    placing_.clear();
    passing_.reset();
  }

 private:
  // Fills the room whose turn it is, as far as there is output. True when it is full.
  bool Fill() {
    const SharedRanges::Filled filled = ranges_.Fill(placing_);
    if (placed_.byte_size() == 0) {
      placed_ = filled.range;
    } else {
      placed_.set_byte_size(placed_.byte_size() + filled.range.byte_size());
    }
    return filled.room_is_full;
  }

  Outcome Tell(Outgoing<Response>& outgoing) {
    Direction::SharedOutput(outgoing.response) = std::exchange(placed_, {});
    return Outcome::kResponse;
  }

  SharedRanges& ranges_;
  std::vector<Slice> placing_;    // output that goes to the next room
  v1::SharedMemoryRange placed_;  // what of a room is filled and not told yet
  std::optional<Outgoing<Response>> passing_;
};

}  // namespace kvcompress
