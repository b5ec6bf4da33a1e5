#pragma once

namespace kvcompress::simd {

// Whether this CPU looks up a vector of lanes sooner by a gather than by a load for each lane: Intel's do that have
// AVX512-FP16. Those before them hold gathers back (CVE-2022-40982), and Zen 5's take twice as long as loads.
bool GathersWell();

// Makes it answer this in place of what the CPU says.
void SetGathersWellForTest(bool well);

}  // namespace kvcompress::simd
