#!/usr/bin/env python3
"""Draws docs/images/dashboard.png: the graphs of the Grafana dashboard, their queries asked of a Prometheus beside two
daemons, which small tensors keep busy, and in the middle third large ones as well, more than their budget holds.

usage: draw_dashboard.py [--bin bin] [--seconds 140] [--output docs/images/dashboard.png]

Needs Debian's package prometheus, and matplotlib, numpy, safetensors and the package kvcompress, as in .venv.
"""
import argparse
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

import kvcompress
import matplotlib
import ml_dtypes  # noqa: F401 - the dtype of the cache
import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "deploy"))
import dashboard

CACHE = ROOT / "tests" / "data" / "smollm2.256.bf16.safetensors"
INTERVAL = "8s"  # that rates are taken over
# Of small calls, by how many in twenty.
CODECS = ["int4"] * 10 + ["int8"] * 4 + ["kv3"] * 4 + ["lossless"] * 2
SCALES = {"percentunit": (100, "%"), "bytes": (2.0**-20, "MiB"), "Bps": (1e-6, "MB/s"), "reqps": (1, "calls/s"),
          "cps": (1, "1/s"), "s": (1, "s"), "dB": (1, "dB"), "short": (1, "")}


def start(command, log):
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def start_daemon(folder, binary, log, index):
    ports = folder / f"ports{index}.json"
    process = start([binary, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--port-file", ports,
                     "--memory-budget", "48MiB", "--link-bandwidth", "25Gbit/s", "--shared-memory",
                     f"kvcompress-drawn{index}-"], log)
    while not ports.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the daemon does not start: {folder / 'log'}")
        time.sleep(0.01)
    found = json.loads(ports.read_text())
    return process, found["listen"][0], found["metrics"]


def start_prometheus(folder, targets, log):
    """Returns its process and URL."""
    config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
              "scrape_configs": [{"job_name": "kv-compressd", "static_configs": [{"targets": targets}]}]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML
    address = f"127.0.0.1:{random.randrange(20000, 30000)}"
    process = start(["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                     f"--web.listen-address={address}"], log)
    while not dashboard.is_ready(f"http://{address}"):
        if process.poll() is not None:
            raise RuntimeError("prometheus does not start")
        time.sleep(0.1)
    return process, f"http://{address}"


def small_calls(address, tensors, done):
    """Now and then a value is infinite, or a frame damaged."""
    chosen = random.Random(address)
    with kvcompress.Client(address, timeout=20, shared_memory=False, retry=kvcompress.NO_RETRY) as client:
        while not done.wait(chosen.uniform(0, 0.05)):
            name, tensor = chosen.choice(tensors)
            if chosen.random() < 0.02:
                tensor = tensor.copy()
                tensor.flat[0] = np.inf
            try:
                frame = client.compress(tensor, chosen.choice(CODECS), name=name, on_nonfinite="lossless")
                data = frame.data
                client.decompress(data[:-1] if chosen.random() < 0.02 else data)
            except (kvcompress.DataLoss, kvcompress.ResourceExhausted):
                pass


def large_calls(address, tensor, shared, done):
    with kvcompress.Client(address, timeout=20, shared_memory=shared, retry=kvcompress.NO_RETRY) as client:
        while not done.wait(0.1):
            try:
                client.compress(tensor, "int4", name="layer_10_key")
            except kvcompress.ResourceExhausted:
                time.sleep(0.2)


def threads(count, target, *arguments):
    """Started ones, and the event that ends them."""
    done = threading.Event()
    started = [threading.Thread(target=target, args=(*arguments, done)) for _ in range(count)]
    for thread in started:
        thread.start()
    return started, done


def put_load(addresses, seconds):
    tensors = list(load_file(CACHE).items())
    small = [threads(3, small_calls, address, tensors) for address in addresses]
    time.sleep(0.4 * seconds)
    tensor = np.concatenate([tensors[0][1]] * 160, axis=2)
    large = [threads(count, large_calls, address, tensor, shared) for address in addresses
             for count, shared in ((12, False), (1, True))]
    time.sleep(0.35 * seconds)
    stop(large)
    time.sleep(0.25 * seconds)
    stop(small)


def stop(groups):
    for _, done in groups:
        done.set()
    for thread in (thread for started, _ in groups for thread in started):
        thread.join()


def series(url, query, begin, end):
    """(labels, times in seconds, values) of each series of a query."""
    for found in dashboard.ask(url, "query_range", query=query, start=begin, end=end, step=1)["result"]:
        points = [(float(at) - begin, float(value)) for at, value in found["values"]]
        yield found["metric"], *zip(*[(at, value if math.isfinite(value) else math.nan) for at, value in points])


def rows():
    """(title, panels) of the dashboard's rows, of its panels the graphs."""
    found = []
    for panel in json.loads(dashboard.DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            found.append((panel["title"], []))
        elif panel["type"] == "timeseries":
            found[-1][1].append(panel)
    return found


def draw_panel(axes, panel, url, begin, end):
    scale, unit = SCALES[panel["fieldConfig"]["defaults"]["unit"]]
    lines = []
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", INTERVAL).replace("$instance", ".*")
        for labels, times, values in series(url, query, begin, end):
            name = target["legendFormat"]
            for label, value in labels.items():
                name = name.replace("{{" + label + "}}", value)
            lines.append((name, times, [scale * value for value in values]))
    top = max((value for _, _, values in lines for value in values if math.isfinite(value)), default=0)
    if unit == "s" and top < 1 and "second" not in panel["title"]:
        lines, unit = [(name, times, [1000 * value for value in values]) for name, times, values in lines], "ms"
    # What never happens is drawn, and not named where much else is.
    for name, times, values in lines:
        axes.plot(times, values, linewidth=0.9, label=name if any(values) or len(lines) < 7 else None)
    axes.set_title(panel["title"] + (f" ({unit})" if unit else ""), fontsize=8, loc="left")
    if not 0.9 < axes.get_ylim()[0] < 1:  # similarities are all near 1
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if top > 0 else 0)
    axes.tick_params(labelsize=6)
    axes.grid(linewidth=0.3)
    named = axes.get_legend_handles_labels()[0]
    if named:
        axes.legend(fontsize=5, loc="best", ncols=1 + len(named) // 7)


def draw(url, begin, end, output):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = rows()
    figure = pyplot.figure(figsize=(14, 2.1 * len(found)), layout="constrained")
    for part, (title, panels) in zip(figure.subfigures(len(found), 1), found, strict=True):
        part.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
        for axes, panel in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw_panel(axes, panel, url, begin, end)
    figure.savefig(output, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "bin")
    parser.add_argument("--seconds", type=int, default=140)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs" / "images" / "dashboard.png")
    args = parser.parse_args()
    processes = []
    with tempfile.TemporaryDirectory() as made, open(pathlib.Path(made) / "log", "wb") as log:
        folder = pathlib.Path(made)
        try:
            daemons = [start_daemon(folder, args.bin / "kv-compressd", log, index) for index in range(2)]
            processes += [process for process, _, _ in daemons]
            process, url = start_prometheus(folder, [metrics for _, _, metrics in daemons], log)
            processes.append(process)
            begin = time.time()
            put_load([address for _, address, _ in daemons], args.seconds)
            draw(url, begin + 8, time.time(), args.output)
        finally:
            for process in processes:
                process.terminate()
                process.wait(30)


if __name__ == "__main__":
    main()
