"""Processes that take turns in a benchmark, each in an environment that has the packages that it needs."""

import json
import os
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "build" / "peers"
HOW_TO_INSTALL = "is not installed: make bench BENCH=--peers, or --install"


def python_of(packages, install):
    """The interpreter that has some packages beside those of the tests, or None where its environment is not there and is
    not to be made. It finds what it lacks in the tests' environment, so that torch is installed once."""
    if not packages:
        return sys.executable
    folder = ENVIRONMENTS / packages[0].split("=")[0]
    stamp = folder / "wanted"
    wanted = "\n".join(packages) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        if not install:
            return None
        print(f"installing {', '.join(packages)}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "tests.pth").write_text("".join(path + "\n" for path in sys.path if path.endswith("site-packages")))
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--retries", "5"]
        subprocess.run([*pip, "--constraint", ROOT / "scripts" / "constraints-test.txt", *packages], check=True)
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


class Process:
    """A program that waits for its turns: it answers each line with a line of JSON."""

    def __init__(self, *command):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *words):
        """What the contestant answers; a RuntimeError when it has ended instead."""
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"ended with {self.process.wait(30)}")
        return json.loads(line)

    def stop(self):
        self.process.stdin.close()
        if self.process.wait(30) != 0:
            raise RuntimeError(f"ended with {self.process.returncode}")
