#!/usr/bin/env bash
# Builds the optimized daemon and command line and puts them into bin/.
# usage: build.sh [TARGET...]     these targets instead
set -euo pipefail
cd "$(dirname "$0")/.."

# Without the tests, which need more packages, unless this tree was configured with them.
[ -f build/release/build.ninja ] || cmake --preset release -DBUILD_TESTING=OFF >/dev/null
[ $# -gt 0 ] || set -- kv-compressd kv-compress
cmake --build --preset release --target "$@"
