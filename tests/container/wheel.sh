#!/usr/bin/env bash
# The wheel that `make wheel` makes, in a fresh debian:bookworm-slim that has Python and no compiler: the manual's example
# compresses a tensor of PyTorch there, without a daemon, and prints what the manual says.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/container/engine.sh

name=kvc-wheel-$$
work=$(mktemp -d)
cleanup() {
  docker rm -f $name >/dev/null 2>&1 || true
  engine_stop
  rm -rf "$work"
}
trap cleanup EXIT
engine_start
engine_base_image

scripts/wheel.sh
scripts/venv.sh
.venv/bin/pip download --quiet --retries 5 --dest "$work/wheels" --only-binary :all: -c scripts/constraints-test.txt dist/*.whl torch
awk '/^## / {here = $0 == "## Without a daemon"} here' client/python/README.md >"$work/manual"
sed -n '/^```python$/,/^```$/ {/^```/d; p}' "$work/manual" >"$work/example.py"
grep -q 'kvcompress.compress(' "$work/example.py" || { echo "FAILED: no example in the manual"; exit 1; }
sed -n '/^prints$/,/^[^ p]/ s/^    //p' "$work/manual" >"$work/wanted"

docker run --name $name "${network[@]}" -v "$work:/work:ro" debian:bookworm-slim bash -euc "
  apt-get -q update >/dev/null && apt-get -q install -y python3-venv >/dev/null 2>&1
  python3 -m venv /venv
  /venv/bin/pip install --quiet --no-index --find-links /work/wheels kvcompress torch
  if command -v c++ kv-compressd; then exit 1; fi
  /venv/bin/python /work/example.py" >"$work/said"
cat "$work/said"
diff "$work/wanted" "$work/said" || { echo "FAILED: the manual says otherwise"; exit 1; }
