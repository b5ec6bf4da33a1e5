#!/usr/bin/env bash
# clang-tidy over our own sources, every finding an error; .clang-tidy says which checks and why.
# usage: tidy.sh [FILE...]      all sources of the product without arguments
set -euo pipefail
cd "$(dirname "$0")/.."

# The generated headers have to exist before anything that includes them is parsed.
scripts/build.sh kvc_proto kvc_error_details_proto >/dev/null
[ $# -gt 0 ] || mapfile -t files < <(find core proto server client -name '*.cc' | sort)
[ $# -eq 0 ] || files=("$@")
printf '%s\n' "${files[@]}" |
  xargs -P "$(nproc)" -n 1 clang-tidy-14 --quiet -p build/release --warnings-as-errors='*' 2> >(grep -v 'warnings generated\.$' >&2)
