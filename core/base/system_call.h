#pragma once

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace kvcompress {

// absl::ErrnoToStatusCode's, and where that knows none, FAILED_PRECONDITION: the file, or what it lies on, is not such
// that it can be used.
inline absl::StatusCode ErrnoCode(int error) {
  const absl::StatusCode code = absl::ErrnoToStatusCode(error);
  return code == absl::StatusCode::kUnknown ? absl::StatusCode::kFailedPrecondition : code;
}

// `error` of errno as "open FILE: no such file or directory": the operation, what it was about, and the system's text
// in lower case, as Go prints them. Its code is ErrnoCode's.
inline absl::Status ErrnoError(absl::string_view operation, absl::string_view object, int error) {
  const char* text = strerrordesc_np(error);
  return absl::Status(ErrnoCode(error), absl::StrCat(operation, " ", object, ": ",
                                                     absl::AsciiStrToLower(text != nullptr ? text : "unknown error")));
}

// Calls a function of the system again for as long as a signal interrupts it.
template <typename Call>
auto RetryOnEintr(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

}  // namespace kvcompress
