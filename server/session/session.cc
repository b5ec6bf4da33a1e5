#include "server/session/session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace kvcompress {

absl::Status Compressing::Begin(Stream& stream, const v1::CompressHeader& header, const SessionOptions& options,
                                OutputBuffers* buffers) {
  KVC_ASSIGN_OR_RETURN(CompressHeaders::Job job, headers.Read(header, options.default_codec));
  return stream.Begin(std::move(job.tensor), job.codec, buffers);
}

absl::Status Decompressing::Begin(Stream& stream, const v1::DecompressHeader& header, const SessionOptions&,
                                  OutputBuffers* buffers) {
  // Of a tensor's description only the name comes from the client here.
  KVC_RETURN_IF_ERROR(ValidateTensor({.name = header.name(), .shape = {}, .axes = {}}).status());
  return stream.Begin(header.name(), buffers);
}

template <typename Work>
Session<Work>::Session(ThreadPool& pool, SessionOptions options, Admission::Ticket ticket, SessionObserver& observer,
                       std::function<void()> wake)
    : options_(std::move(options)),
      wake_(std::move(wake)),
      ranges_(options_.regions),
      ticket_(std::move(ticket)),
      sink_(observer, [this](Change change) { OnProgress(change); }),
      stream_(pool, options_.limits, sink_) {}

template <typename Work>
Session<Work>::~Session() {
  Cancel();
}

template <typename Work>
void Session<Work>::Push(Request request) {
  if (request.payload_case() == Direction::kInput) {
    auto owner = std::make_shared<const std::string>(std::move(Direction::Input(request)));
    const ByteSpan payload = AsBytes(*owner);
    return Push(std::vector<Slice>{{payload, std::move(owner)}});
  }
  if (request.payload_case() == Direction::kSharedInput) {
    absl::StatusOr<Slice> bytes = ranges_.Input(Direction::SharedInput(request));
    if (!bytes.ok()) return Fail(bytes.status());
    return Queue({.header = {}, .bytes = {*std::move(bytes)}, .is_shared = true});
  }
  if (request.payload_case() == Direction::kOutputBuffer) {
    const absl::Status added = ranges_.AddRoom(Direction::OutputBuffer(request));
    return added.ok() ? void() : Fail(added);
  }
  // Far above any that is valid; many may wait.
  constexpr size_t kMaxHeaderMessageBytes = (size_t{16} << 10) + kMaxProfileBytes;
  const size_t bytes = request.ByteSizeLong();
  if (bytes > kMaxHeaderMessageBytes) {
    return Fail(
        absl::InvalidArgumentError(absl::StrFormat("a header above the limit of %d bytes", kMaxHeaderMessageBytes)));
  }
  const absl::Status rooms = Direction::ToBuffers(request.header()) ? ranges_.CheckEnabled() : absl::OkStatus();
  if (!rooms.ok()) return Fail(rooms);
  const size_t held = request.SpaceUsedLong();  // several times as much as on the wire
  Queue({.header = std::move(request), .bytes = {}, .header_bytes = held, .is_header = true});
}

template <typename Work>
void Session<Work>::Push(std::vector<Slice> payload) {
  Queue({.header = {}, .bytes = std::move(payload)});
}

template <typename Work>
void Session<Work>::Queue(Input input) {
  {
    absl::MutexLock lock(&mutex_);
    if (!start_) start_ = Clock::now();
    if (InputIsOver()) return;  // a message that was on its way when the stream failed
    header_bytes_ += input.header_bytes;
    inputs_.push_back(std::move(input));
  }
  Feed();
}

template <typename Work>
void Session<Work>::HalfClose() {
  {
    absl::MutexLock lock(&mutex_);
    half_closed_ = true;
  }
  Feed();
}

template <typename Work>
void Session<Work>::Fail(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (input_status_.ok()) input_status_ = status;
  }
  Feed();
}

template <typename Work>
void Session<Work>::Cancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    sink_.outbox().Clear();
  }
  stream_.Cancel();
  Feed();
}

// While output goes to rooms, messages are read ahead, for there may be room in one of them; bytes are not, for they
// would have to be held. Behind a fault, whose turn comes after that output, all but rooms is dropped.
template <typename Work>
bool Session<Work>::TakesInput() const {
  constexpr size_t kMaxInputs = 1024;
  constexpr size_t kMaxInputHeaderBytes = size_t{1} << 20;
  absl::MutexLock lock(&mutex_);
  if (half_closed_ || cancelled_ || !output_status_.ok()) return false;
  if (InputIsOver()) return waits_for_room_;
  const bool uses_rooms = waits_for_room_ || (!to_room_.empty() && to_room_.back());
  if (inputs_.empty()) return HasRoom() || uses_rooms;
  const Input& last = inputs_.back();
  return uses_rooms && inputs_.size() < kMaxInputs && header_bytes_ < kMaxInputHeaderBytes &&
         (last.is_shared || last.is_header);
}

template <typename Work>
bool Session<Work>::Pop(Outgoing<Response>& outgoing) {
  outgoing = {};
  const bool popped = PopNext(outgoing);
  Feed();
  // What was fed may have released input at once.
  return popped || PopReleased(outgoing);
}

// Bytes that go to rooms are no response before one is full.
template <typename Work>
bool Session<Work>::has_next() const {
  if (rooms_.has_next()) return true;
  absl::MutexLock lock(&mutex_);
  return (to_room_.empty() || !to_room_.front()) && sink_.outbox().has_next();
}

template <typename Work>
absl::Status Session<Work>::OutputStatus() const {
  {
    absl::MutexLock lock(&mutex_);
    if (!output_status_.ok()) return output_status_;
  }
  return ranges_.Check();
}

template <typename Work>
bool Session<Work>::PopNext(Outgoing<Response>& outgoing) {
  if (PopReleased(outgoing)) return true;
  while (true) {
    if (const absl::Status usable = OutputStatus(); !usable.ok()) return FailOutput(usable);
    const auto outcome = rooms_.Next(outgoing);
    waits_for_room_ = outcome == RoomOutput<Direction>::Outcome::kNoRoom;
    if (outcome == RoomOutput<Direction>::Outcome::kResponse) return true;
    if (waits_for_room_) {
      if (!HalfClosed()) return false;
      return FailOutput(absl::FailedPreconditionError("the stream was half-closed, but its output needs another room"));
    }
    Outgoing<Response> next;
    bool to_room = false;
    {
      absl::MutexLock lock(&mutex_);
      if (!sink_.outbox().Pop(next) || cancelled_) return false;
      to_room = !to_room_.empty() && to_room_.front();
      if (next.response.has_tensor()) to_room_.pop_front();
    }
    rooms_.Put(std::move(next), to_room);
  }
}

template <typename Work>
bool Session<Work>::PopReleased(Outgoing<Response>& outgoing) {
  const uint64_t released = ranges_.released();
  if (std::exchange(released_reported_, released) == released) return false;
  outgoing.response.set_input_released(released);
  return true;
}

// Ends the stream with this status, whatever else there is to come. Returns false, for there is nothing to pop.
template <typename Work>
bool Session<Work>::FailOutput(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    output_status_.Update(status);
    waits_for_room_ = false;
    Outgoing<Response> none;
    sink_.outbox().Clear();
    sink_.outbox().Pop(none);
  }
  rooms_.Clear();
  stream_.Cancel();
  Fail(status);
  return false;
}

template <typename Work>
bool Session<Work>::done() const {
  absl::MutexLock lock(&mutex_);
  return flushed_ && (cancelled_ || sink_.outbox().empty());
}

template <typename Work>
absl::Status Session<Work>::status() const {
  absl::MutexLock lock(&mutex_);
  if (cancelled_) return absl::CancelledError("the client has cancelled");
  return output_status_.ok() ? status_ : output_status_;
}

// A block, a report or an error has come out of the stream.
template <typename Work>
void Session<Work>::OnProgress(Change change) {
  if (!sink_.error().ok()) stream_.Cancel();
  Feed();
  if (WorthWaking(change)) wake_();
}

// A response costs about the same whatever its size, so a few blocks go out together. Nothing waits that no other
// block will come to wake for.
template <typename Work>
bool Session<Work>::WorthWaking(Change change) const {
  constexpr uint64_t kWorthAResponse = uint64_t{256} << 10;
  return change == Change::kEnd || stream_.blocks_in_flight() <= 1 ||
         sink_.outbox().waiting_bytes() >= kWorthAResponse || (refused_input_ && TakesInput());
}

template <typename Work>
uint64_t Session<Work>::held_bytes() const {
  return sink_.outbox().held_bytes() + stream_.bytes_in_flight() +
         kItemOverheadBytes * uint64_t{stream_.blocks_in_flight()};
}

template <typename Work>
bool Session<Work>::InputIsOver() const {
  return cancelled_ || !input_status_.ok() || (half_closed_ && inputs_.empty()) || !sink_.error().ok();
}

// Gives the stream as much of the input as there is room for. Whoever makes room, or brings input, calls; one thread at
// a time does the work, and looks again before it leaves.
template <typename Work>
void Session<Work>::Feed() {
  absl::MutexLock lock(&mutex_);
  if (feeding_ || flushing_) return;
  feeding_ = true;
  while (!InputIsOver() && !inputs_.empty() && HasRoom()) {
    Input& input = inputs_.front();  // stays where it is while others are added behind it
    mutex_.Unlock();
    const absl::Status status = FeedPart(input);
    mutex_.Lock();
    if (input_status_.ok()) input_status_ = status;
    if (input.taken()) {
      header_bytes_ -= input.header_bytes;
      inputs_.pop_front();
    }
  }
  if (!InputIsOver()) {
    if (inputs_.empty()) ReleaseIfIdle();
  } else {
    flushing_ = true;
    inputs_.clear();
    header_bytes_ = 0;
    if (input_status_.ok() && half_closed_) input_status_ = stream_.Finish();
    stream_.Flush([this] { OnFlushed(); });
  }
  feeding_ = false;
}

// One header, or bytes up to the end of a block.
template <typename Work>
absl::Status Session<Work>::FeedPart(Input& input) {
  if (input.is_header) return TakeHeader(input);
  if (input.taken()) return absl::OkStatus();
  Slice& bytes = input.bytes[input.next];
  if (!stream_.in_tensor() && !bytes.bytes.empty()) {
    return absl::InvalidArgumentError(begun_ == 0 ? "data before the tensor's header"
                                                  : "data behind the tensor's last byte, before the next header");
  }
  if (!bytes.bytes.empty()) KVC_RETURN_IF_ERROR(ticket_.Count(Work::AppendPart(stream_, bytes)));
  if (bytes.bytes.empty()) {
    bytes.owner = nullptr;
    ++input.next;
  }
  if (reserved_) return absl::OkStatus();
  const std::optional<Footprint> footprint = stream_.footprint();
  return footprint ? Reserve(*footprint) : absl::OkStatus();
}

template <typename Work>
absl::Status Session<Work>::TakeHeader(Input& input) {
  input.is_header = false;
  if (!input.header.has_header()) return absl::InvalidArgumentError("message without a payload");
  const bool to_room = Direction::ToBuffers(input.header.header());
  {
    absl::MutexLock lock(&mutex_);
    to_room_.push_back(to_room);
  }
  ranges_.BeginTensor();
  KVC_RETURN_IF_ERROR(
      ticket_.Count(work_.Begin(stream_, input.header.header(), options_, to_room ? &ranges_ : nullptr)));
  ++begun_;
  reserved_ = false;
  const std::optional<Footprint> footprint = stream_.footprint();
  return footprint ? Reserve(*footprint) : absl::OkStatus();
}

// Asks for all that the stream may hold with this tensor: of the tensors that pass through, in and out, the window and
// the block that overfills it; of those that are held whole, everything.
template <typename Work>
absl::Status Session<Work>::Reserve(const Footprint& footprint) {
  reserved_ = true;
  const uint64_t finished = sink_.totals().tensors;
  while (!whole_.empty() && whole_.front().number <= finished) whole_.pop_front();
  if (footprint.whole) whole_.push_back({begun_, footprint.tensor_bytes});
  streamed_bytes_ += footprint.tensor_bytes;
  uint64_t bytes = std::min(streamed_bytes_, options_.window_bytes + footprint.block_bytes);
  for (const WholeTensor& tensor : whole_) bytes += tensor.bytes;
  return ticket_.Resize(2 * bytes);
}

// A stream that waits for its client holds nothing.
template <typename Work>
void Session<Work>::ReleaseIfIdle() {
  if (streamed_bytes_ == 0 || sink_.totals().tensors != begun_ || !sink_.outbox().empty()) return;
  whole_.clear();
  streamed_bytes_ = 0;
  ticket_.Resize(0).IgnoreError();  // less is always granted
}

template <typename Work>
void Session<Work>::OnFlushed() {
  {
    absl::MutexLock lock(&mutex_);
    const absl::Status block_error = sink_.error();
    status_ = block_error.ok() ? input_status_ : block_error;
    if (status_.ok() && output_status_.ok() && !cancelled_) {
      const Clock::time_point now = Clock::now();
      sink_.SendStreamReport(std::chrono::duration<double>(now - start_.value_or(now)).count());
    }
    flushed_ = true;
  }
  wake_();
}

template class Session<Compressing>;
template class Session<Decompressing>;

}  // namespace kvcompress
