#!/usr/bin/env bash
# The whole product in a minute: build it, start the daemon, send a real KV cache through it and back, check
# the result with a program of its own, look at the metrics, stop cleanly.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/daemon.sh

bold='' plain=''
[ ! -t 1 ] || { bold=$(printf '\033[1m') plain=$(printf '\033[0m'); }
step=0
say() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" $step "$1" "$plain"; }
show() { printf '   $ %s\n' "$*"; "$@" | sed 's/^/   /'; }
fail() { printf '\nThe demo failed: %s\n' "$1" >&2; exit 1; }

work=$(mktemp -d)
trap 'daemon_stop || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
sample=tests/data/smollm2.256.bf16.safetensors

say "Build the daemon and the command line"
scripts/build.sh || fail "the build, see above"

say "Start the daemon on free loopback ports"
daemon_start "$work" || fail "the daemon did not start"
echo "   bin/kv-compressd serves gRPC on $daemon_address and metrics on $daemon_metrics"

say "Compress a real KV cache through it: two layers of SmolLM2-135M, keys and values, BF16"
show bin/kv-compress -server "$daemon_address" -input $sample -output "$work/small.safetensors" -verbose ||
  fail "compressing"

say "4 bits miss the default thresholds on this cache, and the report says so; 8 bits keep them"
show bin/kv-compress -server "$daemon_address" -input $sample -metrics-only -codec 'int8(group=64)' || fail "measuring"

say "What is in the compressed file"
show bin/kv-compress -inspect -input "$work/small.safetensors" || fail "inspecting"
printf '   %s bytes before, %s bytes after\n' "$(stat -c %s $sample)" "$(stat -c %s "$work/small.safetensors")"

say "Decompress it through the daemon"
show bin/kv-compress -server "$daemon_address" -decompress -input "$work/small.safetensors" -output "$work/out.safetensors" ||
  fail "decompressing"

say "Check the result with an independent reader"
show scripts/check_roundtrip.py $sample "$work/small.safetensors" "$work/out.safetensors" || fail "the round trip"

say "What Prometheus would see"
daemon_fetch /metrics >"$work/metrics" || fail "no metrics"
grep -E '^[a-z_]+_total(\{.*\})? [1-9]' "$work/metrics" | head -n 12 | sed 's/^/   /' || fail "no counter moved"

say "Stop it with SIGTERM"
status=0
daemon_stop || status=$?
tail -n 3 "$work/daemon.log" | sed 's/^/   /'
[ $status -eq 0 ] || fail "the daemon's exit status is $status"
echo "   exit status 0"

printf '\n%sAll of it worked.%s\n' "$bold" "$plain"
