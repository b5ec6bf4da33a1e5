#include "client/remote/channel.h"

#include <arpa/inet.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/client_interceptor.h>
#include <sys/un.h>

#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/remote/send_buffer.h"
#include "core/base/status_macros.h"

namespace kvcompress {
namespace {

constexpr std::string_view kUnixScheme = "unix:";
constexpr std::string_view kDnsScheme = "dns:";
constexpr std::string_view kName = "dns:///";

struct Endpoint {
  std::string_view scheme;  // of gRPC's addresses: the endpoint's kind
  bool loopback;
  std::string text;  // as gRPC writes it after the scheme
};

// gRPC would try addresses that cannot be for seconds, and then speak of TLS.
absl::Status NoAddress(std::string_view text, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrFormat("\"%s\" is not the address of a daemon: %s", text, why));
}

absl::Status CheckUnixPath(std::string_view address, std::string_view path) {
  constexpr size_t kMaxPathBytes = sizeof(sockaddr_un::sun_path) - 1;
  // gRPC writes absolute paths as unix:///PATH, too.
  if (path.starts_with("///")) path.remove_prefix(2);
  if (path.empty()) return NoAddress(address, "use HOST:PORT or unix:PATH");
  if (path.size() <= kMaxPathBytes) return absl::OkStatus();
  return NoAddress(address, absl::StrFormat("the path of a unix socket has at most %d bytes, and this one has %d",
                                            kMaxPathBytes, path.size()));
}

// Checks the end of `address`, HOST:PORT, and returns the host.
absl::StatusOr<std::string> ParseHost(std::string_view address, std::string_view host_and_port) {
  if (const size_t scheme = host_and_port.find("://"); scheme != std::string_view::npos) {
    return NoAddress(address,
                     absl::StrFormat("use HOST:PORT or unix:PATH, without %s", host_and_port.substr(0, scheme + 3)));
  }
  const size_t colon = host_and_port.rfind(':');
  if (colon == std::string_view::npos || colon == 0 || colon + 1 == host_and_port.size()) {
    return NoAddress(address, "use HOST:PORT or unix:PATH");
  }
  std::string host(host_and_port.substr(0, colon));
  const std::string port(host_and_port.substr(colon + 1));
  int number = 0;
  if (!absl::c_all_of(port, absl::ascii_isdigit) || !absl::SimpleAtoi(port, &number) || number < 1 || number > 65535) {
    return NoAddress(address, absl::StrFormat("the port must be a number from 1 to 65535, not \"%s\"", port));
  }
  if (host.find(':') != std::string::npos && !(host.front() == '[' && host.back() == ']')) {
    return NoAddress(address, "an IPv6 address stands in brackets, for example [::1]:50051");
  }
  return host;
}

absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text) {
  if (text.starts_with(kUnixScheme)) {
    const std::string_view path = text.substr(kUnixScheme.size());
    KVC_RETURN_IF_ERROR(CheckUnixPath(text, path));
    return Endpoint{kUnixScheme, true, std::string(path)};
  }
  KVC_ASSIGN_OR_RETURN(const std::string host, ParseHost(text, text));
  in6_addr bytes;
  if (inet_pton(AF_INET, host.c_str(), &bytes) == 1) {
    return Endpoint{"ipv4:", host.starts_with("127."), std::string(text)};
  }
  if (host.front() == '[') {
    const std::string inner = host.substr(1, host.size() - 2);
    if (inet_pton(AF_INET6, inner.c_str(), &bytes) == 1) return Endpoint{"ipv6:", inner == "::1", std::string(text)};
  }
  return Endpoint{kName, host == "localhost", std::string(text)};
}

// Adds the token to each call of a channel, whoever makes the call. gRPC's own credentials for that need TLS.
class BearerToken final : public grpc::experimental::Interceptor {
 public:
  explicit BearerToken(const std::string& token) : authorization_("Bearer " + token) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization", authorization_);
    }
    methods->Proceed();
  }

  class Factory final : public grpc::experimental::ClientInterceptorFactoryInterface {
   public:
    explicit Factory(std::string token) : token_(std::move(token)) {}
    grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo*) override {
      return new BearerToken(token_);
    }

   private:
    const std::string token_;
  };

 private:
  const std::string authorization_;
};

std::shared_ptr<grpc::ChannelCredentials> Credentials(const ChannelTarget& target, const RemoteOptions& options) {
  if (!options.tls || target.unix_socket) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({.pem_root_certs = options.tls->ca,
                               .pem_private_key = options.tls->key,
                               .pem_cert_chain = options.tls->certificate});
}

}  // namespace

absl::StatusOr<ChannelTarget> ParseAddress(std::string_view address) {
  if (address.starts_with(kDnsScheme)) {
    const std::string_view target = address.substr(kDnsScheme.size());
    KVC_RETURN_IF_ERROR(ParseHost(address, target.substr(target.rfind('/') + 1)).status());
    return ChannelTarget{.uri = std::string(address), .spread = true};
  }
  const std::vector<std::string> texts = absl::StrSplit(absl::string_view(address.data(), address.size()), ',');
  std::vector<Endpoint> endpoints;
  for (const std::string& text : texts) {
    absl::StatusOr<Endpoint> endpoint = ParseEndpoint(text);
    if (!endpoint.ok()) return endpoint.status();
    endpoints.push_back(*std::move(endpoint));
  }
  const std::string_view scheme = endpoints.front().scheme;
  bool local = true;
  for (const Endpoint& endpoint : endpoints) {
    local = local && endpoint.loopback;
    if (endpoints.size() > 1 && (endpoint.scheme != scheme || scheme == kName)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "\"%s\" mixes addresses that cannot stand in one list: several must all be IPv4:PORT, [IPv6]:PORT or "
          "unix:PATH; for the addresses of a name use dns:///HOST:PORT",
          address));
    }
  }
  const auto append = [](std::string* out, const Endpoint& endpoint) { out->append(endpoint.text); };
  return ChannelTarget{.uri = std::string(scheme) + absl::StrJoin(endpoints, ",", append),
                       .spread = endpoints.size() > 1,
                       .local = local,
                       .unix_socket = scheme == kUnixScheme};
}

std::shared_ptr<grpc::Channel> MakeChannel(const ChannelTarget& target, const RemoteOptions& options) {
  grpc::ChannelArguments arguments;
  // The daemon is near: a proxy for the web does not lead to it.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Calls are retried whole by the client; gRPC's own retries would hold on to what was sent.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_time)));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                   static_cast<int>(absl::ToInt64Milliseconds(options.keepalive_timeout)));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 0);
  // A daemon that is started again is found again soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  // Connections end with their client, whoever else in this process talks to the same daemon.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  EnlargeSendBuffers(arguments);
  if (target.spread) arguments.SetLoadBalancingPolicyName("round_robin");
  if (options.tls && !options.tls->server_name.empty()) arguments.SetSslTargetNameOverride(options.tls->server_name);
  const std::shared_ptr<grpc::ChannelCredentials> credentials = Credentials(target, options);
  if (options.token.empty()) return grpc::CreateCustomChannel(target.uri, credentials, arguments);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<BearerToken::Factory>(options.token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(target.uri, credentials, arguments,
                                                                 std::move(interceptors));
}

}  // namespace kvcompress
