#include "client/remote/shared_memory_link.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <algorithm>
#include <deque>
#include <random>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "core/base/status_macros.h"
#include "kvcompress/v1/kvcompress.grpc.pb.h"

namespace kvcompress {
namespace {

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

// 128 random bits.
std::string RandomName() {
  std::random_device random;
  return absl::StrFormat("%08x%08x%08x%08x", random(), random(), random(), random());
}

}  // namespace

// One call whose questions are answered one at a time.
class SharedMemoryLink::Stream {
 public:
  explicit Stream(const std::shared_ptr<grpc::Channel>& channel) : stub_(v1::KvCompression::NewStub(channel)) {
    context_.set_initial_metadata_corked(true);  // they leave with the first question
    call_ = stub_->PrepareAsyncSharedMemory(&context_, &queue_);
    call_->StartCall(nullptr);
  }

  ~Stream() {
    context_.TryCancel();
    if (!broken_) {
      Wait(absl::InfiniteFuture());
      Break().IgnoreError();
    }
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool is_broken() const { return broken_; }

  absl::StatusOr<v1::SharedMemoryResponse> Ask(v1::SharedMemoryRequest request, absl::Time deadline) {
    questions_.push_back(std::move(request));
    while (!broken_ && !questions_.empty()) {
      if (!Wait(deadline)) return Break();
      Begin();
    }
    if (broken_) return absl::UnavailableError("the stream that registers shared memory is lost");
    if (!Wait(deadline)) return Break();
    return std::move(response_);
  }

  // Does not wait for the answer. It waits a moment for the answer to the question before, which has to come first; if
  // the daemon takes longer, this question is asked before the next one.
  void AskInPassing(v1::SharedMemoryRequest request) {
    constexpr absl::Duration kPatience = absl::Milliseconds(50);
    questions_.push_back(std::move(request));
    while (!broken_ && !questions_.empty()) {
      const bool answered = Collect(absl::Now() + kPatience);
      if (answered && !all_ok_) Break().IgnoreError();
      if (!answered || broken_) return;
      Begin();
    }
  }

 private:
  void Begin() {
    response_.Clear();
    call_->Write(questions_.front(), this);
    call_->Read(&response_, this);
    outstanding_ = 2;
    questions_.pop_front();
  }

  // Takes operations that are done; false if the deadline passes before all are.
  bool Collect(absl::Time deadline) {
    while (outstanding_ > 0) {
      void* tag;
      bool ok = false;
      if (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline)) != grpc::CompletionQueue::GOT_EVENT) return false;
      --outstanding_;
      all_ok_ = all_ok_ && ok;
    }
    return true;
  }

  // Waits for the operations under way; false if one failed or the deadline passed. In any case all are done then.
  bool Wait(absl::Time deadline) {
    if (!Collect(deadline)) {
      context_.TryCancel();
      Collect(absl::InfiniteFuture());
      all_ok_ = false;
    }
    return all_ok_;
  }

  // The error that the call has ended with. Only when it has ended or is cancelled.
  absl::Status Break() {
    broken_ = true;
    questions_.clear();
    grpc::Status status;
    call_->Finish(&status, this);
    outstanding_ = 1;
    Collect(absl::InfiniteFuture());
    return status.ok() ? absl::UnavailableError("the daemon has ended the stream") : FromGrpc(status);
  }

  const std::unique_ptr<v1::KvCompression::Stub> stub_;
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::SharedMemoryRequest, v1::SharedMemoryResponse>> call_;
  std::deque<v1::SharedMemoryRequest> questions_;  // not asked yet
  v1::SharedMemoryResponse response_;              // to the last that was
  int outstanding_ = 0;                            // operations
  bool all_ok_ = true;
  bool broken_ = false;
};

RegisteredMemory::~RegisteredMemory() { link_->Unregister(name_); }

bool RegisteredMemory::output_is_larger() const { return link_->output_is_larger_; }

void RegisteredMemory::OnLargerOutput() { link_->output_is_larger_ = true; }

absl::StatusOr<std::shared_ptr<SharedMemoryLink>> SharedMemoryLink::Open(const std::shared_ptr<grpc::Channel>& channel,
                                                                         absl::Time deadline) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  v1::CapabilitiesResponse response;
  const grpc::Status status =
      v1::KvCompression::NewStub(channel)->Capabilities(&context, v1::CapabilitiesRequest(), &response);
  if (!status.ok()) return FromGrpc(status);
  if (std::ranges::count(response.transports(), v1::TRANSPORT_SHARED_MEMORY) == 0) {
    return absl::UnimplementedError("the daemon does not offer shared memory");
  }
  return std::shared_ptr<SharedMemoryLink>(
      new SharedMemoryLink(std::make_unique<Stream>(channel), response.shared_memory_prefix()));
}

SharedMemoryLink::SharedMemoryLink(std::unique_ptr<Stream> stream, std::string prefix)
    : prefix_(std::move(prefix)), stream_(std::move(stream)) {}

SharedMemoryLink::~SharedMemoryLink() = default;

bool SharedMemoryLink::is_lost() const {
  absl::MutexLock lock(&mutex_);
  return lost_;
}

absl::StatusOr<v1::SharedMemoryResponse> SharedMemoryLink::Ask(const v1::SharedMemoryRequest& request,
                                                               absl::Time deadline) {
  const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !asking_; };
  absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithDeadline(absl::Condition(&idle), deadline)) {
    return absl::AbortedError("it was not this question's turn in time");
  }
  asking_ = true;
  mutex_.Unlock();
  absl::StatusOr<v1::SharedMemoryResponse> response = stream_->Ask(request, deadline);
  mutex_.Lock();
  asking_ = false;
  UnregisterNow();
  return response;
}

void SharedMemoryLink::Unregister(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  unregister_.push_back(name);
  if (!asking_) UnregisterNow();
}

// A stream that is lost has taken its regions with it.
void SharedMemoryLink::UnregisterNow() {
  for (const std::string& name : unregister_) {
    v1::SharedMemoryRequest request;
    request.mutable_unregister()->set_name(name);
    stream_->AskInPassing(std::move(request));
  }
  unregister_.clear();
  lost_ = stream_->is_broken();
}

// A daemon that gives a stream no keys of its own takes any that begin as those of all clients.
absl::StatusOr<std::string> SharedMemoryLink::KeyPrefix(absl::Time deadline) {
  {
    absl::MutexLock lock(&mutex_);
    if (!key_prefix_.empty()) return key_prefix_;
  }
  v1::SharedMemoryRequest request;
  request.mutable_status();
  KVC_ASSIGN_OR_RETURN(const v1::SharedMemoryResponse response, Ask(request, deadline));
  absl::MutexLock lock(&mutex_);
  key_prefix_ = response.own_key_prefix().empty() ? prefix_ : response.own_key_prefix();
  return key_prefix_;
}

absl::StatusOr<std::unique_ptr<RegisteredMemory>> SharedMemoryLink::Register(size_t bytes, absl::Time deadline) {
  const std::string name = RandomName();
  KVC_ASSIGN_OR_RETURN(const std::string key_prefix, KeyPrefix(deadline));
  KVC_ASSIGN_OR_RETURN(SharedMemory object, SharedMemory::Create("/" + key_prefix + name, bytes));
  v1::SharedMemoryRequest request;
  request.mutable_register_()->set_name(name);
  request.mutable_register_()->set_key(object.key());
  request.mutable_register_()->set_byte_size(bytes);
  KVC_ASSIGN_OR_RETURN(const v1::SharedMemoryResponse registered, Ask(request, deadline));
  object.Unlink();
  KVC_ASSIGN_OR_RETURN(SharedMapping mapping, object.Map(0, bytes));
  if (registered.challenge().size() > bytes) return absl::InternalError("its challenge is larger than the region");
  std::ranges::copy(AsBytes(registered.challenge()), mapping.bytes().begin());
  request.mutable_confirm()->set_name(name);
  KVC_ASSIGN_OR_RETURN(const v1::SharedMemoryResponse confirmed, Ask(request, deadline));
  if (confirmed.regions_size() != 1 || confirmed.regions(0).name() != name || confirmed.regions(0).region() == 0) {
    return absl::InternalError("its answer is not about the region that was confirmed");
  }
  return std::make_unique<RegisteredMemory>(shared_from_this(), name, std::move(mapping),
                                            confirmed.regions(0).region());
}

}  // namespace kvcompress
