#pragma once

#include <string>
#include <utility>

#include "kvcompress/v1/kvcompress.pb.h"

// The two directions of the service, for code that is written once for both: the messages of each, and which field
// plays which part. "Input" is what a client sends (values to Compress, a frame to Decompress), "output" what it gets
// back.
namespace kvcompress {

// Most tensors of a batch.
inline constexpr int kMaxBatchTensors = 1024;

struct CompressDirection {
  // Of a stream.
  using Request = v1::CompressRequest;
  using Response = v1::CompressResponse;
  // Of a call for one tensor.
  using TensorRequest = v1::CompressTensorRequest;
  using TensorResponse = v1::CompressTensorResponse;

  // Payloads of a stream's messages: cases of the oneof, which are the numbers of their fields.
  static constexpr auto kInput = Request::kData;
  static constexpr auto kSharedInput = Request::kSharedData;
  static constexpr auto kOutputBuffer = Request::kFrameBuffer;
  static constexpr auto kOutput = Response::kFrame;
  static constexpr auto kSharedOutput = Response::kSharedFrame;
  // Numbers of the fields for bytes in the call for one tensor.
  static constexpr uint32_t kTensorInput = TensorRequest::kDataFieldNumber;
  static constexpr uint32_t kTensorOutput = TensorResponse::kFrameFieldNumber;

  // The fields themselves. Asking for a payload makes it the message's.
  static std::string& Input(auto& request) { return *request.mutable_data(); }
  static std::string& Output(auto& response) { return *response.mutable_frame(); }
  static v1::SharedMemoryRange& SharedInput(Request& request) { return *request.mutable_shared_data(); }
  static v1::SharedMemoryRange& OutputBuffer(Request& request) { return *request.mutable_frame_buffer(); }
  static v1::SharedMemoryRange& SharedOutput(Response& response) { return *response.mutable_shared_frame(); }
  static bool ToBuffers(const v1::CompressHeader& header) { return header.frame_to_buffer(); }

  // Moves what `part` says of a tensor to the answer to a batch.
  static void Join(Response& part, Response& joined) { *joined.add_ended() = std::move(*part.mutable_tensor()); }
};

struct DecompressDirection {
  using Request = v1::DecompressRequest;
  using Response = v1::DecompressResponse;
  using TensorRequest = v1::DecompressTensorRequest;
  using TensorResponse = v1::DecompressTensorResponse;

  static constexpr auto kInput = Request::kFrame;
  static constexpr auto kSharedInput = Request::kSharedFrame;
  static constexpr auto kOutputBuffer = Request::kDataBuffer;
  static constexpr auto kOutput = Response::kData;
  static constexpr auto kSharedOutput = Response::kSharedData;
  static constexpr uint32_t kTensorInput = TensorRequest::kFrameFieldNumber;
  static constexpr uint32_t kTensorOutput = TensorResponse::kDataFieldNumber;

  static std::string& Input(auto& request) { return *request.mutable_frame(); }
  static std::string& Output(auto& response) { return *response.mutable_data(); }
  static v1::SharedMemoryRange& SharedInput(Request& request) { return *request.mutable_shared_frame(); }
  static v1::SharedMemoryRange& OutputBuffer(Request& request) { return *request.mutable_data_buffer(); }
  static v1::SharedMemoryRange& SharedOutput(Response& response) { return *response.mutable_shared_data(); }
  static bool ToBuffers(const v1::DecompressHeader& header) { return header.data_to_buffer(); }

  static void Join(Response& part, Response& joined) {
    if (part.has_header()) {
      *joined.add_begun() = std::move(*part.mutable_header());
    } else {
      *joined.add_ended() = std::move(*part.mutable_tensor());
    }
  }
};

}  // namespace kvcompress
