#pragma once

#include <gmock/gmock.h>

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "client/local_client.h"
#include "core/base/byte_source.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress::testing {

// What came from a sink's calls, one after another.
struct Log final : CompressSink, DecompressSink {
  absl::Status OnFrame(ByteSpan bytes) override {
    current += AsText(bytes);
    return absl::OkStatus();
  }
  absl::Status OnHeader(const TensorDesc& tensor) override {
    headers.push_back(tensor.name);
    return absl::OkStatus();
  }
  absl::Status OnData(ByteSpan bytes) override { return OnFrame(bytes); }
  absl::Status OnTensor(const TensorReport& report) override {
    names.push_back(report.tensor.name);
    outputs.push_back(std::exchange(current, {}));
    return absl::OkStatus();
  }

  std::string current;
  std::vector<std::string> headers;
  std::vector<std::string> names;
  std::vector<std::string> outputs;
};

// Tensors t0, t1, ... of F16, each a little larger than the one before, and their frames by int4.
class SmallJobs : public ::testing::Test {
 protected:
  SmallJobs(uint32_t tensors, size_t elements) {
    for (uint32_t i = 0; i < tensors; ++i) {
      values_.push_back(MakeValues(DType::kF16, elements + 1000 * i, Distribution::kGaussian, i));
      sources_.emplace_back(ByteSpan(values_.back()));
    }
    for (uint32_t i = 0; i < tensors; ++i) {
      jobs_.push_back(
          {MakeTensor(absl::StrFormat("t%d", i), DType::kF16, {values_[i].size() / 2}), "int4", &sources_[i]});
    }
    Log frames;
    EXPECT_THAT(MakeLocalClient(1)->Compress(jobs_, absl::InfiniteFuture(), frames), IsOk());
    frames_ = frames.outputs;
    for (const std::string& frame : frames_) frame_sources_.emplace_back(AsBytes(frame));
    for (uint32_t i = 0; i < tensors; ++i) unpack_.push_back({jobs_[i].tensor.name, &frame_sources_[i]});
  }

  std::vector<std::vector<std::byte>> values_;
  std::deque<MemorySource> sources_;
  std::vector<CompressJob> jobs_;
  std::vector<std::string> frames_;
  std::deque<MemorySource> frame_sources_;
  std::vector<DecompressJob> unpack_;
};

}  // namespace kvcompress::testing
