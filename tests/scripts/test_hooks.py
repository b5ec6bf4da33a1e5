"""What the hooks of .pre-commit-config.yaml call is in the tree."""

import os
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CONFIG = (REPOSITORY / ".pre-commit-config.yaml").read_text()
ENTRIES = re.findall(r"^        entry: (.*)$", CONFIG, re.MULTILINE)
FILES = [path.relative_to(REPOSITORY).as_posix() for top in ("core", "proto", "server", "client", "validation", "tests", "scripts")
         for path in (REPOSITORY / top).rglob("*")] + ["README.md"]


def test_each_hook_has_an_entry():
    assert len(ENTRIES) == len(re.findall(r"^      - id: ", CONFIG, re.MULTILINE)) >= 6


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_exist(entry):
    command, *arguments = entry.split()
    if command.startswith(".venv/bin/"):
        tool = command.removeprefix(".venv/bin/")
        assert tool == "python" or tool in (REPOSITORY / "scripts/requirements-test.txt").read_text().splitlines()
    else:
        assert os.access(REPOSITORY / command, os.X_OK), command
    for argument in arguments:
        assert "/" not in argument or (REPOSITORY / argument).exists(), argument


@pytest.mark.parametrize("pattern", re.findall(r"^        files: (.*)$", CONFIG, re.MULTILINE))
def test_patterns_match_files_of_the_tree(pattern):
    for alternative in re.split(r"\|(?![^(]*\))", pattern):
        assert any(re.search(alternative, path) for path in FILES + os.listdir(REPOSITORY)), alternative
