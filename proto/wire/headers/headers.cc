#include "proto/wire/headers/headers.h"

#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/frame_plan.h"
#include "proto/wire/convert.h"

namespace kvcompress {

absl::StatusOr<CompressHeaders::Job> CompressHeaders::Read(const v1::CompressHeader& header,
                                                           std::string_view default_codec) {
  if (!header.has_tensor()) return absl::InvalidArgumentError("header without a tensor");
  Job job;
  KVC_ASSIGN_OR_RETURN(job.tensor, FromMessage(header.tensor()));
  if (!v1::OnNonfinite_IsValid(header.on_nonfinite())) {
    return absl::InvalidArgumentError(absl::StrFormat("header with unknown on_nonfinite %d", header.on_nonfinite()));
  }
  if (header.profile().empty()) {
    job.codec = header.codec().empty() ? std::string(default_codec) : header.codec();
  } else {
    KVC_RETURN_IF_ERROR(TakeProfile(header.profile()));
    if (profile_->needs_codec()) {
      KVC_RETURN_IF_ERROR(profile_->SetCodec(header.codec().empty() ? default_codec : header.codec()));
    } else if (!header.codec().empty()) {
      return absl::InvalidArgumentError("header with a codec and a profile");
    }
    KVC_RETURN_IF_ERROR(ValidateTensor(job.tensor).status());
    KVC_ASSIGN_OR_RETURN(job.codec, profile_->CodecFor(job.tensor));
    job.policy = profile_->PolicyFor(job.tensor);
  }
  if (header.has_rotary()) {
    KVC_ASSIGN_OR_RETURN(const simd::RotaryEmbedding rotary, FromMessage(header.rotary()));
    KVC_RETURN_IF_ERROR(ValidateTensor(job.tensor).status());
    KVC_ASSIGN_OR_RETURN(job.codec, WithRotary(job.tensor, job.codec, rotary));
  }
  if (header.on_nonfinite() == v1::ON_NONFINITE_LOSSLESS) {
    KVC_ASSIGN_OR_RETURN(job.codec, WithFallback(job.tensor, job.codec));
  }
  return job;
}

absl::Status CompressHeaders::TakeProfile(const std::string& text) {
  if (profile_ && text == text_) return absl::OkStatus();
  if (text.size() > kMaxProfileBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("profile of %d bytes is above the limit of %d", text.size(), kMaxProfileBytes));
  }
  KVC_ASSIGN_OR_RETURN(profile_, Profile::Parse(text));
  text_ = text;
  return absl::OkStatus();
}

absl::Status CheckHeader(const v1::DecompressHeader& header) {
  return ValidateTensor({.name = header.name(), .shape = {}, .axes = {}, .fingerprint = header.fingerprint()}).status();
}

}  // namespace kvcompress
