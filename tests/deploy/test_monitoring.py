"""deploy/prometheus and the dashboard's queries by a real daemon and a real Prometheus (Debian package prometheus)."""

import json
import re
import shutil
import socket
import subprocess
import threading

import dashboard
import pytest
import yaml
from load_helpers import load

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus on this machine")


@pytest.fixture(scope="session")
def alerts(deploy):
    groups = yaml.safe_load((deploy / "prometheus/rules.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def promtool(*arguments):
    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_accepts_configuration_and_rules(deploy):
    promtool("check", "config", deploy / "prometheus/prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", deploy / "prometheus/rules.yml")


def test_alerts_fire_when_they_should_and_only_then(repository):
    promtool("test", "rules", repository / "tests/deploy/alerts.yml")


def test_every_alert_is_tested_both_ways(repository, alerts):
    tests = yaml.safe_load((repository / "tests/deploy/alerts.yml").read_text())["tests"]
    cases = {(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]}
    assert cases == {(name, fires) for name in alerts for fires in (True, False)}


def test_every_alert_has_its_section_in_the_runbook(repository, alerts):
    sections = re.findall(r"^### (KvCompressd\w+)$", (repository / "docs/operations.md").read_text(), re.MULTILINE)
    assert sections == list(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("critical", "warning")


@pytest.fixture
def prometheus(tmp_path, deploy):
    """Starts a Prometheus with the shipped configuration, which scrapes one given address instead of a name."""
    started = []

    def start(target):
        config = yaml.safe_load((deploy / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
        config["rule_files"] = [str(deploy / "prometheus/rules.yml")]
        config["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": [target]}]}
            for job in config["scrape_configs"] if job["job_name"] == "kv-compressd"]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % free.getsockname()[1]
        with open(tmp_path / "prometheus.log", "wb") as log:
            started.append(subprocess.Popen(
                ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
                 f"--web.listen-address={address}"], stdout=log, stderr=log))
        return f"http://{address}"

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(30)


def traffic(bin_dir, sample, folder, address, stop):
    """What every panel needs: all four methods, a codec with loss and one without."""
    def command_line(*arguments):
        subprocess.run([bin_dir / "kv-compress", "-server", address, *arguments], check=True, capture_output=True,
                       timeout=60)

    while not stop.is_set():
        for codec in ("int4(group=64)", "planes|rans"):
            command_line("-input", sample, "-output", folder / "small", "-codec", codec)
            command_line("-decompress", "-input", folder / "small", "-output", folder / "back")
        for decompress in ("false", "true"):
            load(bin_dir, address, streams=4, calls=50, tensor_bytes=16384, decompress=decompress)


def test_every_panel_has_data_and_every_alert_can_be_evaluated(bin_dir, sample, daemon, prometheus, tmp_path, alerts, deploy):
    server = daemon("--memory-budget", "256MiB", "--link-bandwidth", "10Gbit/s")
    url = prometheus(server.metrics_address)
    stop, failures = threading.Event(), []

    def run():
        try:
            traffic(bin_dir, sample, tmp_path, server.address, stop)
        except (AssertionError, subprocess.SubprocessError) as error:
            failures.append(error)

    worker = threading.Thread(target=run)
    worker.start()
    try:
        queries, evaluated = dashboard.wait_for_data(url, rate_interval="10s", seconds=40)
        assert instances(url) == [server.metrics_address]
        (rule,) = yaml.safe_load((deploy / "kubernetes/prometheus-adapter.yaml").read_text())["rules"]["custom"]
        query = rule["metricsQuery"]
        for name, value in {"Series": "kvcompress_in_flight_bytes", "LabelMatchers": 'job="kv-compressd"',
                            "GroupBy": "instance"}.items():
            query = query.replace(f"<<.{name}>>", value)
        assert dashboard.has_data(url, query)
    finally:
        stop.set()
        worker.join(60)
    assert not failures and not worker.is_alive()
    assert queries > 30 and evaluated == set(alerts)
    firing = {alert["labels"]["alertname"] for alert in dashboard.ask(url, "alerts")["alerts"] if alert["state"] == "firing"}
    assert not firing


def instances(url):
    """What the dashboard's variable offers."""
    variable = next(each for each in json.loads(dashboard.DASHBOARD.read_text())["templating"]["list"]
                    if each["name"] == "instance")
    series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
    return dashboard.ask(url, f"label/{label}/values", **{"match[]": series})
