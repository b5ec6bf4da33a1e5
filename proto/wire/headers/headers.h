#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/base/tensor.h"
#include "core/profile/profile.h"
#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {

// Longest text of a profile in a header.
inline constexpr size_t kMaxProfileBytes = size_t{64} << 10;

// Reads the headers of tensors to be compressed, one after another: which tensor each describes, and which codec it
// asks for. A profile that the header before had, too, is not parsed again.
class CompressHeaders {
 public:
  struct Job {
    TensorDesc tensor;
    std::string codec;   // a spec or a name of one; not checked where the header has it
    std::string policy;  // as TensorReport has it
  };

  // INVALID_ARGUMENT for a header without a tensor, with enum numbers that this build does not know, with a codec and a
  // profile that does not need one, with a profile that is too long or none, or with a rotary embedding that no model
  // has.
  absl::StatusOr<Job> Read(const v1::CompressHeader& header, std::string_view default_codec);

 private:
  absl::Status TakeProfile(const std::string& text);

  std::string text_;  // of profile_
  std::optional<Profile> profile_;
};

// A header of Decompress says nothing of the tensor but its name and fingerprint. INVALID_ARGUMENT for those that no
// tensor can have.
absl::Status CheckHeader(const v1::DecompressHeader& header);

}  // namespace kvcompress
