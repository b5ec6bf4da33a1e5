# Sourced by the scripts beside it: runs the built daemon on free loopback ports.

daemon_pid=
daemon_address=  # host:port of the service
daemon_metrics=  # host:port of /metrics

# daemon_start FOLDER [FLAG...]: returns when the daemon answers; its log goes to FOLDER/daemon.log.
daemon_start() {
  local folder=$1 i
  shift
  bin/kv-compressd --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --port-file "$folder/ports.json" "$@" \
    >"$folder/daemon.log" 2>&1 &
  daemon_pid=$!
  for ((i = 0; i < 100; i++)); do
    [ ! -s "$folder/ports.json" ] || break
    if ! kill -0 $daemon_pid 2>/dev/null; then
      cat "$folder/daemon.log" >&2
      return 1
    fi
    sleep 0.1
  done
  read -r daemon_address daemon_metrics < <(python3 -c '
import json, sys
ports = json.load(open(sys.argv[1]))
print(ports["listen"][0], ports["metrics"])' "$folder/ports.json")
  [ -n "$daemon_metrics" ]
}

# daemon_fetch PATH: what the metrics port serves there.
daemon_fetch() {
  python3 -c '
import sys, urllib.request
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())' "http://$daemon_metrics$1"
}

# daemon_stop: SIGTERM, and the exit status of the daemon, which has 20 s to drain.
daemon_stop() {
  local pid=$daemon_pid i
  [ -n "$pid" ] || return 0
  daemon_pid=
  kill -TERM "$pid" 2>/dev/null || true
  for ((i = 0; i < 200; i++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid"
}
