#!/usr/bin/env bash
# Builds the optimized daemon and command line and puts them into bin/.
set -euo pipefail
cd "$(dirname "$0")/.."

cmake --preset release >/dev/null
cmake --build --preset release --target kv-compressd kv-compress
