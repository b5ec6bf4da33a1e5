#include "core/base/size_text.h"

#include <gtest/gtest.h>

#include <utility>

namespace kvcompress {
namespace {

TEST(SizeText, IsExactAndHasTheLargestUnitThatIsFilled) {
  const std::pair<uint64_t, const char*> cases[] = {
      {0, "0 bytes"},
      {1023, "1023 bytes"},
      {1024, "1024 bytes (1 KiB)"},
      {1234567, "1234567 bytes (1.177 MiB)"},
      {(1 << 20) - 512, "1048064 bytes (1024 KiB)"},
      {16 << 20, "16777216 bytes (16 MiB)"},
      {uint64_t{3} << 29, "1610612736 bytes (1.5 GiB)"},
      {uint64_t{2} << 40, "2199023255552 bytes (2 TiB)"},
  };
  for (const auto& [bytes, text] : cases) EXPECT_EQ(SizeText(bytes), text);
}

}  // namespace
}  // namespace kvcompress
