#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/synchronization/mutex.h"
#include "core/tensor_compressor.h"

namespace kvcompress {

// What the header of a call for one tensor comes to.
struct CompressPlan {
  TensorCompressor compressor;
  std::string policy;  // as TensorReport has it
};

// The plans of headers that came, by their bytes: clients send the same ones again and again, and to parse, check and
// plan one takes as long as a fast codec does with a small tensor. One that is kept was checked with the options of its
// daemon, which has one CompressPlans.
//
// Whatever clients send, it takes some 2 MiB at most. Thread-safe, and nobody waits: what another thread has in hand
// counts as not there.
class CompressPlans {
 public:
  // Of a header that is kept.
  static constexpr size_t kMaxBytes = 512;

  // Null where it is not there.
  std::shared_ptr<const CompressPlan> Find(std::string_view header);
  // Keeps a plan, perhaps in place of another: of a short header and a fast codec, which holds nothing but parameters.
  void Keep(std::string_view header, std::shared_ptr<const CompressPlan> plan);

 private:
  struct Entry {
    absl::Mutex mutex;
    std::string header ABSL_GUARDED_BY(mutex);
    std::shared_ptr<const CompressPlan> plan ABSL_GUARDED_BY(mutex);
  };

  Entry& EntryOf(std::string_view header);

  std::array<Entry, 512> entries_;
};

}  // namespace kvcompress
