#include "core/artifact/artifact_file.h"

#include <gmock/gmock.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/base/half.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/artifact/small_artifact.h"
#include "tests/testing/status_matchers.h"

namespace kvcompress {
namespace {

using ::kvcompress::testing::IsOk;
using ::kvcompress::testing::SmallArtifact;
using ::kvcompress::testing::StatusIs;
using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes FileOf(const Artifact& artifact) {
  const auto file = SerializeArtifact(artifact, "a test");
  EXPECT_THAT(file, IsOk());
  return file.ok() ? file->bytes : Bytes();
}

absl::StatusOr<IdentifiedArtifact> Read(const Bytes& bytes) { return ReadArtifact(MemorySource(ByteSpan(bytes))); }

// A file that the test changes.
struct File {
  safetensors::Header header;
  Bytes data;

  explicit File(const Bytes& bytes) {
    auto read = safetensors::ReadHeader(MemorySource(ByteSpan(bytes)));
    EXPECT_THAT(read, IsOk());
    if (!read.ok()) return;
    header = *std::move(read);
    data.assign(bytes.begin() + static_cast<ptrdiff_t>(header.data_start), bytes.end());
  }

  Bytes bytes() const {
    const auto text = safetensors::SerializeHeader(header.entries, header.metadata, true);
    EXPECT_THAT(text, IsOk());
    Bytes whole(AsBytes(*text).begin(), AsBytes(*text).end());
    whole.insert(whole.end(), data.begin(), data.end());
    return whole;
  }

  safetensors::Entry& entry(std::string_view name) {
    for (safetensors::Entry& entry : header.entries) {
      if (entry.name == name) return entry;
    }
    ADD_FAILURE() << "no entry " << name;
    return header.entries.front();
  }
  void SetValue(std::string_view name, size_t index, DType dtype, float value) {
    StoreFromF32(dtype, value, data.data() + entry(name).begin, index);
  }
  void Scale(std::string kind, std::string factor, std::string low, std::string high, std::string original) {
    header.metadata["rotary_scaling"] = std::move(kind);
    header.metadata["rotary_factor"] = std::move(factor);
    header.metadata["rotary_low"] = std::move(low);
    header.metadata["rotary_high"] = std::move(high);
    header.metadata["rotary_original"] = std::move(original);
  }
};

TEST(ArtifactFileTest, WhatIsWrittenIsRead) {
  const Artifact artifact = SmallArtifact();
  const auto file = SerializeArtifact(artifact, "a test");
  ASSERT_THAT(file, IsOk());
  const auto read = Read(file->bytes);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->artifact, artifact);
  EXPECT_EQ(read->id, file->id);
  EXPECT_TRUE(IsArtifactId(file->id));
  EXPECT_EQ(*ArtifactIdOf(MemorySource(ByteSpan(file->bytes))), file->id);
  EXPECT_EQ(FileOf(artifact), file->bytes);
  EXPECT_NE(SerializeArtifact(SmallArtifact(1), "a test")->id, file->id);
}

TEST(ArtifactFileTest, AScaledRotaryEmbeddingIsWrittenAndRead) {
  using Kind = simd::RotaryScaling::Kind;
  const simd::RotaryScaling scalings[] = {
      {Kind::kLinear, 2.5}, {Kind::kLlama3, 8, 1, 4, 8192}, {Kind::kYarn, 4, 0.5, 32, 32768}};
  for (const simd::RotaryScaling& scaling : scalings) {
    Artifact artifact = SmallArtifact();
    artifact.rotary->scaling = scaling;
    const auto read = Read(FileOf(artifact));
    ASSERT_THAT(read, IsOk());
    EXPECT_EQ(read->artifact, artifact);
  }
}

TEST(ArtifactFileTest, AnInverseThatIsTheTransposeIsLeftOut) {
  const File file(FileOf(SmallArtifact()));
  EXPECT_NE(file.header.Find("layer_0_key.inverse"), nullptr);
  EXPECT_EQ(file.header.Find("layer_0_value.inverse"), nullptr);
  EXPECT_EQ(file.header.Find("layer_2_key.inverse"), nullptr);
  EXPECT_EQ(file.header.metadata.at("rotary_theta"), "10000.5");
  EXPECT_EQ(file.header.metadata.at("layers"), "3");
}

TEST(ArtifactFileTest, AnIdIsThatOfTheDocumentedDigest) {
  // xxh128sum of the three bytes "abc".
  EXPECT_EQ(*ArtifactIdOf(MemorySource(AsBytes("abc"))), "06b05ab6733a618578af5f94892f3950");
  EXPECT_FALSE(IsArtifactId("06B05ab6733a618578af5f94892f3950"));
  EXPECT_FALSE(IsArtifactId("06b05ab6733a618578af5f94892f39"));
}

TEST(ArtifactFileTest, AFileThatIsNoneIsRefusedWithItsFault) {
  const Bytes good = FileOf(SmallArtifact());
  const float infinity = std::numeric_limits<float>::infinity();
  const struct {
    std::string_view fault;
    std::function<void(File&)> change;
  } kCases[] = {
      {"its metadata has no kvcompress.artifact", [](File& f) { f.header.metadata.erase("kvcompress.artifact"); }},
      {"its metadata has no heads", [](File& f) { f.header.metadata.erase("heads"); }},
      {"heads is not an integer: \"04\"", [](File& f) { f.header.metadata["heads"] = "04"; }},
      {"heads is not an integer: \"-4\"", [](File& f) { f.header.metadata["heads"] = "-4"; }},
      {"0 heads", [](File& f) { f.header.metadata["heads"] = "0"; }},
      {"do not come out even", [](File& f) { f.header.metadata["group_heads"] = "3"; }},
      {"do not come out even", [](File& f) { f.header.metadata["group_heads"] = "0"; }},
      {"1 to 1024", [](File& f) { f.header.metadata["head_dim"] = "18446744073709551615"; }},
      {"1025 layers are above the limit", [](File& f) { f.header.metadata["layers"] = "1025"; }},
      {"no tensor of an artifact has this name", [](File& f) { f.header.metadata["layers"] = "2"; }},
      {"weights is not one of none, given", [](File& f) { f.header.metadata["weights"] = "some"; }},
      {"rotary is not one of none, half, interleaved", [](File& f) { f.header.metadata["rotary"] = "yes"; }},
      {"rotary_theta is not a number", [](File& f) { f.header.metadata["rotary_theta"] = "x"; }},
      {"theta is 0.5", [](File& f) { f.header.metadata["rotary_theta"] = "0.5"; }},
      {"theta is nan", [](File& f) { f.header.metadata["rotary_theta"] = "nan"; }},
      {"has no rotary_scaling", [](File& f) { f.header.metadata.erase("rotary_scaling"); }},
      {"has no rotary_factor", [](File& f) { f.header.metadata["rotary_scaling"] = "linear"; }},
      {"factor is not from 1", [](File& f) { f.Scale("linear", "0.5", "", "", ""); }},
      {"factor is not from 1", [](File& f) { f.Scale("linear", "nan", "", "", ""); }},
      {"factor is not from 1", [](File& f) { f.Scale("linear", "inf", "", "", ""); }},
      {"rotary_low is not a number", [](File& f) { f.Scale("llama3", "8", "", "4", "8192"); }},
      {"low and high", [](File& f) { f.Scale("llama3", "8", "4", "1", "8192"); }},
      {"low and high", [](File& f) { f.Scale("yarn", "8", "0", "1", "8192"); }},
      {"rotary_original is not an integer", [](File& f) { f.Scale("yarn", "8", "1", "32", "-1"); }},
      {"original is not from 1", [](File& f) { f.Scale("yarn", "8", "1", "32", "0"); }},
      {"rotary channels", [](File& f) { f.header.metadata["rotary_dims"] = "1"; }},
      {"rotary channels", [](File& f) { f.header.metadata["rotary_dims"] = "4"; }},
      {"rotary channels", [](File& f) { f.header.metadata["rotary_offset"] = "1"; }},
      {"no tensor of an artifact has this name", [](File& f) { f.entry("layer_0_key.mean").name = "layer_0_key"; }},
      {"no tensor of an artifact has this name", [](File& f) { f.entry("layer_0_key.mean").name = "layer_0_key.men"; }},
      {"no tensor of an artifact has this name",
       [](File& f) { f.entry("layer_0_key.mean").name = "layer_00_key.mean"; }},
      {"\"layer_0_key\": artifact: has no mean",
       [](File& f) { f.entry("layer_0_key.mean").name = "layer_1_key.mean"; }},
      {"F32 [2, 4] in place of F16 [2, 4, 4]",
       [](File& f) { std::swap(f.entry("layer_0_key.mean").name, f.entry("layer_0_key.forward").name); }},
      {"in place of F32 [2, 4]",
       [](File& f) {
         f.entry("layer_0_key.mean").shape = {4, 2};
       }},
      {"mean: ", [&](File& f) { f.SetValue("layer_0_key.mean", 3, DType::kF32, infinity); }},
      {"sigma: ", [](File& f) { f.SetValue("layer_0_key.sigma", 7, DType::kF32, 0); }},
      {"sigma: ", [](File& f) { f.SetValue("layer_0_value.sigma", 0, DType::kF32, std::nanf("")); }},
      {"step: ", [](File& f) { f.SetValue("layer_2_key.step", 0, DType::kF32, -1); }},
      {"forward: ", [](File& f) { f.SetValue("layer_2_key.forward", 1, DType::kF16, 2000); }},
      {"inverse: ", [&](File& f) { f.SetValue("layer_0_key.inverse", 1, DType::kF16, infinity); }},
      {"group 1: inverse is not that of forward",
       [](File& f) { f.SetValue("layer_0_key.forward", 16, DType::kF16, 1); }},
      {"group 0: inverse is not that of forward",
       [](File& f) { f.SetValue("layer_0_value.forward", 0, DType::kF16, 0.5f); }},
  };
  for (const auto& test : kCases) {
    File file(good);
    test.change(file);
    EXPECT_THAT(Read(file.bytes()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(test.fault))));
  }
  EXPECT_THAT(Read(Bytes()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("parse header: ")));
}

TEST(ArtifactFileTest, WithoutTensorsItIsNone) {
  Artifact artifact = SmallArtifact();
  File file(FileOf(artifact));
  file.header.entries.clear();
  file.data.clear();
  EXPECT_THAT(Read(file.bytes()), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("has no tensors")));
  artifact.tensors.clear();
  EXPECT_THAT(SerializeArtifact(artifact, ""), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no tensors")));
}

TEST(ArtifactFileTest, WhatALaterVersionMayHaveIsUnimplemented) {
  File file(FileOf(SmallArtifact()));
  file.header.metadata["rotary_scaling"] = "longrope";
  EXPECT_THAT(Read(file.bytes()), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("longrope")));
  file.header.metadata["kvcompress.artifact"] = "2";
  EXPECT_THAT(Read(file.bytes()), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("version \"2\"")));
}

TEST(ArtifactFileTest, MemoryIsBoundedBeforeItIsTaken) {
  const Artifact artifact = SmallArtifact();
  const Bytes file = FileOf(artifact);
  const uint64_t bytes = artifact.tensors.size() * artifact.tensor_bytes();
  EXPECT_EQ(artifact.tensor_bytes(), 2 * (4 + 4 + 16 + 16) * sizeof(float));
  EXPECT_THAT(ReadArtifact(MemorySource(ByteSpan(file)), bytes), IsOk());
  EXPECT_THAT(ReadArtifact(MemorySource(ByteSpan(file)), bytes - 1),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes of memory")));
}

TEST(ArtifactFileTest, NoDamagedFileHasTheIdOfTheWholeOne) {
  const auto file = SerializeArtifact(SmallArtifact(), "a test");
  ASSERT_THAT(file, IsOk());
  size_t read = 0;
  for (size_t bit = 0; bit < 8 * file->bytes.size(); ++bit) {
    Bytes damaged = file->bytes;
    damaged[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto result = Read(damaged);
    if (!result.ok()) continue;
    ++read;
    EXPECT_NE(result->id, file->id) << bit;
  }
  EXPECT_GT(read, 100);
  for (size_t size = 0; size < file->bytes.size(); ++size) {
    EXPECT_FALSE(Read(Bytes(file->bytes.begin(), file->bytes.begin() + static_cast<ptrdiff_t>(size))).ok()) << size;
  }
}

TEST(ArtifactFileTest, WhatCouldNotBeReadIsNotWritten) {
  const struct {
    std::string_view fault;
    std::function<void(Artifact&)> change;
  } kCases[] = {
      {"sizes that do not fit", [](Artifact& a) { a.tensors.begin()->second.mean.pop_back(); }},
      {"sizes that do not fit", [](Artifact& a) { a.group_heads = 1; }},
      {"sigma", [](Artifact& a) { a.tensors.begin()->second.sigma[0] = -1; }},
      {"step", [](Artifact& a) { a.tensors.begin()->second.step = 0; }},
      {"inverse is not that", [](Artifact& a) { a.tensors.begin()->second.inverse[0] = 1; }},
      {"layer 1024 is above",
       [](Artifact& a) {
         a.tensors[{1024, false}] = a.tensors.begin()->second;
       }},
  };
  for (const auto& test : kCases) {
    Artifact artifact = SmallArtifact();
    test.change(artifact);
    EXPECT_THAT(SerializeArtifact(artifact, ""),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(test.fault))));
  }
}

}  // namespace
}  // namespace kvcompress
