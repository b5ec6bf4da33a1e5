#include <gmock/gmock.h>

#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "core/artifact/artifact_store.h"
#include "core/compress_stream.h"
#include "core/decompress_stream.h"
#include "tests/testing/folder_test.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

// The vectors of docs/format-vectors.md, read from the document itself: what it says is what the code does.
namespace kvcompress {
namespace {

using namespace ::kvcompress::testing;  // NOLINT

struct Vector {
  std::string title;
  TensorDesc tensor;
  std::string codec;
  std::string artifact;  // the file; empty: none
  std::string values;
  std::string frame;
  std::string decoded;
};

std::string FromHex(std::string_view text) {
  std::string digits;
  for (char c : text) {
    if (c != ' ') digits += c;
  }
  return absl::HexStringToBytes(digits);
}

std::string ToHex(std::string_view bytes) { return absl::BytesToHexString(std::string(bytes)); }

// Blocks of lines "key: value" between ```vector and ```; a line that begins with a blank continues the one before.
std::vector<Vector> ReadVectors() {
  std::ifstream document(KVC_SOURCE_DIR "/docs/format-vectors.md");
  std::vector<Vector> vectors;
  std::map<std::string, std::string> fields;
  std::string key;
  bool inside = false;
  for (std::string line; std::getline(document, line);) {
    if (line == "```vector") {
      inside = true;
      fields.clear();
    } else if (inside && line == "```") {
      inside = false;
      Vector vector{.title = fields["title"],
                    .tensor = {},
                    .codec = fields["codec"],
                    .artifact = FromHex(fields["artifact"]),
                    .values = FromHex(fields["values"]),
                    .frame = FromHex(fields["frame"]),
                    .decoded = FromHex(fields.contains("decoded") ? fields["decoded"] : fields["values"])};
      std::vector<uint64_t> shape;
      for (const std::string& extent :
           std::vector<std::string>(absl::StrSplit(fields["shape"], ' ', absl::SkipEmpty()))) {
        uint64_t value = 0;
        EXPECT_TRUE(absl::SimpleAtoi(extent, &value));
        shape.push_back(value);
      }
      vector.tensor = MakeTensor(fields["name"], DTypeFromName(fields["dtype"]).value(), shape);
      vector.tensor.fingerprint = FromHex(fields["fingerprint"]);
      vectors.push_back(std::move(vector));
    } else if (inside && !line.empty() && line[0] == ' ') {
      fields[key] += line;
    } else if (inside) {
      const size_t colon = line.find(": ");
      key = line.substr(0, colon);
      fields[key] = colon == line.npos ? "" : line.substr(colon + 2);
    }
  }
  return vectors;
}

struct Sink final : CompressOutput, DecompressOutput {
  void OnFrame(Slice part) override { bytes += AsText(part.bytes); }
  void OnHeader(const TensorDesc& tensor, uint64_t) override { header = tensor; }
  void OnData(Slice part) override { bytes += AsText(part.bytes); }
  void OnTensor(const TensorReport&) override { ++tensors; }
  void OnError(const absl::Status& status) override { ADD_FAILURE() << status; }

  TensorDesc header;
  std::string bytes;
  int tensors = 0;
};

class FormatVectorsTest : public FolderTest {};

TEST_F(FormatVectorsTest, EncodersAndDecodersDoWhatTheDocumentSays) {
  ThreadPool pool(2);
  ArtifactStore artifacts({.directory = folder_.string(), .look_again = {}});
  const Limits limits = {.environment = {.artifacts = &artifacts}};
  const std::vector<Vector> vectors = ReadVectors();
  EXPECT_GE(vectors.size(), 67u);
  for (const Vector& vector : vectors) {
    SCOPED_TRACE(vector.title);
    if (!vector.artifact.empty()) std::ofstream(folder_ / "model.kvcal") << vector.artifact;
    const MemorySource values(AsBytes(vector.values));
    Sink encoded;
    {
      CompressStream stream(pool, limits, encoded);
      ASSERT_THAT(stream.Compress(vector.tensor, vector.codec, values, 2), IsOk());
      stream.WaitBelow(1);
    }
    EXPECT_EQ(ToHex(encoded.bytes), ToHex(vector.frame));

    Sink decoded;
    {
      DecompressStream stream(pool, limits, decoded);
      ASSERT_THAT(stream.Begin(vector.tensor.name, nullptr, vector.tensor.fingerprint), IsOk());
      ASSERT_THAT(stream.Append(AsBytes(vector.frame)), IsOk());
      ASSERT_THAT(stream.Finish(), IsOk());
      stream.WaitBelow(1);
    }
    EXPECT_EQ(decoded.tensors, 1);
    EXPECT_EQ(decoded.header, vector.tensor);
    EXPECT_EQ(ToHex(decoded.bytes), ToHex(vector.decoded));
  }
}

}  // namespace
}  // namespace kvcompress
