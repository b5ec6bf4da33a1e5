#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/net/listener.h"

namespace kvcompress {

// Serves a text at /metrics by HTTP, on one thread that waits for no client. Every answer closes its connection.
class MetricsPage {
 public:
  // Open at the same time. One that comes above closes the oldest of the client that has the most: a request that comes
  // in one piece is answered before others are likely to push it out.
  static constexpr size_t kMaxConnections = 64;
  static constexpr size_t kMaxRequestBytes = 8 << 10;  // without a body

  // `text` makes the page, on the thread. A client has `patience` for its request, and as long for the answer.
  // UNAVAILABLE when it cannot listen, RESOURCE_EXHAUSTED without a thread.
  static absl::StatusOr<std::unique_ptr<MetricsPage>> Start(const std::string& address,
                                                            std::function<std::string()> text,
                                                            absl::Duration patience = absl::Seconds(5));
  ~MetricsPage();

  const std::string& address() const { return listener_.address(); }

 private:
  struct Connection {
    int fd;
    std::string client;
    absl::Time deadline;
    std::string request;       // its first line and headers, as far as they are there
    std::string answer;        // what is left of it
    bool half_closed = false;  // the answer is sent; what the client still sends is thrown away until it closes
  };

  MetricsPage(Listener listener, std::function<std::string()> text, absl::Duration patience);
  void Run();
  void Take(int fd, const Address& from);
  void CloseOneOfMost();
  // What has come, or can be sent. False when the connection is over.
  bool GoOn(Connection& connection);
  bool Receive(Connection& connection);
  bool Send(Connection& connection);
  std::string Answer(std::string_view request) const;

  const Listener listener_;
  const std::function<std::string()> text_;
  const absl::Duration patience_;
  const int wake_;                       // readable once Run is to end
  std::vector<Connection> connections_;  // the oldest first
  std::thread thread_;
};

}  // namespace kvcompress
