#!/usr/bin/env bash
# What a newcomer does: a fresh debian:bookworm-slim, the committed sources, make, and one command.
# BARE_TARGET=test runs `make test` instead of `make demo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/container/engine.sh

name=kvc-bare-$$
cleanup() {
  docker rm -f $name >/dev/null 2>&1 || true
  engine_stop
}
trap cleanup EXIT
git rev-parse HEAD >/dev/null 2>&1 || { echo "not a git checkout, nothing to take the sources from"; exit 77; }
engine_start
engine_base_image

# A host that trusts a certificate authority of its own lends it to pip.
trust=()
if [ -n "${SSL_CERT_FILE:-}" ]; then
  trust=(-v "$SSL_CERT_FILE:/host-ca.crt:ro" -e SSL_CERT_FILE=/host-ca.crt -e PIP_CERT=/host-ca.crt)
fi
git archive HEAD | docker run -i --name $name "${network[@]}" "${trust[@]}" -e KVC_TIER=short debian:bookworm-slim bash -euc "
  mkdir /kvcompress && tar -x -C /kvcompress && cd /kvcompress
  apt-get -q update >/dev/null && apt-get -q install -y make >/dev/null 2>&1
  make ${BARE_TARGET:-demo} </dev/null"
