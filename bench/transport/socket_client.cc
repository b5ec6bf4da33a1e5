#include <thread>
#include <vector>

#include "bench/transport/contestant.h"
#include "bench/transport/socket.h"
#include "core/base/status_macros.h"

namespace kvcompress::bench {
namespace {

constexpr size_t kReceiveBytes = size_t{256} << 10;

absl::StatusOr<std::unique_ptr<Socket>> Open(const Workload& workload, const std::string& address) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<Socket> socket, Socket::Connect(address));
  const SocketHello hello = {workload.tensor_bytes, workload.frame_bytes};
  if (!socket->Send(std::as_bytes(std::span(&hello, 1)))) return absl::UnavailableError("the connection has ended");
  return socket;
}

// One connection and two threads a stream.
class SocketStreams final : public Contestant {
 public:
  SocketStreams(const Workload& workload, std::string address) : workload_(workload), address_(std::move(address)) {}

  absl::Status Run(Progress& progress) override {
    std::vector<std::unique_ptr<Socket>> sockets;
    while (sockets.size() < workload_.streams) {
      KVC_ASSIGN_OR_RETURN(std::unique_ptr<Socket> socket, Open(workload_, address_));
      sockets.push_back(std::move(socket));
    }
    std::vector<std::thread> threads;
    for (size_t i = 0; i < sockets.size(); ++i) {
      threads.emplace_back([&socket = *sockets[i], this, at = i * size_t{workload_.message_bytes}]() mutable {
        while (socket.Send(Values().subspan(at % kBufferBytes, workload_.message_bytes))) at += workload_.message_bytes;
      });
      threads.emplace_back([&socket = *sockets[i], &progress] {
        std::vector<std::byte> buffer(kReceiveBytes);
        while (const size_t count = socket.ReceiveSome(buffer)) progress.Add(count);
      });
    }
    progress.WaitForStop();
    for (const auto& socket : sockets) socket->ShutDown();
    for (std::thread& thread : threads) thread.join();
    return absl::OkStatus();
  }

 private:
  const Workload workload_;
  const std::string address_;
};

class SocketCaller final : public Caller {
 public:
  SocketCaller(const Workload& workload, std::unique_ptr<Socket> socket)
      : workload_(workload), socket_(std::move(socket)), answer_(static_cast<size_t>(workload.frame_bytes)) {}

  absl::Status Call() override {
    const bool good =
        socket_->Send(Values().first(static_cast<size_t>(workload_.tensor_bytes))) && socket_->Receive(answer_);
    return good ? absl::OkStatus() : absl::UnavailableError("the connection has ended");
  }

 private:
  const Workload workload_;
  const std::unique_ptr<Socket> socket_;
  std::vector<std::byte> answer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Contestant>> NewSocketStreams(const Workload& workload, const std::string& address) {
  return std::make_unique<SocketStreams>(workload, address);
}

absl::StatusOr<std::unique_ptr<Caller>> NewSocketCaller(const Workload& workload, const std::string& address) {
  KVC_ASSIGN_OR_RETURN(std::unique_ptr<Socket> socket, Open(workload, address));
  return std::make_unique<SocketCaller>(workload, std::move(socket));
}

}  // namespace kvcompress::bench
