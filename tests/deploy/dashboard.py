#!/usr/bin/env python3
"""Runs every query of the Grafana dashboard in a Prometheus, which must have data for each, and every alert's expression.

usage: dashboard.py PROMETHEUS_URL [RATE_INTERVAL]
"""
import json
import math
import pathlib
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

DASHBOARD = pathlib.Path(__file__).resolve().parents[2] / "deploy/grafana/dashboards/kv-compressd.json"


def panel_queries(rate_interval="20s"):
    """(panel's title, query) for each query, with Grafana's variables filled in as for all daemons."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", rate_interval).replace("$instance", ".*")
            assert "$" not in query, f"{panel['title']}: a variable that nobody fills in: {query}"
            yield panel["title"], query


def ask(url, path, **parameters):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as response:
        answer = json.load(response)
    assert answer["status"] == "success", answer
    return answer["data"]


def has_data(url, query):
    result = ask(url, "query", query=query)["result"]
    return any(math.isfinite(float(series["value"][1])) for series in result)


def missing(url, rate_interval="20s"):
    """The queries without data, as texts."""
    return [f"{title}: {query}" for title, query in panel_queries(rate_interval) if not has_data(url, query)]


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=10):
            return True
    except urllib.error.URLError:
        return False


def wait_for_data(url, rate_interval="20s", seconds=60):
    """Asks until every query has data, and then runs the alerts. Returns (queries, names of alerts)."""
    deadline = time.monotonic() + seconds
    while not is_ready(url):
        assert time.monotonic() < deadline, f"{url} is not ready after {seconds} s"
        time.sleep(0.2)
    while without := missing(url, rate_interval):
        assert time.monotonic() < deadline, "no data after %d s for\n%s" % (seconds, "\n".join(without))
        time.sleep(1)
    rules = [rule for group in ask(url, "rules")["groups"] for rule in group["rules"]]
    assert rules, "Prometheus has no rules"
    for rule in rules:
        ask(url, "query", query=rule["query"])
        assert rule["health"] != "err", f"{rule['name']}: {rule['lastError']}"
    return len(list(panel_queries(rate_interval))), {rule["name"] for rule in rules}


if __name__ == "__main__":
    queries, alerts = wait_for_data(*sys.argv[1:3])
    print(f"{queries} queries of the dashboard have data, {len(alerts)} alerts can be evaluated")
