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

// The memory of one call: chunks for input in its first half, buffers for output in its second.
class CallMemory {
 public:
  // Of a chunk, and of a buffer.
  static constexpr uint64_t kChunkBytes = uint64_t{1} << 20;

  // `bytes`, which the daemon has mapped as `region`.
  CallMemory(MutableByteSpan bytes, uint64_t region) : bytes_(bytes), region_(region) {
    const size_t chunks = bytes.size() / kChunkBytes;
    for (size_t i = 0; i < chunks; ++i) (i < chunks / 2 ? chunks_ : buffers_).push_back(i * kChunkBytes);
  }

  // Offsets of those that nobody uses.
  std::deque<uint64_t>& chunks() { return chunks_; }
  std::deque<uint64_t>& buffers() { return buffers_; }

  MutableByteSpan At(uint64_t offset, size_t count) const { return bytes_.subspan(offset, count); }
  void Describe(uint64_t offset, uint64_t bytes, v1::SharedMemoryRange& range) const {
    range.set_region(region_);
    range.set_offset(offset);
    range.set_byte_size(bytes);
  }
  uint64_t region() const { return region_; }

 private:
  const MutableByteSpan bytes_;
  const uint64_t region_;
  std::deque<uint64_t> chunks_;
  std::deque<uint64_t> buffers_;
};

// Sends ranges of memory that the daemon has mapped: where a job says that it stands, of a source's own memory if that
// is mapped, else of chunks that the source is copied into. Output comes in buffers: as many as the most output takes,
// or, where that is not known or `output_is_larger` than is reckoned here, as many as it turns out to need.
template <typename Replies>
class SharedExchange final : public Exchange<Replies> {
 public:
  using Base = Exchange<Replies>;
  using typename Base::Direction;
  using typename Base::Job;
  using typename Base::Outgoing;
  using typename Base::Request;

  SharedExchange(std::string_view address, std::span<const Job> jobs, absl::Time deadline, typename Base::Sink& sink,
                 Delivery& delivery, bool batches, const SharedMemoryPool* pool, CallMemory memory,
                 bool output_is_larger)
      : Base(address, jobs, deadline, sink, delivery, batches),
        pool_(pool),
        memory_(std::move(memory)),
        buffers_wanted_(output_is_larger ? kUnknown : 0) {}

  absl::StatusOr<std::optional<Outgoing>> Next() override {
    KVC_ASSIGN_OR_RETURN(std::optional<Request> request, NextRequest());
    Outgoing next;
    next.last = this->all_sent() && (AllBuffersGiven() || this->all_done());
    if (!request && !next.last) return std::nullopt;
    if (request) KVC_RETURN_IF_ERROR(SerializeMessage(*request, next.message));
    next.followed = request && !next.last && CanGoOn();
    return next;
  }

 private:
  struct Pending {
    uint64_t bytes = 0;
    std::optional<uint64_t> chunk;  // to be used again when the bytes are released
  };
  struct GivenBuffer {
    uint64_t offset = 0;
    uint64_t used = 0;
  };

  static constexpr uint64_t kUnknown = UINT64_MAX;
  static constexpr uint64_t kRangeBytes = uint64_t{4} << 20;  // most of a range in place

  void OnDescribed(std::span<const Job> jobs) override {
    uint64_t bytes = 0;
    for (const Job& job : jobs) {
      const std::optional<uint64_t> job_bytes = MaxOutputBytes(job);
      if (!job_bytes) buffers_wanted_ = kUnknown;
      bytes += job_bytes.value_or(0);
    }
    if (buffers_wanted_ == kUnknown) return;
    buffers_wanted_ += (bytes + CallMemory::kChunkBytes - 1) / CallMemory::kChunkBytes;
  }

  bool AllBuffersGiven() const { return buffers_given_ == buffers_wanted_; }
  bool CanGoOn() {
    return (!AllBuffersGiven() && !memory_.buffers().empty()) ||
           (!this->all_sent() && (!this->header_sent() || CanSendInput()));
  }

  absl::StatusOr<std::optional<Request>> NextRequest() {
    Request request;
    if (!this->all_sent() && !this->header_sent()) {
      request = this->SendHeader(/*to_buffers=*/true);
    } else if (!AllBuffersGiven() && !memory_.buffers().empty()) {
      const uint64_t offset = memory_.buffers().front();
      memory_.buffers().pop_front();
      given_.push_back({offset});
      ++buffers_given_;
      memory_.Describe(offset, CallMemory::kChunkBytes, Direction::OutputBuffer(request));
    } else if (!this->all_sent()) {
      return NextInput();
    } else {
      return std::nullopt;
    }
    return request;
  }

  // Whether the next input finds a chunk, or needs none.
  bool CanSendInput() {
    constexpr size_t kMaxPending = 16;
    return in_place_ || this->place() != nullptr ? pending_.size() < kMaxPending : !memory_.chunks().empty();
  }

  absl::StatusOr<std::optional<Request>> NextInput() {
    if (!CanSendInput()) return std::nullopt;
    if (const v1::SharedMemoryRange* place = this->place()) return SendPlace(*place);
    KVC_ASSIGN_OR_RETURN(ByteSpan bytes, NextBytes(in_place_ ? kRangeBytes : CallMemory::kChunkBytes));
    std::optional<v1::SharedMemoryRange> range = Find(bytes);
    if (!range && std::exchange(in_place_, false)) return NextInput();
    in_place_ = range.has_value();
    Request request;
    Pending pending;
    if (range) {
      KVC_ASSIGN_OR_RETURN(pending.bytes, SendInPlace(bytes, *range));
      Direction::SharedInput(request) = *std::move(range);
    } else {
      pending.chunk = memory_.chunks().front();
      memory_.chunks().pop_front();
      KVC_ASSIGN_OR_RETURN(pending.bytes, CopyToChunk(bytes, *pending.chunk));
      memory_.Describe(*pending.chunk, pending.bytes, Direction::SharedInput(request));
    }
    return Await(pending, std::move(request));
  }

  // All of the current job's input.
  Request SendPlace(const v1::SharedMemoryRange& place) {
    Request request;
    Direction::SharedInput(request) = place;
    const Pending pending{.bytes = this->source_bytes(), .chunk = std::nullopt};
    in_place_ = false;
    this->Sent(pending.bytes);
    return Await(pending, std::move(request));
  }

  // The request, whose input counts until it is released.
  Request Await(const Pending& pending, Request request) {
    pending_.push_back(pending);
    unreleased_ += pending.bytes;
    return request;
  }

  bool takes_messages() const override { return false; }

  // Where the daemon has mapped these bytes.
  std::optional<v1::SharedMemoryRange> Find(ByteSpan bytes) const {
    return pool_ == nullptr ? std::nullopt : pool_->Find(bytes);
  }

  // Whether the next bytes are those of a source that is described already.
  bool FollowsInBatch() const { return this->header_sent() && this->place() == nullptr; }

  // The current job's next bytes, at most `limit` of them.
  absl::StatusOr<ByteSpan> NextBytes(uint64_t limit) {
    const uint64_t left = this->source_bytes() - this->sent_bytes();
    return this->source().Get(this->sent_bytes(), static_cast<size_t>(std::min(limit, left)), scratch_);
  }

  // Makes the range of these bytes longer by the inputs that follow them in the batch, as far as they follow them in
  // memory, too. Returns its size.
  absl::StatusOr<uint64_t> SendInPlace(ByteSpan bytes, v1::SharedMemoryRange& range) {
    while (this->Sent(bytes.size()) && FollowsInBatch() && range.byte_size() < kRangeBytes) {
      KVC_ASSIGN_OR_RETURN(bytes, NextBytes(kRangeBytes - range.byte_size()));
      const std::optional<v1::SharedMemoryRange> next = Find(bytes);
      in_place_ = next.has_value();
      if (!next || next->region() != range.region() || next->offset() != range.offset() + range.byte_size()) break;
      range.set_byte_size(range.byte_size() + next->byte_size());
    }
    if (this->sent_bytes() == 0 && !this->header_sent()) in_place_ = false;
    return range.byte_size();
  }

  // Fills the chunk with these bytes and with the inputs that follow them in the batch. Returns how much it holds.
  absl::StatusOr<uint64_t> CopyToChunk(ByteSpan bytes, uint64_t chunk) {
    uint64_t size = 0;
    while (true) {
      std::memcpy(memory_.At(chunk + size, bytes.size()).data(), bytes.data(), bytes.size());
      size += bytes.size();
      if (!this->Sent(bytes.size()) || !FollowsInBatch() || size == CallMemory::kChunkBytes) return size;
      KVC_ASSIGN_OR_RETURN(bytes, NextBytes(CallMemory::kChunkBytes - size));
      if (Find(bytes)) return size;
    }
  }

  absl::Status OnReleased(uint64_t bytes) override {
    if (bytes < released_ || bytes - released_ > unreleased_) {
      return this->WrongReply("it releases input that it was not given");
    }
    // An input that is released in part stays in the list.
    while (!pending_.empty() && bytes - released_ >= pending_.front().bytes) {
      const Pending& pending = pending_.front();
      released_ += pending.bytes;
      unreleased_ -= pending.bytes;
      if (pending.chunk) memory_.chunks().push_back(*pending.chunk);
      pending_.pop_front();
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ByteSpan> SharedOutput(const v1::SharedMemoryRange& range) override {
    if (given_.empty()) return this->WrongReply("it wrote outside of the buffers that it was given");
    GivenBuffer& buffer = given_.front();
    if (range.region() != memory_.region() || range.offset() != buffer.offset + buffer.used ||
        range.byte_size() > CallMemory::kChunkBytes - buffer.used) {
      return this->WrongReply("it wrote outside of the buffers that it was given");
    }
    buffer.used += range.byte_size();
    if (buffer.used == CallMemory::kChunkBytes) TakeBackBuffer();
    return memory_.At(range.offset(), static_cast<size_t>(range.byte_size()));
  }

  void OnOutputEnd() override {
    if (!given_.empty() && given_.front().used > 0) TakeBackBuffer();
  }

  // Its bytes are read before it is given again.
  void TakeBackBuffer() {
    memory_.buffers().push_back(given_.front().offset);
    given_.pop_front();
  }

  const SharedMemoryPool* const pool_;  // whose memory is read in place; null: none is
  CallMemory memory_;
  uint64_t buffers_wanted_;  // for the jobs that are described
  uint64_t buffers_given_ = 0;
  std::deque<GivenBuffer> given_;
  bool in_place_ = false;  // the current job's source lies in memory that the daemon has mapped
  std::deque<Pending> pending_;
  uint64_t released_ = 0;    // bytes of whole pending inputs
  uint64_t unreleased_ = 0;  // bytes of pending_
  std::vector<std::byte> scratch_;
};

}  // namespace kvcompress
