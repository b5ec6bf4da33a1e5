#!/usr/bin/env bash
# Measures the kernels beside memcpy and general compressors, all chains over hostile values, what the codecs make of a real cache, the transports beside
# peers that move as many bytes, and the command line on a 256 MiB file. Absolute figures depend on the machine; the ratios within one run are what to compare.
# usage: bench.sh [--quick] [--check]     results: bench-results.json, bench-results-kernels.json
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/daemon.sh

cmake --preset release >/dev/null
scripts/build.sh kv-compressd kv-compress kvc_bench_kernels kvc_bench_hostile kvc_bench_transport >/dev/null
kernels=()
for flag in "$@"; do
  case $flag in
    --quick) kernels+=(--benchmark_repetitions=3 --benchmark_min_time=0.03) ;;
    --check) kernels+=(--check) ;;
    *) echo "bench.sh: unknown flag $flag" >&2; exit 2 ;;
  esac
done
missed=0
build/release/bench/kvc_bench_kernels "${kernels[@]}" --benchmark_out=bench-results-kernels.json || missed=1
echo
build/release/bench/kvc_bench_hostile "$@" || missed=1
echo
check=()
case " $* " in *" --check "*) check=(--check) ;; esac
scripts/bench_codecs.py "${check[@]}" || missed=1
scripts/bench_transport.py "$@" --output bench-results.json || missed=1

work=$(mktemp -d)
trap 'daemon_stop || true; rm -rf "$work"' EXIT
daemon_start "$work"
scripts/bench_files.py "$work" "$daemon_address"
daemon_stop
exit $missed
