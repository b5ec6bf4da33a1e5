#include "server/net/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::Not;
using testing::StatusIs;

constexpr char kOne[] = "0123456789abcdef";
constexpr char kTwo[] = "Aa-._~+/9876543210==";

TEST(TokensTest, LinesCommentsAndBlanks) {
  const absl::StatusOr<Tokens> tokens =
      Tokens::Parse(std::string("# team one\n\n  ") + kOne + "\t\r\n#" + kTwo + "x\n" + kTwo);
  ASSERT_THAT(tokens, IsOk());
  EXPECT_THAT(tokens->Check(std::string("Bearer ") + kOne), IsOk());
  EXPECT_THAT(tokens->Check(std::string("bearer  ") + kTwo + " "), IsOk());
  for (const char* wrong : {"0123456789abcde", "0123456789abcdeF", "0123456789abcdef0", "", "Aa-._~+/9876543210==x"}) {
    EXPECT_THAT(tokens->Check(std::string("Bearer ") + wrong),
                StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("not one that this daemon knows")));
  }
  for (const std::string& none :
       {std::string(), std::string(kOne), std::string("Basic ") + kOne, std::string("Bearer")}) {
    EXPECT_THAT(tokens->Check(none), StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("a token is needed")));
  }
}

TEST(TokensTest, FaultsNameTheLineAndNotTheToken) {
  EXPECT_THAT(Tokens::Parse("# a\nshort-secret\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2: a token needs at least 16 characters")));
  for (const char* bad : {"0123456789 abcdef", "0123456789abcde\xc3\xa9", "0123456789abcdef\x01"}) {
    const absl::Status status = Tokens::Parse(bad).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 1: a token is made of")));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("0123456789")));
  }
  for (const char* none : {"", "\n\n", "# only words\n"}) {
    EXPECT_THAT(Tokens::Parse(none), StatusIs(absl::StatusCode::kInvalidArgument, "--token-file: no token is in it"));
  }
}

}  // namespace
}  // namespace kvcompress
