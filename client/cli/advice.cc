#include "client/cli/advice.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace kvcompress {
namespace {

struct Advice {
  const char* said;  // in an error
  const char* advice;
};

constexpr Advice kAdvice[] = {
    {"-input is required", "-help shows all flags"},
    {"unknown codec \"", "-codec help lists them"},
    {"codec spec \"", "-codec help lists codecs and names"},
    {" has no parameter \"", "-codec help describes them"},
    {" cannot hold (", "-on-nonfinite lossless stores blocks with such values as they are"},
    {": this program was given no directory of artifacts",
     "-artifacts DIR names it, and for a daemon its own --artifacts DIR"},
    {"a token is needed: ", "the flag -token-file FILE does"},
    {"the token is not one that this daemon knows", "-token-file FILE names the file whose first line is the token"},
    {"certificate is of an unknown authority", "-tls-ca FILE names the authorities to trust"},
};

}  // namespace

std::string WithAdvice(const std::string& error) {
  for (const Advice& one : kAdvice) {
    if (absl::StrContains(error, one.said)) return absl::StrCat(error, "; ", one.advice);
  }
  return error;
}

}  // namespace kvcompress
