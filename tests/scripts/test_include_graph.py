"""scripts/include_graph.py finds what it is there for, and nothing in this tree."""

import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(root):
    return subprocess.run([sys.executable, REPOSITORY / "scripts" / "include_graph.py", root], capture_output=True, text=True)


def tree(root, files):
    for path, includes in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#pragma once\n" + "".join(f'#include "{include}"\n' for include in includes))
    return root


def faults(tmp_path, files):
    result = run(tree(tmp_path, files))
    assert result.returncode == (1 if result.stderr else 0)
    return result.stderr.splitlines()


def test_this_tree_has_no_fault():
    result = run(REPOSITORY)
    assert (result.returncode, result.stderr) == (0, "")


def test_downward_includes_are_no_fault(tmp_path):
    assert faults(tmp_path, {"core/base/a.h": [], "core/codec/b.h": ["core/base/a.h"], "core/codec/b.cc": ["core/codec/b.h"]}) == []


def test_an_upward_include_is_named(tmp_path):
    assert faults(tmp_path, {"core/base/a.h": ["core/codec/b.h"], "core/codec/b.h": []}) == [
        'core/base/a.h:2: "core/codec/b.h": core/base is on floor 0, core/codec is on floor 2']


def test_neighbours_do_not_know_each_other(tmp_path):
    [fault] = faults(tmp_path, {"core/simd/a.h": ["core/frame/b.h"], "core/frame/b.h": []})
    assert fault.startswith('core/simd/a.h:2: "core/frame/b.h": ')


def test_a_cycle_within_a_folder_is_shown(tmp_path):
    assert faults(tmp_path, {"core/base/a.h": ["core/base/b.h"], "core/base/b.h": ["core/base/a.h"]}) == [
        "a cycle: core/base/a.h -> core/base/b.h -> core/base/a.h"]


def test_paths_that_are_not_of_the_tree_are_faults(tmp_path):
    assert faults(tmp_path, {"core/base/a.h": ["b.h", "core/base/gone.h"], "core/base/b.h": []}) == [
        'core/base/a.h:2: "./b.h" is not a path in the tree',
        'core/base/a.h:3: "core/base/gone.h" does not exist']


def test_what_pip_builds_is_not_of_the_tree(tmp_path):
    assert faults(tmp_path, {"core/base/a.h": [], "client/python/build/temp/native/core/a.h": ["core/gone.h"]}) == []


def test_a_folder_without_a_floor_is_a_fault(tmp_path):
    assert faults(tmp_path, {"core/attic/a.h": []}) == ["core/attic/a.h:1: its folder core/attic has no floor"]
