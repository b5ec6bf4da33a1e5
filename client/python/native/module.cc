// The module kvcompress._native: MessageCodec and MessageCall for Python. _local.py is the only user of the codec, and
// checks what is given to it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "client/python/native/call_bindings.h"
#include "client/python/native/message_codec.h"
#include "client/python/native/process.h"
#include "client/python/native/view.h"
#include "core/base/allocator.h"

namespace nb = nanobind;

namespace kvcompress {
namespace {

// Its threads are of the process that made it.
struct Codec {
  OfProcess<MessageCodec> codec;
};

nb::object BytesOf(ByteSpan bytes) {
  PyObject* made = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes.size()));
  if (made == nullptr) throw nb::python_error();
  const MutableByteSpan copy(reinterpret_cast<std::byte*>(PyBytes_AS_STRING(made)), bytes.size());
  UseLargePages(copy);
  std::ranges::copy(bytes, copy.begin());
  return nb::steal(made);
}

// None, or a code of gRPC and a text.
nb::object ErrorOf(const absl::Status& status) {
  if (status.ok()) return nb::none();
  return nb::make_tuple(static_cast<int>(status.code()), nb::str(status.message().data(), status.message().size()));
}

// None: no limit.
absl::Time DeadlineIn(const std::optional<double>& seconds) {
  return seconds ? absl::Now() + absl::Seconds(*seconds) : absl::InfiniteFuture();
}

// Of (header, values) pairs: a list of (frame, report) pairs, and the error that ended it.
nb::tuple Compress(const Codec& own, const nb::sequence& items, std::optional<double> seconds) {
  std::vector<View> views;
  std::vector<MessageCodec::Tensor> tensors;
  for (nb::handle item : items) {
    views.emplace_back(item[1], PyBUF_STRIDES);
    tensors.push_back({TextOf(nb::object(item[0])), views.back().elements<const std::byte>()});
  }
  std::vector<MessageCodec::Made> made;
  absl::Status status;
  {
    const Away away;
    made = own.codec->Compress(tensors, DeadlineIn(seconds), status);
  }
  nb::list results;
  for (const MessageCodec::Made& one : made) {
    results.append(nb::make_tuple(BytesOf(one.frame.span()), nb::bytes(one.report.data(), one.report.size())));
  }
  own.codec->Recycle(std::move(made));
  return nb::make_tuple(results, ErrorOf(status));
}

// Of (header, frame) pairs: a list of what the frames hold, and the error that ended it.
nb::tuple Describe(const Codec& own, const nb::sequence& items) {
  std::vector<View> views;
  std::vector<MessageCodec::Frame> frames;
  for (nb::handle item : items) {
    const View& frame = views.emplace_back(item[1], PyBUF_SIMPLE);
    frames.push_back({TextOf(nb::object(item[0])), frame.bytes(), {}});
  }
  absl::Status status;
  nb::list results;
  for (const std::string& tensor : own.codec->Describe(frames, status)) {
    results.append(nb::bytes(tensor.data(), tensor.size()));
  }
  return nb::make_tuple(results, ErrorOf(status));
}

// Of (header, frame, values) triples: how many were decoded into their values, and the error that ended it.
nb::tuple Decompress(const Codec& own, const nb::sequence& items, std::optional<double> seconds) {
  std::vector<View> views;
  std::vector<MessageCodec::Frame> frames;
  for (nb::handle item : items) {
    const View& frame = views.emplace_back(item[1], PyBUF_SIMPLE);
    const ByteSpan bytes = frame.bytes();
    const View& values = views.emplace_back(item[2], PyBUF_WRITABLE | PyBUF_STRIDES);
    frames.push_back({TextOf(nb::object(item[0])), bytes, values.elements()});
  }
  size_t done = 0;
  absl::Status status;
  {
    const Away away;
    done = own.codec->Decompress(frames, DeadlineIn(seconds), status);
  }
  return nb::make_tuple(done, ErrorOf(status));
}

nb::tuple MaxFrameBytes(const Codec& own, const nb::sequence& headers) {
  std::vector<std::string_view> texts;
  for (nb::handle header : headers) texts.push_back(TextOf(header));
  const absl::StatusOr<std::vector<uint64_t>> bytes = own.codec->MaxFrameBytes(texts);
  if (!bytes.ok()) return nb::make_tuple(nb::none(), ErrorOf(bytes.status()));
  return nb::make_tuple(nb::cast(*bytes), nb::none());
}

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // what a child of a fork leaves alone is no leak
  PrepareMutexes();
  BindCalls(module);
  nb::class_<Codec>(module, "Codec")
      .def(
          "__init__",
          [](Codec* self, size_t threads, std::string default_codec, std::string artifacts) {
            const MessageCodec::Options options{threads, std::move(default_codec), std::move(artifacts)};
            new (self) Codec{OfProcess<MessageCodec>(new MessageCodec(options))};
          },
          nb::arg("threads"), nb::arg("default_codec"), nb::arg("artifacts"))
      .def_prop_ro("threads", [](const Codec& own) { return own.codec->threads(); })
      .def("compress", &Compress, nb::arg("items"), nb::arg("seconds").none())
      .def("describe", &Describe, nb::arg("items"))
      .def("decompress", &Decompress, nb::arg("items"), nb::arg("seconds").none())
      .def("max_frame_bytes", &MaxFrameBytes, nb::arg("headers"));
}

}  // namespace
}  // namespace kvcompress
