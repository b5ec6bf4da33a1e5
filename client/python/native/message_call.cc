#include "client/python/native/message_call.h"

#include <grpc/grpc.h>
#include <grpcpp/channel.h>

#include <algorithm>
#include <initializer_list>
#include <list>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "client/remote/channel.h"
#include "client/remote/exchange.h"
#include "client/remote/shared_exchange.h"
#include "core/base/allocator.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "core/frame_plan.h"
#include "proto/wire/headers/headers.h"

namespace kvcompress {
namespace {

// What gRPC may still read of calls that are over.
class Lent {
 public:
  void Keep(SliceReader slices, std::shared_ptr<const void> owner) {
    std::list<Loan> over;  // whose owners are destroyed after the lock
    absl::MutexLock lock(&mutex_);
    for (auto loan = loans_.begin(); loan != loans_.end();) {
      const auto next = std::next(loan);
      if (IsOver(loan->slices)) over.splice(over.end(), loans_, loan);
      loan = next;
    }
    if (!IsOver(slices)) loans_.push_back({std::move(slices), std::move(owner)});
  }

 private:
  struct Loan {
    SliceReader slices;
    std::shared_ptr<const void> owner;
  };
  static bool IsOver(SliceReader& slices) { return slices.WaitUntilReleased(absl::InfinitePast()); }

  absl::Mutex mutex_;
  std::list<Loan> loans_ ABSL_GUARDED_BY(mutex_);
};

Lent& LentBytes() {
  static auto& lent = *new Lent;  // never destroyed: calls may be after the end of main
  return lent;
}

// Pieces at any distances, gathered a part at a time; what is one piece is read where it stands.
class StridedSource final : public ByteSource {
 public:
  explicit StridedSource(StridedSpan<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t size() const override { return bytes_.left(); }

  absl::StatusOr<ByteSpan> Get(uint64_t offset, size_t count, std::vector<std::byte>& scratch) const override {
    if (offset > size() || count > size() - offset) return absl::OutOfRangeError("read past the end of the values");
    StridedSpan<const std::byte> rest = bytes_;
    rest.Skip(offset);
    if (const ByteSpan together = rest.Together(); together.size() >= count) return together.first(count);
    scratch.resize(count);
    rest.Read(scratch);
    return ByteSpan(scratch);
  }

 private:
  const StridedSpan<const std::byte> bytes_;
};

// By the codec that the header names: empty where it leaves the choice to the daemon, or names what only that has.
std::optional<uint64_t> MaxFrameBytesOf(CompressHeaders& headers, const v1::CompressHeader& header) {
  const absl::StatusOr<CompressHeaders::Job> job = headers.Read(header, /*default_codec=*/"");
  if (!job.ok() || job->codec.empty()) return std::nullopt;
  const absl::StatusOr<uint64_t> bytes = MaxFrameBytes(job->tensor, job->codec);
  return bytes.ok() ? std::optional(*bytes) : std::nullopt;
}

template <typename D>
class Call final : public MessageCall {
 public:
  using Replies = MessageReplies<D>;

  Call(std::shared_ptr<grpc::Channel> channel, std::shared_ptr<const void> owner, const MessageCallOptions& options,
       MessageSink& sink)
      : channel_(std::move(channel)), owner_(std::move(owner)), options_(options), sink_(sink) {}
  ~Call() override {
    stream_.reset();
    exchange_.reset();
    LentBytes().Keep(std::move(slices_), std::move(owner_));
  }

  absl::Status Begin(const std::vector<MessageItem>& items) {
    sources_.reserve(items.size());
    jobs_.reserve(items.size());
    CompressHeaders headers;
    for (const MessageItem& item : items) {
      MessageJob<D>& job = jobs_.emplace_back();
      if (!job.header.ParseFromArray(item.header.data(), static_cast<int>(item.header.size()))) {
        return absl::InvalidArgumentError("a header that is no message");
      }
      job.source = &sources_.emplace_back(item.bytes);
      if constexpr (std::is_same_v<D, CompressDirection>) {
        const bool is_stream = options_.way == MessageCallOptions::Way::kStream;
        if (is_stream) job.most_frame_bytes = MaxFrameBytesOf(headers, job.header);
      }
      if (item.place.empty()) continue;
      if (!job.place.emplace().ParseFromArray(item.place.data(), static_cast<int>(item.place.size()))) {
        return absl::InvalidArgumentError("a place that is no message");
      }
    }
    if (options_.way == MessageCallOptions::Way::kMessage) return absl::OkStatus();
    if (options_.region.empty()) {
      exchange_ = std::make_unique<ByteExchange<Replies>>("", jobs_, options_.deadline, sink_, delivery_, slices_,
                                                          options_.batches);
    } else {
      exchange_ = std::make_unique<SharedExchange<Replies>>(
          "", jobs_, options_.deadline, sink_, delivery_, options_.batches, nullptr,
          CallMemory(options_.region, options_.region_number), options_.output_is_larger);
    }
    stream_ = std::make_unique<StreamCall>(channel_, MethodPath<typename D::Request>(), options_.deadline, *exchange_);
    return absl::OkStatus();
  }

  std::optional<StreamEnd> Run(CallWatch& watch) override {
    if (stream_ != nullptr) return stream_->Run(&watch);
    return CallTensor<Replies>(channel_, options_.deadline, "", jobs_.front(), sink_, delivery_, slices_, &watch);
  }
  void Cancel() override {
    if (stream_ != nullptr) stream_->Cancel();
  }
  std::optional<uint64_t> MostFrameBytes(size_t item) const override { return jobs_[item].most_frame_bytes; }

 private:
  const std::shared_ptr<grpc::Channel> channel_;
  std::shared_ptr<const void> owner_;
  const MessageCallOptions options_;
  MessageSink& sink_;
  std::vector<StridedSource> sources_;
  std::vector<MessageJob<D>> jobs_;
  Delivery delivery_;
  SliceReader slices_;
  std::unique_ptr<StreamHandler> exchange_;
  std::unique_ptr<StreamCall> stream_;
};

// The state of a channel that connects, once it is one of `states`, or at the deadline.
grpc_connectivity_state AwaitState(grpc::Channel& channel, std::initializer_list<grpc_connectivity_state> states,
                                   absl::Time deadline) {
  for (;;) {
    const grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
    if (std::ranges::count(states, state) > 0) return state;
    if (!channel.WaitForStateChange(state, absl::ToChronoTime(deadline))) return state;
  }
}

template <typename D>
absl::StatusOr<std::unique_ptr<MessageCall>> Begin(const std::shared_ptr<MessageChannel>& channel,
                                                   const std::vector<MessageItem>& items,
                                                   std::shared_ptr<const void> owner, const MessageCallOptions& options,
                                                   MessageSink& sink) {
  channel->Reconnect(options.deadline);
  auto call = std::make_unique<Call<D>>(channel->grpc(), std::move(owner), options, sink);
  KVC_RETURN_IF_ERROR(call->Begin(items));
  return call;
}

}  // namespace

absl::StatusOr<std::shared_ptr<MessageChannel>> MessageChannel::Make(const ChannelOptions& options) {
  grpc_init();  // for good: gRPC reads its environment once
  KeepFreedChunks();
  // gRPC ends the process when it cannot start a thread.
  KVC_RETURN_IF_ERROR(ThreadReserve::Take(GrpcThreads()).status());
  return std::shared_ptr<MessageChannel>(new MessageChannel(options));
}

MessageChannel::MessageChannel(const ChannelOptions& options) : options_(options), channel_(MakeChannel()) {}

std::shared_ptr<grpc::Channel> MessageChannel::MakeChannel() const {
  RemoteOptions remote;
  remote.tls = options_.tls;
  remote.token = options_.token;
  return kvcompress::MakeChannel(ChannelTarget{.uri = options_.target}, remote);
}

void MessageChannel::Reconnect(absl::Time deadline) {
  if (channel_->GetState(/*try_to_connect=*/true) != GRPC_CHANNEL_TRANSIENT_FAILURE) return;
  constexpr absl::Duration kPatience = absl::Milliseconds(300);
  // No more than the first wait of a call that is made again.
  constexpr absl::Duration kGap = absl::Milliseconds(100);
  const absl::Time limit = std::min(deadline, absl::Now() + kPatience);
  const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !reconnects_; };
  absl::MutexLock lock(&mutex_);
  // What the last attempt has found the channel's state says, to those who waited for it, too.
  if (!mutex_.AwaitWithDeadline(absl::Condition(&settled), limit) || absl::Now() < next_attempt_) return;
  reconnects_ = true;
  mutex_.Unlock();
  if (IsTaken(limit)) {
    grpc::experimental::ChannelResetConnectionBackoff(channel_.get());
    AwaitState(*channel_, {GRPC_CHANNEL_READY}, limit);
  }
  mutex_.Lock();
  reconnects_ = false;
  next_attempt_ = absl::Now() + kGap;
}

// Whether the daemon takes a connection. One that has failed tells nobody when it fails again, so this is another. gRPC
// 1.51 looks at errno late, and takes some connections that are under way for failed ones: so the first failure does
// not count.
bool MessageChannel::IsTaken(absl::Time deadline) const {
  for (int attempt = 0; attempt < 2; ++attempt) {
    const std::shared_ptr<grpc::Channel> fresh = MakeChannel();
    const auto state = AwaitState(*fresh, {GRPC_CHANNEL_READY, GRPC_CHANNEL_TRANSIENT_FAILURE}, deadline);
    if (state == GRPC_CHANNEL_READY) return true;
  }
  return false;
}

absl::StatusOr<std::unique_ptr<MessageCall>> MessageCall::Compress(const std::shared_ptr<MessageChannel>& channel,
                                                                   const std::vector<MessageItem>& items,
                                                                   std::shared_ptr<const void> owner,
                                                                   const MessageCallOptions& options,
                                                                   MessageSink& sink) {
  return Begin<CompressDirection>(channel, items, std::move(owner), options, sink);
}

absl::StatusOr<std::unique_ptr<MessageCall>> MessageCall::Decompress(const std::shared_ptr<MessageChannel>& channel,
                                                                     const std::vector<MessageItem>& items,
                                                                     std::shared_ptr<const void> owner,
                                                                     const MessageCallOptions& options,
                                                                     MessageSink& sink) {
  return Begin<DecompressDirection>(channel, items, std::move(owner), options, sink);
}

}  // namespace kvcompress
