#pragma once

#include <google/protobuf/descriptor.h>

#include <string>
#include <string_view>
#include <vector>

// The service's methods, by the names that its descriptor has for them.
namespace kvcompress {

// "Compress", "Decompress", ...: every method, in the order of kvcompress.proto. The texts live for ever.
std::vector<std::string_view> AllMethods();

// The method that takes messages of this type. Each method has a type of its own.
const google::protobuf::MethodDescriptor& MethodTaking(const google::protobuf::Descriptor& request);

// The name of the method that takes `Request`, for example "Compress". The text lives for ever.
template <typename Request>
std::string_view MethodName() {
  static const std::string_view name = MethodTaking(*Request::descriptor()).name();
  return name;
}

// The method's path, as HTTP/2 requests have it: "/kvcompress.v1.KvCompression/Compress".
template <typename Request>
const std::string& MethodPath() {
  static const google::protobuf::MethodDescriptor& method = MethodTaking(*Request::descriptor());
  static const std::string path = "/" + method.service()->full_name() + "/" + method.name();
  return path;
}

}  // namespace kvcompress
