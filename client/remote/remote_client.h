#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/codec_client.h"

// Compression by a daemon.
namespace kvcompress {

// When and how often a call is made again if its daemon was busy or gone. The first wait is `initial_backoff`, each
// further wait is `multiplier` times as long, up to `max_backoff`; each varies at random by the fraction `jitter`. A
// call is given up if its daemon asks for a longer wait than `max_retry_after`.
struct RetryPolicy {
  int max_attempts = 10;  // 1: no retries
  absl::Duration initial_backoff = absl::Milliseconds(100);
  double multiplier = 1.6;
  absl::Duration max_backoff = absl::Seconds(2);
  double jitter = 0.2;
  absl::Duration max_retry_after = absl::Seconds(30);
};

struct RetryEvent {
  int attempt = 0;      // which one failed, from 1
  absl::Status status;  // of that attempt
  absl::Duration delay;
};

// How a daemon proves who it is, and what is shown to it. Texts are PEM.
struct ClientTls {
  std::string ca;           // who vouches for the daemon; empty: the authorities of the system
  std::string certificate;  // shown to a daemon that asks for one (mutual TLS); empty: none
  std::string key;          // of the certificate
  std::string server_name;  // that the daemon's certificate must have; empty: the host of the address
};

struct RemoteOptions {
  // HOST:PORT, unix:PATH, dns:///HOST:PORT (calls are spread over all addresses of the name), or a list with commas of
  // IP:PORT or of unix:PATH (calls are spread over it).
  std::string address;
  // For TCP; nothing: plaintext. Unix sockets are plaintext always.
  std::optional<ClientTls> tls = std::nullopt;
  // Goes with every call; empty: none. Without TLS only to addresses of this machine.
  std::string token = "";
  absl::Duration connect_timeout = absl::Seconds(5);
  // While calls are in flight the connection is pinged each `keepalive_time`, and given up if there is no answer within
  // `keepalive_timeout`.
  absl::Duration keepalive_time = absl::Seconds(30);
  absl::Duration keepalive_timeout = absl::Seconds(10);
  RetryPolicy retry = {};
  // Whether bytes may go through shared memory. They do if the daemon offers it and is reached by a unix socket or a
  // loopback address; else they go through the connection.
  bool shared_memory = true;
  // How long a daemon that lacks something, as older ones do, is not asked for it: another may take its place.
  absl::Duration pause = absl::Minutes(1);
  // Before each wait, from the thread that calls.
  std::function<void(const RetryEvent&)> on_retry = [](const RetryEvent&) {};
};

// Makes a client of one daemon, or of several that are alike. The first call connects; if nobody can be reached it is
// UNAVAILABLE, "connect to ADDRESS: ...", and FAILED_PRECONDITION with the same beginning where trying again would not
// help: a host that does not exist, a certificate that has expired, is for another host or of an unknown authority.
// What a daemon says of the data (INVALID_ARGUMENT, DATA_LOSS, ...) has the same text as from the local codec; faults
// of the daemon or the network begin with "daemon ADDRESS: ". INVALID_ARGUMENT for an address of the wrong form, and
// for a token that would leave this machine in plaintext.
//
// A call that ends with UNAVAILABLE, or with RESOURCE_EXHAUSTED and a hint when to come again, is made again by the
// policy, unless the wait would pass its deadline. It goes on with the first job that was not reported, and the sink
// sees no byte twice. If the daemon now sends other bytes for what the sink already has, the call is INTERNAL. A daemon
// that was reached once and is gone is waited for, up to connect_timeout or the deadline, and then UNAVAILABLE.
//
// In-memory sources are sent from where they are, and nothing reads them after a call has returned, whatever its end.
// Therefore a call may return past its deadline if its peer has stopped reading its socket: it returns when the
// connection is given up, over TCP after keepalive_timeout, over a unix socket when the peer goes on or ends.
absl::StatusOr<std::unique_ptr<CodecClient>> MakeRemoteClient(const RemoteOptions& options);

}  // namespace kvcompress
