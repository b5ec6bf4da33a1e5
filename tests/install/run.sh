#!/usr/bin/env bash
# Installs everything, moves it away from where it was installed to, and builds and runs programs against it: one with
# the codec in its process, one that calibrates, one that talks to the installed daemon.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/daemon.sh

work=$(mktemp -d)
trap 'daemon_stop || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
fail() { echo "FAILED: $1"; exit 1; }

echo "installing"
make -s install PREFIX=/opt/kvcompress DESTDIR="$work/root" >"$work/log" 2>&1 || { tail -n 40 "$work/log"; fail "make install"; }
[ "$(ls "$work/root")" = opt ] || fail "something went elsewhere than to PREFIX"
prefix=$work/moved
mv "$work/root/opt/kvcompress" "$prefix"

echo "looking at what was installed"
for program in kv-compressd kv-compress; do
  "$prefix/bin/$program" --version | grep -qE '[0-9]+\.[0-9]+' || fail "$program --version"
done
strays=$(find "$prefix" -type l -o -name '*-inl.h' -o -name '*.cc' -o -name '*_test*')
[ -z "$strays" ] || fail "not to be installed: $strays"
paths=$(grep -rlF -e "$PWD" -e "$work" "$prefix/include" "$prefix/lib/cmake" || true)
[ -z "$paths" ] || fail "names a folder of this machine: $paths"
[ -f "$prefix/include/kvcompress/core/tensor_compressor.h" ] || fail "no headers"

echo "building programs against it"
cmake -S tests/install -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix"
cmake --build "$work/build"
"$work/build/example"
"$work/build/calibration"

# The manual shows this very program.
sed -n '/^```cpp$/,/^```$/p' docs/embedding.md | sed '/^```/d' | diff tests/install/example.cc - ||
  fail "docs/embedding.md does not show tests/install/example.cc"

cd "$prefix"
daemon_start "$work" || fail "the installed daemon did not start"
"$work/build/client" "$daemon_address"
daemon_stop || fail "exit status of the daemon"
