"""Daemons and binaries as the end-to-end tests have them."""

import importlib.util
import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
E2E = REPOSITORY / "tests" / "e2e"
sys.path.append(str(E2E))
_spec = importlib.util.spec_from_file_location("e2e_fixtures", E2E / "conftest.py")
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)
bin_dir, daemon, sample = _fixtures.bin_dir, _fixtures.daemon, _fixtures.sample


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def deploy(repository):
    return repository / "deploy"
