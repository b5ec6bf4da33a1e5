#!/usr/bin/env bash
# clang-tidy over our own sources, every finding an error; .clang-tidy says which checks and why. Most of its time goes
# into headers, so it reads the sources of a library as few. Its path-sensitive analyzer looks at the functions of the
# main file alone, so each file is read by itself for it: in the long tier, and where files are named.
# usage: tidy.sh [FILE...]      all sources of the product without arguments
set -euo pipefail
cd "$(dirname "$0")/.."

preset=tidy only=(--checks='-clang-analyzer-*')
[ $# -eq 0 ] && [ "${KVC_TIER:-short}" != long ] || preset=release only=()
# GoogleTest is not needed for what is read here.
[ -f build/$preset/build.ninja ] || cmake --preset $preset -DBUILD_TESTING=OFF >/dev/null
# The generated headers have to exist before anything that includes them is parsed.
mapfile -t headers < <(ninja -C build/$preset -t targets all | grep -oE '^[^/ ][^ ]*\.pb\.h:' | tr -d :)
cmake --build --preset $preset --target "${headers[@]}" >/dev/null
files=("$@")
[ $# -gt 0 ] || mapfile -t files < <(grep -oP "\"file\": \"\K$PWD/(build/tidy/)?(core|proto/wire|server|client)/[^\"]*" \
  build/$preset/compile_commands.json | grep -v _proto.dir/)
printf '%s\n' "${files[@]}" |
  xargs -P "$(nproc)" -n 1 clang-tidy-14 --quiet -p build/$preset "${only[@]}" --warnings-as-errors='*' \
    2> >(grep -v 'warnings generated\.$' >&2)
