#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_cat.h"
#include "server/shm/registration.h"
#include "tests/testing/status_matchers.h"

// Objects of other programs: who may have them read, and that nothing of them changes.
namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr uint64_t kForeignPage = 4096;
constexpr uint64_t kForeignBytes = 4 * kForeignPage;

// A descriptor of an object, and the locks that were taken by it.
class Descriptor {
 public:
  Descriptor(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(fd_); }

  int fd() const { return fd_; }
  // `size` 0: to the end of all files.
  bool Lock(uint64_t offset, uint64_t size, short type = F_WRLCK, int how = F_OFD_SETLK) const {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = static_cast<off_t>(offset);
    lock.l_len = static_cast<off_t>(size);
    return fcntl(fd_, how, &lock) == 0;
  }

 private:
  const int fd_;
};

// Another program's object that holds values, and the daemon's side of a client's stream.
class ForeignRegistrationTest : public ::testing::Test {
 protected:
  ForeignRegistrationTest() {
    EXPECT_EQ(ftruncate(object_.fd(), kForeignBytes), 0);
    values_.fill('v');
    EXPECT_EQ(pwrite(object_.fd(), values_.data(), values_.size(), 0), ssize_t{kForeignBytes});
  }
  ~ForeignRegistrationTest() override { unlink(path_.c_str()); }

  static std::string Prefix() { return absl::StrCat("kvc-foreign-", getpid(), "-"); }
  Registration::Region Whole(std::string name) { return {std::move(name), key_, 0, kForeignBytes}; }
  uint64_t MustRegister(const std::string& name) {
    const absl::StatusOr<uint64_t> offset = stream_.RegisterForeign(Whole(name));
    EXPECT_THAT(offset, IsOk());
    return *offset;
  }
  void ExpectRefused(const std::string& name) {
    EXPECT_THAT(stream_.Confirm(name), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("has no write lock")));
    EXPECT_EQ(table_.count(), 0u);
  }

  const std::string key_ = absl::StrCat("/", Prefix(), "cache.mmap");
  const std::string path_ = absl::StrCat("/dev/shm", key_);
  const Descriptor object_{path_, O_CREAT | O_EXCL | O_RDWR};
  std::array<char, kForeignBytes> values_;
  RegionTable table_;
  Registration stream_{table_, "kvc-own-", "client", Prefix()};
};

TEST_F(ForeignRegistrationTest, WhoLocksTheByteHasTheObjectReadAndNotWritten) {
  const Descriptor client(path_, O_RDWR);
  const uint64_t offset = MustRegister("a");
  EXPECT_GT(offset, kForeignBytes);
  EXPECT_LT(offset, uint64_t{std::numeric_limits<off_t>::max()});
  ASSERT_TRUE(client.Lock(offset, 1));
  const absl::StatusOr<Registration::Region> confirmed = stream_.Confirm("a");
  ASSERT_THAT(confirmed, IsOk());
  ASSERT_TRUE(client.Lock(offset, 1, F_UNLCK));
  EXPECT_EQ(stream_.Confirm("a")->id, confirmed->id) << "once is enough";

  const std::shared_ptr<SharedRegion> region = *table_.Find(confirmed->id);
  EXPECT_FALSE(region->is_writable());
  ASSERT_EQ(region->bytes().size(), kForeignBytes);
  EXPECT_TRUE(std::ranges::equal(AsText(region->bytes()), values_));
  ASSERT_EQ(pwrite(object_.fd(), "new", 3, 5000), 3);
  EXPECT_EQ(AsText(region->bytes()).substr(5000, 3), "new");
  EXPECT_DEATH(region->bytes()[0] = std::byte{1}, "");
  EXPECT_THAT(stream_.Unregister("a"), IsOk());
  EXPECT_EQ(table_.count(), 0u);
}

TEST_F(ForeignRegistrationTest, ALockOfAnotherProcessCountsAsWell) {
  const uint64_t offset = MustRegister("a");
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const Descriptor client(path_, O_RDWR);
    const bool locked = client.Lock(offset, 1, F_WRLCK, F_SETLK);
    if (write(ready[1], locked ? "y" : "n", 1) == 1) pause();
    _exit(0);
  }
  char said = 0;
  ASSERT_EQ(read(ready[0], &said, 1), 1);
  EXPECT_EQ(said, 'y');
  EXPECT_THAT(stream_.Confirm("a"), IsOk());
  kill(child, SIGKILL);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  close(ready[0]);
  close(ready[1]);
}

TEST_F(ForeignRegistrationTest, WithoutTheLockThereIsNoRegion) {
  const Descriptor client(path_, O_RDWR);
  const uint64_t offset = MustRegister("a");
  ExpectRefused("a");
  ASSERT_TRUE(client.Lock(offset, 1));
  ASSERT_TRUE(client.Lock(offset, 1, F_UNLCK));
  ExpectRefused("a");
  EXPECT_EQ(flock(client.fd(), LOCK_EX), 0) << "another kind of lock";
  ExpectRefused("a");
}

// Who can only read the object takes read locks alone.
TEST_F(ForeignRegistrationTest, AReadLockIsNoProof) {
  const Descriptor reader(path_, O_RDONLY);
  const uint64_t offset = MustRegister("a");
  EXPECT_FALSE(reader.Lock(offset, 1));
  ASSERT_TRUE(reader.Lock(offset, 1, F_RDLCK));
  ExpectRefused("a");
}

// Another program may lock all of its own object at any time.
TEST_F(ForeignRegistrationTest, ALockOfMoreThanTheByteIsNoProof) {
  const uint64_t offset = MustRegister("a");
  const struct {
    uint64_t offset, size;
  } wide[] = {{0, 0}, {offset, 0}, {offset - 1, 2}, {offset, 2}, {0, offset + 1}, {offset + 1, 0}, {offset - 1, 1}};
  for (const auto& lock : wide) {
    const Descriptor other(path_, O_RDWR);
    ASSERT_TRUE(other.Lock(lock.offset, lock.size));
    ExpectRefused("a");
  }
}

TEST_F(ForeignRegistrationTest, EachRegistrationHasAByteOfItsOwn) {
  const Descriptor client(path_, O_RDWR);
  const uint64_t of_a = MustRegister("a");
  const uint64_t of_b = MustRegister("b");
  ASSERT_TRUE(client.Lock(of_a, 1));
  ExpectRefused("b");
  EXPECT_GT(of_a > of_b ? of_a - of_b : of_b - of_a, uint64_t{1} << 32);
  EXPECT_THAT(stream_.Confirm("a"), IsOk());
  EXPECT_THAT(stream_.Unregister("a"), IsOk());
  EXPECT_NE(MustRegister("a"), of_a);
  ExpectRefused("a");
}

TEST_F(ForeignRegistrationTest, AnObjectThatTookTheNameIsNotTheOneThatIsLocked) {
  const Descriptor client(path_, O_RDWR);
  ASSERT_TRUE(client.Lock(MustRegister("a"), 1));
  ASSERT_EQ(unlink(path_.c_str()), 0);
  EXPECT_THAT(stream_.Confirm("a"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("no such file")));
  const Descriptor other(path_, O_CREAT | O_EXCL | O_RDWR);
  ASSERT_EQ(ftruncate(other.fd(), kForeignBytes), 0);
  ExpectRefused("a");
}

TEST_F(ForeignRegistrationTest, WhatIsNoObject) {
  const uint64_t offset = MustRegister("a");
  ASSERT_EQ(rename(path_.c_str(), (path_ + ".moved").c_str()), 0);
  const Descriptor client(path_ + ".moved", O_RDWR);
  ASSERT_TRUE(client.Lock(offset, 1));
  ASSERT_EQ(symlink((path_ + ".moved").c_str(), path_.c_str()), 0);
  EXPECT_THAT(stream_.Confirm("a"), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("symbolic links")));
  ASSERT_EQ(unlink(path_.c_str()), 0);
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const Descriptor writer(path_, O_RDWR);
  EXPECT_THAT(stream_.Confirm("a"), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a shared memory")));
  ASSERT_EQ(rename((path_ + ".moved").c_str(), path_.c_str()), 0);
  EXPECT_THAT(stream_.Confirm("a"), IsOk()) << "a client may try again";
}

TEST_F(ForeignRegistrationTest, AnObjectThatIsShorterThanItsRegionIsNotMapped) {
  const Descriptor client(path_, O_RDWR);
  ASSERT_TRUE(client.Lock(MustRegister("a"), 1));
  ASSERT_EQ(ftruncate(object_.fd(), kForeignBytes - 1), 0);
  EXPECT_THAT(stream_.Confirm("a"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("of an object of 16383")));
}

TEST_F(ForeignRegistrationTest, WhatIsCutOffLaterReadsAsZeros) {
  const Descriptor client(path_, O_RDWR);
  ASSERT_TRUE(client.Lock(MustRegister("a"), 1));
  const std::shared_ptr<SharedRegion> region = *table_.Find(stream_.Confirm("a")->id);
  ASSERT_EQ(ftruncate(object_.fd(), kForeignPage), 0);
  EXPECT_EQ(AsText(region->bytes())[100], 'v');
  EXPECT_TRUE(region->intact());
  EXPECT_EQ(AsText(region->bytes())[2 * kForeignPage], '\0');
  EXPECT_FALSE(region->intact());
}

TEST_F(ForeignRegistrationTest, EachKindOfObjectHasItsPrefix) {
  const auto denied = [](const std::string& prefix) {
    return StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("does not begin with \"/" + prefix));
  };
  EXPECT_THAT(stream_.Register(Whole("a")), denied("kvc-own-"));
  EXPECT_THAT(stream_.RegisterForeign({"a", "/kvc-own-x", 0, kForeignBytes}), denied("kvc-foreign-"));
  EXPECT_THAT(stream_.RegisterForeign({"a", key_.substr(1), 0, kForeignBytes}), denied("kvc-foreign-"));
  Registration without(table_, "kvc-own-", "client");
  EXPECT_THAT(without.RegisterForeign(Whole("a")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is not enabled")));
}

TEST_F(ForeignRegistrationTest, PathsAreNoKeys) {
  const std::string key = absl::StrCat("/", Prefix(), "../x");
  ASSERT_THAT(stream_.RegisterForeign({"a", key, 0, kForeignBytes}), IsOk());
  EXPECT_THAT(stream_.Confirm("a"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("without a further \"/\"")));
}

TEST_F(ForeignRegistrationTest, RegionsOfAClientAreLimitedTogether) {
  const Descriptor client(path_, O_RDWR);
  RegionTable table(kForeignBytes);
  Registration stream(table, "kvc-own-", "client", Prefix());
  for (const char* name : {"a", "b"}) {
    const absl::StatusOr<uint64_t> offset = stream.RegisterForeign(Whole(name));
    ASSERT_THAT(offset, IsOk());
    ASSERT_TRUE(client.Lock(*offset, 1));
  }
  EXPECT_THAT(stream.Confirm("a"), IsOk());
  EXPECT_THAT(stream.Confirm("b"), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("16384 are taken")));
  EXPECT_THAT(stream.Unregister("a"), IsOk());
  EXPECT_THAT(stream.Confirm("b"), IsOk());
}

}  // namespace
}  // namespace kvcompress
