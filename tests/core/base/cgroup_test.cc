#include "core/base/cgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace kvcompress {
namespace {

namespace fs = std::filesystem;
using ::testing::Optional;

class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(root_); }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  CgroupLimits Read() const { return ReadCgroupLimits(root_ / "membership", root_ / "mount"); }

  const fs::path root_ =
      fs::path(::testing::TempDir()) / ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(CgroupTest, WithoutGroupsThereIsNoLimit) {
  EXPECT_EQ(Read().cpus, std::nullopt);
  EXPECT_EQ(Read().memory_bytes, std::nullopt);
}

TEST_F(CgroupTest, TheStrictestGroupOfVersion2Counts) {
  Write("membership", "0::/kubepods/pod/container\n");
  Write("mount/kubepods/cpu.max", "max 100000\n");
  Write("mount/kubepods/memory.max", "max\n");
  Write("mount/kubepods/pod/cpu.max", "150000 100000\n");
  Write("mount/kubepods/pod/memory.max", "2147483648\n");
  Write("mount/kubepods/pod/container/cpu.max", "200000 100000\n");
  Write("mount/kubepods/pod/container/memory.max", "1073741824\n");
  EXPECT_THAT(Read().cpus, Optional(1.5));
  EXPECT_THAT(Read().memory_bytes, Optional(uint64_t{1} << 30));
}

TEST_F(CgroupTest, GroupsOfVersion1HaveFoldersOfTheirControllers) {
  Write("membership", "3:memory:/docker/0123\n2:cpu,cpuacct:/docker/0123\n1:name=systemd:/\n0::/\n");
  Write("mount/cpu,cpuacct/docker/0123/cpu.cfs_quota_us", "50000\n");
  Write("mount/cpu,cpuacct/docker/0123/cpu.cfs_period_us", "100000\n");
  Write("mount/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("mount/memory/docker/0123/memory.limit_in_bytes", "536870912\n");
  EXPECT_THAT(Read().cpus, Optional(0.5));
  EXPECT_THAT(Read().memory_bytes, Optional(uint64_t{512} << 20));
}

TEST_F(CgroupTest, ControllersOfVersion1InAnotherOrderThanTheirFolder) {
  Write("membership", "2:cpuacct,cpu:/docker/0123\n");
  Write("mount/cpu,cpuacct/docker/0123/cpu.cfs_quota_us", "50000\n");
  Write("mount/cpu,cpuacct/docker/0123/cpu.cfs_period_us", "100000\n");
  fs::create_symlink("cpu,cpuacct", root_ / "mount/cpu");
  EXPECT_THAT(Read().cpus, Optional(0.5));
}

TEST_F(CgroupTest, InAContainerOnlyItsOwnGroupIsMounted) {
  Write("membership", "2:cpu:/docker/0123\n1:memory:/docker/0123\n0::/docker/0123\n");
  Write("mount/cpu/cpu.cfs_quota_us", "-1\n");
  Write("mount/cpu/cpu.cfs_period_us", "100000\n");
  Write("mount/memory/memory.limit_in_bytes", "268435456\n");
  Write("mount/cpu.max", "400000 100000\n");
  EXPECT_THAT(Read().cpus, Optional(4.0));
  EXPECT_THAT(Read().memory_bytes, Optional(uint64_t{256} << 20));
}

TEST_F(CgroupTest, WhatIsNotUnderstoodLimitsNothing) {
  Write("membership", "nonsense\n0::/\n");
  Write("mount/cpu.max", "fast\n");
  Write("mount/memory.max", "-5\n");
  EXPECT_EQ(Read().cpus, std::nullopt);
  EXPECT_EQ(Read().memory_bytes, std::nullopt);
}

}  // namespace
}  // namespace kvcompress
