#!/usr/bin/env bash
# Formats the C++ sources in place; with --check it changes nothing and fails where something would change.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(-i)
[ "${1:-}" != --check ] || mode=(--dry-run --Werror)
# Not what pip builds in the Python package's folder.
find core server client proto tests bench -name build -prune -o '(' -name '*.h' -o -name '*.cc' ')' -print |
  sort | xargs --no-run-if-empty clang-format-14 "${mode[@]}"
