#include "client/remote/send_buffer.h"

#include <grpc/support/sync.h>
#include <grpcpp/version_info.h>

#include "core/base/send_buffer.h"

// gRPC takes something that sets options of sockets before they connect, and does not show in its headers what that is.
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR == 51

// As src/core/lib/iomgr/socket_mutator.h has it.
struct grpc_mutate_socket_info;
struct grpc_socket_mutator_vtable {
  bool (*mutate_fd)(int fd, grpc_socket_mutator* mutator);
  int (*compare)(grpc_socket_mutator* a, grpc_socket_mutator* b);
  void (*destroy)(grpc_socket_mutator* mutator);
  bool (*mutate_fd_2)(const grpc_mutate_socket_info* info, grpc_socket_mutator* mutator);
};
struct grpc_socket_mutator {
  const grpc_socket_mutator_vtable* vtable;
  gpr_refcount refcount;
};
void grpc_socket_mutator_init(grpc_socket_mutator* mutator, const grpc_socket_mutator_vtable* vtable);

namespace kvcompress {
namespace {

// False would end the connection, so what the system does not grant is no fault.
bool Enlarge(int fd, grpc_socket_mutator*) {
  EnlargeSendBuffer(fd);
  return true;
}

// All are alike: what they do is in their functions.
int Compare(grpc_socket_mutator*, grpc_socket_mutator*) { return 0; }

void Destroy(grpc_socket_mutator* mutator) { delete mutator; }

constexpr grpc_socket_mutator_vtable kFunctions = {Enlarge, Compare, Destroy, nullptr};

}  // namespace

void EnlargeSendBuffers(grpc::ChannelArguments& arguments) {
  auto* mutator = new grpc_socket_mutator;
  grpc_socket_mutator_init(mutator, &kFunctions);
  arguments.SetSocketMutator(mutator);  // which owns it
}

}  // namespace kvcompress

#else

namespace kvcompress {

void EnlargeSendBuffers(grpc::ChannelArguments&) {}

}  // namespace kvcompress

#endif
