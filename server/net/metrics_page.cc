#include "server/net/metrics_page.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "server/net/address.h"

namespace kvcompress {
namespace {

constexpr std::string_view kEndOfHeaders = "\r\n\r\n";

std::string Response(std::string_view status, std::string_view headers, std::string_view body, bool with_body) {
  return absl::StrFormat(
      "HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n%sContent-Length: %d\r\n"
      "Connection: close\r\n\r\n%s",
      status, headers, body.size(), with_body ? body : std::string_view());
}

// -1 without deadlines.
int MillisecondsUntil(absl::Time deadline) {
  if (deadline == absl::InfiniteFuture()) return -1;
  const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
  return static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))));
}

}  // namespace

MetricsPage::MetricsPage(Listener listener, std::function<std::string()> text, absl::Duration patience)
    : listener_(std::move(listener)), text_(std::move(text)), patience_(patience), wake_(eventfd(0, EFD_CLOEXEC)) {}

absl::StatusOr<std::unique_ptr<MetricsPage>> MetricsPage::Start(const std::string& address,
                                                                std::function<std::string()> text,
                                                                absl::Duration patience) {
  KVC_ASSIGN_OR_RETURN(Listener listener, Listener::Open(address, 0));
  std::unique_ptr<MetricsPage> page(new MetricsPage(std::move(listener), std::move(text), patience));
  MetricsPage* const self = page.get();
  KVC_ASSIGN_OR_RETURN(page->thread_, StartThread([self] { self->Run(); }));
  return page;
}

MetricsPage::~MetricsPage() {
  if (thread_.joinable()) {
    eventfd_write(wake_, 1);
    thread_.join();
  }
  for (const Connection& connection : connections_) close(connection.fd);
  if (wake_ >= 0) close(wake_);
}

void MetricsPage::Run() {
  const std::vector<int>& sockets = listener_.sockets();
  absl::Time tired_until = absl::InfinitePast();  // without descriptors; those that wait would wake us at once
  while (true) {
    const absl::Time now = absl::Now();
    const bool tired = now < tired_until;
    std::vector<pollfd> waiting = {{wake_, POLLIN, 0}};
    for (const int socket : sockets) waiting.push_back({tired ? -1 : socket, POLLIN, 0});
    absl::Time first = tired ? tired_until : absl::InfiniteFuture();
    for (const Connection& connection : connections_) {
      waiting.push_back({connection.fd, static_cast<short>(connection.answer.empty() ? POLLIN : POLLOUT), 0});
      first = std::min(first, connection.deadline);
    }
    poll(waiting.data(), waiting.size(), MillisecondsUntil(first));
    if (waiting[0].revents != 0) return;

    // What has come is answered before others are let in, whom it would have to make room for.
    const absl::Time later = absl::Now();
    const pollfd* event = waiting.data() + 1 + sockets.size();
    std::erase_if(connections_, [&](Connection& connection) {
      const bool ready = (event++)->revents != 0;
      if (later < connection.deadline && (!ready || GoOn(connection))) return false;
      close(connection.fd);
      return true;
    });
    for (size_t i = 0; i < sockets.size(); ++i) {
      constexpr size_t kTurn = kMaxConnections / 4;  // then those that are there have theirs
      constexpr absl::Duration kPause = absl::Milliseconds(50);
      const auto take = [this](int fd, const Address& from) { Take(fd, from); };
      if (waiting[1 + i].revents != 0 && !AcceptWaiting(sockets[i], kTurn, take)) tired_until = absl::Now() + kPause;
    }
  }
}

void MetricsPage::Take(int fd, const Address& from) {
  if (connections_.size() == kMaxConnections) CloseOneOfMost();
  const absl::Time deadline = absl::Now() + patience_;
  connections_.push_back(
      {.fd = fd, .client = ClientOfHost(from.host), .deadline = deadline, .request = {}, .answer = {}});
  // Most requests are there already.
  if (!GoOn(connections_.back())) {
    close(fd);
    connections_.pop_back();
  }
}

void MetricsPage::CloseOneOfMost() {
  std::map<std::string_view, size_t> counts;
  for (const Connection& connection : connections_) ++counts[connection.client];
  const auto most = std::ranges::max_element(counts, {}, [](const auto& count) { return count.second; });
  const auto oldest = std::ranges::find(connections_, most->first, &Connection::client);
  close(oldest->fd);
  connections_.erase(oldest);
}

bool MetricsPage::GoOn(Connection& connection) {
  if (connection.answer.empty() && !Receive(connection)) return false;
  return connection.answer.empty() || Send(connection);
}

bool MetricsPage::Receive(Connection& connection) {
  char bytes[4096];
  const ssize_t got = recv(connection.fd, bytes, sizeof(bytes), 0);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  if (connection.half_closed) return true;
  connection.request.append(bytes, static_cast<size_t>(got));
  const size_t end = connection.request.find(kEndOfHeaders);
  if (end <= kMaxRequestBytes) {
    connection.answer = Answer(std::string_view(connection.request).substr(0, end));
  } else if (connection.request.size() > kMaxRequestBytes) {
    connection.answer = Response("431 Request Header Fields Too Large", "", "the request is too large\n", true);
  } else {
    return true;
  }
  connection.request = {};
  connection.deadline = absl::Now() + patience_;
  return true;
}

bool MetricsPage::Send(Connection& connection) {
  const ssize_t sent = send(connection.fd, connection.answer.data(), connection.answer.size(), MSG_NOSIGNAL);
  if (sent < 0) return errno == EAGAIN || errno == EINTR;
  connection.answer.erase(0, static_cast<size_t>(sent));
  if (!connection.answer.empty()) return true;
  // A connection that is closed while bytes of its client are unread is reset, and the client may lose the answer.
  connection.half_closed = true;
  return shutdown(connection.fd, SHUT_WR) == 0;
}

std::string MetricsPage::Answer(std::string_view request) const {
  const std::string_view line = request.substr(0, request.find("\r\n"));
  const size_t space = line.find(' ');
  const size_t last = line.rfind(' ');
  if (space == line.npos || last == space || !line.substr(last + 1).starts_with("HTTP/1.")) {
    return Response("400 Bad Request", "", "this is not a request of HTTP/1.1\n", true);
  }
  const std::string_view method = line.substr(0, space);
  const bool head = method == "HEAD";
  if (method != "GET" && !head) {
    return Response("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "this page is read by GET\n", true);
  }
  const std::string_view target = line.substr(space + 1, last - space - 1);
  if (target.substr(0, target.find('?')) != "/metrics") {
    return Response("404 Not Found", "", "there is nothing but /metrics\n", !head);
  }
  return Response("200 OK", "", text_(), !head);
}

}  // namespace kvcompress
