#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/net/file_backed.h"

namespace kvcompress {

// The token in a call's metadata `authorization`, "Bearer TOKEN"; empty for any other text.
std::optional<std::string_view> BearerToken(std::string_view authorization);

// Bearer tokens that callers may show. Only their hashes are kept.
class Tokens {
 public:
  static constexpr size_t kMinTokenBytes = 16;

  // Reads a token from each line; skips empty lines and lines that begin with #. INVALID_ARGUMENT for a token that is
  // too short or cannot stand in a header, and for a text without tokens. It names the line and does not quote it.
  static absl::StatusOr<Tokens> Parse(std::string_view text);

  // `authorization` is a call's metadata of this name, empty where it has none. UNAUTHENTICATED, with a sentence, when
  // it shows none of the tokens. The time this takes does not tell how near a token was to one of them.
  absl::Status Check(std::string_view authorization) const;

 private:
  using Digest = std::array<uint8_t, 32>;

  std::vector<Digest> digests_;
};

using TokenFile = FileBacked<Tokens>;
// The tokens in the file at `path`. Null where `path` is empty: calls need no token.
absl::StatusOr<std::unique_ptr<TokenFile>> LoadTokens(const std::string& path);

}  // namespace kvcompress
