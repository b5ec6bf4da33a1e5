#include "core/base/elementary.h"

#include <bit>
#include <cmath>
#include <cstdint>

namespace kvcompress {

// By the series of the inverse hyperbolic tangent.
double Log2(double x) {
  const auto bits = std::bit_cast<uint64_t>(x);
  auto exponent = static_cast<double>(static_cast<int>(bits >> 52) - 1023);
  auto mantissa = std::bit_cast<double>((bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1023} << 52);
  if (mantissa > 0x1.6a09e667f3bcdp+0) {
    mantissa = mantissa * 0.5;
    exponent = exponent + 1;
  }
  const double s = (mantissa - 1) / (mantissa + 1);
  const double z = s * s;
  double sum = 1.0 / 27;
  for (int n = 25; n >= 1; n -= 2) sum = sum * z + 1.0 / n;
  return exponent + 2 * s * sum * 0x1.71547652b82fep+0;
}

double Exp2(double y) {
  const double whole = std::floor(y + 0.5);
  const double r = (y - whole) * 0x1.62e42fefa39efp-1;
  double sum = 1;
  for (int n = 18; n >= 1; --n) sum = r * sum / n + 1;
  return std::ldexp(sum, static_cast<int>(whole));
}

// By its series of powers x^(2 n + 1) / (1 3 5 ... (2 n + 1)), all of them positive.
double HalfNormal(double x) {
  if (x >= 8) return 0.5;
  const double z = x * x;
  double term = x;
  double sum = x;
  for (int n = 3; n <= 201; n += 2) {
    term = term * z / n;
    sum = sum + term;
  }
  return sum * (Exp2(z * -0x1.71547652b82fep-1) * 0x1.9884533d43651p-2);
}

}  // namespace kvcompress
