#include "server/net/credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>

#include <string_view>

namespace kvcompress {
namespace {

std::string_view TextOf(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

bool IsHealthCheck(std::string_view path) {
  return path == "/grpc.health.v1.Health/Check" || path == "/grpc.health.v1.Health/Watch";
}

// gRPC's hook for a call's metadata. The C++ class for it does not work with plaintext.
void CheckCall(void* state, grpc_auth_context*, const grpc_metadata* metadata, size_t count,
               grpc_process_auth_metadata_done_cb done, void* user_data) {
  std::string_view path;
  std::string_view authorization;
  size_t authorizations = 0;
  for (size_t i = 0; i < count; ++i) {
    if (TextOf(metadata[i].key) == ":path") path = TextOf(metadata[i].value);
    if (TextOf(metadata[i].key) != "authorization") continue;
    authorization = TextOf(metadata[i].value);
    ++authorizations;
  }
  const absl::Status status = static_cast<const Gate*>(state)->Check(path, authorization, authorizations);
  done(user_data, nullptr, 0, nullptr, 0, static_cast<grpc_status_code>(status.raw_code()),
       status.ok() ? nullptr : std::string(status.message()).c_str());
}

// gRPC 1.51's provider that watches files drops the certificate in use before it knows whether the next one is good. An
// older hook, which gRPC calls for each handshake, keeps it; no C++ class has that hook.
class ListenerCredentials final : public grpc::ServerCredentials {
 public:
  ListenerCredentials(TlsIdentityFiles* identity, const Gate& gate) : identity_(identity) {
    if (identity == nullptr) {
      credentials_ = grpc_insecure_server_credentials_create();
    } else {
      const bool ask_clients = !identity->Get()->client_ca.empty();
      credentials_ = grpc_ssl_server_credentials_create_with_options(
          grpc_ssl_server_credentials_create_options_using_config_fetcher(
              ask_clients ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                          : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
              &ListenerCredentials::Fetch, this));
    }
    if (gate.is_open()) return;
    grpc_server_credentials_set_auth_metadata_processor(
        credentials_,
        {.process = CheckCall, .destroy = nullptr, .state = const_cast<void*>(static_cast<const void*>(&gate))});
  }
  ~ListenerCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  static grpc_ssl_certificate_config_reload_status Fetch(void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<ListenerCredentials*>(self)->Fetch(config);
  }
  grpc_ssl_certificate_config_reload_status Fetch(grpc_ssl_server_certificate_config** config) {
    absl::MutexLock lock(&mutex_);
    std::shared_ptr<const TlsIdentity> latest = identity_->Get();
    if (latest == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {latest->key.c_str(), latest->certificates.c_str()};
    // gRPC 1.51 wants authorities even where it asks no client for a certificate; any will do then.
    const std::string& authorities = latest->client_ca.empty() ? latest->certificates : latest->client_ca;
    *config = grpc_ssl_server_certificate_config_create(authorities.c_str(), &pair, 1);
    given_ = std::move(latest);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  TlsIdentityFiles* const identity_;
  grpc_server_credentials* credentials_;
  absl::Mutex mutex_;
  std::shared_ptr<const TlsIdentity> given_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::Status Gate::Check(std::string_view path, std::string_view authorization, size_t count) const {
  if (is_open() || IsHealthCheck(path)) return absl::OkStatus();
  // Of several, this could check one, and whoever tells clients apart could take another.
  absl::Status status =
      count > 1 ? absl::UnauthenticatedError("more than one authorization") : tokens_->Get()->Check(authorization);
  if (!status.ok() && on_refusal_ != nullptr) on_refusal_();
  return status;
}

std::shared_ptr<grpc::ServerCredentials> MakeListenerCredentials(TlsIdentityFiles* identity, const Gate& gate) {
  return std::make_shared<ListenerCredentials>(identity, gate);
}

}  // namespace kvcompress
