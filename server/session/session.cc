#include "kvcompress/session/session.h"

#include <algorithm>
#include <utility>

#include "kvcompress/base/status_macros.h"
#include "kvcompress/session/messages.h"

namespace kvcompress {

absl::Status CompressTraits::Begin(Stream& stream, const Request& request, const SessionOptions& options) {
  const v1::CompressHeader& header = request.header();
  if (!header.has_tensor()) return absl::InvalidArgumentError("header without a tensor");
  KVC_ASSIGN_OR_RETURN(TensorDesc tensor, FromMessage(header.tensor()));
  return stream.Begin(std::move(tensor), header.codec().empty() ? options.default_codec : header.codec());
}

absl::Status DecompressTraits::Begin(Stream& stream, const Request& request, const SessionOptions&) {
  // Of a tensor's description only the name comes from the client here.
  KVC_RETURN_IF_ERROR(ValidateTensor({.name = request.header().name(), .shape = {}, .axes = {}}).status());
  return stream.Begin(request.header().name());
}

template <typename Traits>
Session<Traits>::Session(ThreadPool& pool, SessionOptions options, Admission::Ticket ticket, SessionObserver& observer,
                         std::function<void()> wake)
    : options_(std::move(options)),
      wake_(std::move(wake)),
      ticket_(std::move(ticket)),
      sink_(observer, [this] { OnProgress(); }),
      stream_(pool, options_.limits, sink_) {}

template <typename Traits>
Session<Traits>::~Session() {
  Cancel();
}

template <typename Traits>
void Session<Traits>::Push(Request request) {
  {
    absl::MutexLock lock(&mutex_);
    if (!start_) start_ = Clock::now();
    if (InputIsOver()) return;  // a message that was on its way when the stream failed
    input_ = std::move(request);
  }
  Feed();
}

template <typename Traits>
void Session<Traits>::HalfClose() {
  {
    absl::MutexLock lock(&mutex_);
    half_closed_ = true;
  }
  Feed();
}

template <typename Traits>
void Session<Traits>::Fail(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (input_status_.ok()) input_status_ = status;
  }
  Feed();
}

template <typename Traits>
void Session<Traits>::Cancel() {
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    sink_.outbox().Clear();
  }
  stream_.Cancel();
  Feed();
}

template <typename Traits>
bool Session<Traits>::wants_input() const {
  absl::MutexLock lock(&mutex_);
  return !input_ && !half_closed_ && !InputIsOver() && HasRoom();
}

template <typename Traits>
bool Session<Traits>::Pop(Response& response) {
  bool popped = false;
  {
    absl::MutexLock lock(&mutex_);
    popped = sink_.outbox().Pop(response) && !cancelled_;
  }
  Feed();
  return popped;
}

template <typename Traits>
bool Session<Traits>::done() const {
  absl::MutexLock lock(&mutex_);
  return flushed_ && (cancelled_ || sink_.outbox().empty());
}

template <typename Traits>
absl::Status Session<Traits>::status() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_ ? absl::CancelledError("the client has cancelled") : status_;
}

// A block, a report or an error has come out of the stream.
template <typename Traits>
void Session<Traits>::OnProgress() {
  if (!sink_.error().ok()) stream_.Cancel();
  Feed();
  wake_();
}

template <typename Traits>
uint64_t Session<Traits>::held_bytes() const {
  return sink_.outbox().held_bytes() + stream_.bytes_in_flight() +
         kItemOverheadBytes * uint64_t{stream_.blocks_in_flight()};
}

template <typename Traits>
bool Session<Traits>::InputIsOver() const {
  return cancelled_ || !input_status_.ok() || (half_closed_ && !input_) || !sink_.error().ok();
}

// Gives the stream as much of the input as there is room for. Whoever makes room, or brings input, calls; one thread at
// a time does the work, and looks again before it leaves.
template <typename Traits>
void Session<Traits>::Feed() {
  absl::MutexLock lock(&mutex_);
  if (feeding_ || flushing_) return;
  feeding_ = true;
  while (!InputIsOver() && input_ && HasRoom()) {
    mutex_.Unlock();
    const absl::Status status = FeedPart();
    mutex_.Lock();
    if (input_status_.ok()) input_status_ = status;
    if (taken_ == Traits::bytes(*input_).size()) {
      input_.reset();
      taken_ = 0;
    }
  }
  if (!InputIsOver()) {
    if (!input_) ReleaseIfIdle();
  } else {
    flushing_ = true;
    input_.reset();
    if (input_status_.ok() && half_closed_) input_status_ = stream_.Finish();
    stream_.Flush([this] { OnFlushed(); });
  }
  feeding_ = false;
}

// One header, or bytes up to the end of a block.
template <typename Traits>
absl::Status Session<Traits>::FeedPart() {
  const Request& request = *input_;  // stays as it is while feeding_
  if (!Traits::has_bytes(request)) return TakeHeader();
  const std::string& bytes = Traits::bytes(request);
  if (!stream_.in_tensor() && !bytes.empty()) {
    return absl::InvalidArgumentError(begun_ == 0 ? "data before the tensor's header"
                                                  : "data behind the tensor's last byte, before the next header");
  }
  if (bytes.empty()) return absl::OkStatus();
  ByteSpan rest = AsBytes(bytes).subspan(taken_);
  KVC_RETURN_IF_ERROR(stream_.AppendPart(rest));
  taken_ = bytes.size() - rest.size();
  if (reserved_) return absl::OkStatus();
  const std::optional<Footprint> footprint = stream_.footprint();
  return footprint ? Reserve(*footprint) : absl::OkStatus();
}

template <typename Traits>
absl::Status Session<Traits>::TakeHeader() {
  const Request& request = *input_;
  if (!request.has_header()) return absl::InvalidArgumentError("message without a payload");
  KVC_RETURN_IF_ERROR(Traits::Begin(stream_, request, options_));
  ++begun_;
  reserved_ = false;
  const std::optional<Footprint> footprint = stream_.footprint();
  return footprint ? Reserve(*footprint) : absl::OkStatus();
}

// Asks for all that the stream may hold with this tensor: of the tensors that pass through, in and out, the window and
// the block that overfills it; of those that are held whole, everything.
template <typename Traits>
absl::Status Session<Traits>::Reserve(const Footprint& footprint) {
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
template <typename Traits>
void Session<Traits>::ReleaseIfIdle() {
  if (streamed_bytes_ == 0 || sink_.totals().tensors != begun_ || !sink_.outbox().empty()) return;
  whole_.clear();
  streamed_bytes_ = 0;
  ticket_.Resize(0).IgnoreError();  // less is always granted
}

template <typename Traits>
void Session<Traits>::OnFlushed() {
  {
    absl::MutexLock lock(&mutex_);
    const absl::Status block_error = sink_.error();
    status_ = block_error.ok() ? input_status_ : block_error;
    if (status_.ok() && !cancelled_) {
      const Clock::time_point now = Clock::now();
      sink_.SendStreamReport(std::chrono::duration<double>(now - start_.value_or(now)).count());
    }
    flushed_ = true;
  }
  wake_();
}

template class Session<CompressTraits>;
template class Session<DecompressTraits>;

}  // namespace kvcompress
