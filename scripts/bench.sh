#!/usr/bin/env bash
# Measures the kernels beside memcpy and general compressors, then the command line and the daemon on a 256 MiB
# file. Absolute figures depend on the machine; the ratios within one run are what to compare.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/daemon.sh

scripts/build.sh
cmake --build --preset release --target kvc_bench_kernels >/dev/null
"$(find build/release -name kvc_bench_kernels -type f -executable | head -n 1)"

work=$(mktemp -d)
trap 'daemon_stop || true; rm -rf "$work"' EXIT
daemon_start "$work"
scripts/bench_files.py "$work" "$daemon_address"
daemon_stop
