#!/usr/bin/env bash
# deploy/compose.yaml for real: the daemon becomes healthy, a client sends it a cache, Prometheus scrapes it, and every
# query of the dashboard has data; more streams than the budget holds do not bring it near its memory limit. Then with
# deploy/compose.tls.yaml. Then with deploy/compose.replicas.yaml: three replicas behind the balancer, of which one is
# killed and one drained under 2,000 calls, none of which fails; once both are back the load evens out, and so it does
# when a fourth comes. Last, floods do not get past the balancer; a replica that is flooded directly reaches its memory
# limit, under load again and while Prometheus is gone.
#
# Where the engine cannot pull images, Prometheus and HAProxy are Debian's, under the names that the files give them and
# with their paths. Grafana does not run.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/container/engine.sh

export COMPOSE_PROJECT_NAME=kvc-test-$$ KV_COMPRESSD_TAG=test
if docker compose version >/dev/null 2>&1; then
  compose_command=(docker compose)
elif command -v docker-compose >/dev/null; then
  compose_command=(docker-compose)
else
  engine_skip "docker-compose is not installed"
fi
files=(-f deploy/compose.yaml -f deploy/compose.replicas.yaml)
compose() { "${compose_command[@]}" "${files[@]}" "$@" 2>>"$work/compose.log"; }
work=$(mktemp -d)
: >"$work/compose.log"
load=
fail() {
  echo "FAILED: $1"
  tail -n 20 "$work/compose.log" || true
  compose ps || true
  compose logs --tail=15 2>&1 | cut -c1-300 || true
  exit 1
}
cleanup() {
  [ -z "$load" ] || kill "$load" 2>/dev/null || true
  compose down -v --remove-orphans --timeout 5 >/dev/null 2>&1 || true
  rm -rf "$work"
  engine_stop
}
trap cleanup EXIT
engine_start
if [ ! -x bin/kvc_load ] || [ ! -x bin/kv-compress ]; then
  cmake --preset release >/dev/null && cmake --build --preset release --target kvc_load kv-compress >/dev/null
fi

echo "the images"
engine_project_images || fail "building the images"
# image NAME: makes sure that the engine has it, with the tag of the files; the Dockerfile of what stands in for it comes
# on standard input.
image() {
  local name
  name=$(grep -ohE "image: $1:[^ ]+" deploy/compose*.yaml | cut -d ' ' -f 2)
  docker image inspect "$name" >/dev/null 2>&1 && return
  if [ -z "$engine_dir" ]; then
    docker pull -q "$name" >/dev/null || engine_skip "$name cannot be pulled"
    return
  fi
  engine_base_image
  DOCKER_BUILDKIT=0 docker build "${network[@]}" -t "$name" - >"$work/log" 2>&1 || { tail "$work/log"; fail "an image for $name"; }
}
image prom/prometheus <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN apt-get -q update && apt-get -q install -y --no-install-recommends prometheus wget
RUN install -d -o nobody -g nogroup /prometheus
USER nobody
WORKDIR /prometheus
VOLUME /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
image haproxy <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN apt-get -q update && apt-get -q install -y --no-install-recommends haproxy
USER haproxy
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
DOCKERFILE
engine_isolate

prometheus=http://127.0.0.1:9090
# value QUERY: of its one series; 0 without any.
value() {
  engine_reach python3 -c '
import sys
sys.path.insert(0, "tests/deploy")
import dashboard
print(*[int(float(series["value"][1])) for series in dashboard.ask(sys.argv[1], "query", query=sys.argv[2])["result"]] or [0])' \
    $prometheus "$1"
}
# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "not in time: $what"
    sleep 0.5
  done
}
is() { [ "$(value "$1")" = "$2" ]; }
client_is_done() {
  local id
  id=$(compose ps -a -q client)
  [ "$(docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$id")" = "exited 0" ]
}
# calls PORT FLAG...: 2,000 calls over 30 s, retried as clients do; the outcomes go to $work/calls.
calls() {
  engine_reach timeout 200 bin/kvc_load --address="127.0.0.1:$1" --streams=8 --calls=250 --attempts=10 --pause=100ms \
    --tensor_bytes=2097152 "${@:2}" >"$work/calls"
}
# went_well CALLS WHAT: each of the 8 streams' calls did, with the same bytes as without daemons and faults.
went_well() {
  [ -s "$work/expected" ] || bin/kvc_load --streams=8 --tensor_bytes=2097152 >"$work/expected"
  python3 - "$work" "$@" <<'PYTHON'
import json, sys
work, each, what = sys.argv[1:]
calls, expected = (json.load(open(f"{work}/{name}")) for name in ("calls", "expected"))
print(f"{8 * int(each)} calls {what}: {sum(stream['attempts'] for stream in calls)} attempts")
for stream in calls:
    print(stream["error"], end="\n" if stream["error"] else "")
assert [stream["codes"] for stream in calls] == [{"OK": int(each)}] * 8, calls
assert [stream["hashes"] for stream in calls] == [stream["hashes"] for stream in expected]
PYTHON
}

files=(-f deploy/compose.yaml)
echo "one daemon, after $SECONDS s"
compose up -d --no-build kv-compressd prometheus client >/dev/null || fail "docker-compose up"
daemon=$(compose ps -q kv-compressd)
[ "$(docker inspect -f '{{.State.Health.Status}}' "$daemon")" = healthy ] || fail "the daemon is not healthy"
process=/proc/$(docker inspect -f '{{.State.Pid}}' "$daemon")/status
[ "$(awk '/^(Uid|CapEff|CapBnd|NoNewPrivs):/ {printf "%s ", $2}' "$process")" = "10001 0000000000000000 0000000000000000 1 " ] ||
  fail "the daemon has more rights than it should: $(grep -E '^(Uid|Cap|NoNew)' "$process")"
wait_for 30 "the client's end" client_is_done
wait_for 30 "a scrape" is 'sum(up{job="kv-compressd"})' 1
wait_for 30 "the client's call through shared memory" is 'sum(kvcompress_requests_total{method="SharedMemory", code=~"OK|CANCELLED"}) > bool 0' 1
sample=tests/data/smollm2.256.bf16.safetensors
server=(engine_reach bin/kv-compress -server 127.0.0.1:50051)
for ((i = 0; i < 8; i++)); do
  for codec in 'int4(group=64)' 'planes|rans'; do
    "${server[@]}" -input $sample -output "$work/small" -codec "$codec" >/dev/null || fail "compressing"
    "${server[@]}" -decompress -input "$work/small" -output "$work/back" >/dev/null || fail "decompressing"
  done
  for decompress in false true; do
    calls 50051 --calls=5 --tensor_bytes=16384 --decompress=$decompress || fail "small calls"
  done
done
engine_reach python3 tests/deploy/dashboard.py $prometheus 20s || fail "the dashboard"
engine_reach timeout 100 bin/kvc_load --address=127.0.0.1:50051 --streams=160 --tensor_bytes=67108864 --inputs=2 --attempts=1000 \
  >"$work/calls" || fail "more streams than the budget holds"
python3 - "$work/calls" "$process" <<'PYTHON' || fail "more streams than the budget holds"
import json, re, sys
calls = json.load(open(sys.argv[1]))
peak = int(re.search(r"VmHWM:\s+(\d+) kB", open(sys.argv[2]).read()).group(1)) >> 10
print(f"{len(calls)} streams of 64 MiB: {sum(stream['attempts'] for stream in calls)} attempts, {peak} MiB at most")
assert all(stream["codes"] == {"OK": 1} for stream in calls), calls
assert sum(stream["attempts"] for stream in calls) > len(calls)  # the budget was full
assert peak < 1024 + 256
PYTHON
[ "$(docker inspect -f '{{.RestartCount}} {{.State.OOMKilled}}' "$daemon")" = "0 false" ] || fail "the daemon was ended by its limit"
! docker logs "$daemon" 2>&1 | grep "memory limit" || fail "the limit does not fit the budget"
started=$SECONDS
compose stop kv-compressd >/dev/null || fail "docker-compose stop"
[ "$(docker inspect -f '{{.State.ExitCode}}' "$daemon")" = 0 ] || fail "the daemon's exit status"
[ $((SECONDS - started)) -lt 15 ] || fail "stopping took $((SECONDS - started)) s"
compose down -v >/dev/null || fail "docker-compose down"

files=(-f deploy/compose.yaml -f deploy/compose.tls.yaml)
echo "TLS, after $SECONDS s"
export KV_COMPRESSD_TLS_DIR=$work/tls
mkdir -m 0755 "$KV_COMPRESSD_TLS_DIR"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=kv-compressd \
  -addext subjectAltName=DNS:kv-compressd,DNS:localhost -keyout "$work/tls/key.pem" -out "$work/tls/cert.pem" 2>>"$work/compose.log"
cp "$work/tls/cert.pem" "$work/tls/ca.pem"
chmod 0644 "$work"/tls/*
compose up -d --no-build kv-compressd client >/dev/null || fail "docker-compose up, with TLS"
wait_for 30 "the client's end, with TLS" client_is_done
port=$(docker port "$(compose ps -q kv-compressd)" 50051 | head -n 1 | grep -oE '[0-9]+$')
server=(engine_reach bin/kv-compress -server "localhost:$port" -input $sample -output "$work/small" -timeout 10s)
"${server[@]}" -tls-ca "$work/tls/ca.pem" >"$work/log" 2>&1 || { tail "$work/log"; fail "compressing with TLS"; }
! "${server[@]}" >/dev/null 2>&1 || fail "plaintext was served beside TLS"
compose down -v >/dev/null || fail "docker-compose down"

files=(-f deploy/compose.yaml -f deploy/compose.replicas.yaml)
echo "three replicas, after $SECONDS s"
compose up -d --no-build haproxy prometheus client >/dev/null || fail "docker-compose up, with replicas"
mapfile -t replicas < <(compose ps -q kv-compressd)
[ ${#replicas[@]} -eq 3 ] || fail "${#replicas[@]} replicas"
wait_for 30 "the client's end, through the balancer" client_is_done
are_up() { is 'sum(up{job="kv-compressd"})' "$1" && is 'haproxy_backend_active_servers{proxy="kv-compressd"}' "$1"; }
wait_for 60 "three replicas behind the balancer" are_up 3

calls 50050 &
load=$!
sleep 5
docker kill -s KILL "${replicas[0]}" >/dev/null
sleep 5
docker kill -s TERM "${replicas[1]}" >/dev/null
[ "$(timeout 40 docker wait "${replicas[1]}")" = 0 ] || fail "the drained replica's end"
docker start "${replicas[0]}" "${replicas[1]}" >/dev/null
kill -0 $load || fail "the calls were over before the faults were"
wait $load || fail "kvc_load"
load=
went_well 250 "with one replica killed and one drained" || fail "calls failed or gave other bytes"

# evens_out REPLICAS: under new load the busiest of them does at most 1.5 times what the idlest does.
evens_out() {
  local shares
  calls 50050 || fail "kvc_load"
  sleep 6  # the last scrape
  read -r -a shares < <(value 'sort(sum by (instance) (increase(kvcompress_tensors_total{method="Compress"}[30s])))')
  echo "tensors by replica in 30 s: ${shares[*]}"
  [ ${#shares[@]} -eq "$1" ] && [ "${shares[0]}" -gt 0 ] && [ $((2 * shares[$1 - 1])) -le $((3 * shares[0])) ] ||
    fail "the load does not even out"
}
wait_for 60 "both replicas' return" are_up 3
evens_out 3
compose up -d --no-build --scale kv-compressd=4 kv-compressd >/dev/null || fail "docker-compose up, with a fourth replica"
wait_for 60 "the fourth replica behind the balancer" are_up 4
evens_out 4

echo "floods, after $SECONDS s"
# The balancer speaks HTTP/2 itself and limits the rate of calls, so they end there.
for kind in "" --reset; do
  engine_reach timeout 90 tests/container/flood.py 127.0.0.1:50050 $kind || fail "the flood"
done
for replica in "${replicas[@]}"; do
  peak=$(awk '/^VmHWM:/ {print int($2 / 1024)}' "/proc/$(docker inspect -f '{{.State.Pid}}' "$replica")/status")
  echo "a replica behind the balancer took $peak MiB at most"
  [ "$peak" -lt 256 ] || fail "the balancer lets floods through"
done
sleep 5  # all has the address of whoever flooded, and that is refused for as long as it does
calls 50050 --calls=10 || fail "kvc_load"
went_well 10 "after floods" || fail "calls failed or gave other bytes"

# Without a balancer in front they reach the daemon, which the memory limit then ends, and nothing else.
victim=${replicas[2]} prometheus_container=$(compose ps -q prometheus)
port=$(docker port "$victim" 50051 | head -n 1 | grep -oE '[0-9]+$')
began=$(date +%s)
docker update --memory 300m --memory-swap 300m "$victim" >/dev/null || fail "docker update"
calls 50050 --calls=125 &
load=$!
docker kill -s KILL "$prometheus_container" >/dev/null
sleep 3
engine_reach timeout 60 tests/container/flood.py "127.0.0.1:$port" || fail "the flood"
restarted() { [ "$(docker inspect -f '{{.RestartCount}} {{.State.Health.Status}}' "$victim")" = "1 healthy" ]; }
wait_for 30 "the restart of what the limit ended" restarted
died=$(docker events --since "$began" --until "$(date +%s)" --filter "container=$victim" --filter event=die \
  --format '{{.Actor.Attributes.exitCode}}')
[ "$died" = 137 ] || fail "the replica above its limit ended with $died"
wait $load || fail "kvc_load"
load=
went_well 125 "with one replica above its memory limit, and without Prometheus" || fail "calls failed or gave other bytes"
docker start "$prometheus_container" >/dev/null
wait_for 60 "the return of Prometheus" are_up 4
echo "all of it works, after $SECONDS s"
