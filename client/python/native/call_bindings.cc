#include "client/python/native/call_bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "client/python/native/call.h"
#include "client/python/native/plain_calls.h"

namespace nb = nanobind;

namespace kvcompress {
namespace {

// What Python calls with a v1::Tensor for a pair of memory and result.
CallItem::Target TargetOf(nb::object function) {
  return [function = std::move(function)](const v1::Tensor& tensor) -> std::optional<CallItem::Output> {
    const std::string message = tensor.SerializeAsString();
    const nb::object made = function(nb::bytes(message.data(), message.size()));
    return CallItem::Output{made[0], made[1]};
  };
}

// Of (header, values, their bytes, most output bytes, place), or of (header, bytes, target).
CallItem ItemOf(nb::handle item) {
  CallItem made{TextOf(nb::object(item[0])), View(nb::object(item[1]), PyBUF_STRIDES)};
  if (nb::len(item) == 3) {
    made.target = TargetOf(item[2]);
    return made;
  }
  made.tensor_bytes = nb::cast<size_t>(item[2]);
  made.most_frame_bytes = nb::cast<size_t>(item[3]);
  made.place = TextOf(nb::object(item[4]));
  return made;
}

void MakeCall(Call* self, std::shared_ptr<Channel> channel, const nb::sequence& items, std::optional<double> seconds,
              nb::object region, uint64_t region_number, bool output_is_larger, bool batches) {
  std::vector<CallItem> parts;
  for (nb::handle item : items) parts.push_back(ItemOf(item));
  CallOptions options;
  options.seconds = seconds;
  options.region = std::move(region);
  options.region_number = region_number;
  options.output_is_larger = output_is_larger;
  options.batches = batches;
  new (self) Call(std::move(channel), std::move(parts), options);
}

// A call with one item, and its output, in a message each: the result, or None, and then the call's end.
nb::tuple CallWithMessage(std::shared_ptr<Channel> channel, const nb::tuple& item, std::optional<double> seconds,
                          const Cancellation* cancellation) {
  std::vector<CallItem> items;
  items.push_back(ItemOf(item));
  CallOptions options;
  options.way = MessageCallOptions::Way::kMessage;
  options.seconds = seconds;
  options.cancellation = cancellation;
  Call call(std::move(channel), std::move(items), options);
  nb::object result = call.Next();
  if (!result.is_none()) return nb::make_tuple(std::move(result), nb::none());
  return nb::make_tuple(nb::none(), call.End());
}

// Authorities, certificate and key.
using Pem = std::tuple<std::string, std::string, std::string>;

std::shared_ptr<Channel> OpenChannel(std::string target, const std::optional<Pem>& tls, std::string token) {
  ChannelOptions options{.target = std::move(target), .tls = std::nullopt, .token = std::move(token)};
  if (tls) options.tls = ClientTls{std::get<0>(*tls), std::get<1>(*tls), std::get<2>(*tls), ""};
  using Shared = std::shared_ptr<MessageChannel>;
  absl::StatusOr<Shared> made = MessageChannel::Make(options);
  if (!made.ok()) Raise(made.status());
  return std::shared_ptr<Channel>(new Channel{OfProcess<Shared>(new Shared(*std::move(made))), {}});
}

}  // namespace

// _native_calls.py is the only user, and checks what is given to it.
void BindCalls(nb::module_& module) {
  nb::class_<Channel>(module, "Channel")
      .def(nb::new_(&OpenChannel), nb::arg("target"), nb::arg("tls").none(), nb::arg("token"))
      .def("close", [](Channel& channel) {
        channel.is_closed = true;
        for (Call* call : channel.calls) call->Cancel();
      });
  nb::class_<Cancellation>(module, "Cancellation").def(nb::init<>()).def("cancel", [](Cancellation& own) {
    own.is_wanted = true;
  });
  nb::class_<Call>(module, "Call")
      .def("__init__", &MakeCall, nb::arg("channel"), nb::arg("items"), nb::arg("seconds").none(),
           nb::arg("region").none(), nb::arg("region_number"), nb::arg("output_is_larger"), nb::arg("batches"))
      .def("next", &Call::Next)
      .def("end", &Call::End)
      .def("cancel", &Call::Cancel);
  module.def("call_with_message", &CallWithMessage, nb::arg("channel"), nb::arg("item"), nb::arg("seconds").none(),
             nb::arg("cancellation").none());
  BindPlainCalls(module);
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
