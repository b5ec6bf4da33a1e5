"""Fixtures of the adapters' tests: caches that look like a model's."""

import secrets

import pytest
import torch
from kvcompress.store import open_store

# Tiny models gain nothing from threads, and lose a lot to them where cores are few.
torch.set_num_threads(1)


@pytest.fixture
def kv_values():
    """Makes keys or values: kv_values(shape, dtype, seed), smooth along the tokens, as a model's are."""

    def make(shape, dtype=torch.float16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randn(shape, generator=generator)
        return (steps.cumsum(-2) * 0.1 + torch.randn(shape[-1], generator=generator)).to(dtype)

    return make


@pytest.fixture
def turned_keys():
    """Makes keys [heads, tokens, channels] as a model's: turned_keys(heads, tokens, channels). Each channel has a
    constant, eight times as large as what changes from token to token, and is turned at the token's position, from
    `start` on; of the channels `dims` from `offset` on."""

    def make(heads, tokens, channels, *, theta=10000.0, pairs="half", dims=None, offset=0, start=0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        keys = torch.randn(heads, tokens, channels, generator=generator, dtype=torch.float64)
        keys += 8 * torch.randn(heads, 1, channels, generator=generator, dtype=torch.float64)
        dims = channels - offset if dims is None else dims
        pair = torch.arange(dims // 2)
        first, second = (pair, pair + dims // 2) if pairs == "half" else (2 * pair, 2 * pair + 1)
        angles = torch.arange(start, start + tokens)[:, None] * theta ** (-2.0 * pair / dims)
        x, y = keys[..., offset + first], keys[..., offset + second]
        keys[..., offset + first] = x * angles.cos() - y * angles.sin()
        keys[..., offset + second] = x * angles.sin() + y * angles.cos()
        return keys.float()

    return make


@pytest.fixture
def sealing(tmp_path):
    """Options by which an adapter seals, with the key "one"; there is "two", too."""
    pytest.importorskip("cryptography")
    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_bytes(secrets.token_bytes(32))
        (folder / name).chmod(0o600)
    return {"keys_dir": str(folder), "seal_key": "one", "tenant": "acme"}


@pytest.fixture(params=["plain", "sealed"])
def others(request):
    """Options of an adapter, and what another's frame, which is whole, is to it: one that is sealed under another
    fingerprint cannot be told from a damaged one."""
    if request.param == "plain":
        return {}, "foreign"
    return request.getfixturevalue("sealing"), "damaged"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kv"


@pytest.fixture
def store(folder):
    opened = open_store(folder, "n")
    yield opened
    opened.close()
