#!/usr/bin/env bash
# Measures in one run: codecs beside those of others, what ours make of a real cache, kernels beside memcpy and general
# compressors, all chains over hostile values, the transports beside peers that move as many bytes, the instructions of a
# small call, the Python client, and the command line on a 256 MiB file. Absolute figures depend on the machine; the ratios
# within one run are what to compare.
# usage: bench.sh [--quick] [--check] [--peers] [--against OLD/results.json]
#   --quick      fewer cells, rounds and calls
#   --check      exit status 1 when a target is missed; those that cannot be judged are listed and do not count
#   --peers      install other people's codecs from PyPI, each into an environment of its own below build/peers; without it
#                those take part that are there
#   --against    show what differs by more than noise from another run
# results: build/bench/page.html and page.md, build/bench/results.json
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/daemon.sh

kernels=() quick=() check=() peers=() against=() rounds=5
while [ $# -gt 0 ]; do
  case $1 in
    --quick) kernels+=(--benchmark_repetitions=3 --benchmark_min_time=0.03) quick=(--quick) rounds=3 ;;
    --check) kernels+=(--check) check=(--check) ;;
    --peers) peers=(--install) ;;
    --against)
      [ -f "${2:-}" ] || { echo "bench.sh: --against takes the results.json of another run" >&2; exit 2; }
      against=(--against "$(realpath "$2")")
      shift ;;
    *) echo "bench.sh: unknown flag $1" >&2; exit 2 ;;
  esac
  shift
done

scripts/venv.sh
cmake --preset release -DKVC_PYTHON=ON >/dev/null
scripts/build.sh kv-compressd kv-compress kvc_bench_kernels kvc_bench_hostile kvc_bench_transport kvc_load kvc_python >/dev/null
results=build/bench missed=0
.venv/bin/python bench/page.py begin $results
.venv/bin/python bench/peers/measure.py "${peers[@]}" --rounds $rounds --output $results/peers.json || missed=1
echo
.venv/bin/python bench/peers/chunk.py "${peers[@]}" --rounds $rounds --output $results/chunk.json || missed=1
echo
scripts/bench_codecs.py "${check[@]}" --output $results/codecs.json || missed=1
build/release/bench/kvc_bench_kernels "${kernels[@]}" --benchmark_out=$results/kernels.json || missed=1
echo
build/release/bench/kvc_bench_hostile "${quick[@]}" "${check[@]}" --output=$results/hostile.json || missed=1
echo
scripts/bench_transport.py "${quick[@]}" --output $results/transport.json || missed=1
scripts/bench_instructions.py "${check[@]}" --output $results/instructions.json || missed=1

.venv/bin/python scripts/bench_python.py --rounds $rounds --output $results/python.json || missed=1
echo

work=$(mktemp -d)
trap 'daemon_stop || true; rm -rf "$work"' EXIT
daemon_start "$work"
scripts/bench_files.py "$work" "$daemon_address" --output $results/files.json || missed=1
daemon_stop
echo
.venv/bin/python bench/page.py end $results "${against[@]}" "${check[@]}" || missed=1
exit $missed
