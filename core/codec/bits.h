#pragma once

#include <cstdint>

#include "core/base/bytes.h"

// Short texts of bits, from the low end of each byte up: the tables in front of coded streams.
namespace kvcompress {

class BitWriter {
 public:
  explicit BitWriter(uint8_t* out) : out_(out) {}
  void Write(uint32_t value, int bits) {
    pending_ |= value << used_;
    used_ += bits;
    for (; used_ >= 8; used_ -= 8, pending_ >>= 8) *out_++ = static_cast<uint8_t>(pending_);
  }
  uint8_t* Finish() {
    if (used_ > 0) *out_++ = static_cast<uint8_t>(pending_);
    return out_;
  }

 private:
  uint8_t* out_;
  uint32_t pending_ = 0;
  int used_ = 0;
};

class BitReader {
 public:
  explicit BitReader(ByteSpan bytes) : bytes_(bytes) {}
  // False at the end of the bytes.
  [[nodiscard]] bool Read(int bits, uint32_t& value) {
    for (; held_ < bits; held_ += 8) {
      if (at_ == bytes_.size()) return false;
      pending_ |= std::to_integer<uint32_t>(bytes_[at_++]) << held_;
    }
    value = pending_ & ((1u << bits) - 1);
    pending_ >>= bits;
    held_ -= bits;
    return true;
  }
  // The bytes begun, if what is left of the last one is 0; else 0.
  size_t Finish() const { return pending_ == 0 ? at_ : 0; }

 private:
  ByteSpan bytes_;
  size_t at_ = 0;
  uint32_t pending_ = 0;
  int held_ = 0;
};

}  // namespace kvcompress
