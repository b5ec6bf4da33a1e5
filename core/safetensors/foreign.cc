#include "core/safetensors/foreign.h"

#include <algorithm>

namespace kvcompress::safetensors {
namespace {

struct Magic {
  std::string_view bytes;
  std::string_view what;
};

constexpr Magic kMagics[] = {
    {"version https://git-lfs.github.com/spec/",
     "a Git LFS pointer, not the file that it stands for: fetch that with git lfs pull"},
    {"PK\x03\x04", "a zip archive, as PyTorch (.pt, .bin) and NumPy (.npz) write them: convert it to safetensors"},
    {"PK\x05\x06", "an empty zip archive"},
    {"GGUF", "a GGUF file: convert it to safetensors"},
    {"\x93NUMPY", "a NumPy array (.npy): convert it to safetensors"},
    {"\x89HDF\r\n\x1a\n", "an HDF5 file: convert it to safetensors"},
    {"\x1f\x8b", "compressed with gzip: unpack it first"},
    {"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"},
    {"\xfd"
     "7zXZ",
     "compressed with xz: unpack it first"},
    {"BZh", "compressed with bzip2: unpack it first"},
    {"<!DOCTYPE html", "an HTML page, perhaps in place of a download"},
    {"<html", "an HTML page, perhaps in place of a download"},
};

// Protocols 2 to 5. The length of a safetensors header may begin like this, too, but is followed by '{'.
bool IsPickle(std::string_view text) {
  const bool is_header = text.size() > 8 && text[8] == '{';
  return text.size() >= 3 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5 && !is_header;
}

bool IsJson(std::string_view text) {
  text = text.substr(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  return text.starts_with("{\"") || text.starts_with("{\n") || text.starts_with("{ ") || text.starts_with("{\r");
}

}  // namespace

std::string_view ForeignFormat(ByteSpan first_bytes) {
  const std::string_view text = AsText(first_bytes);
  for (const Magic& magic : kMagics) {
    if (text.starts_with(magic.bytes)) return magic.what;
  }
  if (IsPickle(text)) return "a Python pickle, as torch.save and pickle.dump write them: convert it to safetensors";
  if (IsJson(text)) return "JSON text: an index of shards is read where its name ends in .json";
  return "";
}

}  // namespace kvcompress::safetensors
