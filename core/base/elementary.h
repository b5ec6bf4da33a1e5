#pragma once

// Functions by basic operations of binary64 alone, in a fixed order (docs/format.md, "Elementary functions"): unlike
// those of <cmath> they have the same bits everywhere.
namespace kvcompress {

// Of a positive normal number.
double Log2(double x);
// Of -1000 to 1000.
double Exp2(double y);
// The probability that a Gaussian value of deviation 1 is between 0 and x >= 0.
double HalfNormal(double x);

}  // namespace kvcompress
