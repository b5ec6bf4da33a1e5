"""Tokens and TLS, from the Python client to a real daemon."""

import asyncio

import kvcompress
import numpy as np
import pytest
from tls_helpers import Authority, tls_flags

ARRAY = np.arange(1000, dtype=np.float16)
LARGE = np.zeros(1 << 20, dtype=np.float16)  # goes by a stream
TOKEN = "correct-horse-battery-staple-0001"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    return path


async def async_calls(address, **options):
    async with kvcompress.AsyncClient(address, timeout=30, **options) as client:
        await client.compress(ARRAY, "raw")
        await client.compress(LARGE, "raw")
        return (await client.metrics()).build.version


def test_tokens(daemon, connect, token_file):
    server = daemon("--token-file", str(token_file))
    good = connect(server, token=TOKEN)
    good.wait_ready()
    for array in (ARRAY, LARGE):
        assert np.array_equal(good.decompress(good.compress(array, "raw")), array)
    assert [frame.data for frame in good.compress_many([("a", ARRAY)], "raw")] == [good.compress(ARRAY, "raw").data]
    assert asyncio.run(async_calls(server.address, token=TOKEN)) == kvcompress.version()
    for token in (None, TOKEN + "x"):
        client = connect(server, token=token)
        for call in [client.metrics, lambda c=client: c.compress(ARRAY),
                     lambda c=client: list(c.compress_many([("a", ARRAY)]))]:
            with pytest.raises(kvcompress.Unauthenticated) as error:
                call()
            assert TOKEN not in str(error.value)
        with pytest.raises(kvcompress.Unauthenticated):
            asyncio.run(async_calls(server.address, token=token))


def test_tls_and_tokens_together(daemon, connect, tmp_path, token_file):
    authority = Authority(tmp_path, "authority")
    ours = authority.issue("ours")
    server = daemon(*tls_flags(authority.issue("daemon"), authority), "--token-file", str(token_file))
    credentials = kvcompress.tls(authority.certificate, ours.certificate, ours.key)
    client = connect(server, credentials=credentials, token=TOKEN)
    for array in (ARRAY, LARGE):
        assert np.array_equal(client.decompress(client.compress(array, "raw")), array)
    asyncio.run(async_calls(server.address, credentials=credentials, token=TOKEN))
    with pytest.raises(kvcompress.Unauthenticated):
        connect(server, credentials=credentials).metrics()
    with pytest.raises(kvcompress.Unavailable):
        connect(server, credentials=kvcompress.tls(authority.certificate), token=TOKEN,
                retry=kvcompress.NO_RETRY).metrics()


def test_tokens_do_not_leave_the_machine_in_plaintext():
    for target in ["example.org:1", "10.0.0.1:1", "[2001:db8::1]:1", "dns:///localhost:1", "127.0.0.1.example.org:1",
                   "ipv4:127.0.0.1:1,10.0.0.1:1"]:
        for kind in (kvcompress.Client, kvcompress.AsyncClient):
            with pytest.raises(kvcompress.InvalidArgument, match="in plaintext"):
                kind(target, token=TOKEN)
        kvcompress.Client(target, token=TOKEN, credentials=kvcompress.tls()).close()
    for target in ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/s", "ipv4:127.0.0.1:1,127.0.0.2:2"]:
        kvcompress.Client(target, token=TOKEN).close()
    for token in ["", "a b", "a\nb", "é" * 20]:
        with pytest.raises(kvcompress.InvalidArgument, match="a token is made of"):
            kvcompress.Client("localhost:1", token=token)


def test_credentials_that_cannot_be(tmp_path):
    ours = Authority(tmp_path, "authority").issue("ours")
    for options in ({"certificate": ours.certificate}, {"key": ours.key}):
        with pytest.raises(kvcompress.InvalidArgument, match="certificate and key go together"):
            kvcompress.tls(**options)
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("\n")
    with pytest.raises(kvcompress.InvalidArgument, match="nonsense is not in PEM"):
        kvcompress.tls(nonsense)
