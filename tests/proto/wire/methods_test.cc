#include "proto/wire/methods.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvcompress/v1/kvcompress.pb.h"

namespace kvcompress {
namespace {

// What clients and dashboards of other builds know.
TEST(MethodsTest, NamesAndPathsAreThoseOfTheService) {
  EXPECT_THAT(AllMethods(), ::testing::ElementsAre("Compress", "Decompress", "CompressTensor", "DecompressTensor",
                                                   "Metrics", "Capabilities", "SharedMemory"));
  EXPECT_EQ(MethodName<v1::DecompressTensorRequest>(), "DecompressTensor");
  EXPECT_EQ(MethodPath<v1::CompressRequest>(), "/kvcompress.v1.KvCompression/Compress");
}

// MethodTaking cannot tell two methods of one type apart.
TEST(MethodsTest, EachMethodHasARequestOfItsOwn) {
  const google::protobuf::ServiceDescriptor& service = *MethodTaking(*v1::CompressRequest::descriptor()).service();
  for (int i = 0; i < service.method_count(); ++i) {
    EXPECT_EQ(&MethodTaking(*service.method(i)->input_type()), service.method(i)) << service.method(i)->name();
  }
}

}  // namespace
}  // namespace kvcompress
