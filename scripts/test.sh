#!/usr/bin/env bash
# Runs every check and ends with one line, "N passed, N failed", that counts single tests where a stage has
# them and the stage itself where it has none; before it stands a line for each that failed, 20 at most. A stage that
# fails does not stop the ones after it. Beside its time each stage has the CPU seconds of its processes, which other
# work on the machine hardly changes.
# usage: test.sh [STAGE...]     all stages without arguments
# KVC_TIER=long: a minute per fuzzer instead of seconds, clang-tidy's path-sensitive analyzer, images from the sources,
# `make demo` and the wheel on a bare machine, and what codecs do to a model that people use, which comes from PyPI.
set -uo pipefail
cd "$(dirname "$0")/.."
export KVC_TIER=${KVC_TIER:-short}
export LC_ALL=C.UTF-8
results=$PWD/build/results
mkdir -p "$results"

# Sanitizers of this age need addresses that are not spread too wide.
fixed_addresses=()
setarch -R true 2>/dev/null && fixed_addresses=(setarch -R)

# Builds a preset's targets (all without any named), one process at a time.
cpp_build() {  # cpp_build PRESET CMAKE_ARGUMENT [TARGET...]
  local preset=$1 argument=$2
  shift 2
  mkdir -p build
  (flock 9 && cmake --preset "$preset" "$argument" && cmake --build --preset "$preset" --target "${@:-all}") 9>"build/$preset.lock"
}
build_asan_ubsan() { cpp_build asan-ubsan -DKVC_SERVICE=ON; }
# Only code that threads share, and no gRPC, whose locks are hidden from the sanitizer.
build_tsan() { cpp_build tsan -DKVC_SERVICE=ON tests/core/base/all kvc_core_test kvc_allocation_test kvc_session_test kvc_message_codec_test; }

# Runs the GoogleTests of a preset.
cpp_tests() { ctest --preset "$1" -j "$(nproc)" --output-junit "$junit"; }
stage_unit() { cpp_build release -DKVC_WERROR=ON && cpp_tests release; }
stage_asan_ubsan() { build_asan_ubsan && cpp_tests asan-ubsan; }
stage_tsan() { build_tsan && cpp_tests tsan; }
stage_scripts() { scripts/venv.sh && .venv/bin/python -m pytest tests/scripts --junitxml="$junit"; }
stage_e2e() { scripts/venv.sh && .venv/bin/python -m pytest tests/e2e --junitxml="$junit"; }
stage_python() {
  scripts/venv.sh && cpp_build release -DKVC_PYTHON=ON kvc_python && .venv/bin/python -m pytest tests/client/python --junitxml="$junit"
}
# Also the types and the style of the Python there.
stage_validation() {
  scripts/venv.sh && .venv/bin/ruff check --config validation/pyproject.toml validation tests/validation &&
    (cd validation && ../.venv/bin/mypy ./*.py scripts/*.py gpt2) &&
    .venv/bin/python -m pytest tests/validation --junitxml="$junit"
}
stage_deploy() { scripts/venv.sh && .venv/bin/python -m pytest tests/deploy --junitxml="$junit"; }
stage_install() { tests/install/run.sh; }
stage_demo() { scripts/demo.sh; }
stage_promtool() { scripts/check_metrics.sh; }
stage_fuzz() { scripts/fuzz.sh; }
stage_format() { scripts/format.sh --check && scripts/include_graph.py; }
stage_tidy() { scripts/tidy.sh; }
stage_container() { tests/container/image.sh; }
# After `container`, whose images it takes.
stage_compose() { tests/container/compose.sh; }
stage_bare() { tests/container/bare.sh; }
stage_wheel() { tests/container/wheel.sh; }
stage_real_model() {
  scripts/venv.sh && .venv/bin/python scripts/real_model.py &&
    .venv/bin/python -m pytest tests/real_model --timeout=1000 --junitxml="$junit"
}

passed=0 failed=0 skipped=0 running= fetching= building=
: >"$results/failed"
trap 'kill $running $fetching $building 2>/dev/null; exit 130' INT TERM
# The number that the JUnit file's first <testsuite> gives for an attribute; 0 without one.
attribute() {
  local number
  number=$(head -c 4000 "$junit" | tr '\n' ' ' | grep -oE '<testsuite [^>]*' | head -n 1 | grep -oE "\b$1=\"[0-9]+" | grep -oE '[0-9]+$')
  echo "${number:-0}"
}

# run STAGE SECONDS TITLE: exit status 77 of a stage means that it cannot run here; its last line says why.
run() {
  local stage=$1 limit=$2 title=$3 status outcome p=0 f=0 s=0 wrap=()
  local log=$results/$stage.log started=$SECONDS cpu
  times >"$results/times.before"
  export junit=$results/$stage.xml
  rm -f "$junit"
  printf '%-44s ' "$title"
  case $stage in asan_ubsan | tsan | fuzz) wrap=("${fixed_addresses[@]}") ;; esac
  timeout -k 20 "$limit" "${wrap[@]}" bash -c "set -uo pipefail; stage_$stage" >"$log" 2>&1 </dev/null &
  running=$!
  wait $running
  status=$?
  if [ -s "$junit" ]; then
    s=$(attribute skipped) f=$(($(attribute failures) + $(attribute errors)))
    p=$(($(attribute tests) - f - s))
  elif [ $status -eq 0 ]; then
    p=1
  fi
  outcome=ok
  if [ $status -eq 77 ]; then
    s=1 outcome="skipped: $(tail -n 1 "$log")"
  elif [ $status -ne 0 ]; then
    outcome=FAILED
    [ "$f" -gt 0 ] || f=1
    [ $status -ne 124 ] || outcome="FAILED: not done after $limit s"
  fi
  times >"$results/times.after"
  # The second line is of the processes that have ended: "1m2.5s 0m3.4s" in user mode and in the system.
  cpu=$(awk -F '[ms ]+' 'FNR == 2 {cpu = $1 * 60 + $2 + $3 * 60 + $4 - cpu} END {print int(cpu)}' "$results"/times.{before,after})
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  printf '%5d s %6d CPU s  %5d passed %3d failed %3d skipped  %s\n' \
    $((SECONDS - started)) "$cpu" "$p" "$f" "$s" "$outcome"
  if [ $status -ne 0 ] && [ $status -ne 77 ]; then
    grep -vE '^( +Start +[0-9]+: |[0-9/ ]+ Test +#.* Passed )' "$log" | tail -n 100 | sed 's/^/    | /'
    echo "    | (all of it: ${log#"$PWD"/})"
    scripts/failed_tests.py "$stage" "$outcome" "$junit" "$log" >>"$results/failed" || echo "$stage: $outcome" >>"$results/failed"
  fi
}

all=(format unit scripts tidy e2e python validation deploy install demo promtool asan_ubsan tsan fuzz container compose)
[ "$KVC_TIER" != long ] || all+=(bare wheel real_model)
if [ $# -eq 0 ]; then
  set -- "${all[@]}"
  # What comes over the network comes while the compilers work.
  scripts/venv.sh >"$results/venv.log" 2>&1 </dev/null &
  fetching=$!
fi
while read -r name; do export -f "${name?}"; done < <(compgen -A function | grep -E '^(stage_|build_|cpp_)')
for stage in "$@"; do
  # The stages after the release build wait much of their time. What the sanitizers' compilers have to do is done
  # meanwhile, at the lowest priority; its CPU seconds stand in build.log, and in no stage.
  if [ "$stage" = e2e ] && [ $# -eq ${#all[@]} ]; then
    building=$(nice -n 19 "${fixed_addresses[@]}" bash -c 'build_asan_ubsan; build_tsan; times' >"$results/build.log" 2>&1 </dev/null & echo $!)
  fi
  case $stage in
    format) run format 60 "format, and who includes whom" ;;
    unit) run unit 2400 "release build, unit tests" ;;
    scripts) run scripts 300 "scripts, documents" ;;
    e2e) run e2e 1500 "daemon and command line, end to end" ;;
    python) run python 1800 "Python: client, types, style" ;;
    validation) run validation 600 "perplexity on compressed caches" ;;
    deploy) run deploy 300 "dashboard, alerts and manifests" ;;
    install) run install 600 "library installed and linked by a program" ;;
    demo) run demo 300 "demo" ;;
    promtool) run promtool 60 "metrics read by promtool" ;;
    asan_ubsan) run asan_ubsan 2400 "unit tests, address and UB sanitizers" ;;
    tsan) run tsan 600 "unit tests, thread sanitizer" ;;
    fuzz) run fuzz 1200 "fuzzers" ;;
    tidy) run tidy 1800 "clang-tidy" ;;
    container) run container 900 "image built and run in a Docker engine" ;;
    compose) run compose 1500 "compose files run, replicas killed and drained" ;;
    bare) run bare 1500 "demo on a bare debian:bookworm-slim" ;;
    wheel) run wheel 1500 "wheel on a bare debian:bookworm-slim" ;;
    real_model) run real_model 1800 "a real model on compressed caches" ;;
    *) echo "test.sh: unknown stage $stage; there are: ${all[*]} bare wheel real_model" >&2; exit 2 ;;
  esac
done

# What failed once more, for who sees the end of this alone: each stage's first, then their second.
awk -F : '{print ++nth[$1] "\t" $0}' "$results/failed" | sort -sn | cut -f 2- | head -n 20
more=$(($(wc -l <"$results/failed") - 20))
[ $more -le 0 ] || echo "and $more more"
if [ $skipped -gt 0 ]; then
  echo "$passed passed, $failed failed, $skipped skipped"
else
  echo "$passed passed, $failed failed"
fi
[ $failed -eq 0 ]
