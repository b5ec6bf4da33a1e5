#include "server/net/acceptor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "core/base/send_buffer.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "server/net/address.h"

namespace kvcompress {

Acceptor::Acceptor(Options options) : options_(std::move(options)), wake_(eventfd(0, EFD_CLOEXEC)) {}

void Acceptor::Add(Listener listener, Receiver receiver) {
  sources_.push_back({std::move(listener), std::move(receiver)});
}

absl::Status Acceptor::Start() {
  KVC_ASSIGN_OR_RETURN(thread_, StartThread([this] { Run(); }));
  return absl::OkStatus();
}

void Acceptor::Stop() {
  if (thread_.joinable()) {
    eventfd_write(wake_, 1);
    thread_.join();
  }
  sources_.clear();
  if (wake_ >= 0) close(std::exchange(wake_, -1));
}

void Acceptor::Run() {
  std::vector<pollfd> waiting = {{wake_, POLLIN, 0}};
  std::vector<const Receiver*> receivers = {nullptr};
  for (const Source& source : sources_) {
    for (const int fd : source.listener.sockets()) {
      waiting.push_back({fd, POLLIN, 0});
      receivers.push_back(&source.receiver);
    }
  }
  for (bool tired = false;;) {
    // Without descriptors the connections that wait would wake us at once: others must close some first.
    constexpr int kPauseMs = 50;
    poll(waiting.data(), tired ? 1 : waiting.size(), tired ? kPauseMs : -1);
    tired = false;
    if (waiting[0].revents != 0) return;
    for (size_t i = 1; i < waiting.size(); ++i) {
      constexpr size_t kTurn = 64;  // then the other sockets have theirs
      const auto take = [&](int fd, const Address& from) { Take(fd, from, *receivers[i]); };
      if (!AcceptWaiting(waiting[i].fd, kTurn, take)) tired = true;
    }
  }
}

void Acceptor::Take(int fd, const Address& from, const Receiver& receiver) {
  const std::string client = ClientOfHost(from.host);
  if (!HasRoomFor(client)) {
    // First, so that it has been counted when the client sees it.
    if (options_.on_reject != nullptr) options_.on_reject();
    close(fd);
    return;
  }
  {
    absl::MutexLock lock(&mutex_);
    open_.push_back({fd, InodeOf(fd), client});
    if (!client.empty()) ++clients_[client];
  }
  if (from.host.empty()) {
    EnlargeSendBuffer(fd);  // to hold whole what is usually sent at once, 256 KiB of a frame or of values
  } else if (options_.on_accept != nullptr) {
    options_.on_accept(fd, PeerOf(from));
  }
  receiver(fd);
}

bool Acceptor::HasRoomFor(const std::string& client) {
  absl::MutexLock lock(&mutex_);
  const auto has_room = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto count = clients_.find(client);
    return open_.size() < options_.max_connections &&
           (count == clients_.end() || count->second < options_.max_connections_per_client);
  };
  if (has_room()) return true;
  ForgetClosed();
  return has_room();
}

void Acceptor::ForgetClosed() {
  std::erase_if(open_, [&](const Connection& connection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (InodeOf(connection.fd) == connection.inode) return false;
    const auto count = clients_.find(connection.client);
    if (count != clients_.end() && --count->second == 0) clients_.erase(count);
    return true;
  });
}

size_t Acceptor::connections() {
  absl::MutexLock lock(&mutex_);
  ForgetClosed();
  return open_.size();
}

Acceptor::Receiver MakeGrpcReceiver(grpc::ServerBuilder& builder,
                                    const std::shared_ptr<grpc::ServerCredentials>& credentials) {
  using grpc::experimental::ExternalConnectionAcceptor;
  const std::shared_ptr<ExternalConnectionAcceptor> grpc_side = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials);
  return [grpc_side](int fd) {
    ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd;
    grpc_side->HandleNewConnection(&connection);
  };
}

}  // namespace kvcompress
