#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/codec_client.h"
#include "client/file/block_codecs.h"
#include "client/file/file_rotary.h"
#include "core/base/file.h"
#include "core/profile/profile.h"

// Safetensors files to compressed files (compressed_file.h) and back. Files are streamed: neither needs to fit into
// memory. The output appears whole or not at all, and may be the input's own path.
//
// Errors about the input file begin with "read input: " or "parse header: ", those about the output with "write
// output: "; the others are the codec's.
namespace kvcompress {

struct FileOptions {
  // How the output is made; a program that handles signals remembers the temporary's path here.
  std::function<absl::StatusOr<std::unique_ptr<AtomicFile>>(const std::string& path)> create = AtomicFile::Create;
  // Told how many bytes of all tensors are done. Called from any thread, one call at a time.
  std::function<void(uint64_t done, uint64_t total)> progress = [](uint64_t, uint64_t) {};
  absl::Time deadline = absl::InfiniteFuture();
  // Of the file's model, and the position of its tensors' first token, in place of what its metadata say
  // (file_rotary.h). Where codecs have a theta or a start of their own, that holds.
  std::optional<simd::RotaryEmbedding> rotary = {};
  std::optional<uint64_t> start = {};
  // Of codecs that work in this process, for the report; null: none.
  ArtifactStore* artifacts = nullptr;
  // Of every frame: what compression writes into it, and what decompression expects; empty: none, and any.
  std::string fingerprint = {};
  bool keep_nonfinite = false;      // blocks with values that their codec refuses are stored as they are
  bool count_block_codecs = false;  // compression fills in FileReport::block_codecs
};

struct FileReport {
  std::string codec;                           // canonical spec, or "profile"
  std::vector<TensorReport> tensors;           // in the file's order
  std::vector<BlockCodecs> block_codecs = {};  // of each of them, where asked for
  std::optional<RotaryUse> rotary = {};        // compression: how keys were turned back, where codecs could do it
  bool misses_rotary = false;                  // FileRotary::is_missed
  uint64_t tensor_bytes = 0;                   // of all tensors in their own dtype
  uint64_t compressed_bytes = 0;               // of the whole compressed file, header included
};

// Compresses the file at `input`, or what stands for one (input.h); `codec` goes into the metadata. With an empty
// `output` everything is done except for the writing. INVALID_ARGUMENT for a file that is compressed
// already.
absl::StatusOr<FileReport> CompressFile(CodecClient& client, const std::string& input, const std::string& output,
                                        const Profile& profile, std::string_view codec, const FileOptions& options);

// Restores names, order, shapes, dtypes, values and metadata. With an empty `output` everything is decoded and checked,
// and nothing is written.
absl::StatusOr<FileReport> DecompressFile(CodecClient& client, const std::string& input, const std::string& output,
                                          const FileOptions& options);

}  // namespace kvcompress
