#!/usr/bin/env python3
"""Makes one page of a run of the benchmarks: results.json, page.html and page.md from the results that the programs left
in a folder.

usage: page.py begin FOLDER                       before they run: notes the machine and how busy it is
       page.py end FOLDER [--against OLD.json]    after they ran
       page.py compare OLD.json NEW.json          prints what differs by more than noise; exit status 1 when something
                                                  does
"""

import argparse
import collections
import datetime
import json
import math
import os
import pathlib
import platform
import subprocess

import break_even
import compare
import jinja2
import verdicts
from measurements import read_run

HERE = pathlib.Path(__file__).resolve().parent


def cpu_ticks():
    """(ticks in which programs computed, stolen by other machines of the host, all ticks) since the start of this one."""
    ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(ticks[:3]), (ticks[7] if len(ticks) > 7 else 0), sum(ticks[:8])


def caller_ticks():
    """The process that runs this step, and the ticks in which it and all that it has waited for computed."""
    fields = pathlib.Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    return os.getppid(), sum(map(int, fields[11:15]))


def begin(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        if old.name != "results.json":
            old.unlink()
    cpu = [
        line.split(":", 1)[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    facts = {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit.stdout.strip() or "unknown",
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
        "ticks": cpu_ticks(),
        "caller": caller_ticks(),
    }
    (folder / "machine.json").write_text(json.dumps(facts) + "\n")


def finish(run):
    """Adds what is known at the end: the shares of CPU time that other programs took and that the host gave to other
    machines, the spread of memcpy, the verdicts, and when compressing pays."""
    machine = run["machine"]
    computed, stolen, all_ticks = (now - then for now, then in zip(cpu_ticks(), machine.pop("ticks")))
    machine["stolen"] = stolen / all_ticks if all_ticks else 0.0
    # The load average of before tells nothing of what came later, and has in it the build that has just ended.
    (caller, then), (same, now) = machine.pop("caller"), caller_ticks()
    if caller == same and all_ticks:
        machine["others"] = max(0, computed - (now - then)) / all_ticks
    by_id = {section["id"]: section for section in run["sections"]}
    for row in by_id.get("kernels", {"rows": []})["rows"]:
        if row["name"] == "memcpy" and "low" in row["cells"]["speed"]:
            memcpy = row["cells"]["speed"]
            machine["memcpy_spread"] = (memcpy["high"] - memcpy["low"]) / memcpy["value"]
    run["disturbances"] = list(verdicts.disturbances(machine))
    run["targets"] = [verdicts.judged(target, not run["disturbances"]) for target in run["targets"]]
    swept = next((section for section in run["sections"] if section["id"].startswith("codecs ")), None)
    if swept:
        run["break_even"] = {"title": swept["title"], "tables": break_even.tables(swept)}
    return run


def number(value):
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) < 1000 else f"{value:.0f}"


def position(value, largest):
    """Where on a bar of length 100 a value stands."""
    return max(0.0, min(100.0, 100 * value / largest))


def largest(section):
    """The value that a section's longest bar stands for."""
    bars = (
        row["cells"][column]["value"] for row in section["rows"] for column in section["bars"] if column in row["cells"]
    )
    return max(bars, default=1)


def by_verdict(targets):
    """The worst first."""
    return sorted(targets, key=lambda target: verdicts.ORDER.index(target["verdict"]))


def remarks(target):
    """Why it is not judged, and what it counts."""
    return [*([target["why"]] if "why" in target else []), *target.get("chains", [])]


def page(run, changes):
    """The HTML of a run; `changes` against another one, or None."""
    files = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=files, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "position": position, "by_verdict": by_verdict, "remarks": remarks}
    changed = {(one["section"], one["row"], one["column"]): one["ratio"] for one in changes or []}
    return environment.get_template("page.html").render(
        run=run, changes=changes, changed=changed, largest=largest, links=list(break_even.LINKS)
    )


def markdown(run):
    """The tables of a run, for documents."""
    files = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=files, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "cell": lambda text: str(text).replace("|", "\\|")}
    environment.filters |= {"by_verdict": by_verdict, "remarks": remarks}
    return environment.get_template("page.md").render(run=run).strip() + "\n"


def print_changes(changes):
    for one in changes:
        print(
            f"{one['ratio']:6.2f}  {one['section']}: {one['row']}, {one['column']}: "
            f"{number(one['old'])} -> {number(one['new'])}"
        )
    print(f"{len(changes)} figures differ by more than their noise, beside the reference of their table")


def end(folder, against):
    """Whether no target is missed."""
    run = finish(read_run(folder))
    (folder / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    changes = None
    if against:
        changes = compare.changes(json.loads(against.read_text()), run)
        print_changes(changes)
    (folder / "page.html").write_text(page(run, changes))
    (folder / "page.md").write_text(markdown(run))
    for name, why in run["absent"].items():
        print(f"left out: {name}: {why}")
    for target in run["targets"]:
        if target["verdict"] != "met":
            value = f"{number(target['value'])}, wanted {target['wanted']}"
            print(f"{target['verdict']}: {'; '.join([target['what'], value, *remarks(target)])}")
    if run["disturbances"]:
        print(f"This machine was not quiet: {'; '.join(run['disturbances'])}. Speeds may be too low, and ratios off.")
    counts = collections.Counter(target["verdict"] for target in run["targets"])
    print(
        f"{folder / 'page.html'} and {folder / 'results.json'}: {len(run['sections'])} tables, of {len(run['targets'])} "
        f"targets {', '.join(f'{counts[verdict]} {verdict}' for verdict in verdicts.ORDER)}"
    )
    return not counts["missed"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("begin").add_argument("folder", type=pathlib.Path)
    last = steps.add_parser("end")
    last.add_argument("folder", type=pathlib.Path)
    last.add_argument("--against", type=pathlib.Path, help="results.json of another run")
    last.add_argument("--check", action="store_true", help="fail when a target is missed")
    both = steps.add_parser("compare")
    both.add_argument("old", type=pathlib.Path)
    both.add_argument("new", type=pathlib.Path)
    args = parser.parse_args()
    if args.step == "begin":
        begin(args.folder)
    elif args.step == "end":
        met = end(args.folder, args.against)
        return 1 if args.check and not met else 0
    else:
        changes = compare.changes(*(json.loads(path.read_text()) for path in (args.old, args.new)))
        print_changes(changes)
        return 1 if changes else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
