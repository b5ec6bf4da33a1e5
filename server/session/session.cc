#include "server/session/session.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace kvcompress {

template <typename Work>
Session<Work>::Session(ThreadPool& pool, SessionOptions options, Admission::Ticket ticket, SessionObserver& observer,
                       std::function<void()> wake)
    : options_(std::move(options)),
      wake_(std::move(wake)),
      regions_(options_.regions),
      work_(observer, [this](Change change) { OnProgress(change); }),
      outlet_(work_.outbox(), regions_),
      feeder_(options_, std::move(ticket), work_, stream_, regions_, outlet_),
      stream_(pool, options_.limits, work_) {}

template <typename Work>
void Session<Work>::Push(Request request) {
  if (request.payload_case() == Direction::kInput) {
    auto owner = std::make_shared<const std::string>(std::move(Direction::Input(request)));
    const ByteSpan payload = AsBytes(*owner);
    return Push(std::vector<Slice>{{payload, std::move(owner)}});
  }
  if (request.payload_case() == Direction::kSharedInput) {
    absl::StatusOr<Slice> bytes = regions_.Input(Direction::SharedInput(request));
    if (!bytes.ok()) return Fail(bytes.status());
    return Queue({.bytes = {*std::move(bytes)}, .is_shared = true});
  }
  if (request.payload_case() == Direction::kOutputBuffer) {
    const absl::Status added = regions_.AddBuffer(Direction::OutputBuffer(request));
    return added.ok() ? void() : Fail(added);
  }
  // Far above any that is valid; many may wait.
  constexpr size_t kMaxHeaderMessageBytes = (size_t{16} << 10) + kMaxProfileBytes;
  if (request.ByteSizeLong() > kMaxHeaderMessageBytes) {
    return Fail(
        absl::InvalidArgumentError(absl::StrFormat("a header above the limit of %d bytes", kMaxHeaderMessageBytes)));
  }
  if (Direction::ToBuffers(request.header())) {
    if (const absl::Status enabled = regions_.CheckEnabled(); !enabled.ok()) return Fail(enabled);
  }
  const size_t held = request.SpaceUsedLong();  // several times as much as on the wire
  Queue({.message = std::move(request), .header_bytes = held, .is_header = true});
}

template <typename Work>
void Session<Work>::Queue(Input<Request> input) {
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
    outlet_.Close();
  }
  stream_.Cancel();
  Feed();
}

// While output goes to buffers, messages are read ahead, for one of them may give a buffer; bytes are not, for they
// would have to be held. After a fault, whose turn comes after that output, all messages but buffers are dropped.
template <typename Work>
bool Session<Work>::TakesInput() const {
  constexpr size_t kMaxInputs = 1024;
  constexpr size_t kMaxInputHeaderBytes = size_t{1} << 20;
  absl::MutexLock lock(&mutex_);
  if (half_closed_ || outlet_.is_closed()) return false;
  if (InputIsOver()) return outlet_.waits_for_buffer();
  if (inputs_.empty()) return WindowIsOpen() || outlet_.uses_buffers();
  const Input<Request>& last = inputs_.back();
  return (last.is_shared || last.is_header) && inputs_.size() < kMaxInputs && header_bytes_ < kMaxInputHeaderBytes &&
         outlet_.uses_buffers();
}

template <typename Work>
bool Session<Work>::Pop(Outgoing<Response>& outgoing) {
  outgoing = {};
  bool half_closed = false;
  {
    absl::MutexLock lock(&mutex_);
    half_closed = half_closed_;
  }
  const absl::StatusOr<bool> popped = outlet_.Next(half_closed, outgoing);
  if (!popped.ok()) FailOutput(popped.status());
  Feed();
  // What was fed may have released input at once.
  return popped.value_or(false) || outlet_.NextRelease(outgoing);
}

// Ends the stream with this status, whatever else there is to come.
template <typename Work>
void Session<Work>::FailOutput(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    output_status_ = status;
    outlet_.Close();
  }
  stream_.Cancel();
  Fail(status);
}

template <typename Work>
bool Session<Work>::done() const {
  absl::MutexLock lock(&mutex_);
  return flushed_ && (outlet_.is_closed() || work_.outbox().empty());
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
  if (!work_.error().ok()) stream_.Cancel();
  Feed();
  if (WorthWaking(change)) wake_();
}

// A response costs about the same whatever its size, so a few blocks go out together. Nothing waits when no other block
// will come to wake for it.
template <typename Work>
bool Session<Work>::WorthWaking(Change change) const {
  constexpr uint64_t kWorthAResponse = uint64_t{256} << 10;
  return change == Change::kEnd || stream_.blocks_in_flight() <= 1 ||
         work_.outbox().waiting_bytes() >= kWorthAResponse || (refused_input_ && TakesInput());
}

template <typename Work>
uint64_t Session<Work>::held_bytes() const {
  return work_.outbox().held_bytes() + stream_.bytes_in_flight() +
         kItemOverheadBytes * uint64_t{stream_.blocks_in_flight()};
}

template <typename Work>
bool Session<Work>::InputIsOver() const {
  return cancelled_ || !input_status_.ok() || (half_closed_ && inputs_.empty()) || !work_.error().ok();
}

// Gives the stream as much of the input as the window takes. Whoever brings input, or takes output, calls.
template <typename Work>
void Session<Work>::Feed() {
  feeding_.Run([this] {
    while (FeedPart()) {
    }
  });
}

// Returns whether there may be more to feed.
template <typename Work>
bool Session<Work>::FeedPart() {
  Input<Request>* input = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    if (flushing_) return false;
    if (InputIsOver()) {
      Flush();
      return false;
    }
    if (inputs_.empty()) {
      feeder_.ReleaseIfIdle();
      return false;
    }
    if (!WindowIsOpen()) return false;
    input = &inputs_.front();  // stays where it is while others are added after it
  }
  const absl::Status status = feeder_.TakePart(*input);
  absl::MutexLock lock(&mutex_);
  if (input_status_.ok()) input_status_ = status;
  if (input->taken()) {
    header_bytes_ -= input->header_bytes;
    inputs_.pop_front();
  }
  return true;
}

// The input is over: what is in flight comes out, and then the end.
template <typename Work>
void Session<Work>::Flush() {
  flushing_ = true;
  inputs_.clear();
  header_bytes_ = 0;
  if (input_status_.ok() && half_closed_) input_status_ = stream_.Finish();
  stream_.Flush([this] { OnFlushed(); });
}

template <typename Work>
void Session<Work>::OnFlushed() {
  {
    absl::MutexLock lock(&mutex_);
    const absl::Status block_error = work_.error();
    status_ = block_error.ok() ? input_status_ : block_error;
    if (status_.ok() && !outlet_.is_closed()) {
      const Clock::time_point now = Clock::now();
      work_.SendStreamReport(std::chrono::duration<double>(now - start_.value_or(now)).count());
    }
    flushed_ = true;
  }
  wake_();
}

template class Session<CompressStreamWork>;
template class Session<DecompressStreamWork>;

}  // namespace kvcompress
