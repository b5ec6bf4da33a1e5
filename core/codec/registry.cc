#include "core/codec/registry.h"

#include <array>

#include "absl/strings/str_format.h"

namespace kvcompress {
namespace {

using std::string_view;

constexpr string_view kIntParameters = "group=32|64|128 (64)";

constexpr std::array<string_view, 4> kInt4Examples = {"int4(group=64)", "int4(group=32)", "int4(group=128)",
                                                      "int4(group=64)|zstd(level=1)"};
constexpr std::array<string_view, 1> kInt2Examples = {"int2(group=32)"};
constexpr std::array<string_view, 1> kInt3Examples = {"int3(group=64)"};
constexpr std::array<string_view, 1> kInt5Examples = {"int5(group=64)"};
constexpr std::array<string_view, 1> kInt6Examples = {"int6(group=128)"};
constexpr std::array<string_view, 1> kInt8Examples = {"int8(group=64)"};
constexpr std::array<string_view, 5> kPlanesExamples = {
    "planes(split=auto,delta=auto)", "planes(split=fields,delta=token)", "planes(split=bytes,delta=xor)",
    "planes(split=fields,delta=none)|zstd(level=-1)", "sparse(ratio=0.2)|planes(split=bytes,delta=token)"};
constexpr std::array<string_view, 1> kRawExamples = {"raw"};
constexpr std::array<string_view, 3> kBoundedExamples = {
    "bounded(min_snr=30,max_error=0,min_cosine=0)", "bounded(min_snr=20,max_error=0.05,min_cosine=0.999)",
    "bounded(min_snr=0,max_error=0,min_cosine=0.99)|zstd(level=1)"};
constexpr std::array<string_view, 4> kHeadsExamples = {
    "heads(0-1:int8(group=64),2-:int4(group=64)|rans)", "heads(0:raw,1-:planes(split=bytes,delta=none)|zstd(level=1))",
    "heads(0-2:quant(bits=6,per=token)|rans,3:clamp(limit=65504)|int3(group=64),4-:raw|zstd(level=1))",
    "heads(0:int2(group=32),1-5:bounded(min_snr=30),6-:blocknorm)|zstd(level=1)"};
constexpr std::array<string_view, 1> kZstdExamples = {"raw|zstd(level=3)"};
constexpr std::array<string_view, 1> kArithmeticExamples = {"raw|arithmetic"};
constexpr std::array<string_view, 1> kCabacExamples = {"raw|cabac"};
constexpr std::array<string_view, 2> kHuffmanExamples = {"raw|huffman", "int4(group=64)|huffman"};
constexpr std::array<string_view, 3> kLz4Examples = {"raw|lz4(level=1)", "raw|lz4(level=-8)",
                                                     "int8(group=64)|lz4(level=9)"};
constexpr std::array<string_view, 1> kStoredExamples = {"raw|stored"};
constexpr std::array<string_view, 2> kRansExamples = {"raw|rans", "int4(group=64)|rans"};
constexpr std::array<string_view, 3> kSparseExamples = {"sparse(ratio=0.5)|int4(group=64)", "sparse(ratio=0.1)|raw",
                                                        "sparse(ratio=0.9)|int8(group=32)|zstd(level=1)"};
constexpr std::array<string_view, 1> kClampExamples = {"clamp(limit=65504)|int4(group=64)"};

constexpr std::array<string_view, 2> kClipExamples = {"clip(percentile=99.9)|int4(group=64)",
                                                      "clip(percentile=50)|raw"};
constexpr std::array<string_view, 12> kQuantExamples = {
    "quant(bits=10,per=token,group=64,symmetric=true,outliers=0,layout=packed)",
    "quant(bits=8,per=block)",
    "quant(bits=2,per=channel,group=64,symmetric=false)",
    "quant(bits=2,per=token,symmetric=false)",
    "quant(bits=3,per=group,group=128,symmetric=false,outliers=0.01)",
    "quant(bits=4,per=group,group=64)",
    "quant(bits=5,per=channel,group=4096,outliers=0.1,layout=bytes)",
    "quant(bits=6,per=token,layout=bytes)|zstd(level=1)",
    "quant(bits=7,per=group,group=32)",
    "quant(bits=9,per=channel,group=32,symmetric=false,layout=bytes)|zstd(level=1)",
    "quant(bits=11,per=block,symmetric=false)",
    "sparse(ratio=0.5)|quant(bits=12,per=group,group=512,outliers=0.005)",
};
constexpr std::array<string_view, 3> kBlockNormExamples = {"blocknorm(block=128,topk=0.02,bits=10)",
                                                           "blocknorm(block=32,topk=0.5,bits=4)",
                                                           "blocknorm(block=64,topk=0,bits=8)|zstd(level=1)"};

constexpr CodecRow IntRow(string_view name, string_view summary, std::span<const string_view> examples) {
  return {.name = name,
          .kind = StageKind::kTensorCodec,
          .parameters = kIntParameters,
          .summary = summary,
          .make_tensor_codec = MakeIntGroup,
          .examples = examples};
}

constexpr std::array kRows = {
    CodecRow{.name = "clamp",
             .kind = StageKind::kTransform,
             .parameters = "limit=REAL (65504)",
             .summary = "NaN becomes 0, infinities and values above the limit saturate",
             .make_transform = MakeClamp,
             .examples = kClampExamples},
    CodecRow{.name = "clip",
             .kind = StageKind::kTransform,
             .parameters = "percentile=0..100 (99.9)",
             .summary = "values above a percentile of the tensor's magnitudes saturate",
             .make_transform = MakeClip,
             .examples = kClipExamples},
    CodecRow{.name = "sparse",
             .kind = StageKind::kTransform,
             .parameters = "ratio=0..1 (0.5)",
             .summary = "the given fraction of a tensor's values, the smallest in magnitude, becomes zero",
             .make_transform = MakeSparse,
             .examples = kSparseExamples},
    IntRow("int2", "2-bit integers, one FP16 scale a group", kInt2Examples),
    IntRow("int3", "3-bit integers, one FP16 scale a group", kInt3Examples),
    IntRow("int4", "4-bit integers, one FP16 scale a group", kInt4Examples),
    IntRow("int5", "5-bit integers, one FP16 scale a group", kInt5Examples),
    IntRow("int6", "6-bit integers, one FP16 scale a group", kInt6Examples),
    IntRow("int8", "8-bit integers, one FP16 scale a group", kInt8Examples),
    CodecRow{.name = "planes",
             .kind = StageKind::kTensorCodec,
             .parameters = "split=auto|bytes|fields (auto), delta=auto|none|token|xor (auto)",
             .summary = "a plane for each byte of a value, exponents together, lossless; for byte codecs",
             .make_tensor_codec = MakePlanes,
             .examples = kPlanesExamples},
    CodecRow{.name = "quant",
             .kind = StageKind::kTensorCodec,
             .parameters = "bits=2..12 (8), per=block|channel|token|group (token), group=32..4096 (64), "
                           "symmetric=true|false (true), outliers=0..0.1 (0), layout=packed|bytes (packed)",
             .summary = "uniform integers, one scale a block, channel, token or group",
             .make_tensor_codec = MakeQuant,
             .examples = kQuantExamples},
    CodecRow{.name = "blocknorm",
             .kind = StageKind::kTensorCodec,
             .parameters = "block=32|64|128|256 (128), topk=0..1 (0.02), bits=2..12 (10)",
             .summary = "uniform integers of normalized blocks, those of most energy with exact scales",
             .make_tensor_codec = MakeBlockNorm,
             .examples = kBlockNormExamples},
    CodecRow{.name = "raw",
             .kind = StageKind::kTensorCodec,
             .parameters = "",
             .summary = "the values as they are, lossless",
             .make_tensor_codec = MakeRaw,
             .examples = kRawExamples},
    CodecRow{.name = "arithmetic",
             .kind = StageKind::kByteCodec,
             .parameters = "",
             .summary = "adaptive range coder over each stream; small and slow",
             .make_byte_codec = MakeArithmetic,
             .examples = kArithmeticExamples},
    CodecRow{.name = "cabac",
             .kind = StageKind::kByteCodec,
             .parameters = "",
             .summary = "adaptive binary contexts over each stream; small and slowest",
             .make_byte_codec = MakeCabac,
             .examples = kCabacExamples},
    CodecRow{.name = "huffman",
             .kind = StageKind::kByteCodec,
             .parameters = "",
             .summary = "canonical prefix codes of at most 11 bits over each stream",
             .make_byte_codec = MakeHuffman,
             .examples = kHuffmanExamples},
    CodecRow{.name = "rans",
             .kind = StageKind::kByteCodec,
             .parameters = "",
             .summary = "entropy coding of each stream by the frequencies of its bytes, at GB/s",
             .make_byte_codec = MakeRans,
             .examples = kRansExamples},
    CodecRow{.name = "bounded",
             .kind = StageKind::kTensorCodec,
             .parameters = "min_snr=DB (0), max_error=REAL (0), min_cosine=0..1 (0)",
             .summary = "for each block the smallest of intN, quant and lossless that keeps the bounds; 0: no bound",
             .make_tensor_codec = MakeBounded,
             .examples = kBoundedExamples},
    CodecRow{.name = "lz4",
             .kind = StageKind::kByteCodec,
             .parameters = "level=-64..12 (1); below 0 faster, from 3 smaller",
             .summary = "LZ4 over each stream",
             .make_byte_codec = MakeLz4,
             .examples = kLz4Examples},
    CodecRow{.name = "stored",
             .kind = StageKind::kByteCodec,
             .parameters = "",
             .summary = "leaves each stream as it is",
             .make_byte_codec = MakeStored,
             .examples = kStoredExamples},
    CodecRow{.name = "heads",
             .kind = StageKind::kTensorCodec,
             .parameters = "FIRST-LAST:CHAIN,...,FIRST-:CHAIN, every head once; such as heads(0-1:int8,2-:int4|rans)",
             .summary = "a chain of its own for each range of heads, of tensors with a heads axis",
             .make_tensor_codec = MakeHeads,
             .examples = kHeadsExamples},
    CodecRow{.name = "zstd",
             .kind = StageKind::kByteCodec,
             .parameters = "level=-7..19 (3)",
             .summary = "Zstandard over each stream",
             .make_byte_codec = MakeZstd,
             .examples = kZstdExamples},
};

}  // namespace

std::span<const CodecRow> AllCodecs() { return kRows; }

const CodecRow* FindCodec(std::string_view name) {
  for (const CodecRow& row : kRows) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

std::string DescribeCodecs() {
  std::string text;
  for (const CodecRow& row : kRows) {
    absl::StrAppendFormat(&text, "  %-10s %s\n", row.name, row.summary);
    if (!row.parameters.empty()) absl::StrAppendFormat(&text, "  %-10s   %s\n", "", row.parameters);
  }
  return text;
}

}  // namespace kvcompress
