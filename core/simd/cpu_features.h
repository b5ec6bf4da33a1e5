#pragma once

namespace kvcompress::simd {

// Whether this CPU looks up a vector of lanes sooner by a gather than by a load for each lane: Intel's do that have
// AVX512-FP16. Those before them hold gathers back (CVE-2022-40982), and Zen 5's take twice as long as loads.
bool GathersWell();

// Whether it permutes bytes and shifts pairs of words, in AVX-512 (VBMI and VBMI2).
bool PermutesBytes();

// Makes them answer this in place of what the CPU says. To permute bytes the CPU has to be able to.
void SetGathersWellForTest(bool well);
void SetPermutesBytesForTest(bool permutes);

}  // namespace kvcompress::simd
