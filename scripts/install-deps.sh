#!/usr/bin/env bash
# Installs the Debian packages that a task needs, and of those only the missing ones. A machine that
# has them all is left alone: no network, no root.
# usage: install-deps.sh [--build] [--bench] [--test] [--lint] [--container]
set -euo pipefail

packages=()
for set in "$@"; do
  case $set in
    --build)
      packages+=(g++ cmake ninja-build pkg-config python3 libabsl-dev libgrpc++-dev libprotobuf-dev libssl-dev
        protobuf-compiler protobuf-compiler-grpc libspdlog-dev prometheus-cpp-dev libhwy-dev libzstd-dev
        liblz4-dev libxxhash-dev nlohmann-json3-dev libeigen3-dev python3-dev) ;;
    # The benchmarks are configured together with the tests.
    --bench) packages+=(libbenchmark-dev libgtest-dev libgmock-dev valgrind) ;;
    --test)
      packages+=(ccache chromium clang-14 faketime haproxy iproute2 libclang-rt-14-dev libgmock-dev libgtest-dev llvm-14
        openssl python3-venv prometheus redis-server) ;;
    --lint) packages+=(clang-format-14 clang-tidy-14) ;;
    --container)
      # A machine whose user already reaches a Docker engine needs nothing more.
      docker info >/dev/null 2>&1 || packages+=(docker.io debootstrap zstd iptables iproute2 ca-certificates)
      docker compose version >/dev/null 2>&1 || packages+=(docker-compose) ;;
    *)
      echo "install-deps.sh: unknown set $set" >&2
      exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null; then
  echo "install-deps.sh: this is not Debian; install the equivalents of: ${packages[*]}" >&2
  exit 1
fi
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p')
missing=()
for package in "${packages[@]}"; do
  grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install-deps.sh: as root, run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  root=(sudo)
fi
apt_get=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0)

# The prometheus, redis-server and docker.io packages bring services; we want their tools alone, so nothing is started
# while they are installed, and what was not enabled before stays disabled.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap '"${root[@]}" rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee $policy >/dev/null
  "${root[@]}" chmod 755 $policy
fi

echo "Installing ${#missing[@]} missing Debian packages with apt-get: ${missing[*]}"
log=$(mktemp)
if ! { "${apt_get[@]}" update && "${apt_get[@]}" install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "install-deps.sh: apt-get failed, see above" >&2
  rm -f "$log"
  exit 1
fi
rm -f "$log"
if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
  for package in "${missing[@]}"; do
    case $package in
      prometheus | redis-server) "${root[@]}" systemctl disable -q "$package" || true ;;
      docker.io) "${root[@]}" systemctl disable -q docker.service docker.socket containerd || true ;;
    esac
  done
fi
