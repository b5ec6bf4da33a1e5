#include "client/python/native/plain_calls.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "client/python/native/call.h"
#include "core/base/dtype.h"
#include "core/base/tensor.h"
#include "proto/wire/convert.h"

namespace nb = nanobind;

namespace kvcompress {
namespace {

// What is taken of the package, and what its objects are.
struct Package {
  const nb::object array = nb::module_::import_("numpy").attr("ndarray");
  const nb::object frame = nb::module_::import_("kvcompress._frame").attr("Frame");
  const nb::object frame_of = nb::module_::import_("kvcompress._frame").attr("frame_of");
  const nb::object item_of = nb::module_::import_("kvcompress._items").attr("DecompressItem").attr("of");
  const nb::object view_of = nb::module_::import_("kvcompress._items").attr("view_of");
  const nb::object empty = nb::module_::import_("kvcompress._tensors").attr("empty");
  const nb::object new_output = nb::module_::import_("kvcompress._tensors").attr("Output").attr("new");
  const nb::object numpy = nb::str("numpy");
  const nb::object f16 = nb::str("F16");
  const nb::object f32 = nb::str("F32");
  const nb::object no_fingerprint = nb::bytes("", 0);
  const uint64_t most_expansion = nb::cast<uint64_t>(nb::module_::import_("kvcompress._items").attr("MOST_EXPANSION"));
  const uint64_t most_overhead = nb::cast<uint64_t>(nb::module_::import_("kvcompress._items").attr("MOST_OVERHEAD"));

  uint64_t MostFrameBytes(uint64_t tensor_bytes) const { return most_expansion * tensor_bytes + most_overhead; }

  // Never destroyed, and made under the GIL.
  static const Package& Get() {
    static const Package* known = nullptr;
    if (known == nullptr) known = new Package;
    return *known;
  }
};

// Bytes of an item that is better off in a message than in a stream, and of one that fits into a message; and how many
// seconds calls last.
using Limits = std::tuple<uint64_t, uint64_t, std::optional<double>>;

// Thrown for arguments of a call that is not made here: the package makes it, and says what is wrong with them.
struct NotPlain {};

void Require(bool is_plain) {
  if (!is_plain) throw NotPlain();
}

// Arguments of a method of the client.
class Arguments {
 public:
  Arguments(const nb::tuple& given, const nb::dict& named) : given_(given), named_(named) {}

  // The one at `position`, or of this name; null where there is none.
  nb::handle Take(size_t position, const char* name) {
    if (position >= given_.size()) return Named(name);
    ++taken_;
    return PyTuple_GET_ITEM(given_.ptr(), static_cast<Py_ssize_t>(position));
  }
  nb::handle Named(const char* name) {
    PyObject* found = named_.size() == 0 ? nullptr : PyDict_GetItemString(named_.ptr(), name);
    if (found != nullptr) ++taken_;
    return found;
  }
  // The same; null for None, too.
  nb::handle Option(const char* name) {
    const nb::handle found = Named(name);
    return found.is_none() ? nb::handle() : found;
  }
  // Those that were not taken are at most these, as None.
  void RequireNoOthers(std::initializer_list<const char*> names) {
    const auto all_taken = [this] { return taken_ == given_.size() + named_.size(); };
    if (all_taken()) return;
    for (const char* name : names) Require(!Option(name).is_valid());
    Require(all_taken());
  }

 private:
  const nb::tuple& given_;
  const nb::dict& named_;
  size_t taken_ = 0;
};

std::string TextIn(nb::handle text) {
  Require(text.is_valid() && PyUnicode_CheckExact(text.ptr()));
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (data == nullptr) throw nb::python_error();
  return {data, static_cast<size_t>(size)};
}

std::optional<double> SecondsIn(nb::handle timeout, std::optional<double> usual) {
  if (!timeout.is_valid()) return usual;
  Require(PyFloat_CheckExact(timeout.ptr()) || PyLong_CheckExact(timeout.ptr()));
  constexpr double kMostSeconds = 1e9;
  const double seconds = PyFloat_AsDouble(timeout.ptr());
  if (seconds == -1) PyErr_Clear();  // also of an integer that is too large for this type
  Require(seconds > 0 && seconds <= kMostSeconds);
  return seconds;
}

DType DTypeIn(nb::handle name) {
  const std::optional<DType> dtype = DTypeFromName(TextIn(name));
  Require(dtype.has_value());
  return *dtype;
}

std::vector<uint64_t> ShapeIn(nb::handle extents) {
  Require(PyTuple_CheckExact(extents.ptr()));
  std::vector<uint64_t> shape;
  for (nb::handle extent : nb::borrow<nb::tuple>(extents)) {
    shape.push_back(PyLong_AsUnsignedLongLong(extent.ptr()));
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
  }
  return shape;
}

uint64_t BytesOf(const TensorDesc& tensor) {
  const absl::StatusOr<uint64_t> words = NumWords(tensor.dtype, tensor.shape);
  Require(words.ok());
  return *words * DTypeSize(tensor.dtype);
}

// The values of an array of NumPy's own class, which lends them as floats of this machine; of no other object.
std::optional<View> FloatsOf(nb::handle array, int flags) {
  if (!array.type().is(Package::Get().array)) return std::nullopt;
  std::optional<View> values = View::Of(array, flags | PyBUF_STRIDES | PyBUF_FORMAT);
  if (!values || values->axes() > kMaxRank || (values->format() != "e" && values->format() != "f")) return std::nullopt;
  return values;
}
bool IsFloat(DType dtype) { return dtype == DType::kF16 || dtype == DType::kF32; }
DType DTypeOf(const View& floats) { return floats.format() == "e" ? DType::kF16 : DType::kF32; }

// Memory of a pool for one call. What is not given back is dropped, as the daemon may still write to it.
class Lease {
 public:
  Lease(nb::handle pool, nb::object region) : pool_(pool), region_(std::move(region)) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (region_.is_none()) return;
    const nb::error_scope error;
    try {
      pool_.attr("drop")(region_);
    } catch (nb::python_error&) {  // at the end of the interpreter
    }
  }
  const nb::object& region() const { return region_; }
  // To whoever knows what becomes of it.
  nb::object Release() { return std::exchange(region_, nb::none()); }

 private:
  const nb::handle pool_;
  nb::object region_;
};

// A result; or None, and what the call has failed with: its end, the seconds that were left, and memory that the daemon
// may still write to.
nb::tuple Outcome(nb::object result, nb::object failure) {
  return nb::make_tuple(std::move(result), std::move(failure));
}

struct PlainItem {
  CallItem item;
  uint64_t bytes;  // that one message would hold, there or back
  std::optional<double> seconds;
  const Cancellation* cancellation;
};

// Makes the call. `take` makes its result of what the call gives; `prepare` is for what can be done while the daemon
// works.
template <typename Take, typename Prepare>
nb::tuple Run(const std::shared_ptr<Channel>& channel, nb::handle pool, const Limits& limits, PlainItem plain,
              Take take, Prepare prepare) {
  const auto& [most, most_alone, usual_seconds] = limits;
  CallOptions options;
  options.seconds = plain.seconds;
  options.pauses = false;
  options.cancellation = plain.cancellation;
  Lease lease(pool, plain.bytes <= most ? nb::none() : nb::object(pool.attr("take_idle")()));
  if (!lease.region().is_none()) {
    options.region = lease.region().attr("bytes");
    options.region_number = nb::cast<uint64_t>(lease.region().attr("number"));
    options.output_is_larger = nb::cast<bool>(lease.region().attr("link").attr("output_is_larger"));
  } else {
    Require(plain.bytes <= most || (plain.bytes <= most_alone && !nb::cast<bool>(pool.attr("is_offered"))));
    options.way = MessageCallOptions::Way::kMessage;
  }
  const absl::Time begin = absl::Now();
  std::vector<CallItem> items;
  items.push_back(std::move(plain.item));
  Call call(channel, std::move(items), options);
  if (options.way == MessageCallOptions::Way::kStream) prepare();  // a message is sent by what waits for its answer
  nb::object result = call.Next();
  const auto end = call.End();
  if (result.is_none() || std::get<0>(end) != 0) {
    std::optional<double> left;
    if (plain.seconds) left = std::max(0.0, *plain.seconds - absl::ToDoubleSeconds(absl::Now() - begin));
    return Outcome(nb::none(), nb::make_tuple(end, left, lease.Release()));
  }
  if (!lease.region().is_none()) pool.attr("put_back")(lease.Release());
  return Outcome(take(std::move(result)), nb::none());
}

// Has what Python raises be of arguments that are not plain, unless nobody may catch it.
template <typename Read>
auto Reading(Read read) {
  try {
    return read();
  } catch (const nb::python_error& raised) {
    if (!raised.matches(PyExc_Exception)) throw;
    throw NotPlain();
  }
}

// Of a tensor: its description for the daemon, its values, and what its frame says of it.
struct PlainTensor {
  TensorDesc description;
  View values;
  nb::object dtype;
  nb::object shape;
  nb::object framework;
};

PlainTensor TensorIn(nb::handle tensor, std::string name) {
  Require(tensor.is_valid());
  const Package& package = Package::Get();
  if (std::optional<View> floats = FloatsOf(tensor, 0)) {
    const DType dtype = DTypeOf(*floats);
    return {{std::move(name), dtype, floats->shape(), {}},
            *std::move(floats),
            dtype == DType::kF16 ? package.f16 : package.f32,
            tensor.attr("shape"),
            package.numpy};
  }
  // Raises what the package would raise, and what a handler of a signal does, which would not do so again.
  const nb::object view = package.view_of(tensor);
  return Reading([&]() -> PlainTensor {
    Require(view.attr("pieces").is_none());
    nb::object dtype = view.attr("dtype");
    nb::object shape = view.attr("shape");
    return {{std::move(name), DTypeIn(dtype), ShapeIn(shape), {}},
            View(view.attr("data"), PyBUF_STRIDES),
            dtype,
            shape,
            view.attr("framework")};
  });
}

// Arguments are those of Client.compress.
nb::tuple Compress(const std::shared_ptr<Channel>& channel, nb::handle pool, const Limits& limits,
                   const nb::tuple& args, const nb::dict& options, const Cancellation* cancellation) {
  Arguments arguments(args, options);
  const nb::handle tensor = arguments.Take(0, "tensor");
  const nb::handle spec = arguments.Take(1, "spec");
  const nb::handle named = arguments.Named("name");
  const nb::handle timeout = arguments.Option("timeout");
  arguments.RequireNoOthers({"axes", "profile", "rotary", "fingerprint"});
  const std::optional<double> seconds = SecondsIn(timeout, std::get<2>(limits));
  nb::object name = named.is_valid() ? nb::borrow(named) : nb::object(nb::str("tensor"));
  PlainTensor plain = TensorIn(tensor, Reading([&] { return TextIn(name); }));
  const std::string header = Reading(
      [&] { return MakeHeader(plain.description, spec.is_valid() ? TextIn(spec) : "", false).SerializeAsString(); });
  const uint64_t bytes = plain.values.elements<const std::byte>().left();
  CallItem item{header, std::move(plain.values), bytes, Package::Get().MostFrameBytes(bytes)};
  const auto take = [&](const nb::object& made) {
    return Package::Get().frame_of(made[0], made[1], name, plain.dtype, plain.shape, plain.framework,
                                   Package::Get().no_fingerprint);
  };
  return Run(channel, pool, limits, {std::move(item), bytes + header.size(), seconds, cancellation}, take, [] {});
}

bool IsAs(const v1::Tensor& found, const TensorDesc& meant) {
  return found.dtype() == static_cast<v1::DType>(meant.dtype) && std::ranges::equal(found.shape(), meant.shape);
}

// New memory for the values of a frame, as the frame describes them.
CallItem::Output OutputFor(const TensorDesc& tensor, nb::handle frame) {
  const nb::object dtype = frame.attr("dtype"), shape = frame.attr("shape"), framework = frame.attr("framework");
  if (IsFloat(tensor.dtype) && framework.equal(Package::Get().numpy)) {
    const nb::object array = Package::Get().empty(dtype, shape, framework);
    return {array, array};
  }
  const nb::object made = Package::Get().new_output(dtype, shape, framework);
  return {made.attr("elements"), made.attr("tensor")};
}

// Where the values of a frame go, which must be of a tensor like `tensor`: to `output`, or, where that is empty, to new
// memory.
CallItem::Target TargetOf(const TensorDesc& tensor, nb::handle frame, const std::optional<CallItem::Output>& output) {
  return [&tensor, frame, &output](const v1::Tensor& found) -> std::optional<CallItem::Output> {
    if (!IsAs(found, tensor)) {
      const std::string message = found.SerializeAsString();
      Package::Get().item_of(frame).attr("output")(nb::bytes(message.data(), message.size()));
      return std::nullopt;
    }
    return output ? *output : OutputFor(tensor, frame);
  };
}

// Arguments are those of Client.decompress.
nb::tuple Decompress(const std::shared_ptr<Channel>& channel, nb::handle pool, const Limits& limits,
                     const nb::tuple& args, const nb::dict& options, const Cancellation* cancellation) {
  Arguments arguments(args, options);
  const nb::handle frame = arguments.Take(0, "frame");
  const nb::handle out = arguments.Option("out");
  const nb::handle timeout = arguments.Option("timeout");
  arguments.RequireNoOthers({"as_", "fingerprint"});
  const std::optional<double> seconds = SecondsIn(timeout, std::get<2>(limits));
  Require(frame.is_valid() && frame.type().is(Package::Get().frame));
  TensorDesc tensor;
  v1::DecompressHeader header;
  std::optional<View> data;
  Reading([&] {
    const nb::object bytes = frame.attr("data");
    // Which no array that can be written lies over.
    Require(PyBytes_CheckExact(bytes.ptr()));
    data.emplace(bytes, PyBUF_STRIDES);
    tensor = {TextIn(frame.attr("name")), DTypeIn(frame.attr("dtype")), ShapeIn(frame.attr("shape")), {}};
    header.set_name(tensor.name.empty() ? "tensor" : tensor.name);
    if (!out.is_valid()) return;
    const std::optional<View> floats = FloatsOf(out, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS);
    Require(floats && DTypeOf(*floats) == tensor.dtype && floats->shape() == tensor.shape);
  });
  const uint64_t frame_bytes = data->bytes().size();
  header.set_frame_bytes(frame_bytes);
  const std::string text = header.SerializeAsString();
  CallItem item{text, *std::move(data)};
  std::optional<CallItem::Output> output;
  if (out.is_valid()) output = {nb::borrow(out), nb::borrow(out)};
  item.target = TargetOf(tensor, frame, output);
  const uint64_t bytes = std::max(frame_bytes, BytesOf(tensor));
  // After a large tensor was copied, no cache has Python's code any more: this takes ten times as long as otherwise.
  const auto prepare = [&] {
    if (output) return;
    try {
      output = OutputFor(tensor, frame);
    } catch (const nb::python_error& raised) {  // it is raised for a frame that proves to be as it says
      if (!raised.matches(PyExc_Exception)) throw;
    }
  };
  const auto take = [](nb::object made) { return made; };
  return Run(channel, pool, limits, {std::move(item), bytes, seconds, cancellation}, take, prepare);
}

// What `call` gives; None twice where it is not plain.
template <auto call>
nb::tuple IfPlain(const std::shared_ptr<Channel>& channel, nb::handle pool, const Limits& limits, const nb::tuple& args,
                  const nb::dict& options, const Cancellation* cancellation) {
  try {
    Require(channel->is_ours());
    return call(channel, pool, limits, args, options, cancellation);
  } catch (const NotPlain&) {
    return Outcome(nb::none(), nb::none());
  }
}

}  // namespace

void BindPlainCalls(nb::module_& module) {
  module.def("compress", &IfPlain<Compress>, nb::arg("channel"), nb::arg("pool"), nb::arg("limits"), nb::arg("args"),
             nb::arg("options"), nb::arg("cancellation").none());
  module.def("decompress", &IfPlain<Decompress>, nb::arg("channel"), nb::arg("pool"), nb::arg("limits"),
             nb::arg("args"), nb::arg("options"), nb::arg("cancellation").none());
}

}  // namespace kvcompress
