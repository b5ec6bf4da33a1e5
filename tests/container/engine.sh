# Sourced by the scripts beside it: gives them a Docker engine and the image debian:bookworm-slim.
#
# An engine that the user already reaches is used as it is. Otherwise, as root, a private one is started in a
# temporary folder, without bridge, firewall rules or forwarding, so that nothing of it stays on the
# machine; containers share the host's network then. Where neither can be had, the script ends with status 77.

engine_dir=
engine_pid=
network=()  # the option that containers and builds of this engine need to reach the network

engine_skip() {
  echo "no Docker engine: $1"
  exit 77
}

engine_start() {
  command -v docker >/dev/null || engine_skip "the docker command is not installed"
  if docker info >/dev/null 2>&1; then
    [ -z "${DOCKER_BUILD_NETWORK:-}" ] || network=(--network "$DOCKER_BUILD_NETWORK")
    return
  fi
  [ "$(id -u)" -eq 0 ] || engine_skip "none is running and starting one needs root"
  command -v dockerd >/dev/null || engine_skip "none is running and dockerd is not installed"
  engine_dir=$(mktemp -d /tmp/kvc-engine.XXXXXX)
  export DOCKER_HOST=unix://$engine_dir/docker.sock
  engine_launch dockerd --bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
  network=(--network host)
}

# engine_launch COMMAND...: a dockerd in engine_dir.
engine_launch() {
  local i
  "$@" --host "$DOCKER_HOST" --data-root "$engine_dir/data" --exec-root "$engine_dir/exec" \
    --pidfile "$engine_dir/docker.pid" >"$engine_dir/log" 2>&1 &
  engine_pid=$!
  for ((i = 0; i < 150; i++)); do
    docker info >/dev/null 2>&1 && return
    kill -0 $engine_pid 2>/dev/null || break
    sleep 0.2
  done
  tail -n 5 "$engine_dir/log"
  engine_skip "dockerd did not start, its last words are above"
}

# Starts the private engine again, with what it has, in a network namespace of its own: there it can have bridges and
# firewall rules, and containers names for each other, but nobody reaches the network outside.
engine_isolate() {
  [ -n "$engine_dir" ] || return 0
  unshare --net true 2>/dev/null || engine_skip "a network namespace cannot be had"
  engine_end
  engine_launch unshare --net sh -c 'ip link set lo up && exec dockerd "$@"' --
  network=()
}

# engine_reach COMMAND...: where the ports are that containers publish.
engine_reach() {
  if [ -n "$engine_dir" ] && [ ${#network[@]} -eq 0 ]; then
    nsenter --target "$engine_pid" --net "$@"
  else
    "$@"
  fi
}

engine_end() {
  if kill "$engine_pid" 2>/dev/null; then
    wait "$engine_pid" || true
  fi
}

engine_stop() {
  [ -n "$engine_dir" ] || return 0
  engine_end
  # What a container that did not end well left mounted.
  awk -v dir="$engine_dir/" 'index($2, dir) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount -l || true
  rm -rf --one-file-system "$engine_dir"
}

# engine_take_programs FOLDER: the programs of this machine in the role of the Dockerfile's stage that builds them, which
# takes minutes, where the base image is of the same release; FOLDER/Dockerfile has the other stages.
engine_take_programs() {
  scripts/build.sh >/dev/null &&
    mkdir -p "$1/src/bin" &&
    strip -o "$1/src/bin/kv-compressd" bin/kv-compressd &&
    strip -o "$1/src/bin/kv-compress" bin/kv-compress &&
    scripts/runtime_packages.sh "$1"/src/bin/* >"$1/src/packages" &&
    tar -C "$1" -c src | docker import - kv-compress-build:test >/dev/null &&
    sed -e '/ AS build$/,/ AS runtime$/ {/ AS runtime$/!d}' -e 's/--from=build /--from=kv-compress-build:test /' Dockerfile >"$1/Dockerfile"
}

# The images of the Dockerfile, with the tag `test`. Those of the same sources are taken from an earlier stage's
# archive, unless they are to be built `anew`.
engine_project_images() {
  local archive=build/images.tar.zst sources work dockerfile=Dockerfile
  # What .dockerignore lets in.
  sources=$(find Dockerfile .dockerignore client cmake CMake* core proto scripts server -type f ! -name '*.pyc' -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
  if [ "${1:-}" != anew ] && [ "$(cat $archive.sources 2>/dev/null)" = "$sources" ]; then
    zstd -q -d -c $archive | docker load >/dev/null
    return
  fi
  engine_base_image
  work=$(mktemp -d)
  if [ "${KVC_TIER:-long}" = short ] && grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release; then
    engine_take_programs "$work" || return 1
    dockerfile=$work/Dockerfile
  fi
  # The older builder, which every engine has.
  if ! DOCKER_BUILDKIT=0 scripts/build_image.sh test "${network[@]}" -f "$dockerfile" >"$work/log" 2>&1; then
    tail -n 40 "$work/log"
    rm -rf "$work"
    return 1
  fi
  rm -rf "$work"
  mkdir -p build
  docker save kv-compressd:test kv-compress:test | zstd -q -1 -T0 -f -o $archive && echo "$sources" >$archive.sources
}

# The base image: as the engine has or pulls it, otherwise made from Debian's packages and kept for a week.
engine_base_image() {
  local image=debian:bookworm-slim cache archive root
  docker image inspect $image >/dev/null 2>&1 && return
  if [ -z "$engine_dir" ] && docker pull -q $image >/dev/null 2>&1; then
    return
  fi
  command -v debootstrap >/dev/null || engine_skip "$image cannot be pulled and debootstrap is not installed"
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvcompress
  archive=$cache/bookworm-minbase-$(dpkg --print-architecture).tar.zst
  mkdir -p "$cache"
  if [ -z "$(find "$archive" -mtime -7 2>/dev/null)" ]; then
    root=$(mktemp -d "$cache/debootstrap.XXXXXX")
    if ! debootstrap --variant=minbase bookworm "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$cache/debootstrap.log" 2>&1; then
      tail -n 5 "$cache/debootstrap.log"
      rm -rf "$root"
      engine_skip "$image cannot be made, debootstrap's last words are above"
    fi
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    tar -C "$root" -c . | zstd -q -T0 -o "$root.tar.zst"
    mv "$root.tar.zst" "$archive"
    rm -rf "$root"
  fi
  # A container's own privileges are often enough to start an engine, but not to unpack an image.
  zstd -q -d -c "$archive" | docker import - $image >/dev/null ||
    { [ -n "$engine_dir" ] && engine_skip "the one started here cannot unpack an image"; }
}
