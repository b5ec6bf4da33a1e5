#!/usr/bin/env bash
# Makes .venv with what the Python tests need, and the Python client in it, whose sources stay where they are. Does
# nothing when it is already there and current.
set -euo pipefail
cd "$(dirname "$0")/.."

# One at a time.
mkdir -p build
exec 9>build/venv.lock
flock 9

wanted=$(python3 --version; cat scripts/requirements-test.txt scripts/constraints-test.txt)
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/wanted 2>/dev/null)" != "$wanted" ]; then
  rm -rf .venv
  python3 -m venv .venv
  .venv/bin/pip install --quiet --retries 5 -r scripts/requirements-test.txt -c scripts/constraints-test.txt
  printf '%s\n' "$wanted" >.venv/wanted
fi

# The client's stubs and version are made when it is installed. Its module of the codec is built with the project
# (scripts/test.sh, stage "python").
client=$(cat CMakeLists.txt proto/kvcompress/v1/kvcompress.proto client/python/{setup.py,pyproject.toml} | sha256sum)
if [ "$(cat .venv/client 2>/dev/null)" != "$client" ] || [ ! -e client/python/src/kvcompress/v1/kvcompress_pb2.py ]; then
  KVC_NATIVE=off .venv/bin/pip install --quiet --no-deps --no-build-isolation --no-index --editable client/python
  printf '%s\n' "$client" >.venv/client
fi
