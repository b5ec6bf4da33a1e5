#!/usr/bin/env bash
# Builds the images of the Dockerfile and runs them for real: the daemon becomes healthy as a non-root user
# on a read-only file system, the command line's image compresses through it, so do the containers of the pods of
# deploy/kubernetes, and `docker stop` drains it.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/container/engine.sh

name=kvc-test-$$
work=
fail() {
  echo "FAILED: $1"
  ! docker inspect $name >/dev/null 2>&1 || docker logs $name 2>&1 | tail -n 20
  exit 1
}
cleanup() {
  docker rm -f $name >/dev/null 2>&1 || true
  [ -z "$work" ] || rm -rf "$work"
  engine_stop
}
trap cleanup EXIT
engine_start
engine_base_image

echo "building the images"
work=$(mktemp -d)
engine_project_images anew || fail "building the images"
config() { docker image inspect -f "{{$1}}" "${2:-kv-compressd}:test"; }
# Of each image, less the base that it shares with others: the program and the libraries that it links.
base_bytes=$(docker image inspect -f '{{.Size}}' debian:bookworm-slim)
for image in kv-compressd kv-compress; do
  own_mib=$((($(config .Size $image) - base_bytes) >> 20))
  echo "$image: $(($(config .Size $image) >> 20)) MiB, $own_mib MiB of them on top of debian:bookworm-slim"
  [ $own_mib -le 45 ] || fail "the image $image has grown"
  version=$(docker run --rm --network none --entrypoint $image $image:test --version | awk '{print $2}')
  label=$(config 'index .Config.Labels "org.opencontainers.image.version"' $image)
  [ -n "$version" ] && [ "$label" = "$version" ] || fail "$image: the label says version $label, the program $version"
done
[ "$(config .Config.User)" = 10001:10001 ] || fail "the image's user is $(config .Config.User)"
[ "$(config .Config.StopSignal)" = SIGTERM ] || fail "the image's stop signal is $(config .Config.StopSignal)"

# With the host's network both sides meet on a free loopback port, otherwise on the image's own, inside the daemon's
# network.
socket=unix:/run/kv-compressd/kv-compressd.sock
address=127.0.0.1:50051 daemon_flags=() client_network=(--network "container:$name")
if [ "${network[*]}" = "--network host" ]; then
  address=127.0.0.1:$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  daemon_flags=("${network[@]}" -e KV_COMPRESSD_LISTEN="$address,$socket" -e KV_COMPRESSD_METRICS_LISTEN=127.0.0.1:0)
  client_network=("${network[@]}")
fi
hardened=(--read-only --cap-drop ALL --security-opt no-new-privileges --memory 1g --cpus 1)
docker run -d --name $name "${daemon_flags[@]}" "${hardened[@]}" --health-interval 1s kv-compressd:test >/dev/null
for ((i = 0; i < 60; i++)); do
  health=$(docker inspect -f '{{.State.Health.Status}}' $name)
  [ "$health" != healthy ] || break
  [ "$(docker inspect -f '{{.State.Running}}' $name)" = true ] || fail "the daemon ended at once"
  sleep 0.5
done
[ "$health" = healthy ] || fail "the daemon is $health after 30 s"
pid=$(docker inspect -f '{{.State.Pid}}' $name)
[ "$(awk '/^Uid:/ {print $2 "," $3}' "/proc/$pid/status")" = 10001,10001 ] || fail "the daemon does not run as user 10001"
echo "healthy, as user 10001, on a read-only file system"
logs=$(docker logs $name 2>&1)
grep -q "started .*threads=1 " <<<"$logs" || fail "the daemon takes more threads than it has CPUs"
grep -q "memory limit is too low .*memory_limit=$((1 << 30))" <<<"$logs" ||
  fail "the daemon does not say that its limit leaves no room beside its budget"
echo "knows the container's limits"

cp tests/data/smollm2.256.bf16.safetensors "$work/in.safetensors"
chmod -R a+rX "$work" && chmod a+w "$work"
# client ADDRESS ARGUMENT...
client() {
  docker run --rm "${client_network[@]}" --volumes-from $name "${hardened[@]}" -v "$work:/data" kv-compress:test -server "$@"
}
for server in "$address" "$socket"; do
  client "$server" -input in.safetensors -output small.safetensors >/dev/null || fail "compressing through $server"
  client "$server" -decompress -input small.safetensors -output out.safetensors >/dev/null || fail "decompressing through $server"
  scripts/check_roundtrip.py "$work/in.safetensors" "$work/small.safetensors" "$work/out.safetensors" || fail "the round trip through $server"
  rm -f "$work/small.safetensors" "$work/out.safetensors"
done
[ "$(docker exec $name stat -c %a,%u "${socket#unix:}")" = 660,10001 ] || fail "the socket's mode or owner"
echo "a cache there and back over TCP, and over a unix socket in a volume that the containers share"

scripts/venv.sh && .venv/bin/python tests/container/pod.py "$work" || fail "the pods of deploy/kubernetes"
rm -f "$work/small.safetensors" "$work/out.safetensors"

started=$SECONDS
docker stop -t 20 $name >/dev/null
code=$(docker inspect -f '{{.State.ExitCode}}' $name)
[ "$code" = 0 ] || fail "docker stop: exit status $code"
[ $((SECONDS - started)) -lt 15 ] || fail "docker stop took $((SECONDS - started)) s"
echo "stopped by SIGTERM in $((SECONDS - started)) s, exit status 0"

if docker run --rm "${hardened[@]}" -e KV_COMPRESSD_LISTEN=nonsense kv-compressd:test >"$work/refused" 2>&1; then
  fail "the daemon starts with a listen address that is none"
fi
grep -q nonsense "$work/refused" || fail "the refusal does not name the bad address: $(cat "$work/refused")"
echo "a bad setting is refused by name"

# Plaintext is the image's own choice, which can be taken back.
if docker run --rm "${hardened[@]}" -e KV_COMPRESSD_ALLOW_PLAINTEXT=false kv-compressd:test >"$work/refused" 2>&1; then
  fail "the daemon serves anybody in plaintext although that is not allowed"
fi
grep -q -- --allow-plaintext "$work/refused" || fail "the refusal does not say what to do: $(cat "$work/refused")"
echo "plaintext beyond the container is refused where it is not allowed"
