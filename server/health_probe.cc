#include "server/health_probe.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "server/net/address.h"
#include "server/net/tls_identity.h"

namespace kvcompress {
namespace {

// grpc.health.v1 has two messages of one field each; Debian ships no generated code for them.
// HealthCheckRequest: string service = 1. HealthCheckResponse: enum status = 1, where SERVING is 1.
constexpr char kHealthMethod[] = "/grpc.health.v1.Health/Check";
constexpr char kServing[] = {0x08, 0x01};

grpc::ByteBuffer Request() {
  std::string bytes = {0x0a, static_cast<char>(sizeof(kServiceName) - 1)};
  bytes += kServiceName;
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// A daemon that listens at a wildcard is asked at this machine's loopback address.
std::string Target(const Options& options) {
  if (!options.healthcheck_target.empty()) return options.healthcheck_target;
  if (IsUnixAddress(options.listen.front())) return options.listen.front();
  Address address = SplitAddress(options.listen.front());
  if (address.host == "0.0.0.0") address.host = "127.0.0.1";
  if (address.host == "::") address.host = "::1";
  return JoinAddress(address.host, std::stoi(address.port));
}

// What a client of the daemon would use. The daemon's certificate is not checked: it is for a name, while the probe
// asks its own machine and sends no secret. To a daemon that wants certificates the probe shows the daemon's own.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const Options& options,
                                                                      const std::string& target) {
  namespace tls = grpc::experimental;
  KVC_ASSIGN_OR_RETURN(const std::unique_ptr<TlsIdentityFiles> identity,
                       LoadTlsIdentity(options.tls_cert, options.tls_key, options.tls_client_ca));
  if (identity == nullptr || IsUnixAddress(target)) return grpc::InsecureChannelCredentials();
  tls::TlsChannelCredentialsOptions channel;
  channel.set_verify_server_certs(false);
  channel.set_certificate_verifier(std::make_shared<tls::NoOpCertificateVerifier>());
  channel.set_check_call_host(false);
  const tls::IdentityKeyCertPair pair = {identity->Get()->key, identity->Get()->certificates};
  channel.set_certificate_provider(std::make_shared<tls::StaticDataCertificateProvider>(std::vector{pair}));
  channel.watch_identity_key_cert_pairs();
  return tls::TlsCredentials(channel);
}

}  // namespace

absl::Status ProbeHealth(const Options& options) {
  const std::string target = Target(options);
  KVC_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ChannelCredentials> credentials, Credentials(options, target));
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  grpc::GenericStub stub(grpc::CreateCustomChannel(target, credentials, args));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, kHealthMethod, Request(), &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  if (!status.ok()) {
    const bool refused = status.error_message().find("Connection refused") != std::string::npos;
    const bool plaintext = options.tls_cert.empty() && !IsUnixAddress(target);
    return absl::UnavailableError(
        absl::StrFormat("%s: %s%s", target, status.error_message(),
                        plaintext && !refused ? " (one with TLS is asked with its --tls-cert and --tls-key)" : ""));
  }
  grpc::Slice slice;
  const bool serving = response.DumpToSingleSlice(&slice).ok() && slice.size() == sizeof(kServing) &&
                       std::equal(slice.begin(), slice.end(), kServing);
  return serving ? absl::OkStatus() : absl::UnavailableError(absl::StrFormat("%s: NOT_SERVING", target));
}

}  // namespace kvcompress
