#!/usr/bin/env bash
# Makes .venv with what the Python tests need; does nothing when it is already there and current.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(python3 --version; cat scripts/requirements-test.txt scripts/constraints-test.txt)
if [ -x .venv/bin/python ] && [ "$(cat .venv/wanted 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
rm -rf .venv
python3 -m venv .venv
.venv/bin/pip install --quiet --retries 5 -r scripts/requirements-test.txt -c scripts/constraints-test.txt
printf '%s\n' "$wanted" >.venv/wanted
