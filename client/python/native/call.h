#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "client/python/native/message_call.h"
#include "client/python/native/process.h"
#include "client/python/native/result_copy.h"
#include "client/python/native/view.h"
#include "core/base/allocator.h"

namespace kvcompress {

class Call;

struct Channel {
  OfProcess<std::shared_ptr<MessageChannel>> channel;
  // Both need the GIL.
  std::set<Call*> calls;
  bool is_closed = false;

  bool is_ours() const { return channel.get_deleter().process == getpid(); }  // and not a parent's
};

// Of a call, by any thread, and before it has begun, too.
struct Cancellation {
  std::atomic<bool> is_wanted = false;
};

inline absl::Status Malformed() { return absl::InternalError("malformed"); }

// One tensor or one frame of a call.
struct CallItem {
  // Where a frame's values go, once a daemon has said what it holds: memory, and what the call gives for the item. None
  // where it holds another tensor than was meant.
  struct Output {
    nanobind::object memory;
    nanobind::object result;
  };
  using Target = std::function<std::optional<Output>(const v1::Tensor&)>;

  std::string_view header;  // v1::CompressHeader or v1::DecompressHeader
  View input;               // values, or the frame
  // Of a tensor.
  size_t tensor_bytes = 0;
  size_t most_frame_bytes = 0;
  std::string_view place = {};  // v1::SharedMemoryRange, as of MessageItem
  // Of a frame.
  Target target = nullptr;
};

struct CallOptions {
  MessageCallOptions::Way way = MessageCallOptions::Way::kStream;
  std::optional<double> seconds;
  nanobind::object region = nanobind::none();  // memory that the daemon has mapped
  uint64_t region_number = 0;
  bool output_is_larger = false;  // this and the next as of MessageCallOptions
  bool batches = false;
  bool pauses = true;  // a stream gives each result as soon as it is there
  const Cancellation* cancellation = nullptr;
};

// One call of compress or decompress, for one thread at a time; any may cancel it.
class Call final : public MessageSink, public CallWatch {
 public:
  // All items are tensors, and the results pairs of frame and report; or all are frames. Headers and places are read
  // here.
  Call(std::shared_ptr<Channel> channel, std::vector<CallItem> items, const CallOptions& options)
      : channel_(std::move(channel)), cancellation_(options.cancellation), pauses_(options.pauses) {
    // Whichever thread lets go of them last, with the GIL or without.
    const std::shared_ptr<std::vector<View>> views(new std::vector<View>, [](std::vector<View>* last) {
      const nanobind::gil_scoped_acquire acquire;
      delete last;
    });
    views->reserve(items.size());
    std::vector<MessageItem> parts;
    parts.reserve(items.size());
    for (CallItem& item : items) {
      const View& view = views->emplace_back(std::move(item.input));
      parts.push_back({item.header, view.elements<const std::byte>(), item.place});
      if (item.target != nullptr) {
        targets_.push_back(std::move(item.target));
      } else {
        frame_bytes_.push_back({item.most_frame_bytes, item.tensor_bytes + kFrameOverhead});
      }
    }
    MessageCallOptions call_options;
    call_options.output_is_larger = options.output_is_larger;
    call_options.batches = options.batches;
    call_options.way = options.way;
    if (options.seconds) call_options.deadline = absl::Now() + absl::Seconds(*options.seconds);
    if (!options.region.is_none()) {
      call_options.region = region_.emplace(options.region, PyBUF_WRITABLE).bytes();
      call_options.region_number = options.region_number;
    }
    const auto begin = compresses() ? &MessageCall::Compress : &MessageCall::Decompress;
    absl::Status status;
    {
      const Away away;
      auto call = begin(*channel_->channel, parts, views, call_options, *this);
      status = call.status();
      if (call.ok()) call_ = OfProcess<MessageCall>(call->release());
    }
    if (!status.ok()) Raise(status);
    channel_->calls.insert(this);
    if (channel_->is_closed) Cancel();  // while the call was begun, without the GIL
  }
  ~Call() override {
    channel_->calls.erase(this);
    Py_XDECREF(frame_);
  }

  // The next result; None at the end of the call. Raises what the output's function, or a signal's handler, has raised.
  nanobind::object Next() {
    if (results_.empty() && !end_) Run();
    if (results_.empty()) {
      if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
      return nanobind::none();
    }
    nanobind::object result = std::move(results_.front());
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

  absl::Status OnTensor(const v1::Tensor& tensor) override {
    if (output_view_) return Malformed();
    const nanobind::gil_scoped_acquire acquire;
    bool is_meant = true;
    absl::Status status = Guard([&] {
      std::optional<CallItem::Output> output = targets_[index_](tensor);
      is_meant = output.has_value();
      if (!is_meant) return;
      values_ = output_view_.emplace(output->memory, PyBUF_WRITABLE | PyBUF_STRIDES).elements();
      value_bytes_ = values_.left();
      result_ = std::move(output->result);
    });
    return is_meant ? status : Malformed();
  }

  absl::Status OnBytes(ByteSpan bytes) override {
    if (!compresses()) {
      if (!output_view_ || bytes.size() > values_.left()) return Malformed();
      WriteValues(bytes);
      return absl::OkStatus();
    }
    if (bytes.size() > frame_bytes_[index_].most - filled_) return Malformed();
    if (bytes.empty()) return absl::OkStatus();
    if (bytes.size() > frame_room_.size() - filled_) {
      const nanobind::gil_scoped_acquire acquire;
      absl::Status grown = Guard([&] { GrowFrame(filled_ + bytes.size()); });
      if (!grown.ok()) return grown;
    }
    CopyToResult(frame_room_.data() + filled_, bytes, OfCall(frame_room_.size()));
    filled_ += bytes.size();
    return absl::OkStatus();
  }

  absl::Status OnReport(const v1::TensorReport& message) override {
    if (compresses() ? filled_ != message.frame_bytes() : !output_view_ || values_.left() > 0) return Malformed();
    const std::string report = compresses() ? message.SerializeAsString() : std::string();
    const nanobind::gil_scoped_acquire acquire;
    return Guard([&] {
      if (compresses()) {
        ResizeFrame(filled_);
        nanobind::object frame = nanobind::steal(std::exchange(frame_, nullptr));
        results_.push_back(nanobind::make_tuple(std::move(frame), nanobind::bytes(report.data(), report.size())));
        frame_room_ = {};
        filled_ = 0;
      } else {
        output_view_.reset();
        results_.push_back(std::move(result_));
      }
      ++index_;
    });
  }

  bool Pauses() override { return pauses_ && !results_.empty(); }

  bool Cancels() override {
    if (Threads::Own().ends() || (cancellation_ != nullptr && cancellation_->is_wanted)) cancelled_ = true;
    if (cancelled_) return true;
    const nanobind::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() == 0) return false;
    interrupt_ = std::make_exception_ptr(nanobind::python_error());
    return true;
  }

 private:
  bool compresses() const { return targets_.empty(); }

  // The bytes of all results, were they as large as this one: what is known of those that are still to come.
  size_t OfCall(size_t result_bytes) const { return result_bytes * std::max(frame_bytes_.size(), targets_.size()); }

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
    } catch (const nanobind::python_error& raised) {
      (raised.matches(PyExc_Exception) ? error_ : interrupt_) = std::current_exception();
      return absl::CancelledError("Python raised");
    }
  }

  void WriteValues(ByteSpan bytes) {
    const MutableByteSpan room = values_.Together();
    if (bytes.empty() || room.size() < bytes.size()) return values_.Write(bytes);
    CopyToResult(room.data(), bytes, OfCall(value_bytes_));
    values_.Skip(bytes.size());
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
    if (frame_ == nullptr) throw nanobind::python_error();
    const bool grows = size > frame_room_.size();
    frame_room_ = {reinterpret_cast<std::byte*>(PyBytes_AS_STRING(frame_)), size};
    if (grows) UseLargePages(frame_room_);
  }

  const std::shared_ptr<Channel> channel_;
  const Cancellation* const cancellation_;
  const bool pauses_;
  struct FrameBytes {
    size_t most;
    size_t likely;
  };
  static constexpr size_t kFrameOverhead = 4096;

  std::vector<FrameBytes> frame_bytes_;    // of each item's frame
  std::vector<CallItem::Target> targets_;  // or of each frame's values
  std::optional<View> region_;
  OfProcess<MessageCall> call_;
  std::atomic<bool> cancelled_ = false;
  std::optional<StreamEnd> end_;
  std::exception_ptr error_;
  std::exception_ptr interrupt_;
  std::deque<nanobind::object> results_;
  // Of the current item.
  size_t index_ = 0;
  std::optional<View> output_view_;
  StridedSpan<std::byte> values_;  // of the output
  size_t value_bytes_ = 0;         // all of them
  nanobind::object result_;        // once these are all there
  PyObject* frame_ = nullptr;
  MutableByteSpan frame_room_;  // of the frame
  size_t filled_ = 0;
};

}  // namespace kvcompress
