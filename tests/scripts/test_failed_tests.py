"""scripts/test.sh says at its end which tests have failed, and why: in a tree of stages that fail."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CMAKE = """
cmake_minimum_required(VERSION 3.24)
project(tree LANGUAGES NONE)
enable_testing()
add_test(NAME Tree.IsGreen COMMAND sh -c "echo '/tree/tree_test.cc:3: Failure'; echo 'Value of: green'; echo; exit 1")
add_test(NAME Tree.IsQuick COMMAND sh -c "echo begun; sleep 10")
set_tests_properties(Tree.IsQuick PROPERTIES TIMEOUT 0.1)
add_test(NAME Tree.Stands COMMAND true)
"""


@pytest.fixture
def tail(tmp_path):
    """Writes files into a tree, runs stages of it, and returns what follows on the last line of a stage."""

    def run(files, *stages):
        (tmp_path / "scripts").mkdir()
        for name in ("test.sh", "failed_tests.py"):
            shutil.copy(REPOSITORY / "scripts" / name, tmp_path / "scripts")
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
            (tmp_path / path).chmod(0o755)
        python = tmp_path / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        shutil.copy(REPOSITORY / "CMakePresets.json", tmp_path)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run([tmp_path / "scripts" / "test.sh", *stages], capture_output=True, text=True,
                              env=environment)
        assert done.returncode == (0 if done.stdout.endswith(" 0 failed\n") else 1), done.stdout + done.stderr
        lines = done.stdout.splitlines()
        ends = [index for index, line in enumerate(lines) if line.startswith("    | (all of it: ")]
        return lines[ends[-1] + 1:] if ends else lines[len(stages):]

    return run


VENV = {"scripts/venv.sh": "#!/bin/sh\n"}
TESTS = {
    "tests/scripts/test_a.py": "import pytest\n\n"
                               "@pytest.mark.parametrize('leaves', [1, 2])\n"
                               "def test_leaves(leaves):\n    assert leaves == 2, 'too few\\nof them'\n",
    "tests/e2e/test_b.py": "import pytest\n\n@pytest.fixture\ndef tree():\n    raise OSError('no tree')\n\n"
                           "def test_root(tree):\n    pass\n",
}


def test_tests_of_pytest_and_ctest_are_named_with_the_first_line_of_why(tail):
    assert tail(VENV | TESTS | {"CMakeLists.txt": CMAKE}, "unit", "scripts", "e2e") == [
        "unit: Tree.IsGreen: /tree/tree_test.cc:3: Failure Value of: green",
        "scripts: tests.scripts.test_a.test_leaves[1]: AssertionError: too few",
        'e2e: tests.e2e.test_b.test_root: failed on setup with "OSError: no tree"',
        "unit: Tree.IsQuick: Timeout: begun",
        "2 passed, 4 failed",
    ]


def test_a_stage_without_names_of_tests_is_named_itself(tail):
    assert tail({"scripts/demo.sh": "#!/bin/sh\necho begun\necho no daemon\nexit 3\n", "scripts/fuzz.sh": "#!/bin/sh\n",
                 "scripts/check_metrics.sh": "#!/bin/sh\necho not here\nexit 77\n",
                 "scripts/venv.sh": "#!/bin/sh\necho no network\nexit 1\n"}, "demo", "fuzz", "promtool", "deploy") == [
        "demo: FAILED: no daemon",
        "deploy: FAILED: no network",
        "1 passed, 2 failed, 1 skipped",
    ]


def test_more_than_twenty_are_counted(tail):
    many = ("import pytest\n\n@pytest.mark.parametrize('number', range(25))\n"
            "def test_many(number):\n    assert number < 0\n")
    lines = tail(VENV | {"tests/scripts/test_many.py": many, "tests/e2e/test_b.py": TESTS["tests/e2e/test_b.py"]},
                 "scripts", "e2e")
    assert lines[1].startswith("e2e: tests.e2e.test_b.test_root: ")
    assert [line.split(":")[1] for line in lines[:1] + lines[2:20]] == [
        f" tests.scripts.test_many.test_many[{number}]" for number in range(19)]
    assert lines[20:] == ["and 6 more", "0 passed, 26 failed"]


def test_nothing_is_said_where_nothing_failed(tail):
    assert tail({"scripts/demo.sh": "#!/bin/sh\n"}, "demo") == ["1 passed, 0 failed"]
