"""deploy/compose*.yaml by the Compose specification and the daemon's own word. tests/container/compose.sh runs them."""

import os
import re
import shutil
import subprocess

import compose_spec
import pytest
import yaml
from mistakes import replaced
from test_kubernetes import OVERHEAD, quantity, seconds


@pytest.fixture
def services(repository):
    return yaml.safe_load((repository / "deploy/compose.yaml").read_text())["services"]


@pytest.fixture
def replicas(repository):
    return yaml.safe_load((repository / "deploy/compose.replicas.yaml").read_text())["services"]


@pytest.fixture
def with_tls(repository):
    return yaml.safe_load((repository / "deploy/compose.tls.yaml").read_text())["services"]


def filled_in(text):
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


FILES = ["compose.yaml", "compose.replicas.yaml", "compose.tls.yaml"]


def validate(text):
    text = re.sub(r"\$\{\w+:\?[^}]*\}", "/folder", filled_in(text))
    # Compose takes a range of the host's ports for one of the container's; this parser does not.
    text = re.sub(r"(:\d+)-\d+(:\d+\")", r"\1\2", text)
    compose_spec.PyCompose.from_yaml(text).validate()


def test_every_file_is_tested(repository):
    assert {path.name for path in (repository / "deploy").glob("compose*")} == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_files_keep_the_specification(repository, file):
    validate((repository / "deploy" / file).read_text())


@pytest.mark.parametrize(("file", "right", "wrong"), [
    ("compose.yaml", "pids_limit:", "pid_limit:"), ("compose.yaml", "start_period: 5s", "start_period: 5 sec"),
    ("compose.yaml", "restart: unless-stopped", "restart: unless-stoped"),
    ("compose.yaml", "mem_limit: 1536m", "mem_limit: 1536 MiB"),
    ("compose.yaml", "\nvolumes:", "\nvolume:"), ("compose.replicas.yaml", "replicas: 3", "replicas: three"),
    ("compose.replicas.yaml", "depends_on:", "depend_on:"), ("compose.tls.yaml", "environment:", "environments:")])
def test_the_specification_refuses_what_is_wrong(repository, file, right, wrong):
    with pytest.raises(ValueError, match=wrong.strip().partition(":")[0]):
        validate(replaced((repository / "deploy" / file).read_text(), right, wrong))


def test_the_daemon_takes_every_setting(services, replicas, with_tls, bin_dir):
    usage = subprocess.run([bin_dir / "kv-compressd", "--help"], capture_output=True, text=True, check=True).stdout
    known = {"KV_COMPRESSD_" + flag.upper().replace("-", "_") for flag in re.findall(r"^  --([a-z-]+)", usage, re.MULTILINE)}
    for service in (services["kv-compressd"], replicas["kv-compressd"], with_tls["kv-compressd"]):
        # Without a value: passed on if set.
        environment = {name: filled_in(value) for name, value in service["environment"].items() if value is not None}
        assert set(service["environment"]) <= known
        result = subprocess.run([bin_dir / "kv-compressd", "--help"], capture_output=True, text=True, timeout=10,
                                env={**os.environ, **environment})
        assert result.returncode == 0, result.stderr


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose on this machine")
@pytest.mark.parametrize("given", [{}, {"KV_COMPRESSD_TLS_CLIENT_CA": "/run/tls/ca.pem", "KV_COMPRESSD_TOKEN_FILE": "/run/tls/tokens"}])
def test_client_certificates_and_tokens_are_asked_for_if_set(repository, given):
    names = ("KV_COMPRESSD_TLS_CLIENT_CA", "KV_COMPRESSD_TOKEN_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    files = [f"--file={repository}/deploy/{file}" for file in ("compose.yaml", "compose.tls.yaml")]
    result = subprocess.run(["docker-compose", *files, "config"], capture_output=True, text=True, timeout=60,
                            env={**environment, "KV_COMPRESSD_TLS_DIR": "/folder", **given})
    assert result.returncode == 0, result.stderr
    passed = yaml.safe_load(result.stdout)["services"]["kv-compressd"]["environment"]
    assert {name: passed[name] for name in names if passed.get(name) is not None} == given


def test_time_and_memory_suffice(services):
    daemon = services["kv-compressd"]
    settings = daemon["environment"]
    assert seconds(daemon["stop_grace_period"]) >= seconds(settings["KV_COMPRESSD_DRAIN_TIMEOUT"]) + 5
    needed = quantity(settings["KV_COMPRESSD_MEMORY_BUDGET"]) + quantity(daemon["shm_size"]) + OVERHEAD
    assert quantity(daemon["mem_limit"]) >= needed
    # `cpus` may be a fraction, which the daemon rounds up by itself.
    assert settings["KV_COMPRESSD_THREADS"] == "0"


def test_nobody_has_rights_to_spare_nor_is_reached_from_elsewhere(services, replicas):
    for name, service in {**services, "haproxy": replicas["haproxy"]}.items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["mem_limit"] and service["cpus"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert name == "client" or service["healthcheck"]["test"][0] == "CMD", name


def test_the_balancer_asks_for_health_as_grpc_does(repository):
    """The bytes of the check, read as HTTP/2: one call of Health/Check with an empty message."""
    text = (repository / "deploy/haproxy/haproxy.cfg").read_text()
    sent = b"".join(bytes.fromhex(line) for line in re.findall(r"tcp-check send-binary ([0-9a-f]+)$", text, re.MULTILINE))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert sent.startswith(preface)
    frames, at = [], len(preface)
    while at < len(sent):
        size = int.from_bytes(sent[at:at + 3], "big")
        frames.append((sent[at + 3], sent[at + 4], sent[at + 9:at + 9 + size]))
        at += 9 + size
    assert at == len(sent)
    settings, headers, data = frames
    assert settings == (4, 0, b"") and data == (0, 1, bytes(5)) and headers[:2] == (1, 4)
    assert b"/grpc.health.v1.Health/Check" in headers[2] and b"application/grpc" in headers[2]
    service = b"".join([b"\0", (2).to_bytes(4, "big"), b"\x08\x01"])  # a message of two bytes: SERVING
    assert f"tcp-check expect binary {service.hex()}\n" in text
