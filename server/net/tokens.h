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

// The token in the metadata `authorization`, "Bearer TOKEN"; nothing where it is not one.
std::optional<std::string_view> BearerToken(std::string_view authorization);

// Bearer tokens that callers may show. Only their hashes are kept.
class Tokens {
 public:
  static constexpr size_t kMinTokenBytes = 16;

  // Of a file with a token a line; empty lines, and lines that begin with #, are left out. INVALID_ARGUMENT, which
  // names the line and not what is in it, for what is too short or cannot stand in a header, and for no token at all.
  static absl::StatusOr<Tokens> Parse(std::string_view text);

  // Whether a call may come in whose metadata `authorization` is this; empty: it has none. UNAUTHENTICATED with a
  // sentence. The time does not depend on which token it is near to, or on how near.
  absl::Status Check(std::string_view authorization) const;

 private:
  using Digest = std::array<uint8_t, 32>;

  std::vector<Digest> digests_;
};

// The tokens of the file at `path`; null where that is empty: none are asked for.
using TokenFile = FileBacked<Tokens>;
absl::StatusOr<std::unique_ptr<TokenFile>> LoadTokens(const std::string& path);

}  // namespace kvcompress
