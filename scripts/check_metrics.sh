#!/usr/bin/env bash
# Lets Prometheus's own promtool judge what a daemon that has worked shows under /metrics.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/daemon.sh

work=$(mktemp -d)
trap 'daemon_stop || true; rm -rf "$work"' EXIT
sample=tests/data/smollm2.256.bf16.safetensors
daemon_start "$work" --link-bandwidth 10Gbit/s
bin/kv-compress -server "$daemon_address" -input $sample -output "$work/small.safetensors" >/dev/null
bin/kv-compress -server "$daemon_address" -decompress -input "$work/small.safetensors" -output "$work/out.safetensors" >/dev/null
# A refused call has to be in the figures as well.
! bin/kv-compress -server "$daemon_address" -input $sample -output "$work/no.safetensors" -codec 'int4(group=48)' >/dev/null 2>&1
daemon_fetch /metrics >"$work/metrics"
cat "$work/metrics"
promtool check metrics <"$work/metrics"
daemon_stop
