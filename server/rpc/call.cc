#include "server/rpc/call.h"

#include <algorithm>
#include <random>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/utf8.h"
#include "proto/wire/error_reason.h"
#include "proto/wire/grpc/error_details.h"
#include "server/net/address.h"
#include "server/net/tokens.h"
#include "server/session/admission.h"

namespace kvcompress {
namespace {

constexpr char kRequestId[] = "x-request-id";
constexpr char kAuthorization[] = "authorization";

bool IsRequestId(std::string_view text) {
  const auto allowed = [](char c) { return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-'; };
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), allowed);
}

std::string RequestId(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find(kRequestId);
  if (found != context.client_metadata().end()) {
    const std::string_view given(found->second.data(), found->second.size());
    if (IsRequestId(given)) return std::string(given);
  }
  thread_local std::mt19937_64 random{std::random_device{}()};
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad16));
}

// In milliseconds; empty where a retry does not help.
std::string RetryPushback(const absl::Status& status) {
  const auto payload = status.GetPayload(absl::string_view(kRetryPushbackUrl.data(), kRetryPushbackUrl.size()));
  return payload ? std::string(*payload) : std::string();
}

// At most `most` bytes of it, and "..." where that is not all.
std::string Cut(std::string_view text, size_t most) {
  if (text.size() <= most) return std::string(text);
  text = text.substr(0, most);
  while (!text.empty() && !IsUtf8(text)) text.remove_suffix(1);
  return absl::StrCat(absl::string_view(text.data(), text.size()), "...");
}

}  // namespace

CallRecord::CallRecord(grpc::CallbackServerContext* context, std::string_view method, Metrics& metrics, LogLevel level)
    : context_(context),
      method_(method),
      metrics_(metrics),
      level_(level),
      peer_(context->peer()),
      request_id_(RequestId(*context)) {
  context_->AddInitialMetadata(kRequestId, request_id_);
  metrics_.OnCallStart(method_);
}

void CallRecord::End(const absl::Status& status, const StreamTotals& totals) {
  const bool too_late = absl::IsCancelled(status) && context_->deadline() <= std::chrono::system_clock::now();
  const absl::StatusCode code = too_late ? absl::StatusCode::kDeadlineExceeded : status.code();
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  metrics_.OnCallEnd(method_, code, seconds);
  // Clients cancel as they like; what else fails somebody may have to mend.
  const LogLevel failed = code == absl::StatusCode::kCancelled ? LogLevel::kInfo : LogLevel::kWarning;
  const LogLevel level = status.ok() ? level_ : std::max(level_, failed);
  if (!Logs(level)) return;
  const double ratio = totals.frame_bytes == 0
                           ? 0.0
                           : static_cast<double>(totals.tensor_bytes) / static_cast<double>(totals.frame_bytes);
  std::vector<LogField> fields = {{"request_id", request_id_},
                                  {"method", method_},
                                  {"peer", peer_},
                                  {"code", absl::StatusCodeToString(code)},
                                  {"tensors", totals.tensors},
                                  {"tensor_bytes", totals.tensor_bytes},
                                  {"frame_bytes", totals.frame_bytes},
                                  {"ratio", ratio},
                                  {"seconds", seconds}};
  // Quotes what the client sent, names of 1024 bytes as well.
  constexpr size_t kMaxText = 512;
  if (!status.ok()) {
    const std::string_view text(status.message().data(), status.message().size());
    fields.emplace_back("text", Cut(text, kMaxText));
  }
  Log(level, "call", fields);
}

std::string ClientOf(const grpc::CallbackServerContext& context, const ClientMarks& marks) {
  std::string client = ClientOfPeer(context.peer());
  if (marks.certificate) {
    for (const grpc::string_ref& name : context.auth_context()->GetPeerIdentity()) {
      absl::StrAppend(&client, " certificate=", absl::string_view(name.data(), name.size()));
    }
  }
  if (!marks.token) return client;
  if (const auto found = context.client_metadata().find(kAuthorization); found != context.client_metadata().end()) {
    const std::string_view token = BearerToken({found->second.data(), found->second.size()}).value_or("");
    absl::StrAppend(&client, " token=", absl::Hex(absl::HashOf(token)));
  }
  return client;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  // Clients take 8 KiB of trailers; a byte that is not printable takes three there.
  constexpr size_t kMaxMessage = 2048;
  const std::string message = Cut(std::string_view(status.message().data(), status.message().size()), kMaxMessage);
  const auto code = static_cast<grpc::StatusCode>(status.raw_code());
  ErrorDetails details{.reason = ReasonOf(status)};
  int64_t milliseconds = 0;
  if (absl::SimpleAtoi(RetryPushback(status), &milliseconds)) details.retry_delay = absl::Milliseconds(milliseconds);
  return MakeStatus(code, message, details);
}

void AddPushback(const absl::Status& status, grpc::CallbackServerContext& context) {
  const std::string milliseconds = RetryPushback(status);
  if (!milliseconds.empty()) context.AddTrailingMetadata("grpc-retry-pushback-ms", milliseconds);
}

}  // namespace kvcompress
