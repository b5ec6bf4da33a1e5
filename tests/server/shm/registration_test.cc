#include "server/shm/registration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "core/base/shared_memory.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using ::testing::SizeIs;
using testing::StatusIs;

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kSize = 4 * kPageBytes;

// How often this process has mapped the object.
size_t Mappings(const std::string& key) {
  struct stat object;
  if (stat(absl::StrCat("/dev/shm", key).c_str(), &object) != 0) return 0;
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::string range, access, offset, device;
    ino_t inode = 0;
    fields >> range >> access >> offset >> device >> inode;
    count += inode == object.st_ino && line.find("/dev/shm/") != line.npos ? 1 : 0;
  }
  return count;
}

// A client's object, and the daemon's side of its stream.
class RegistrationTest : public ::testing::Test {
 protected:
  static std::string Prefix() { return absl::StrCat("kvc-test-", getpid(), "-"); }

  void Put(const Registration::Challenge& challenge, uint64_t offset = 0) {
    std::ranges::copy(challenge, mapping_->bytes().begin() + static_cast<ptrdiff_t>(offset));
  }

  Registration::Region Whole(std::string name) { return {std::move(name), key_, 0, kSize}; }

  // Registers and confirms.
  uint64_t MustRegister(const Registration::Region& region) {
    const absl::StatusOr<Registration::Challenge> challenge = stream_->Register(region);
    EXPECT_THAT(challenge, IsOk());
    Put(*challenge, region.offset);
    const absl::StatusOr<Registration::Region> confirmed = stream_->Confirm(region.name);
    EXPECT_THAT(confirmed, IsOk());
    return confirmed->id;
  }

  const std::string key_ = absl::StrCat("/", Prefix(), "registration");
  SharedMemory object_ = *SharedMemory::Create(key_, kSize);
  std::optional<SharedMapping> mapping_ = *object_.Map(0, kSize);
  RegionTable table_;
  std::optional<Registration> stream_{std::in_place, table_, Prefix(), "client"};
};

TEST_F(RegistrationTest, ARegionIsTheClientsMemoryFromConfirmToUnregister) {
  const Registration::Region region = {"a", key_, kPageBytes, 2 * kPageBytes};
  const absl::StatusOr<Registration::Challenge> challenge = stream_->Register(region);
  ASSERT_THAT(challenge, IsOk());
  ASSERT_THAT(stream_->Status("a"), IsOk());
  EXPECT_EQ(stream_->Status("a")->at(0).id, 0u);
  EXPECT_EQ(table_.count(), 0u);

  Put(*challenge, kPageBytes);
  const absl::StatusOr<Registration::Region> confirmed = stream_->Confirm("a");
  ASSERT_THAT(confirmed, IsOk());
  EXPECT_NE(confirmed->id, 0u);
  EXPECT_EQ(confirmed->key, key_);
  EXPECT_EQ(stream_->Confirm("a")->id, confirmed->id);
  EXPECT_EQ(table_.count(), 1u);
  EXPECT_EQ(table_.bytes(), 2 * kPageBytes);

  absl::StatusOr<std::shared_ptr<SharedRegion>> found = table_.Find(confirmed->id);
  ASSERT_THAT(found, IsOk());
  mapping_->bytes()[kPageBytes + 100] = std::byte{5};
  EXPECT_THAT((*found)->bytes(), SizeIs(2 * kPageBytes));
  EXPECT_EQ((*found)->bytes()[100], std::byte{5});

  EXPECT_THAT(stream_->Unregister("a"), IsOk());
  EXPECT_THAT(table_.Find(confirmed->id), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
  EXPECT_THAT(stream_->Status("a"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("\"a\"")));
  EXPECT_EQ((*found)->bytes()[100], std::byte{5}) << "whoever uses a region keeps it";
  EXPECT_EQ(Mappings(key_), 2u);
  found = absl::NotFoundError("");
  EXPECT_EQ(Mappings(key_), 1u);
}

TEST_F(RegistrationTest, WhatAStreamRegisteredGoesWithIt) {
  const uint64_t a = MustRegister({"a", key_, 0, kPageBytes});
  MustRegister({"b", key_, kPageBytes, kPageBytes});
  ASSERT_THAT(stream_->Register({"not confirmed", key_, 0, kPageBytes}), IsOk());
  EXPECT_EQ(Mappings(key_), 4u);
  EXPECT_THAT(*stream_->Status(""), SizeIs(3));
  stream_.reset();
  EXPECT_EQ(table_.count(), 0u);
  EXPECT_FALSE(table_.Find(a).ok());
  EXPECT_EQ(Mappings(key_), 1u);
}

// What counts as a fault of the daemon wakes its operator.
TEST_F(RegistrationTest, WhatAClientMadeOfAKeyIsItsOwnFault) {
  const std::string key = absl::StrCat("/", Prefix(), "other");
  const std::string path = absl::StrCat("/dev/shm", key);
  const auto is_refused = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("open shared memory " + key));
  ASSERT_EQ(symlink("/etc/passwd", path.c_str()), 0);
  EXPECT_THAT(stream_->Register({"a", key, 0, kPageBytes}), is_refused);
  ASSERT_EQ(unlink(path.c_str()), 0);
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  EXPECT_THAT(stream_->Register({"a", key, 0, kPageBytes}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("open shared memory " + key)));
  ASSERT_EQ(rmdir(path.c_str()), 0);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(stream_->Register({"a", key, 0, kPageBytes}), is_refused);
  ASSERT_EQ(unlink(path.c_str()), 0);
}

TEST_F(RegistrationTest, KeysOfItsOwnGoWithAStream) {
  const auto exists = [](const std::string& name) { return access(("/dev/shm/" + name).c_str(), F_OK) == 0; };
  const std::string own = stream_->OwnPrefix();
  EXPECT_EQ(own, stream_->OwnPrefix());
  EXPECT_TRUE(own.starts_with(Prefix())) << own;
  EXPECT_EQ(own.size(), Prefix().size() + 33);
  Registration other(table_, Prefix(), "client");
  EXPECT_NE(own, other.OwnPrefix());
  const SharedMemory left = *SharedMemory::Create("/" + own + "left", kPageBytes);
  const SharedMemory others = *SharedMemory::Create("/" + other.OwnPrefix() + "left", kPageBytes);
  stream_.reset();
  EXPECT_FALSE(exists(own + "left"));
  EXPECT_TRUE(exists(other.OwnPrefix() + "left"));
  EXPECT_TRUE(exists(key_.substr(1))) << "what has another prefix is its maker's alone";
}

TEST_F(RegistrationTest, AllAtOnce) {
  MustRegister(Whole("a"));
  MustRegister(Whole("b"));
  EXPECT_THAT(*stream_->Unregister(""), SizeIs(2));
  EXPECT_EQ(table_.count(), 0u);
  EXPECT_THAT(*stream_->Unregister(""), IsEmpty());
  MustRegister(Whole("a"));
}

TEST_F(RegistrationTest, StreamsDoNotSeeOneAnothersNames) {
  MustRegister(Whole("a"));
  Registration other(table_, Prefix(), "client");
  EXPECT_THAT(*other.Status(""), IsEmpty());
  EXPECT_THAT(other.Unregister("a"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("\"a\"")));
  ASSERT_THAT(other.Register(Whole("a")), IsOk());
}

TEST_F(RegistrationTest, WhoCannotWriteTheObjectCannotUseIt) {
  const auto denied = StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("does not begin with the challenge"));
  ASSERT_THAT(stream_->Register(Whole("a")), IsOk());
  EXPECT_THAT(stream_->Confirm("a"), denied);
  const Registration::Challenge of_b = *stream_->Register(Whole("b"));
  Put(of_b);
  EXPECT_THAT(stream_->Confirm("a"), denied);
  Registration::Challenge almost = of_b;
  almost[15] ^= std::byte{1};
  Put(almost);
  EXPECT_THAT(stream_->Confirm("b"), denied);
  EXPECT_EQ(table_.count(), 0u);
}

TEST_F(RegistrationTest, Faults) {
  constexpr uint64_t kMax = ~uint64_t{0};
  MustRegister(Whole("taken"));
  const struct {
    Registration::Region region;
    absl::StatusCode code;
    std::string text;
  } cases[] = {
      {{"", key_, 0, kSize}, absl::StatusCode::kInvalidArgument, "a region's name has 1 to 256 bytes"},
      {{std::string(257, 'x'), key_, 0, kSize}, absl::StatusCode::kInvalidArgument, "has 1 to 256 bytes"},
      {Whole("taken"), absl::StatusCode::kAlreadyExists, "\"taken\" is registered already"},
      {{"a", "/other", 0, kSize},
       absl::StatusCode::kPermissionDenied,
       absl::StrCat("does not begin with \"/", Prefix())},
      {{"a", key_.substr(1), 0, kSize}, absl::StatusCode::kPermissionDenied, "does not begin with"},
      {{"a", absl::StrCat("/", Prefix(), "../x"), 0, kSize},
       absl::StatusCode::kInvalidArgument,
       "without a further \"/\""},
      {{"a", key_ + std::string("\0x", 2), 0, kSize}, absl::StatusCode::kInvalidArgument, "shared memory key"},
      {{"a", key_ + "none", 0, kSize}, absl::StatusCode::kNotFound, "no such file or directory"},
      {{"a", key_, 1, kPageBytes}, absl::StatusCode::kInvalidArgument, "4096 bytes at 1: expected at least 4096 bytes"},
      {{"a", key_, 0, kPageBytes - 1}, absl::StatusCode::kInvalidArgument, "4095 bytes at 0: expected at least"},
      {{"a", key_, 0, 0}, absl::StatusCode::kInvalidArgument, "0 bytes at 0: expected at least"},
      {{"a", key_, 0, kSize + 1}, absl::StatusCode::kInvalidArgument, "16385 bytes at 0 of an object of 16384 bytes"},
      {{"a", key_, kSize, kPageBytes}, absl::StatusCode::kInvalidArgument, "4096 bytes at 16384 of an object of 16384"},
      {{"a", key_, kPageBytes, kMax}, absl::StatusCode::kInvalidArgument, "of an object of 16384 bytes"},
      {{"a", key_, kMax - kPageBytes + 1, kPageBytes},
       absl::StatusCode::kInvalidArgument,
       "of an object of 16384 bytes"},
  };
  for (const auto& test : cases) {
    EXPECT_THAT(stream_->Register(test.region), StatusIs(test.code, HasSubstr(test.text)));
  }
  EXPECT_THAT(stream_->Confirm("a"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("\"a\"")));
  EXPECT_EQ(Mappings(key_), 2u);
}

TEST_F(RegistrationTest, RegionsAreLimited) {
  for (size_t i = 0; i < Registration::kMaxRegions; ++i) MustRegister(Whole(std::to_string(i)));
  EXPECT_THAT(stream_->Register(Whole("one more")),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("limit of 64 regions")));
  EXPECT_THAT(stream_->Unregister("0"), IsOk());
  EXPECT_THAT(stream_->Register(Whole("one more")), IsOk());
}

// Each mapping costs the daemon memory, also a second one of the same object.
TEST_F(RegistrationTest, RegionsOfAClientAreNoLargerThanWhatItCouldHave) {
  RegionTable table(10 * kSize);
  Registration a(table, Prefix(), "a"), same_client(table, Prefix(), "a"), b(table, Prefix(), "b"),
      nobody(table, Prefix(), "");
  const auto is_refused = [](const char* text) {
    return StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr(text));
  };
  for (int i = 0; i < 5; ++i) {
    EXPECT_THAT(a.Register(Whole(std::to_string(i))), IsOk());
    EXPECT_THAT(same_client.Register(Whole(std::to_string(i))), IsOk());
  }
  EXPECT_THAT(a.Register(Whole("one more")), is_refused("regions of one client may have 163840 bytes together"));
  for (int i = 0; i < 5; ++i) {
    EXPECT_THAT(b.Register(Whole(std::to_string(i))), IsOk());
    EXPECT_THAT(nobody.Register(Whole(std::to_string(i))), IsOk());
  }
  EXPECT_THAT(nobody.Register(Whole("one more")), is_refused("all regions may have 327680 bytes together"));
  EXPECT_THAT(a.Unregister("0"), IsOk());
  EXPECT_THAT(nobody.Register(Whole("one more")), IsOk());
  EXPECT_EQ(Mappings(key_), 21u);
}

TEST_F(RegistrationTest, ARegionCountsUntilNobodyUsesIt) {
  RegionTable table(kSize);
  Registration stream(table, Prefix(), "client");
  const absl::StatusOr<Registration::Challenge> challenge = stream.Register(Whole("a"));
  ASSERT_THAT(challenge, IsOk());
  Put(*challenge);
  const absl::StatusOr<Registration::Region> confirmed = stream.Confirm("a");
  ASSERT_THAT(confirmed, IsOk());
  std::shared_ptr<SharedRegion> used = *table.Find(confirmed->id);
  EXPECT_THAT(stream.Unregister("a"), IsOk());
  EXPECT_THAT(stream.Register(Whole("a")),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("16384 are taken")));
  used.reset();
  EXPECT_THAT(stream.Register(Whole("a")), IsOk());
}

// Whoever touches a page that is missing pays for it.
TEST_F(RegistrationTest, MemoryThatIsMissingIsNotMade) {
  const uint64_t huge = SharedMemoryCapacity() / 2 / kPageBytes * kPageBytes;
  const std::string path = absl::StrCat("/dev/shm", key_);
  ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(huge)), 0);
  struct stat before, after;
  ASSERT_EQ(stat(path.c_str(), &before), 0);
  MustRegister({"a", key_, 0, huge});
  ASSERT_EQ(stat(path.c_str(), &after), 0);
  EXPECT_EQ(before.st_blocks, after.st_blocks);
}

TEST_F(RegistrationTest, AnObjectThatShrinksBeforeItIsConfirmed) {
  ASSERT_THAT(stream_->Register(Whole("a")), IsOk());
  ASSERT_EQ(truncate(absl::StrCat("/dev/shm", key_).c_str(), 0), 0);
  EXPECT_THAT(stream_->Confirm("a"), StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("challenge")));
}

TEST_F(RegistrationTest, IdsAreNotCounted) {
  const uint64_t a = MustRegister(Whole("a"));
  const uint64_t b = MustRegister(Whole("b"));
  EXPECT_GT(a > b ? a - b : b - a, uint64_t{1} << 32);
}

}  // namespace
}  // namespace kvcompress
