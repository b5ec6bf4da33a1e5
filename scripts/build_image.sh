#!/usr/bin/env bash
# Builds the images kv-compressd:TAG and kv-compress:TAG, labelled with the version and the commit.
# usage: build_image.sh [TAG [ARGUMENT-OF-DOCKER-BUILD...]]     TAG is latest without one
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:-latest}
version=$(sed -n 's/^project(kvcompress VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
revision=$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)
for image in kv-compressd:daemon kv-compress:cli; do
  docker build --target "${image#*:}" -t "${image%:*}:$tag" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" "${@:2}" .
done
