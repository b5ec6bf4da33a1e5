#include "client/cli/printable.h"

#include <gtest/gtest.h>

namespace kvcompress {
namespace {

TEST(PrintableTest, TextStaysAsItIs) {
  EXPECT_EQ(OneLine("layer.0 K \"q\" \\n é 漢 😀"), "layer.0 K \"q\" \\n é 漢 😀");
  EXPECT_EQ(OneLine(""), "");
}

TEST(PrintableTest, WhatATerminalActsUponIsEscaped) {
  EXPECT_EQ(OneLine("a\nb\x1b[2J\x7f"), "a\\x0ab\\x1b[2J\\x7f");
  // CSI and the last of C1, and the first character after it.
  EXPECT_EQ(OneLine("\u009b2J\u009f\u00a0"), "\\u009b2J\\u009f\u00a0");
}

TEST(PrintableTest, BytesThatAreNoUtf8AreEscaped) {
  EXPECT_EQ(OneLine("\x9b"
                    "2J\xc3"),
            "\\x9b2J\\xc3");
  EXPECT_EQ(OneLine("\xe6\xbc"
                    "a"),
            "\\xe6\\xbca");
}

TEST(PrintableTest, QuotedTextIsAJsonString) {
  EXPECT_EQ(Printable("a\"b\n\u009b"), "\"a\\\"b\\n\\u009b\"");
  EXPECT_EQ(Printable("\x7f"), "\"\\x7f\"");
}

}  // namespace
}  // namespace kvcompress
