"""Fixtures of what calibrates."""

import pytest


@pytest.fixture
def program(bin_dir, monkeypatch):
    path = bin_dir / "kv-compress"
    monkeypatch.setenv("KV_COMPRESS_PATH", str(path))
    return path
