#pragma once

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/net/listener.h"

namespace kvcompress {

// Accepts connections in gRPC's place, to bound their number: gRPC 1.51 accepts all that come, and stops listening for
// good when the process runs out of file descriptors. A connection above a limit is closed at once.
class Acceptor {
 public:
  struct Options {
    size_t max_connections = 1024;
    size_t max_connections_per_client = 1024;  // of one IP address; not of unix sockets
    std::function<void()> on_reject = nullptr;
    // Before a connection goes to its receiver; `peer` as gRPC's calls name it.
    std::function<void(int fd, const std::string& peer)> on_accept = nullptr;
  };
  using Receiver = std::function<void(int fd)>;  // takes the connection over

  explicit Acceptor(Options options);
  ~Acceptor() { Stop(); }

  // Call it before Start.
  void Add(Listener listener, Receiver receiver);
  // RESOURCE_EXHAUSTED without a thread.
  absl::Status Start();
  // Stops listening; open connections stay.
  void Stop();

  // How many are open.
  size_t connections();

 private:
  struct Source {
    Listener listener;
    Receiver receiver;
  };
  // Its receiver closes it; the descriptor's number may belong to another file then, of another inode.
  struct Connection {
    int fd;
    ino_t inode;
    std::string client;
  };

  void Run();
  // Gives a new connection to its receiver, or closes it above a limit.
  void Take(int fd, const Address& from, const Receiver& receiver);
  bool HasRoomFor(const std::string& client);
  void ForgetClosed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  std::vector<Source> sources_;
  int wake_ = -1;  // readable once Run is to end
  std::thread thread_;
  absl::Mutex mutex_;
  std::vector<Connection> open_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, size_t> clients_ ABSL_GUARDED_BY(mutex_);  // open connections of each, none 0
};

// Gives connections to the builder's server, which serves them with these credentials.
Acceptor::Receiver MakeGrpcReceiver(grpc::ServerBuilder& builder,
                                    const std::shared_ptr<grpc::ServerCredentials>& credentials);

}  // namespace kvcompress
