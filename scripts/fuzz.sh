#!/usr/bin/env bash
# Builds the libFuzzer targets and runs each for some seconds: 5, in the long tier 60, or FUZZ_SECONDS.
# What crashes one of them is left in build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-5}
[ "${KVC_TIER:-short}" != long ] || seconds=${FUZZ_SECONDS:-60}
cmake --preset asan-ubsan
cmake --build --preset asan-ubsan --target tests/fuzz/all
mapfile -t fuzzers < <(find build/asan-ubsan/tests/fuzz -maxdepth 1 -type f -executable | sort)
if [ ${#fuzzers[@]} -eq 0 ]; then
  echo "fuzz.sh: no fuzzer was built" >&2
  exit 1
fi
mkdir -p build/fuzz/findings
export ASAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-14
export UBSAN_OPTIONS=print_stacktrace=1
for fuzzer in "${fuzzers[@]}"; do
  name=$(basename "$fuzzer")
  corpus=build/fuzz/corpus/$name
  mkdir -p "$corpus"
  seeds=()
  for folder in "tests/fuzz/corpus/$name" tests/data/golden tests/data/corrupt; do
    [ ! -d "$folder" ] || seeds+=("$folder")
  done
  dictionary=()
  [ ! -f "tests/fuzz/${name%_fuzzer}.dict" ] || dictionary=(-dict="tests/fuzz/${name%_fuzzer}.dict")
  echo "== $name, $seconds s"
  timeout -k 10 $((seconds + 60)) "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 \
    -print_final_stats=1 -artifact_prefix="build/fuzz/findings/$name-" "${dictionary[@]}" "$corpus" "${seeds[@]}"
done
