#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "client/remote/exchange.h"
#include "client/remote/shared_memory_pool.h"

namespace kvcompress {

// The memory of one call: chunks for input on one side, rooms for output on the other.
class SharedArena {
 public:
  static constexpr uint64_t kChunkBytes = uint64_t{1} << 20;

  explicit SharedArena(const RegisteredMemory& memory) : memory_(memory) {
    const size_t chunks = memory.bytes().size() / kChunkBytes;
    for (size_t i = 0; i < chunks; ++i) (i < chunks / 2 ? chunks_ : rooms_).push_back(i * kChunkBytes);
  }

  // Offsets of those that nobody uses.
  std::deque<uint64_t>& chunks() { return chunks_; }
  std::deque<uint64_t>& rooms() { return rooms_; }

  MutableByteSpan At(uint64_t offset, size_t count) const { return memory_.bytes().subspan(offset, count); }
  void Describe(uint64_t offset, uint64_t bytes, v1::SharedMemoryRange& range) const {
    range.set_region(memory_.region());
    range.set_offset(offset);
    range.set_byte_size(bytes);
  }
  uint64_t region() const { return memory_.region(); }

 private:
  const RegisteredMemory& memory_;
  std::deque<uint64_t> chunks_;
  std::deque<uint64_t> rooms_;
};

// Sends descriptors of memory that the daemon has mapped: of the sources' own where they lie in such memory, else of
// chunks that they are copied into. Output comes in rooms of that memory.
template <typename Method>
class SharedExchange final : public Exchange<Method> {
 public:
  using typename Exchange<Method>::Job;
  using typename Exchange<Method>::Sink;
  using typename Exchange<Method>::Request;
  using typename Exchange<Method>::Outgoing;

  SharedExchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, Sink& sink,
                 Delivery& delivery, const SharedMemoryPool& pool, const RegisteredMemory& arena)
      : Exchange<Method>(address, jobs, deadline, sink, delivery),
        pool_(pool),
        arena_(arena),
        rooms_wanted_(RoomsWanted(jobs)) {}

  absl::StatusOr<std::optional<Outgoing>> Next() override {
    KVC_ASSIGN_OR_RETURN(std::optional<Request> request, NextRequest());
    Outgoing next;
    next.last = AllSent() && (AllRoomsGiven() || this->done() == this->jobs().size());
    if (!request && !next.last) return std::nullopt;
    if (request && !SerializeMessage(*request, next.message)) return absl::InternalError("a header is too large");
    next.followed = request && !next.last && CanGoOn();
    return next;
  }

 private:
  struct Pending {
    uint64_t bytes = 0;
    std::optional<uint64_t> chunk;  // to be used again when the bytes are released
  };
  struct Room {
    uint64_t offset = 0;
    uint64_t used = 0;
  };

  static constexpr uint64_t kUnknown = UINT64_MAX;

  static uint64_t RoomsWanted(std::span<const Job> jobs) {
    uint64_t rooms = 0;
    for (const Job& job : jobs) {
      const std::optional<uint64_t> bytes = Method::MaxOutput(job);
      if (!bytes) return kUnknown;
      rooms += (*bytes + SharedArena::kChunkBytes - 1) / SharedArena::kChunkBytes;
    }
    return rooms;
  }

  bool AllSent() const { return sending_ == this->jobs().size(); }
  bool AllRoomsGiven() const { return rooms_given_ == rooms_wanted_; }
  bool CanGoOn() {
    return (!AllRoomsGiven() && !arena_.rooms().empty()) || (!AllSent() && (!header_sent_ || CanSendInput()));
  }

  absl::StatusOr<std::optional<Request>> NextRequest() {
    Request request;
    if (!AllSent() && !header_sent_) {
      header_sent_ = true;
      request = Method::Header(this->jobs()[sending_], /*to_room=*/true);
      EndJobIfSent();
    } else if (!AllRoomsGiven() && !arena_.rooms().empty()) {
      const uint64_t offset = arena_.rooms().front();
      arena_.rooms().pop_front();
      given_.push_back({offset});
      ++rooms_given_;
      arena_.Describe(offset, SharedArena::kChunkBytes, Method::Room(request));
    } else if (!AllSent()) {
      return NextInput();
    } else {
      return std::nullopt;
    }
    return request;
  }

  // Whether the next input finds a chunk, or needs none.
  bool CanSendInput() {
    constexpr size_t kMaxPending = 16;
    return in_place_ ? pending_.size() < kMaxPending : !arena_.chunks().empty();
  }

  absl::StatusOr<std::optional<Request>> NextInput() {
    constexpr uint64_t kRangeBytes = uint64_t{4} << 20;
    if (!CanSendInput()) return std::nullopt;
    const ByteSource& source = *this->jobs()[sending_].source;
    const size_t count = std::min(in_place_ ? kRangeBytes : SharedArena::kChunkBytes, source.size() - sent_bytes_);
    KVC_ASSIGN_OR_RETURN(const ByteSpan bytes, source.Get(sent_bytes_, count, scratch_));
    std::optional<v1::SharedMemoryRange> range = pool_.Find(bytes);
    if (!range && std::exchange(in_place_, false)) return NextInput();
    in_place_ = range.has_value();
    Request request;
    Pending pending{count, std::nullopt};
    if (range) {
      Method::Input(request) = *std::move(range);
    } else {
      pending.chunk = arena_.chunks().front();
      arena_.chunks().pop_front();
      std::memcpy(arena_.At(*pending.chunk, count).data(), bytes.data(), count);
      arena_.Describe(*pending.chunk, count, Method::Input(request));
    }
    pending_.push_back(pending);
    unreleased_ += count;
    sent_bytes_ += count;
    EndJobIfSent();
    return request;
  }

  void EndJobIfSent() {
    if (sent_bytes_ < this->jobs()[sending_].source->size()) return;
    ++sending_;
    header_sent_ = false;
    sent_bytes_ = 0;
    in_place_ = false;
  }

  absl::Status OnReleased(uint64_t bytes) override {
    if (bytes < released_ || bytes - released_ > unreleased_) {
      return this->WrongReply("it releases input that it was not given");
    }
    // What is released in part stays.
    while (!pending_.empty() && bytes - released_ >= pending_.front().bytes) {
      const Pending& pending = pending_.front();
      released_ += pending.bytes;
      unreleased_ -= pending.bytes;
      if (pending.chunk) arena_.chunks().push_back(*pending.chunk);
      pending_.pop_front();
    }
    return absl::OkStatus();
  }

  absl::Status OnSharedOutput(const v1::SharedMemoryRange& range) override {
    if (given_.empty()) return this->WrongReply("it wrote outside of the rooms that it was given");
    Room& room = given_.front();
    if (range.region() != arena_.region() || range.offset() != room.offset + room.used ||
        range.byte_size() > SharedArena::kChunkBytes - room.used) {
      return this->WrongReply("it wrote outside of the rooms that it was given");
    }
    room.used += range.byte_size();
    KVC_RETURN_IF_ERROR(this->OnOutput(arena_.At(range.offset(), range.byte_size())));
    if (room.used == SharedArena::kChunkBytes) TakeBackRoom();
    return absl::OkStatus();
  }

  absl::Status OnTensorEnd() override {
    if (!given_.empty() && given_.front().used > 0) TakeBackRoom();
    return absl::OkStatus();
  }

  void TakeBackRoom() {
    arena_.rooms().push_back(given_.front().offset);
    given_.pop_front();
  }

  const SharedMemoryPool& pool_;
  SharedArena arena_;
  const uint64_t rooms_wanted_;
  uint64_t rooms_given_ = 0;
  std::deque<Room> given_;
  size_t sending_ = 0;  // index of the job
  bool header_sent_ = false;
  uint64_t sent_bytes_ = 0;  // of it
  bool in_place_ = false;    // its source lies in memory that the daemon has mapped
  std::deque<Pending> pending_;
  uint64_t released_ = 0;    // bytes of whole pending inputs
  uint64_t unreleased_ = 0;  // bytes of pending_
  std::vector<std::byte> scratch_;
};

}  // namespace kvcompress
