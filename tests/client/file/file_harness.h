#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/file/file_codec.h"
#include "client/local_client.h"
#include "core/safetensors/safetensors.h"
#include "tests/testing/folder_test.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/values.h"

namespace kvcompress {

namespace fs = std::filesystem;

using Bytes = std::vector<std::byte>;
using Metadata = std::map<std::string, std::string>;

struct PlainTensor {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  Bytes values;
};

inline std::string MakePlainFile(const std::vector<PlainTensor>& tensors, const std::optional<Metadata>& metadata) {
  std::vector<safetensors::Entry> entries;
  std::string data;
  for (const PlainTensor& tensor : tensors) {
    const uint64_t begin = data.size();
    data += AsText(tensor.values);
    entries.push_back({tensor.name, tensor.dtype, tensor.shape, begin, data.size()});
  }
  return *SerializeHeader(entries, metadata.value_or(Metadata()), metadata.has_value()) + data;
}

inline PlainTensor MakePlainTensor(std::string name, DType dtype, std::vector<uint64_t> shape, uint32_t seed = 1) {
  const uint64_t elements = *NumElements(shape);
  return {std::move(name), std::string(DTypeName(dtype)), std::move(shape),
          testing::MakeValues(dtype, elements, testing::Distribution::kGaussian, seed)};
}

// Tests with a folder of their own, and a codec in this process.
class FileTest : public testing::FolderTest {
 protected:
  std::string Path(std::string_view name) const { return (folder_ / name).native(); }

  void Write(const std::string& path, const std::string& bytes) {
    fs::remove(path);  // some file systems sync a file that is truncated and written again
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::vector<std::string> Files() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().native());
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::StatusOr<FileReport> Compress(const std::string& input, const std::string& output, std::string_view codec,
                                      const FileOptions& options = {}) {
    return CompressFile(*client_, input, output, *Profile::Uniform(codec), codec, options);
  }

  absl::StatusOr<FileReport> Decompress(const std::string& input, const std::string& output,
                                        const FileOptions& options = {}) {
    return DecompressFile(*client_, input, output, options);
  }

  // Compresses a file without loss, decompresses it, and returns what came of it.
  std::string RoundTrip(const std::string& plain, std::string_view codec = "raw") {
    Write(Path("in"), plain);
    EXPECT_THAT(Compress(Path("in"), Path("packed"), codec), testing::IsOk());
    EXPECT_THAT(Decompress(Path("packed"), Path("out")), testing::IsOk());
    return Read(Path("out"));
  }

  std::unique_ptr<CodecClient> client_ = MakeLocalClient(2);
};

}  // namespace kvcompress
