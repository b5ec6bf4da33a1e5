#pragma once

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace kvcompress {

// `error` of errno as "open FILE: no such file or directory": the operation, what it was about, and the system's text
// in lower case, as Go prints them. Its code is absl::ErrnoToStatusCode's.
inline absl::Status ErrnoError(absl::string_view operation, absl::string_view object, int error) {
  const char* text = strerrordesc_np(error);
  return absl::Status(
      absl::ErrnoToStatusCode(error),
      absl::StrCat(operation, " ", object, ": ", absl::AsciiStrToLower(text != nullptr ? text : "unknown error")));
}

// Calls a function of the system again for as long as a signal interrupts it.
template <typename Call>
auto RetryOnEintr(Call call) {
  auto result = call();
  while (result == -1 && errno == EINTR) result = call();
  return result;
}

}  // namespace kvcompress
