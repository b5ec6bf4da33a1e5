"""The package as it is installed: wheels, source distributions, types, and that nothing generated is in git."""

import inspect
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import kvcompress
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
PACKAGE = REPOSITORY / "client" / "python"
ADAPTERS = PACKAGE / "src" / "kvcompress" / "adapters"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]


def run(*command, timeout=100, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sdist(folder):
    script = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(folder)!r}))"
    return folder / run(sys.executable, "-c", script, cwd=PACKAGE).splitlines()[-1]


def wheel(source, folder, native="off", **options):
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", folder, source, env={**os.environ, "KVC_NATIVE": native}, **options)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.parametrize("through_sdist", [False, True], ids=["repository", "sdist"])
def test_a_wheel_works_where_nothing_else_is(tmp_path, daemon, through_sdist):
    made = wheel(sdist(tmp_path) if through_sdist else PACKAGE, tmp_path)
    names = set(zipfile.ZipFile(made).namelist())
    assert {"kvcompress/py.typed", "kvcompress/v1/kvcompress_pb2.py", "kvcompress/v1/kvcompress_pb2.pyi"} <= names
    run(*PIP, "install", *OFFLINE, "--target", tmp_path / "site", made)
    script = (
        "import sys, numpy as np, kvcompress as k\n"
        "assert k.__file__.startswith(sys.argv[1]), k.__file__\n"
        "with k.Client(sys.argv[2], timeout=20) as client:\n"
        "    print(k.__version__, client.decompress(client.compress(np.ones(3, np.float16), 'raw')))\n"
        "assert 'torch' not in sys.modules and 'ml_dtypes' not in sys.modules\n"
    )
    said = run(sys.executable, "-c", script, tmp_path / "site", daemon().address,
               cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""})
    assert said == f"{kvcompress.__version__} [1. 1. 1.]\n"


@pytest.mark.skipif(os.environ.get("KVC_TIER") != "long", reason="KVC_TIER is not long")
@pytest.mark.timeout(1500)
def test_a_wheel_with_the_codec_needs_no_daemon(tmp_path):
    made = wheel(PACKAGE, tmp_path, native="require", timeout=1400)
    run(*PIP, "install", *OFFLINE, "--target", tmp_path / "site", made)
    script = (
        "import sys, numpy as np, kvcompress as k\n"
        "assert k.__file__.startswith(sys.argv[1]), k.__file__\n"
        "codec = k.LocalClient()\n"
        "print(codec.decompress(codec.compress(np.ones(3, np.float16), 'raw')))\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    said = run(sys.executable, "-c", script, tmp_path / "site", cwd=tmp_path, env=environment)
    assert said == "[1. 1. 1.]\n"


def test_the_examples_of_the_manual_print_what_the_manual_says(daemon):
    manual = (PACKAGE / "README.md").read_text()
    examples = re.findall(r"```python\n((?:(?!```).)*)```\n\nprints\n\n((?:    [^\n]*\n)+)", manual, re.DOTALL)
    assert sum("127.0.0.1:50051" in example for example, _ in examples) == 1
    assert sum("kvcompress.compress(" in example for example, _ in examples) == 1
    for example, output in examples:
        said = run(sys.executable, "-c", example.replace("127.0.0.1:50051", daemon().address), cwd=REPOSITORY)
        assert said == textwrap.dedent(output)


def test_a_source_distribution_brings_the_contract_and_not_what_is_made_of_it(tmp_path):
    with tarfile.open(sdist(tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert "proto/kvcompress/v1/kvcompress.proto" in names
    assert not [name for name in names if "_pb2" in name]


def test_there_is_one_version():
    project = re.search(r"project\(kvcompress VERSION (\S+)", (REPOSITORY / "CMakeLists.txt").read_text())[1]
    assert kvcompress.__version__ == project
    for path in PACKAGE.glob("*.*"):
        assert path.is_dir() or project not in path.read_text(), path


def test_nothing_generated_is_in_git():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no checkout")
    tracked = run("git", "ls-files", cwd=REPOSITORY).splitlines()
    assert "client/python/setup.py" in tracked
    assert not [name for name in tracked if "_pb2" in name or "egg-info" in name]


def test_types():
    run(sys.executable, "-m", "mypy", cwd=PACKAGE)


CALLS = """
from collections.abc import AsyncIterator, Iterator
from typing import Any
import kvcompress
from kvcompress.v1 import kvcompress_pb2 as pb

def blocking(client: kvcompress.Client) -> None:
    frame: kvcompress.Frame = client.compress(1, "raw", name="t", timeout=1)
    pair: Iterator[tuple[str, Any]] = client.decompress_many([frame, b"", ("t", b""), ("t", b"", ("F16", (1,)))])
    most: pb.CapabilitiesResponse = client.capabilities([pb.CompressHeader()])
    frames: list[kvcompress.Frame] = client.with_retries(
        lambda seconds: list(client.compress_many([("t", 1)], timeout=seconds)))

async def awaited(client: kvcompress.AsyncClient) -> None:
    frame: kvcompress.Frame = await client.compress(1, "raw", name="t", timeout=1)
    pairs: AsyncIterator[tuple[str, Any]] = client.decompress_many([frame])
    async def work(seconds: float) -> pb.MetricsResponse:
        return await client.metrics(timeout=seconds)
    metrics: pb.MetricsResponse = await client.with_retries(work)
"""
WRONG = """
def wrong(client: kvcompress.Client, other: kvcompress.AsyncClient) -> None:
    client.compress()
    client.decompress(b"", out=None, spec="raw")
    text: str = client.compress(1)
    frame: kvcompress.Frame = other.compress(1)
    number: str = client.with_retries(lambda seconds: 1)
"""


def test_types_that_callers_see(tmp_path):
    """Of the lines of both, all that are wrong are errors, and no others."""
    source = tmp_path / "calls.py"
    source.write_text(CALLS + WRONG)
    said = subprocess.run([sys.executable, "-m", "mypy", source], capture_output=True, text=True, timeout=100,
                          cwd=PACKAGE).stdout
    errors = {int(line.split(":")[1]) for line in said.splitlines() if ": error: " in line}
    first = (CALLS + WRONG).splitlines().index("    client.compress()") + 1
    assert errors == set(range(first, first + 5)), said


def test_style():
    config = PACKAGE / "pyproject.toml"
    run(sys.executable, "-m", "ruff", "check", "--config", config, PACKAGE, REPOSITORY / "tests" / "client" / "python",
        REPOSITORY / "scripts" / "bench_python.py")
    run(sys.executable, "-m", "ruff", "format", "--check", "--config", config, PACKAGE)
    # The adapters get by with what is public.
    run(sys.executable, "-m", "ruff", "check", "--config", config, "--select", "SLF001", ADAPTERS)


def test_the_readme_has_the_defaults_of_a_client():
    text = (PACKAGE / "README.md").read_text()
    _, _, part = text.partition("### What a client does by default\n")
    shown = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", part.partition("\n#")[0], re.MULTILINE))
    for client in (kvcompress.Client, kvcompress.AsyncClient):
        defaults = {name: one.default for name, one in inspect.signature(client).parameters.items() if name != "target"}
        assert {name: eval(value, vars(kvcompress)) for name, value in shown.items()} == defaults
    policy = kvcompress.RetryPolicy(jitter=0.0)
    waits = [policy.delay(kvcompress.Unavailable("gone"), attempt) for attempt in range(1, policy.max_attempts)]
    assert "tried 10 times" in part
    assert policy.max_attempts == 10
    assert (waits[0], waits[-1]) == (0.1, 2.0)
    assert 8 < sum(waits) < sum(waits) * 1.2 < 10.1
    assert policy.delay(kvcompress.Unavailable("gone"), policy.max_attempts) is None


def test_help_shows_what_calls_return():
    returns = {name: inspect.signature(getattr(kvcompress.Client, name)).return_annotation
               for name in ("compress", "decompress", "metrics", "wait_ready")}
    assert returns == {"compress": "Frame", "decompress": "Any", "metrics": "pb.MetricsResponse", "wait_ready": "None"}
