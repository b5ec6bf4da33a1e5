#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "core/codec/codec.h"
#include "core/codec/spec.h"

namespace kvcompress {

enum class StageKind { kTransform, kTensorCodec, kByteCodec };

// One row of the table of codecs. Exactly the factory of its kind is set; it gives INVALID_ARGUMENT for bad parameters.
struct CodecRow {
  std::string_view name;
  StageKind kind;
  std::string_view parameters;  // "group=32|64|128 (64)"; the default in parentheses
  std::string_view summary;
  absl::StatusOr<std::unique_ptr<TensorTransform>> (*make_transform)(const StageSpec&) = nullptr;
  absl::StatusOr<std::unique_ptr<TensorCodec>> (*make_tensor_codec)(const StageSpec&) = nullptr;
  absl::StatusOr<std::unique_ptr<ByteCodec>> (*make_byte_codec)(const StageSpec&) = nullptr;
  // Specs of whole chains that between them use every parameter: what tests, fuzzers and benchmarks run.
  std::span<const std::string_view> examples;
};

std::span<const CodecRow> AllCodecs();

// Null when there is no codec of that name.
const CodecRow* FindCodec(std::string_view name);

// What each codec is for and its parameters, for help texts.
std::string DescribeCodecs();

// The factories, each in the file of its codec.
absl::StatusOr<std::unique_ptr<TensorTransform>> MakeClamp(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorTransform>> MakeClip(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorTransform>> MakeSparse(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakeBounded(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakeHeads(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakeIntGroup(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakePlanes(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakeQuant(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakeBlockNorm(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<TensorCodec>> MakeRaw(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeArithmetic(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeCabac(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeHuffman(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeLz4(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeRans(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeStored(const StageSpec& stage);
absl::StatusOr<std::unique_ptr<ByteCodec>> MakeZstd(const StageSpec& stage);

}  // namespace kvcompress
