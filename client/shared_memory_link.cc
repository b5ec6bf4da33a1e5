#include "kvcompress/client/shared_memory_link.h"

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>

#include <algorithm>
#include <random>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "kvcompress/base/status_macros.h"
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
    if (!broken_) Break().IgnoreError();
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool is_broken() const { return broken_; }

  absl::StatusOr<v1::SharedMemoryResponse> Ask(const v1::SharedMemoryRequest& request, absl::Time deadline) {
    if (broken_) return absl::UnavailableError("the stream that registers shared memory is lost");
    v1::SharedMemoryResponse response;
    call_->Write(request, this);
    call_->Read(&response, this);
    if (Wait(2, deadline)) return response;
    return Break();
  }

 private:
  // Waits for `count` operations; false when one of them failed or the time is over. All are done then.
  bool Wait(int count, absl::Time deadline) {
    bool all_ok = true;
    for (int done = 0; done < count;) {
      void* tag;
      bool ok = false;
      if (queue_.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline)) == grpc::CompletionQueue::GOT_EVENT) {
        ++done;
      } else {
        context_.TryCancel();
        deadline = absl::InfiniteFuture();
      }
      all_ok = all_ok && ok;
    }
    return all_ok;
  }

  // How the call, which has ended or is cancelled, ended.
  absl::Status Break() {
    broken_ = true;
    grpc::Status status;
    call_->Finish(&status, this);
    Wait(1, absl::InfiniteFuture());
    return status.ok() ? absl::UnavailableError("the daemon has ended the stream") : FromGrpc(status);
  }

  const std::unique_ptr<v1::KvCompression::Stub> stub_;
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::SharedMemoryRequest, v1::SharedMemoryResponse>> call_;
  bool broken_ = false;
};

RegisteredMemory::~RegisteredMemory() {
  v1::SharedMemoryRequest request;
  request.mutable_unregister()->set_name(name_);
  constexpr absl::Duration kPatience = absl::Seconds(1);
  link_->Ask(request, absl::Now() + kPatience)
      .status()
      .IgnoreError();  // a stream that is lost has taken its regions with it
}

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
  return stream_->is_broken();
}

absl::StatusOr<v1::SharedMemoryResponse> SharedMemoryLink::Ask(const v1::SharedMemoryRequest& request,
                                                               absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  return stream_->Ask(request, deadline);
}

absl::StatusOr<std::unique_ptr<RegisteredMemory>> SharedMemoryLink::Register(size_t bytes, absl::Time deadline) {
  const std::string name = RandomName();
  KVC_ASSIGN_OR_RETURN(const SharedMemory object, SharedMemory::Create("/" + prefix_ + name, bytes));
  KVC_ASSIGN_OR_RETURN(SharedMapping mapping, object.Map(0, bytes));
  v1::SharedMemoryRequest request;
  request.mutable_register_()->set_name(name);
  request.mutable_register_()->set_key(object.key());
  request.mutable_register_()->set_byte_size(bytes);
  KVC_ASSIGN_OR_RETURN(const v1::SharedMemoryResponse registered, Ask(request, deadline));
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
