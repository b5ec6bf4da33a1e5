#include "client/remote/lasting_fault.h"

#include <fcntl.h>
#include <netdb.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "proto/wire/pem/pem.h"

namespace kvcompress {
namespace {

struct HostAndPort {
  std::string host;  // without brackets
  std::string port;
};

// Of the first address of a list, or of dns:///HOST:PORT.
HostAndPort FirstOf(std::string_view address) {
  address = address.substr(0, address.find(','));
  if (address.starts_with("dns:")) address.remove_prefix(std::max<size_t>(address.rfind('/') + 1, 4));
  const size_t colon = std::min(address.rfind(':'), address.size());
  std::string_view host = address.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  return {std::string(host), std::string(address.substr(std::min(colon + 1, address.size())))};
}

class Socket {
 public:
  Socket(const HostAndPort& at, absl::Time deadline) : deadline_(deadline) {
    addrinfo hints = {};
    hints.ai_flags = AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    if (getaddrinfo(at.host.c_str(), at.port.c_str(), &hints, &list) != 0) return;
    for (const addrinfo* one = list; one != nullptr && !connected_; one = one->ai_next) Connect(*one);
    freeaddrinfo(list);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() { Close(); }

  bool connected() const { return connected_; }
  int fd() const { return fd_; }

  // Whether the socket was ready for `events` before the deadline.
  bool Await(short events) const {
    pollfd entry = {fd_, events, 0};
    const auto left = absl::ToInt64Milliseconds(deadline_ - absl::Now());
    return left > 0 && poll(&entry, 1, static_cast<int>(left)) == 1;
  }

 private:
  void Connect(const addrinfo& to) {
    Close();
    fd_ = socket(to.ai_family, to.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, to.ai_protocol);
    if (fd_ < 0) return;
    if (connect(fd_, to.ai_addr, to.ai_addrlen) != 0 && (errno != EINPROGRESS || !Await(POLLOUT))) return;
    int error = 0;
    socklen_t size = sizeof error;
    connected_ = getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
  }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  const absl::Time deadline_;
  int fd_ = -1;
  bool connected_ = false;
};

using TlsContext = std::unique_ptr<SSL_CTX, FreeBy<SSL_CTX_free>>;
using TlsConnection = std::unique_ptr<SSL, FreeBy<SSL_free>>;

TlsContext MakeContext(const ClientTls& tls) {
  TlsContext context(SSL_CTX_new(TLS_client_method()));
  if (context == nullptr) return nullptr;
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (tls.ca.empty()) {
    SSL_CTX_set_default_verify_paths(context.get());
    return context;
  }
  const auto authorities = ParseCertificates({.flag = "", .title = "", .text = tls.ca});
  if (!authorities.ok()) return nullptr;
  for (const Certificate& authority : *authorities) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context.get()), authority.get());
  }
  return context;
}

// What is wrong with the daemon's certificate, by OpenSSL's number; X509_V_OK where no handshake was possible, too.
long VerifyCertificate(const HostAndPort& at, const std::string& name, const ClientTls& tls, absl::Time deadline) {
  const TlsContext context = MakeContext(tls);
  const Socket socket(at, deadline);
  if (context == nullptr || !socket.connected()) return X509_V_OK;
  const TlsConnection connection(SSL_new(context.get()));
  if (connection == nullptr || SSL_set_fd(connection.get(), socket.fd()) != 1) return X509_V_OK;
  constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SSL_set_alpn_protos(connection.get(), kHttp2, sizeof kHttp2);
  if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(connection.get()), name.c_str()) != 1) {
    SSL_set_tlsext_host_name(connection.get(), name.c_str());
    SSL_set1_host(connection.get(), name.c_str());
  }
  for (;;) {
    const int done = SSL_connect(connection.get());
    const int error = SSL_get_error(connection.get(), done);
    const bool waits = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
    if (!waits || !socket.Await(error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT)) break;
  }
  return SSL_get_verify_result(connection.get());
}

std::string CertificateFault(long code, const std::string& name) {
  switch (code) {
    case X509_V_OK: return "";
    case X509_V_ERR_CERT_HAS_EXPIRED: return "the daemon's certificate has expired";
    case X509_V_ERR_CERT_NOT_YET_VALID: return "the daemon's certificate is not valid yet";
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
      return absl::StrFormat("the daemon's certificate is for another host than \"%s\"", name);
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN: return "the daemon's certificate is of an unknown authority";
    default: return absl::StrFormat("the daemon's certificate is refused: %s", X509_verify_cert_error_string(code));
  }
}

}  // namespace

std::string LastingFault(std::string_view message, const RemoteOptions& options, absl::Time deadline) {
  const auto says = [&](std::string_view text) { return message.find(text) != message.npos; };
  const HostAndPort at = FirstOf(options.address);
  if (says("Domain name not found")) return absl::StrFormat("there is no host \"%s\"", at.host);
  if (!options.tls) return "";
  const std::string& name = options.tls->server_name.empty() ? at.host : options.tls->server_name;
  if (says("is not in peer certificate")) return CertificateFault(X509_V_ERR_HOSTNAME_MISMATCH, name);
  // Of several addresses the message is only about one.
  constexpr absl::Duration kPatience = absl::Seconds(2);
  const absl::Time limit = std::min(deadline, absl::Now() + kPatience);
  if (absl::Now() >= limit) return "";  // the look-up of a name, which no deadline ends, would make a call late
  return CertificateFault(VerifyCertificate(at, name, *options.tls, limit), name);
}

}  // namespace kvcompress
