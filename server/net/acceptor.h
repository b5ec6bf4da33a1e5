#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "server/net/listener.h"

namespace kvcompress {

// Takes connections in gRPC's place, to bound how many there are: gRPC 1.51 takes all that come, and stops listening
// for good when the process has no file descriptor left. What comes above a limit is closed at once.
class Acceptor {
 public:
  struct Options {
    size_t max_connections = 1024;
    size_t max_connections_per_client = 1024;  // of one IP address; not of unix sockets
    std::function<void()> on_reject = nullptr;
  };
  using Receiver = std::function<void(int fd)>;  // the connection is its own then

  explicit Acceptor(Options options);
  ~Acceptor() { Stop(); }

  // Before Start.
  void Add(Listener listener, Receiver receiver);
  void Start();
  // Listens no more; connections stay.
  void Stop();

  // That are open now.
  size_t connections();

 private:
  struct Source {
    Listener listener;
    Receiver receiver;
  };
  // A connection that somebody else will close: the number of its descriptor then belongs to nothing or another file.
  struct Connection {
    int fd;
    ino_t inode;
    std::string client;
  };

  void Run();
  // Takes what waits at a socket; false when there are no descriptors left to take it with.
  bool TakeFrom(int socket, const Receiver& receiver);
  bool HasRoomFor(const std::string& client);
  void ForgetClosed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  std::vector<Source> sources_;
  int wake_ = -1;  // readable once it is to stop
  std::thread thread_;
  absl::Mutex mutex_;
  std::vector<Connection> open_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, size_t> clients_ ABSL_GUARDED_BY(mutex_);  // connections of each, none 0
};

}  // namespace kvcompress
