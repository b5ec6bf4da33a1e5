#include "proto/wire/methods.h"

#include <cstdlib>

#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {
namespace {

const google::protobuf::ServiceDescriptor& Service() {
  return *v1::CompressRequest::descriptor()->file()->service(0);  // the file has no other
}

}  // namespace

std::vector<std::string_view> AllMethods() {
  std::vector<std::string_view> names;
  names.reserve(Service().method_count());
  for (int i = 0; i < Service().method_count(); ++i) names.push_back(Service().method(i)->name());
  return names;
}

const google::protobuf::MethodDescriptor& MethodTaking(const google::protobuf::Descriptor& request) {
  for (int i = 0; i < Service().method_count(); ++i) {
    if (Service().method(i)->input_type() == &request) return *Service().method(i);
  }
  std::abort();  // a type that no method takes
}

}  // namespace kvcompress
