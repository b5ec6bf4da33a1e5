#include "server/session/admission.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "core/base/size_text.h"

namespace kvcompress {
namespace {

using std::chrono::milliseconds;

// When somebody else's call will be over cannot be known.
constexpr milliseconds kRetryAfter{100};
constexpr milliseconds kNoRetry{0};

}  // namespace

std::string_view RejectReasonName(RejectReason reason) {
  switch (reason) {
    case RejectReason::kDraining: return "draining";
    case RejectReason::kMaxStreams: return "max_streams";
    case RejectReason::kMaxStreamsPerClient: return "max_streams_per_client";
    case RejectReason::kMaxCallRatePerClient: return "max_call_rate_per_client";
    case RejectReason::kMemoryBudget: return "memory_budget";
    case RejectReason::kTensorTooLarge: return "tensor_too_large";
    case RejectReason::kMaxConnections: return "max_connections";
    case RejectReason::kConnectionMemory: return "connection_memory";
    case RejectReason::kUnauthenticated: return "unauthenticated";
    case RejectReason::kStreamIdle: return "stream_idle";
  }
  return "";
}

// The switch above, of which the compiler sees that it has every reason, ends the list.
std::vector<RejectReason> AllRejectReasons() {
  std::vector<RejectReason> reasons;
  for (int i = 0; !RejectReasonName(RejectReason{i}).empty(); ++i) reasons.push_back(RejectReason{i});
  return reasons;
}

Admission::Ticket& Admission::Ticket::operator=(Ticket&& other) noexcept {
  if (this != &other) {
    Release();
    admission_ = std::exchange(other.admission_, nullptr);
    client_ = std::move(other.client_);
    share_ = std::move(other.share_);
    stream_settled_ = std::exchange(other.stream_settled_, false);
  }
  return *this;
}

void Admission::Ticket::Settle() {
  if (admission_ == nullptr) return;
  SettleStream();
  absl::MutexLock lock(&admission_->mutex_);
  admission_->SetShare(*share_, 0, 0);
}

void Admission::Ticket::SettleStream() {
  if (admission_ == nullptr || std::exchange(stream_settled_, true)) return;
  absl::MutexLock lock(&admission_->mutex_);
  --admission_->streams_;
  if (!client_.empty()) {
    const auto count = admission_->clients_.find(client_);
    if (--count->second == 0) admission_->clients_.erase(count);
  }
}

void Admission::Ticket::Release() {
  if (admission_ == nullptr) return;
  Settle();
  absl::MutexLock lock(&admission_->mutex_);
  --admission_->open_;
  admission_ = nullptr;
}

absl::Status Admission::Ticket::Promise(uint64_t bytes, uint64_t backed) {
  const uint64_t budget = admission_->options_.memory_budget;
  if (bytes > budget) {
    return admission_->Reject(
        RejectReason::kTensorTooLarge,
        absl::ResourceExhaustedError(absl::StrFormat("the stream needs %s of memory, the whole --memory-budget is %s",
                                                     SizeText(bytes), SizeText(budget))),
        kNoRetry);
  }
  uint64_t others = 0;
  {
    absl::MutexLock lock(&admission_->mutex_);
    others = admission_->bytes_ - share_->bytes;
    if (bytes > budget - others) admission_->TakeBack(bytes - (budget - others), *share_);
    others = admission_->bytes_ - share_->bytes;
    if (bytes <= budget - others) {
      admission_->SetShare(*share_, bytes, backed);
      return absl::OkStatus();
    }
  }
  return admission_->Reject(RejectReason::kMemoryBudget,
                            absl::ResourceExhaustedError(absl::StrFormat(
                                "the stream needs %s of memory, other streams hold %s of the --memory-budget of %s",
                                SizeText(bytes), SizeText(others), SizeText(budget))),
                            kRetryAfter);
}

absl::Status Admission::Ticket::Count(absl::Status status) const {
  if (!absl::IsResourceExhausted(status)) return status;
  return admission_->Reject(RejectReason::kTensorTooLarge, std::move(status), kNoRetry);
}

Admission::Admission(Options options) : options_(std::move(options)) {
  if (options_.max_call_rate_per_client > 0) rates_.emplace(options_.max_call_rate_per_client);
}

void Admission::SetShare(Share& share, uint64_t bytes, uint64_t backed) {
  bytes_ += bytes - share.bytes;
  share = {bytes, backed};
  if (backed < bytes) {
    promises_.insert(&share);
  } else {
    promises_.erase(&share);
  }
}

void Admission::TakeBack(uint64_t bytes, const Share& asking) {
  std::vector<Share*> others;
  uint64_t found = 0;
  for (Share* share : promises_) {
    if (found >= bytes) break;
    if (share == &asking) continue;
    others.push_back(share);
    found += share->bytes - share->backed;
  }
  if (found < bytes) return;
  for (Share* share : others) SetShare(*share, share->backed, share->backed);
}

CallRates::Clock::duration Admission::TakeCall(const std::string& client) {
  if (!rates_ || client.empty()) return CallRates::Clock::duration::zero();
  return rates_->Take(client, CallRates::Clock::now());
}

absl::Status Admission::RejectCall(CallRates::Clock::duration wait) const {
  return Reject(RejectReason::kMaxCallRatePerClient,
                absl::ResourceExhaustedError(absl::StrFormat("the limit of %d calls a second of one client is reached",
                                                             options_.max_call_rate_per_client)),
                std::chrono::ceil<milliseconds>(wait));
}

absl::Status Admission::AdmitCall(const std::string& client) {
  CallRates::Clock::duration wait{};
  {
    absl::MutexLock lock(&mutex_);
    wait = TakeCall(client);
  }
  return wait > CallRates::Clock::duration::zero() ? RejectCall(wait) : absl::OkStatus();
}

absl::StatusOr<Admission::Ticket> Admission::AdmitStream(std::string client) {
  bool draining = false;
  bool full = false;
  CallRates::Clock::duration wait{};
  {
    absl::MutexLock lock(&mutex_);
    draining = draining_;
    if (!draining) wait = TakeCall(client);
    full = streams_ >= options_.max_streams;
    const auto count = clients_.find(client);
    const size_t of_client = count == clients_.end() ? 0 : count->second;
    const bool in_time = wait == CallRates::Clock::duration::zero();
    if (!draining && in_time && !full && of_client < options_.max_streams_per_client) {
      ++streams_;
      ++open_;
      if (!client.empty()) ++clients_[client];
      return Ticket(this, std::move(client));
    }
  }
  if (draining) return Reject(RejectReason::kDraining, absl::UnavailableError("the server is draining"), kNoRetry);
  if (wait > CallRates::Clock::duration::zero()) return RejectCall(wait);
  if (full) {
    return Reject(
        RejectReason::kMaxStreams,
        absl::ResourceExhaustedError(absl::StrFormat("the limit of %d streams is reached", options_.max_streams)),
        kRetryAfter);
  }
  return Reject(RejectReason::kMaxStreamsPerClient,
                absl::ResourceExhaustedError(absl::StrFormat("the limit of %d streams of one client is reached",
                                                             options_.max_streams_per_client)),
                kRetryAfter);
}

absl::Status Admission::Reject(RejectReason reason, absl::Status status, milliseconds retry_after) const {
  if (options_.on_reject != nullptr) options_.on_reject(reason);
  if (retry_after > kNoRetry) {
    status.SetPayload(absl::string_view(kRetryPushbackUrl.data(), kRetryPushbackUrl.size()),
                      absl::Cord(std::to_string(retry_after.count())));
  }
  return status;
}

void Admission::StartDraining() {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
}

bool Admission::draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

bool Admission::WaitUntilIdle(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open_ == 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&idle), timeout);
}

size_t Admission::streams() const {
  absl::MutexLock lock(&mutex_);
  return streams_;
}

uint64_t Admission::bytes() const {
  absl::MutexLock lock(&mutex_);
  return bytes_;
}

}  // namespace kvcompress
