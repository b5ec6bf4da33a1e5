#include "proto/wire/grpc/message.h"

#include <gmock/gmock.h>

#include "kvcompress/v1/kvcompress.pb.h"
#include "tests/testing/values.h"

namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

constexpr uint32_t kData = v1::CompressRequest::kDataFieldNumber;

std::string Payload(const std::vector<Slice>& slices) {
  std::string bytes;
  for (const Slice& slice : slices) bytes += AsText(slice.bytes);
  return bytes;
}

std::string Flat(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// `bytes` in slices that end at `cuts`.
grpc::ByteBuffer Cut(const std::string& bytes, const std::vector<size_t>& cuts) {
  std::vector<grpc::Slice> slices;
  size_t at = 0;
  for (const size_t cut : cuts) {
    slices.emplace_back(bytes.data() + at, cut - at);
    at = cut;
  }
  slices.emplace_back(bytes.data() + at, bytes.size() - at);
  return {slices.data(), slices.size()};
}

TEST(MessageTest, OursAreParsedByTheGeneratedClasses) {
  for (const size_t size :
       {size_t{0}, size_t{1}, size_t{127}, size_t{128}, size_t{16383}, size_t{16384}, size_t{1} << 20}) {
    const std::vector<std::byte> bytes = MakeBits(size);
    const auto owner = std::make_shared<int>();
    for (const size_t cut : {size_t{0}, size / 3, size}) {
      const ByteSpan all(bytes);
      const grpc::ByteBuffer buffer = PayloadMessage(kData, {{all.first(cut), owner}, {all.subspan(cut), owner}});
      v1::CompressRequest request;
      ASSERT_TRUE(ParseMessage(buffer, request));
      EXPECT_TRUE(request.has_data());
      EXPECT_EQ(request.data(), AsText(bytes));
      EXPECT_EQ(Flat(buffer), request.SerializeAsString());
    }
  }
}

TEST(MessageTest, ThoseOfTheGeneratedClassesAreReadWhereverTheirSlicesEnd) {
  v1::CompressRequest request;
  request.set_data(std::string(AsText(MakeBits(200))));
  const std::string bytes = request.SerializeAsString();
  for (size_t first = 0; first <= bytes.size(); ++first) {
    for (size_t second = first; second <= bytes.size(); second += 1 + (second > 5 ? 20 : 0)) {
      const auto payload = PayloadOf(Cut(bytes, {first, second}), kData);
      ASSERT_TRUE(payload.has_value()) << first << ", " << second;
      EXPECT_EQ(Payload(*payload), request.data());
    }
  }
}

TEST(MessageTest, ThePayloadLiesInTheMessage) {
  v1::CompressRequest request;
  request.set_data(std::string(100000, 'x'));
  const std::string bytes = request.SerializeAsString();
  const grpc::ByteBuffer buffer = Cut(bytes, {50000});
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(buffer.Dump(&slices).ok());
  const auto payload = PayloadOf(buffer, kData);
  ASSERT_TRUE(payload.has_value());
  ASSERT_EQ(payload->size(), 2u);
  EXPECT_EQ(reinterpret_cast<const uint8_t*>((*payload)[1].bytes.data()), slices[1].begin());
}

TEST(MessageTest, MemoryIsReleasedWithTheLastMessage) {
  auto owner = std::make_shared<int>();
  const std::weak_ptr<int> watched = owner;
  const std::vector<std::byte> bytes(1000);
  {
    const grpc::ByteBuffer buffer = PayloadMessage(kData, {{ByteSpan(bytes), std::move(owner)}});
    const grpc::ByteBuffer copy = buffer;
    EXPECT_FALSE(watched.expired());
  }
  EXPECT_TRUE(watched.expired());
}

// What an encoder may write, and what nobody writes: the shortcut must say what the parser says, or nothing.
TEST(MessageTest, UnusualEncodingsMeanTheSame) {
  const std::string data =
      "\x12\x03"
      "abc";
  const std::string unknown = "\xf8\x01\x07";  // field 31, a varint
  const std::vector<std::string> messages = {
      "",
      std::string("\x12\0", 2),  // an empty payload
      data,
      data +
          "\x12\x02"
          "xy",  // twice: the last one counts
      unknown + data,
      data + unknown,
      std::string("\x92\x80\x80\x80\x00\x03", 6) + "abc",  // a tag that is longer than it must be
      std::string("\x12\x83\x80\x80\x00", 5) + "abc",      // a length that is
      std::string("\x12\x83\x80\x80\x80\x80\x80\x00", 8) + "abc",
      std::string("\x92\x80\x80\x80\x80\x80\x00\x03", 8) + "abc",
      "\x12\x04"
      "abc",  // cut short
      "\x12\x02"
      "abc",
      "\x12",
      "\x10\x03",                 // another wire type
      "\x1a\x02\x10\x01",         // another field
      data + "\x1a\x02\x10\x01",  // another field of the same oneof behind it
      "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
  };
  for (const std::string& message : messages) {
    v1::CompressRequest parsed;
    const bool valid = parsed.ParseFromString(message);
    for (size_t cut = 0; cut <= message.size(); ++cut) {
      const auto payload = PayloadOf(Cut(message, {cut}), kData);
      if (!payload) continue;
      EXPECT_TRUE(valid) << ::testing::PrintToString(message);
      EXPECT_TRUE(parsed.has_data()) << ::testing::PrintToString(message);
      EXPECT_EQ(Payload(*payload), parsed.data()) << ::testing::PrintToString(message);
    }
  }
}

TEST(MessageTest, TheShortcutTakesWhatEncodersWrite) {
  EXPECT_TRUE(PayloadOf(Cut("\x12\x03"
                            "abc",
                            {}),
                        kData)
                  .has_value());
  EXPECT_TRUE(PayloadOf(Cut(std::string("\x12\0", 2), {}), kData).has_value());
  EXPECT_FALSE(PayloadOf(Cut("", {}), kData).has_value());
  EXPECT_FALSE(PayloadOf(Cut("\x1a\x02\x10\x01", {}), kData).has_value());
}

}  // namespace
}  // namespace kvcompress
