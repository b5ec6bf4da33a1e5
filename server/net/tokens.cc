#include "server/net/tokens.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace kvcompress {
namespace {

constexpr absl::string_view kScheme = "Bearer ";

// A character of RFC 6750's b64token; "=" may stand anywhere.
bool IsTokenCharacter(char c) {
  return absl::ascii_isalnum(c) || c == '-' || c == '.' || c == '_' || c == '~' || c == '+' || c == '/' || c == '=';
}

std::array<uint8_t, 32> Hash(std::string_view token) {
  static_assert(SHA256_DIGEST_LENGTH == 32);
  std::array<uint8_t, 32> digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

}  // namespace

std::optional<std::string_view> BearerToken(std::string_view authorization) {
  const absl::string_view given(authorization.data(), authorization.size());
  if (!absl::StartsWithIgnoreCase(given, kScheme)) return std::nullopt;
  const absl::string_view token = absl::StripAsciiWhitespace(given.substr(kScheme.size()));
  return std::string_view(token.data(), token.size());
}

absl::StatusOr<Tokens> Tokens::Parse(std::string_view text) {
  Tokens tokens;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    const absl::string_view token = absl::StripAsciiWhitespace(line);
    if (token.empty() || token.front() == '#') continue;
    if (token.size() < kMinTokenBytes) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "--token-file: line %d: a token needs at least %d characters, for example of openssl rand -hex 32", number,
          kMinTokenBytes));
    }
    if (!std::all_of(token.begin(), token.end(), IsTokenCharacter)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--token-file: line %d: a token is made of A-Z, a-z, 0-9 and -._~+/= alone", number));
    }
    tokens.digests_.push_back(Hash({token.data(), token.size()}));
  }
  if (tokens.digests_.empty()) return absl::InvalidArgumentError("--token-file: no token is in it");
  return tokens;
}

absl::Status Tokens::Check(std::string_view authorization) const {
  const std::optional<std::string_view> token = BearerToken(authorization);
  if (!token) {
    return absl::UnauthenticatedError("a token is needed: send the metadata \"authorization: Bearer TOKEN\"");
  }
  const Digest digest = Hash(*token);
  bool known = false;
  for (const Digest& one : digests_) known |= CRYPTO_memcmp(one.data(), digest.data(), digest.size()) == 0;
  return known ? absl::OkStatus() : absl::UnauthenticatedError("the token is not one that this daemon knows");
}

absl::StatusOr<std::unique_ptr<TokenFile>> LoadTokens(const std::string& path) {
  if (path.empty()) return nullptr;
  return TokenFile::Load("token file", {path},
                         [](const std::vector<std::string>& contents) { return Tokens::Parse(contents[0]); });
}

}  // namespace kvcompress
