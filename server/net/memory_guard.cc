#include "server/net/memory_guard.h"

#include <fcntl.h>
#include <linux/tcp.h>
#include <malloc.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "core/base/status_macros.h"
#include "core/base/thread.h"
#include "server/net/address.h"

namespace kvcompress {
namespace {

// What headers of calls, health checks among them, and pings may take; a second.
constexpr uint64_t kForgivenBytes = 4096;
// What is outstanding on an honest connection are messages on their way, of a MiB as our clients send them.
constexpr uint64_t kManyBytes = uint64_t{16} << 20;
// Calls without messages take little room on the way here.
constexpr uint64_t kFewBytes = uint64_t{16} << 10;

// Of a TCP connection since its start; 0 of any other file.
uint64_t ReceivedBytes(int fd) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_bytes_received : 0;
}

// Resident memory of this process that no file and no shared memory is behind. `statm` is /proc/self/statm, open: three
// numbers of pages, all, resident, shared, and more.
uint64_t ResidentBytes(int statm) {
  char text[128];
  const ssize_t size = pread(statm, text, sizeof(text), 0);
  const std::vector<absl::string_view> fields = absl::StrSplit(absl::string_view(text, size < 0 ? 0 : size), ' ');
  uint64_t resident = 0;
  uint64_t shared = 0;
  if (fields.size() < 3 || !absl::SimpleAtoi(fields[1], &resident) || !absl::SimpleAtoi(fields[2], &shared)) return 0;
  return (resident - std::min(shared, resident)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// What of it is in use: the allocator keeps what was freed. Another allocator than glibc's, as a preloaded one, does
// not tell: then all of it counts.
uint64_t AllocatedBytes() {
#ifdef __GLIBC__
  const struct mallinfo2 info = mallinfo2();
  if (const uint64_t bytes = info.uordblks + info.hblkhd; bytes > 0) return bytes;
#endif
  return ~uint64_t{0};
}

void ReturnFreedMemory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace

absl::Status MemoryGuard::Start() {
  KVC_ASSIGN_OR_RETURN(thread_, StartThread([this] { Run(); }));
  return absl::OkStatus();
}

MemoryGuard::~MemoryGuard() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void MemoryGuard::Add(int fd, const std::string& peer) {
  absl::MutexLock lock(&mutex_);
  connections_.insert_or_assign(
      peer, Connection{.fd = fd, .inode = InodeOf(fd), .delivered = std::make_shared<DeliveredBytes>(0)});
}

std::shared_ptr<DeliveredBytes> MemoryGuard::DeliveredTo(const std::string& peer) {
  static const auto kNobody = std::make_shared<DeliveredBytes>(0);
  absl::ReaderMutexLock lock(&mutex_);
  const auto found = connections_.find(peer);
  return found == connections_.end() ? kNobody : found->second.delivered;
}

void MemoryGuard::Count(DeliveredBytes& delivered, uint64_t message_bytes) {
  // With what it takes to bring them: headers of the call, frames of HTTP/2, records of TLS.
  delivered.fetch_add(message_bytes + message_bytes / 32 + 256, std::memory_order_relaxed);
}

void MemoryGuard::Run() {
  // Often enough that at 2 GB a second no more comes than the limit is away, or 10 MB.
  constexpr absl::Duration kNearPause = absl::Milliseconds(5);
  constexpr absl::Duration kFarPause = absl::Milliseconds(20);
  constexpr uint64_t kFarBytes = uint64_t{40} << 20;
  constexpr absl::Duration kUpdatePause = absl::Seconds(1);
  constexpr uint64_t kWorthReturning = uint64_t{8} << 20;
  constexpr absl::Duration kTrimPause = absl::Milliseconds(100);
  constexpr absl::Duration kClosing = absl::Milliseconds(100);
  constexpr absl::Duration kNoneToClose = absl::Milliseconds(20);
  const int statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  absl::MutexLock lock(&mutex_);
  Clock::time_point trimmed;
  for (absl::Duration pause = kNearPause; !mutex_.AwaitWithTimeout(absl::Condition(&stopping_), pause);) {
    const Clock::time_point now = Clock::now();
    if (absl::FromChrono(now - updated_) >= kUpdatePause) Update();
    const uint64_t resident = ResidentBytes(statm);
    pause = resident + kFarBytes < options_.limit ? kFarPause : kNearPause;
    if (resident <= options_.limit) continue;
    // The allocator keeps the rest of what is resident; no connection holds it.
    const uint64_t held = std::min(resident, AllocatedBytes());
    if (resident - held > kWorthReturning && absl::FromChrono(now - trimmed) >= kTrimPause) {
      trimmed = now;
      ReturnFreedMemory();
    }
    if (held <= options_.limit) continue;
    Update();
    const bool closed = CloseTheLargest(held > options_.limit + options_.reserve ? kFewBytes : kManyBytes);
    pause = closed ? kClosing : kNoneToClose;  // until what they held is free
  }
  if (statm >= 0) close(statm);
}

void MemoryGuard::Update() {
  const Clock::time_point now = Clock::now();
  const double seconds = std::chrono::duration<double>(now - std::exchange(updated_, now)).count();
  const auto forgiven = static_cast<uint64_t>(seconds * static_cast<double>(kForgivenBytes));
  absl::erase_if(connections_, [&](auto& entry) {
    Connection& connection = entry.second;
    if (InodeOf(connection.fd) != connection.inode) return true;
    const uint64_t received = std::max(ReceivedBytes(connection.fd), connection.received_before);
    const uint64_t delivered = connection.delivered->load(std::memory_order_relaxed);
    connection.outstanding += received - std::exchange(connection.received_before, received);
    const uint64_t of_use = forgiven + delivered - std::exchange(connection.delivered_before, delivered);
    connection.outstanding -= std::min(connection.outstanding, of_use);
    return false;
  });
}

bool MemoryGuard::CloseTheLargest(uint64_t least) {
  uint64_t most = 0;
  for (const auto& [peer, connection] : connections_) most = std::max(most, connection.outstanding);
  if (most < least) return false;
  for (const auto& [peer, connection] : connections_) {
    if (connection.outstanding < most / 2) continue;
    if (InodeOf(connection.fd) == connection.inode) shutdown(connection.fd, SHUT_RDWR);
    if (options_.on_close != nullptr) options_.on_close(peer, connection.outstanding);
  }
  return true;
}

}  // namespace kvcompress
