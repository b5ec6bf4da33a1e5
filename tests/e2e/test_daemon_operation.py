"""Running kv-compressd: health, drain, logs, metrics, settings."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import grpc
import pytest
from daemon_helpers import MIB, SERVICE, Client, Feed, failure, page, page_value, random_array, wait_for
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from safetensors.numpy import load_file


def health_of(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_health_and_reflection(daemon):
    channel = daemon().channel()
    assert health_of(channel, "") == "SERVING"
    assert health_of(channel, SERVICE) == "SERVING"
    with pytest.raises(grpc.RpcError) as error:
        health_of(channel, "nobody.v1.Nothing")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    services = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=10))).list_services_response.service
    assert SERVICE in [service.name for service in services]


def test_drain_lets_calls_finish_and_refuses_new_ones(daemon, stubs):
    server = daemon()
    client = Client(server, stubs)
    array = random_array(10_000)
    feed = Feed(client.header("t", array.shape), client.data(array.tobytes()[:1000]))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    server.signal(signal.SIGTERM)
    wait_for(lambda: client.metrics().draining, "the drain")
    channel = server.channel()
    assert health_of(channel, "") == "NOT_SERVING"
    assert health_of(channel, SERVICE) == "NOT_SERVING"
    refused = client.stub.Compress(iter([]), timeout=30)
    assert failure(refused) == (grpc.StatusCode.UNAVAILABLE, "the server is draining", [])
    assert page_value(page(server.metrics_address), "kvcompress_draining") == 1
    feed.send(client.data(array.tobytes()[1000:]))
    feed.close()
    assert list(call)[-1].stream.tensors == 1
    assert server.wait() == 0
    assert "stopped" in server.log()


def test_drain_timeout_cancels_what_is_left(daemon, stubs):
    server = daemon("--drain-timeout", "300ms")
    client = Client(server, stubs)
    feed = Feed(client.header("t", [1000]))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    server.signal(signal.SIGINT)
    code, _, _ = failure(call)
    feed.close()
    assert code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert server.wait() == 0
    assert "drain timeout" in server.log()


def test_a_second_signal_ends_at_once(daemon, stubs):
    server = daemon("--drain-timeout", "1h")
    client = Client(server, stubs)
    feed = Feed(client.header("t", [1000]))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    server.signal(signal.SIGTERM)
    wait_for(lambda: client.metrics().draining, "the drain")
    server.signal(signal.SIGTERM)
    assert server.wait(10) == 128 + signal.SIGTERM
    feed.close()
    assert failure(call)[0] == grpc.StatusCode.UNAVAILABLE


def test_a_name_of_which_one_address_is_taken(bin_dir, tmp_path):
    """Its clients would get to the daemon by some addresses, and to somebody else by others."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a process names of its own")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.3 both.test\n127.0.0.2 both.test\n")
    with socket.create_server(("127.0.0.2", 0)) as taken:
        address = f"both.test:{taken.getsockname()[1]}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, bin_dir / "kv-compressd",
             "--listen", address, "--allow-plaintext", "--metrics-listen", "off", "--log-level", "error"],
            capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, f"kv-compressd: listen on {address}: address already in use\n")


def test_the_log_names_the_peer_of_a_call_that_its_deadline_ended(daemon, stubs):
    server = daemon("--log-format", "json")
    client = Client(server, stubs)
    feed = Feed(client.header("t", [1000]))
    with pytest.raises(grpc.RpcError):
        list(client.stub.Compress(feed, timeout=0.3))
    feed.close()
    client.wait_until_idle()
    assert server.stop() == 0
    (call,) = [line for line in map(json.loads, server.log().splitlines())
               if line["message"] == "call" and line["method"] == "Compress"]
    assert call["peer"].startswith("ipv4:127.0.0.1:")


def test_old_connections_are_replaced_without_a_failed_call(daemon, stubs):
    server = daemon("--max-connection-age", "200ms", "--log-format", "json")
    client = Client(server, stubs)
    array = random_array(1000)
    feed = Feed(client.header("old", array.shape), client.data(array.tobytes()[:100]))
    old = client.stub.Compress(feed, timeout=30)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert client.compress({"t": array})[2].tensors == 1
    feed.send(client.data(array.tobytes()[100:]))
    feed.close()
    assert list(old)[-1].stream.tensors == 1
    assert server.stop() == 0
    calls = [line for line in map(json.loads, server.log().splitlines()) if line["message"] == "call"]
    assert {call["code"] for call in calls} == {"OK"}
    assert len({call["peer"] for call in calls}) > 2


def test_calls_on_old_connections_end_with_their_grace(daemon, stubs):
    server = daemon("--max-connection-age", "200ms", "--max-connection-age-grace", "200ms")
    client = Client(server, stubs)
    feed = Feed(client.header("t", [1000]))
    started = time.monotonic()
    code, _, _ = failure(client.stub.Compress(feed, timeout=30))
    feed.close()
    assert code == grpc.StatusCode.UNAVAILABLE
    assert 0.3 < time.monotonic() - started < 10


def test_request_ids(daemon, stubs):
    server = daemon("--log-format", "json")
    client = Client(server, stubs)
    given = [("abc-DEF.0_9", True), ("x" * 64, True), ("x" * 65, False), ("no blanks", False), ("", False)]
    for request_id, kept in given:
        call = client.stub.Compress(iter([]), timeout=30, metadata=[("x-request-id", request_id)])
        list(call)
        answered = dict(call.initial_metadata())["x-request-id"]
        assert (answered == request_id) == kept
        assert 1 <= len(answered) <= 64
    refused = client.stub.Compress(iter([client.data(b"xx")]), timeout=30, metadata=[("x-request-id", "bad-one")])
    failure(refused)
    assert dict(refused.initial_metadata())["x-request-id"] == "bad-one"
    client.compress({"hidden-name": random_array(64)})
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines()]
    calls = {line["request_id"]: line for line in lines if line["message"] == "call"}
    assert calls["abc-DEF.0_9"]["code"] == "OK" and calls["abc-DEF.0_9"]["method"] == "Compress"
    assert calls["bad-one"]["code"] == "INVALID_ARGUMENT"
    last = list(calls.values())[-1]
    assert (last["tensors"], last["tensor_bytes"]) == (1, 128) and last["ratio"] > 0.5
    assert "hidden-name" not in server.log()


def test_the_log_says_where_it_listens(daemon, socket_dir):
    server = daemon("--listen", f"unix:{socket_dir}/kvc.sock", "--shared-memory", "kvc-start-", "--log-format", "json")
    plain = daemon("--metrics-listen", "off", "--log-format", "json")
    assert (server.stop(), plain.stop()) == (0, 0)
    for one, prefix, metrics in (server, "kvc-start-", server.metrics_address), (plain, "off", "off"):
        lines = [json.loads(line) for line in one.log().splitlines()]
        (started,) = [line for line in lines if line["message"] == "started"]
        assert (started["shared_memory"], started["foreign_memory"]) == (prefix, "off")
        serving = [line for line in lines if line["message"] == "serving"]
        assert [line["listen"] for line in serving if "listen" in line] == one.listen
        assert [line["metrics"] for line in serving if "metrics" in line] == [metrics]
    assert server.metrics_address.startswith("127.0.0.1:") and not server.metrics_address.endswith(":0")


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_log_says_why_a_call_failed(daemon, stubs, style):
    """At the default level, on one line whatever the client's text is, and of no great length."""
    server = daemon("--log-format", style, "--memory-budget", "1MiB")
    client = Client(server, stubs)
    name = 'n" code=OK\n2026-01-01T00:00:00.000+0000 error forged\x1b[31m\x7f'
    nan = client.data(b"\x00\x3c\x00\x7e")  # 1 and NaN
    refused = [failure(client.stub.Compress(iter(requests), timeout=30)) for requests in (
        [client.header(name, [2], "int4"), nan],
        [client.header("large", [1 << 40])],
        [client.header("x" + "\xe9" * 511, [1 << 40])])]
    call = client.stub.Compress(Feed(client.header("t", [1000])), timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    call.cancel()
    client.wait_until_idle()
    assert server.stop() == 0
    said = server.log()
    assert said.isascii() and not any(ord(char) < 32 and char != "\n" for char in said) and "\x7f" not in said
    lines = said.splitlines()
    if style == "json":
        calls = [line for line in map(json.loads, lines) if line.get("method") == "Compress"]
        told = [(line["level"], line["code"], line.get("text")) for line in calls]
    else:
        assert not any(line.startswith("2026-01-01") for line in lines)
        calls = [line for line in lines if " method=Compress " in line]
        told = [(line.split()[1], line.split(" code=")[1].split()[0], json.loads(line.split(" text=", 1)[1]))
                for line in calls]
    assert len(told) == 4
    texts = [text for _, text, _ in refused]
    assert told[:2] == [("warning", "INVALID_ARGUMENT", texts[0]), ("warning", "RESOURCE_EXHAUSTED", texts[1])]
    assert name in texts[0] and "above the limit" in texts[1]
    level, code, text = told[2]
    assert (level, code) == ("warning", "RESOURCE_EXHAUSTED") and text.endswith("\xe9...") and len(text.encode()) <= 515
    assert told[3][:2] == ("info", "CANCELLED")


def test_metrics_page_passes_promtool(daemon, stubs, sample):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine (Debian package prometheus)")
    server = daemon()
    client = Client(server, stubs)
    frames, _, _ = client.compress(load_file(sample))
    client.decompress(frames)
    failure(client.stub.Compress(iter([client.data(b"xx")]), timeout=30))
    page(server.metrics_address)
    result = subprocess.run(["promtool", "check", "metrics"], input=page(server.metrics_address), text=True,
                            capture_output=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_metrics_call_agrees_with_the_page(daemon, stubs, sample):
    server = daemon("--threads", "2", "--memory-budget", "512MiB")
    client = Client(server, stubs)
    tensors = load_file(sample)
    frames, reports, stream = client.compress(tensors)
    client.compress({"t": random_array(1000)}, codec="raw")
    client.decompress(frames)
    failure(client.stub.Compress(iter([client.data(b"xx")]), timeout=30))
    client.wait_until_idle()
    metrics, text = client.metrics(), page(server.metrics_address)
    codecs = {codec.codec: codec for codec in metrics.codecs}
    assert set(codecs) == {"int4", "raw"}
    int4 = codecs["int4"]
    assert int4.tensors_compressed == int4.tensors_decompressed == len(tensors)
    assert int4.tensor_bytes_in == int4.tensor_bytes_out == stream.tensor_bytes
    assert int4.frame_bytes_out == int4.frame_bytes_in == stream.frame_bytes
    for codec, figures in codecs.items():
        for method, fields in {"Compress": ("tensors_compressed", "tensor_bytes_in", "frame_bytes_out"),
                               "Decompress": ("tensors_decompressed", "tensor_bytes_out", "frame_bytes_in")}.items():
            names = ("kvcompress_tensors_total", "kvcompress_tensor_bytes_total", "kvcompress_frame_bytes_total")
            for name, field in zip(names, fields):
                value = page_value(text, f'{name}{{codec="{codec}",method="{method}"}}') or 0
                assert value == getattr(figures, field), (codec, method, field)
    calls = {method.method: dict(method.calls_by_code) for method in metrics.methods}
    assert calls["Compress"] == {"OK": 2, "INVALID_ARGUMENT": 1}
    assert page_value(text, 'kvcompress_requests_total{code="OK",method="Compress"}') == 2
    assert page_value(text, 'kvcompress_requests_total{code="INVALID_ARGUMENT",method="Compress"}') == 1
    levels = {}
    for report in reports.values():
        levels[report.quality.level] = levels.get(report.quality.level, 0) + 1
    levels["EXCELLENT"] = levels.get("EXCELLENT", 0) + 1
    assert dict(metrics.tensors_by_level) == levels
    for level, count in metrics.tensors_by_level.items():
        on_page = sum(page_value(text, f'kvcompress_tensors_by_level_total{{codec="{codec}",level="{level}"}}') or 0
                      for codec in codecs)
        assert on_page == count
    for kind, count in metrics.violations_by_kind.items():
        assert page_value(text, f'kvcompress_threshold_violations_total{{kind="{kind}"}}') == count
    assert page_value(text, 'kvcompress_quality_snr_db_count{codec="int4"}') == len(tensors)
    assert page_value(text, "kvcompress_memory_budget_bytes") == metrics.memory_budget_bytes == 512 * MIB
    assert page_value(text, "kvcompress_in_flight_bytes") == metrics.bytes_in_flight == 0
    assert page_value(text, 'kvcompress_requests_in_flight{method="Compress"}') == 0
    assert metrics.threads == page_value(text, "kvcompress_pool_threads") == 2
    assert metrics.uptime_seconds > 0
    build = f'version="{metrics.build.version}",compiler="{metrics.build.compiler}",simd="{metrics.build.simd_target}"'
    assert page_value(text, f"kvcompress_build_info{{{build}}}") == 1
    assert abs(page_value(text, "process_start_time_seconds") - time.time()) < 300


def test_precedence_of_settings(daemon, stubs, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"threads": 1, "memory-budget": "64MiB", "default-codec": "int8(group=32)"}))
    server = daemon("--config", str(config), "--threads", "3",
                    env={"KV_COMPRESSD_THREADS": "2", "KV_COMPRESSD_MEMORY_BUDGET": "32MiB"})
    client = Client(server, stubs)
    metrics = client.metrics()
    assert (metrics.threads, metrics.memory_budget_bytes) == (3, 32 * MIB)
    _, reports, _ = client.compress({"t": random_array(100)})
    assert reports["t"].codec == "int8(group=32)"


def test_several_addresses_and_ipv6(daemon, stubs):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6") or not open("/proc/net/if_inet6").read():
        pytest.skip("this machine has no IPv6")
    server = daemon("--listen", "[::1]:0,localhost:0")
    assert len(server.listen) == 3
    assert server.listen[1].startswith("[::1]:") and server.listen[2].startswith("localhost:")
    for address in server.listen:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            assert health_of(channel, SERVICE) == "SERVING"


def run(bin_dir, *args, env=None):
    return subprocess.run([bin_dir / "kv-compressd", *args], capture_output=True, text=True, timeout=30,
                          env={**os.environ, **(env or {})})


def test_healthcheck(bin_dir, daemon):
    server = daemon()
    result = run(bin_dir, "--listen", server.address, "--healthcheck")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    port = server.address.rsplit(":", 1)[1]
    assert run(bin_dir, "--healthcheck", env={"KV_COMPRESSD_LISTEN": f"0.0.0.0:{port}"}).returncode == 0
    assert run(bin_dir, "--healthcheck", "--healthcheck-target", server.address).returncode == 0
    assert server.stop() == 0
    result = run(bin_dir, "--listen", server.address, "--healthcheck")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"kv-compressd: {server.address}: ") and result.stderr.count("\n") == 1


def test_bad_flags(bin_dir):
    for args, text in [
        (["--no-such"], "unknown argument --no-such; --help lists all"),
        (["--threads", "x"], '--threads: "x": expected a number from 0 to 1024'),
        (["--listen"], "--listen needs a value"),
        (["--default-codec=int9"], '--default-codec: unknown codec "int9" (similar: int2, int3, int4, int5, int6, int8)'),
    ]:
        result = run(bin_dir, *args)
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"kv-compressd: {text}\n")


def test_plaintext_beyond_this_machine_is_refused_unless_it_is_asked_for(bin_dir):
    for host in ["0.0.0.0", "[::]"]:
        result = run(bin_dir, "--listen", f"{host}:0", "--metrics-listen", "off")
        assert (result.returncode, result.stdout) == (2, "") and result.stderr.count("\n") == 1
        assert f"--listen {host}:0: " in result.stderr and "--allow-plaintext" in result.stderr


def test_help_and_version(bin_dir):
    result = run(bin_dir, "--help")
    assert result.returncode == 0 and "--memory-budget BYTES" in result.stdout and result.stderr == ""
    result = run(bin_dir, "--version")
    assert result.returncode == 0 and result.stdout.startswith("kv-compressd ") and result.stderr == ""


def test_a_port_that_is_taken(bin_dir, daemon):
    server = daemon()
    result = run(bin_dir, "--listen", server.address, "--metrics-listen", "off", "--log-level", "error")
    assert (result.returncode, result.stderr) == (
        1, f"kv-compressd: listen on {server.address}: address already in use\n")
    result = run(bin_dir, "--listen", "127.0.0.1:0", "--metrics-listen", server.metrics_address)
    assert (result.returncode, result.stderr) == (
        1, f"kv-compressd: listen on {server.metrics_address}: address already in use\n")
    result = run(bin_dir, "--listen", "no.such.host.invalid:1", "--metrics-listen", "off", "--log-level", "error",
                 "--allow-plaintext")
    assert result.returncode == 1
    assert result.stderr.startswith("kv-compressd: listen on no.such.host.invalid:1: ")


def test_a_warning_beyond_this_machine(daemon):
    server = daemon("--listen", "0.0.0.0:0", "--allow-plaintext")
    assert "plaintext" in server.log() and "0.0.0.0" in server.log()
    quiet = daemon()
    assert "plaintext" not in quiet.log()
