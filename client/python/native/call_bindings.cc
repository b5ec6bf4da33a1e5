#include "client/python/native/call_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "client/python/native/message_call.h"
#include "client/python/native/process.h"
#include "client/python/native/view.h"
#include "core/base/allocator.h"

namespace nb = nanobind;

namespace kvcompress {
namespace {

class Call;

struct Channel {
  OfProcess<std::shared_ptr<grpc::Channel>> channel;
  std::set<Call*> calls;  // needs the GIL
};

// Of a call with a message, by any thread, and before it has begun, too.
struct Cancellation {
  std::atomic<bool> is_wanted = false;
};

absl::Status Malformed() { return absl::InternalError("malformed"); }

// One call of compress or decompress, for one thread at a time; any may cancel it.
class Call final : public MessageSink, public CallWatch {
 public:
  // All `items` are (header, values, their bytes, most output bytes, place), and the results (frame, report); or all
  // are (header, bytes, target), where a target is called with a v1::Tensor for the memory that the values go to, and
  // the result.
  Call(std::shared_ptr<Channel> channel, const nb::sequence& items, std::optional<double> seconds, nb::object region,
       uint64_t region_number, bool output_is_larger, bool batches,
       MessageCallOptions::Way way = MessageCallOptions::Way::kStream, const Cancellation* cancellation = nullptr)
      : channel_(std::move(channel)), cancellation_(cancellation) {
    // Whichever thread lets go of them last, with the GIL or without.
    const std::shared_ptr<std::vector<View>> views(new std::vector<View>, [](std::vector<View>* last) {
      const nb::gil_scoped_acquire acquire;
      delete last;
    });
    std::vector<MessageItem> parts;
    for (nb::handle item : items) {
      const View& view = views->emplace_back(item[1], PyBUF_STRIDES);
      MessageItem& part =
          parts.emplace_back(MessageItem{TextOf(nb::object(item[0])), view.elements<const std::byte>()});
      if (nb::len(item) == 3) {
        targets_.emplace_back(item[2]);
        continue;
      }
      frame_bytes_.push_back({nb::cast<size_t>(item[3]), nb::cast<size_t>(item[2]) + kFrameOverhead});
      part.place = TextOf(nb::object(item[4]));
    }
    MessageCallOptions options;
    options.output_is_larger = output_is_larger;
    options.batches = batches;
    options.way = way;
    if (seconds) options.deadline = absl::Now() + absl::Seconds(*seconds);
    if (!region.is_none()) {
      options.region = region_.emplace(region, PyBUF_WRITABLE).bytes();
      options.region_number = region_number;
    }
    const auto begin = compresses() ? &MessageCall::Compress : &MessageCall::Decompress;
    absl::Status status;
    {
      const Away away;
      auto call = begin(*channel_->channel, parts, views, options, *this);
      status = call.status();
      if (call.ok()) call_ = OfProcess<MessageCall>(call->release());
    }
    if (!status.ok()) Raise(status);
    channel_->calls.insert(this);
  }
  ~Call() override {
    channel_->calls.erase(this);
    Py_XDECREF(frame_);
  }

  // The next result; None at the end of the call. Raises what the output's function, or a signal's handler, has raised.
  nb::object Next() {
    if (results_.empty() && !end_) Run();
    if (results_.empty()) {
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
      return nb::none();
    }
    nb::object result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  // Of a call that has ended: a code of gRPC, or -1 for answers that cannot be; a text; after how many seconds the
  // daemon wants to be asked again; and its v1::ErrorReason.
  std::tuple<int, std::string, std::optional<double>, int> End() const {
    if (!end_->handler.ok()) {
      const bool late = absl::IsDeadlineExceeded(end_->handler);
      return {late ? static_cast<int>(grpc::StatusCode::DEADLINE_EXCEEDED) : -1, "", std::nullopt, 0};
    }
    std::optional<double> delay;
    if (end_->retry_delay) delay = absl::ToDoubleSeconds(*end_->retry_delay);
    grpc::StatusCode code = end_->status.error_code();
    // Not by us: it has met a connection that its daemon closed.
    if (code == grpc::StatusCode::CANCELLED && !cancelled_) code = grpc::StatusCode::UNAVAILABLE;
    return {code, end_->status.error_message(), delay, end_->reason};
  }

  void Cancel() {
    cancelled_ = true;
    call_->Cancel();
  }

  absl::Status OnTensor(std::string_view tensor) override {
    if (output_view_) return Malformed();
    const nb::gil_scoped_acquire acquire;
    return Guard([&] {
      const nb::object made = targets_[index_](nb::bytes(tensor.data(), tensor.size()));
      values_ = output_view_.emplace(made[0], PyBUF_WRITABLE | PyBUF_STRIDES).elements();
      result_ = made[1];
    });
  }

  absl::Status OnBytes(ByteSpan bytes) override {
    if (!compresses()) {
      if (!output_view_ || bytes.size() > values_.left()) return Malformed();
      values_.Write(bytes);
      return absl::OkStatus();
    }
    if (bytes.size() > frame_bytes_[index_].most - filled_) return Malformed();
    if (bytes.empty()) return absl::OkStatus();
    if (bytes.size() > frame_room_.size() - filled_) {
      const nb::gil_scoped_acquire acquire;
      absl::Status grown = Guard([&] { GrowFrame(filled_ + bytes.size()); });
      if (!grown.ok()) return grown;
    }
    std::memcpy(frame_room_.data() + filled_, bytes.data(), bytes.size());
    filled_ += bytes.size();
    return absl::OkStatus();
  }

  absl::Status OnReport(const v1::TensorReport& message) override {
    if (compresses() ? filled_ != message.frame_bytes() : !output_view_ || values_.left() > 0) return Malformed();
    const std::string report = compresses() ? message.SerializeAsString() : std::string();
    const nb::gil_scoped_acquire acquire;
    return Guard([&] {
      if (compresses()) {
        ResizeFrame(filled_);
        nb::object frame = nb::steal(std::exchange(frame_, nullptr));
        results_.push_back(nb::make_tuple(std::move(frame), nb::bytes(report.data(), report.size())));
        frame_room_ = {};
        filled_ = 0;
      } else {
        output_view_.reset();
        results_.push_back(std::move(result_));
      }
      ++index_;
    });
  }

  bool Pauses() override { return !results_.empty(); }

  bool Cancels() override {
    if (Threads::Own().ends() || (cancellation_ != nullptr && cancellation_->is_wanted)) cancelled_ = true;
    if (cancelled_) return true;
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() == 0) return false;
    interrupt_ = std::make_exception_ptr(nb::python_error());
    return true;
  }

 private:
  bool compresses() const { return targets_.empty(); }

  void Run() {
    {
      const Away away;
      end_ = call_->Run(*this);
    }
    if (interrupt_) std::rethrow_exception(std::exchange(interrupt_, nullptr));
  }

  // What Python raises meanwhile ends the call, and is raised by Next: an Exception after the results before it, others
  // at once, as nobody may ask for these results.
  template <typename Work>
  absl::Status Guard(Work work) {
    try {
      work();
      return absl::OkStatus();
    } catch (const nb::python_error& raised) {
      (raised.matches(PyExc_Exception) ? error_ : interrupt_) = std::current_exception();
      return absl::CancelledError("Python raised");
    }
  }

  // At once to what frames have at most, but for few codecs.
  void GrowFrame(size_t size) {
    const size_t likely =
        std::min(frame_bytes_[index_].most, call_->MostFrameBytes(index_).value_or(frame_bytes_[index_].likely));
    ResizeFrame(std::max({size, 2 * frame_room_.size(), likely}));
  }

  // Of the frame that grows: an object that nobody else has seen.
  void ResizeFrame(size_t size) {
    if (frame_ == nullptr) {
      frame_ = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
    } else if (size != frame_room_.size()) {
      _PyBytes_Resize(&frame_, static_cast<Py_ssize_t>(size));
    }
    if (frame_ == nullptr) throw nb::python_error();
    const bool grows = size > frame_room_.size();
    frame_room_ = {reinterpret_cast<std::byte*>(PyBytes_AS_STRING(frame_)), size};
    if (grows) UseLargePages(frame_room_);
  }

  const std::shared_ptr<Channel> channel_;
  const Cancellation* const cancellation_;
  struct FrameBytes {
    size_t most;
    size_t likely;
  };
  static constexpr size_t kFrameOverhead = 4096;

  std::vector<FrameBytes> frame_bytes_;  // of each item's frame
  std::vector<nb::object> targets_;      // or of each frame's values
  std::optional<View> region_;
  OfProcess<MessageCall> call_;
  std::atomic<bool> cancelled_ = false;
  std::optional<StreamEnd> end_;
  std::exception_ptr error_;
  std::exception_ptr interrupt_;
  std::deque<nb::object> results_;
  // Of the current item.
  size_t index_ = 0;
  std::optional<View> output_view_;
  StridedSpan<std::byte> values_;  // of the output
  nb::object result_;              // once these are all there
  PyObject* frame_ = nullptr;
  MutableByteSpan frame_room_;  // of the frame
  size_t filled_ = 0;
};

// A call with one item, and its output, in a message each: the result, or None, and then the call's end.
nb::tuple CallWithMessage(std::shared_ptr<Channel> channel, const nb::tuple& item, std::optional<double> seconds,
                          const Cancellation* cancellation) {
  const auto items = nb::borrow<nb::sequence>(nb::make_tuple(item));
  Call call(std::move(channel), items, seconds, nb::none(), 0, false, false, MessageCallOptions::Way::kMessage,
            cancellation);
  nb::object result = call.Next();
  if (!result.is_none()) return nb::make_tuple(std::move(result), nb::none());
  return nb::make_tuple(nb::none(), call.End());
}

// Authorities, certificate and key.
using Pem = std::tuple<std::string, std::string, std::string>;

std::shared_ptr<Channel> OpenChannel(std::string target, const std::optional<Pem>& tls, std::string token) {
  ChannelOptions options{.target = std::move(target), .tls = std::nullopt, .token = std::move(token)};
  if (tls) options.tls = ClientTls{std::get<0>(*tls), std::get<1>(*tls), std::get<2>(*tls), ""};
  absl::StatusOr<std::shared_ptr<grpc::Channel>> made = MakeMessageChannel(options);
  if (!made.ok()) Raise(made.status());
  using Shared = std::shared_ptr<grpc::Channel>;
  return std::shared_ptr<Channel>(new Channel{OfProcess<Shared>(new Shared(*std::move(made))), {}});
}

}  // namespace

// _native_calls.py is the only user, and checks what is given to it.
void BindCalls(nb::module_& module) {
  nb::class_<Channel>(module, "Channel")
      .def(nb::new_(&OpenChannel), nb::arg("target"), nb::arg("tls").none(), nb::arg("token"))
      .def("close", [](const Channel& channel) {
        for (Call* call : channel.calls) call->Cancel();
      });
  nb::class_<Cancellation>(module, "Cancellation").def(nb::init<>()).def("cancel", [](Cancellation& own) {
    own.is_wanted = true;
  });
  nb::class_<Call>(module, "Call")
      .def(nb::init<std::shared_ptr<Channel>, const nb::sequence&, std::optional<double>, nb::object, uint64_t, bool,
                    bool>(),
           nb::arg("channel"), nb::arg("items"), nb::arg("seconds").none(), nb::arg("region").none(),
           nb::arg("region_number"), nb::arg("output_is_larger"), nb::arg("batches"))
      .def("next", &Call::Next)
      .def("end", &Call::End)
      .def("cancel", &Call::Cancel);
  module.def("call_with_message", &CallWithMessage, nb::arg("channel"), nb::arg("item"), nb::arg("seconds").none(),
             nb::arg("cancellation").none());
  module.def(
      "end",
      [](double seconds) {
        Threads& threads = Threads::Own();
        const nb::gil_scoped_release release;
        threads.End(absl::Seconds(seconds));
      },
      nb::arg("seconds"));
}

}  // namespace kvcompress
