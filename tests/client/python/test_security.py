"""Tokens and TLS, from the Python client to a real daemon."""

import asyncio
import time

import kvcompress
import numpy as np
import pytest
from tls_helpers import Authority, tls_flags

pytestmark = pytest.mark.usefixtures("way")

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


NEVER_GIVES_UP = kvcompress.RetryPolicy(initial_backoff=20)
KINDS = pytest.mark.parametrize("kind", [kvcompress.Client, kvcompress.AsyncClient])


def failure_of(client, method, *arguments):
    """What a call raises, in less time than one wait between attempts takes."""
    def call():
        result = getattr(client, method)(*arguments)
        if isinstance(client, kvcompress.AsyncClient):
            asyncio.run(result)

    started = time.monotonic()
    with pytest.raises(kvcompress.KvCompressError) as error:
        call()
    assert time.monotonic() - started < 15
    return error.value


@KINDS
@pytest.mark.parametrize(("days", "ca", "listen", "said"), [
    ((-2, -1), "ours", "127.0.0.1:0", "the daemon's certificate has expired"),
    ((1, 2), "ours", "127.0.0.1:0", "the daemon's certificate is not valid yet"),
    ((-1, 1), "stranger", "127.0.0.1:0", "the daemon's certificate is of an unknown authority"),
    ((-1, 1), None, "127.0.0.1:0", "the daemon's certificate is of an unknown authority"),
    ((-1, 1), "ours", "127.0.0.2:0", "the daemon's certificate is for another host"),
])
def test_a_certificate_that_no_retry_makes_good_is_named(daemon, tmp_path, kind, days, ca, listen, said):
    ours, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    address = daemon("--listen", listen, *tls_flags(ours.issue("daemon", days))).listen[-1]
    authority = {"ours": ours.certificate, "stranger": stranger.certificate}.get(ca)
    client = kind(address, credentials=kvcompress.tls(authority), retry=NEVER_GIVES_UP, timeout=60)
    for method, *arguments in (("compress", ARRAY), ("compress", LARGE), ("metrics",), ("wait_ready",)):
        error = failure_of(client, method, *arguments)
        assert (type(error), str(error)) == (kvcompress.FailedPrecondition, f"connect to ipv4:{address}: {said}")
    client._close()


@KINDS
@pytest.mark.parametrize(("days", "said"), [
    ((-2, -1), "this side's certificate has expired"),
    ((1, 2), "this side's certificate is not valid yet"),
])
def test_a_certificate_of_this_side_that_no_retry_makes_good_is_named(daemon, tmp_path, kind, days, said):
    authority = Authority(tmp_path, "authority")
    ours = authority.issue("ours", days)
    address = daemon(*tls_flags(authority.issue("daemon"), authority)).listen[-1]
    credentials = kvcompress.tls(authority.certificate, ours.certificate, ours.key)
    client = kind(address, credentials=credentials, retry=NEVER_GIVES_UP, timeout=60)
    for method, *arguments in (("compress", ARRAY), ("compress", LARGE), ("metrics",), ("wait_ready",)):
        error = failure_of(client, method, *arguments)
        assert (type(error), str(error)) == (kvcompress.FailedPrecondition, f"connect to ipv4:{address}: {said}")
    client._close()


def test_an_expired_certificate_of_this_side_that_nobody_asks_for_hurts_nobody(daemon, connect, tmp_path):
    authority = Authority(tmp_path, "authority")
    ours = authority.issue("ours", (-2, -1))
    server = daemon(*tls_flags(authority.issue("daemon")))
    client = connect(server, credentials=kvcompress.tls(authority.certificate, ours.certificate, ours.key),
                     retry=kvcompress.NO_RETRY)
    for array in (ARRAY, LARGE):
        assert np.array_equal(client.decompress(client.compress(array, "raw")), array)
    server.stop()
    with pytest.raises(kvcompress.Unavailable):
        client.metrics()


def test_a_daemon_that_comes_back_with_an_expired_certificate_is_not_waited_for(daemon, connect, tmp_path):
    authority = Authority(tmp_path, "authority")
    first = daemon("--shared-memory", "kvc-tls-", *tls_flags(authority.issue("first")))
    client = connect(first, credentials=kvcompress.tls(authority.certificate), retry=NEVER_GIVES_UP, timeout=60)
    client.compress(LARGE)
    first.stop()
    daemon("--listen", first.address, *tls_flags(authority.issue("late", (-2, -1))))
    for array in (LARGE, ARRAY):
        error = failure_of(client, "compress", array)
        assert isinstance(error, kvcompress.FailedPrecondition)
        assert "has expired" in str(error)


@KINDS
def test_a_host_that_does_not_exist_is_named_at_once(kind):
    client = kind("no.such.host.invalid:50051", retry=NEVER_GIVES_UP, timeout=10)
    error = failure_of(client, "metrics")
    if not isinstance(error, kvcompress.DeadlineExceeded):  # else nobody answers for names here
        assert (type(error), str(error)) == (
            kvcompress.FailedPrecondition, "connect to no.such.host.invalid:50051: there is no host of that name")
    client._close()


@KINDS
@pytest.mark.parametrize(("target", "said"), [
    ("127.0.0.1:0", 'the port must be a number from 1 to 65535, not "0"'),
    ("127.0.0.1:65536", 'the port must be a number from 1 to 65535, not "65536"'),
    ("dns:///host:+1", 'the port must be a number from 1 to 65535, not "+1"'),
    ("ipv4:127.0.0.1:1,127.0.0.1:99999999999999", 'the port must be a number from 1 to 65535, not "99999999999999"'),
    ("localhost", "use HOST:PORT or unix:PATH"),
    ("localhost:", "use HOST:PORT or unix:PATH"),
    (":50051", "use HOST:PORT or unix:PATH"),
    ("unix:", "use HOST:PORT or unix:PATH"),
    ("https://host:1", "use HOST:PORT or unix:PATH, without https://"),
    ("::1:50051", "an IPv6 address stands in brackets, for example [::1]:50051"),
    ("10.0.0.1:1,10.0.0.2:1", "a list of IP addresses stands behind ipv4: or ipv6:"),
    ("unix:/" + "a" * 107, "the path of a unix socket has at most 107 bytes, and this one has 108"),
    ("unix:///" + "ä" * 54, "the path of a unix socket has at most 107 bytes, and this one has 109"),
])
def test_an_address_that_cannot_be_is_refused_at_once(kind, target, said):
    with pytest.raises(kvcompress.InvalidArgument) as error:
        kind(target)
    assert str(error.value) == f'"{target}" is not the address of a daemon: {said}'
    for good in ("unix:/" + "a" * 106, "unix:///" + "a" * 106, "[::1]:65535", "dns:host:1", "dns://8.8.8.8/host:1",
                 "ipv6:[::1]:1,[::2]:1"):
        kind(good)
