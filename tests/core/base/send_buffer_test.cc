#include "core/base/send_buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

namespace kvcompress {
namespace {

constexpr int kMiB = 1 << 20;

class SendBufferTest : public ::testing::Test {
 protected:
  void Open(int domain) { fd_ = socket(domain, SOCK_STREAM, 0); }
  ~SendBufferTest() override { close(fd_); }

  int Size() const {
    int bytes = 0;
    socklen_t size = sizeof(bytes);
    EXPECT_EQ(getsockopt(fd_, SOL_SOCKET, SO_SNDBUF, &bytes, &size), 0);
    return bytes;
  }
  void Ask(int bytes) { ASSERT_EQ(setsockopt(fd_, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)), 0); }

  int fd_ = -1;
};

TEST_F(SendBufferTest, AUnixSocketHoldsMoreThanTheSystemsSize) {
  Open(AF_UNIX);
  const int before = Size();
  EnlargeSendBuffer(fd_);
  EXPECT_GE(Size(), std::min(2 * before, kMiB));
}

// As all do where the system's size is large.
TEST_F(SendBufferTest, WhatHoldsMoreStaysAsItIs) {
  Open(AF_UNIX);
  Ask(4 * kMiB);
  const int before = Size();
  EnlargeSendBuffer(fd_);
  EXPECT_EQ(Size(), before);
}

TEST_F(SendBufferTest, OtherSocketsStayAsTheyAre) {
  Open(AF_INET);
  const int before = Size();
  EnlargeSendBuffer(fd_);
  EXPECT_EQ(Size(), before);
}

}  // namespace
}  // namespace kvcompress
