"""The store in a Redis: Debian's server, one of its own for each test, and servers that are slow, stopped or gone."""

import faulthandler
import logging
import os
import signal
import socket
import subprocess
import threading
import time

import kvcompress
import pytest
from kvcompress.store import open_store
from redis_servers import Server, free_port

redis = pytest.importorskip("redis", reason="the package redis is not installed: kvcompress[redis]")

PASSWORD = "correct horse/battery:staple@1"


@pytest.fixture
def serve(tmp_path):
    servers = []

    def make(*flags, **options):
        servers.append(Server(tmp_path, *flags, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def connect():
    stores = []

    def make(url, namespace="n"):
        stores.append(open_store(url, namespace))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def timed(call):
    begin = time.monotonic()
    return call(), time.monotonic() - begin


def eventually(call, seconds=10):
    deadline = time.monotonic() + seconds
    while not call():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_was_put_is_got(serve, connect):
    store = connect(serve().url)
    keys = ["", "a", "x" * 5000, "\N{SNOWMAN}\0\r\n", "\ud800"]
    payloads = [bytes(range(256)) * number for number in range(len(keys))]
    assert store.exists_many(keys) == [False] * 5
    pieces = [(payload[:100], payload[100:]) for payload in payloads]
    assert store.put_many(zip(keys, [payloads[0], *pieces[1:]], strict=True)) == [True] * 5
    assert store.exists_many([*keys, "b"]) == [True] * 5 + [False]
    assert store.get_many([*keys, "b"], 1024) == [*payloads, None]
    store.remove("a")
    store.touch([*keys])
    assert store.exists_many(["a", ""]) == [False, True]
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.lost, stats.errors) == (5, 1, 0, 0)
    assert stats.bytes_in == stats.bytes_out == sum(map(len, payloads))
    assert (stats.used_bytes, stats.entries) == (None, None)


@pytest.mark.parametrize("there", ["none", "all", "the first", "every third", "one"])
def test_a_look_up_of_many_is_right(serve, connect, there):
    keys = [f"{number}" for number in range(1300)]
    stored = {"none": [], "all": keys, "the first": keys[:777], "every third": keys[::3], "one": keys[500:501]}[there]
    server = serve()
    assert all(connect(server.url).put_many((key, b"1") for key in stored))
    store = connect(server.url)
    assert store.exists_many([*keys, *keys[:5]]) == [key in stored for key in [*keys, *keys[:5]]]
    assert store.exists_many([]) == []


def test_a_namespace_has_its_own_keys(serve, connect):
    server = serve()
    one, two = connect(server.url), connect(server.url, "m")
    client = redis.Redis(port=server.port)
    client.set("of someone else", "1")
    one.put_many((f"{number}", b"1") for number in range(3000))
    two.put("0", b"2")
    assert (one.get("0", 1), two.get("0", 1)) == (b"1", b"2")
    one.clear()
    assert not any(one.exists_many([f"{number}" for number in range(3000)]))
    assert two.get("0", 1) == b"2"
    assert client.dbsize() == 2
    client.close()


def test_large_payloads_go_in_several_exchanges(serve, connect):
    store = connect(f"{serve().url}?timeout=20")
    payloads = {f"{number}": os.urandom(7 << 20) for number in range(5)}
    assert store.put_many(payloads.items()) == [True] * 5
    assert store.get_many(list(payloads), 7 << 20) == list(payloads.values())


def test_what_is_larger_than_a_value_may_be_is_not_stored(serve, connect, monkeypatch):
    monkeypatch.setattr("kvcompress.store._redis._MOST_VALUE", 1064)
    store = connect(serve().url)
    assert store.put_many([("a", bytes(1001)), ("b", bytes(1000))]) == [False, True]
    assert store.exists_many("ab") == [False, True]
    assert store.stats().errors == 1


@pytest.mark.parametrize("damage", ["bit", "cut", "of another key", "empty header", "of another type", "too large"])
def test_what_is_not_what_was_stored_is_a_miss(serve, connect, damage):
    server = serve()
    store, client = connect(server.url), redis.Redis(port=server.port)
    store.put_many([("a", bytes(100)), ("b", bytes(range(100)))])
    name, other = (store._name(store._ids.of(key)) for key in "ab")
    value = client.get(name)
    if damage == "of another type":
        client.delete(name)
        client.rpush(name, "1")
    elif damage != "too large":
        changed = {"bit": value[:-1] + b"\1", "cut": value[:-1], "empty header": b"\0" * 64}
        client.set(name, changed.get(damage, client.get(other)))
    assert store.get_many(["a", "b"], 99 if damage == "too large" else 100)[0] is None
    assert store.stats().lost + store.stats().errors > 0
    if damage != "of another type":
        assert store.stats().lost >= 1
        assert not client.exists(name)
    assert store.put("a", bytes(100))
    assert store.get("a", 100) == bytes(100)
    client.close()


def test_the_server_evicts(serve, connect):
    store = connect(serve("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru").url)
    for number in range(100):
        assert store.put(f"{number}", bytes(500_000))
    found = store.get_many([f"{number}" for number in range(100)], 500_000)
    assert 20 < sum(payload is not None for payload in found) < 45
    assert store.stats().lost == store.stats().errors == 0


def test_a_server_that_does_not_evict_stores_nothing_more(serve, connect):
    store = connect(serve("--maxmemory", "10mb", "--maxmemory-policy", "noeviction").url)
    stored = [store.put(f"{number}", bytes(500_000)) for number in range(30)]
    assert stored[0]
    assert not stored[-1]
    # It is well, and asked as before.
    assert store.get("0", 500_000) == bytes(500_000)
    assert store.stats().errors == stored.count(False)


def test_a_server_that_dies_costs_misses_and_comes_back(serve, connect):
    server = serve()
    store = connect(server.url)
    assert store.put("a", b"1")
    server.process.kill()
    server.process.wait()
    answers, seconds = timed(lambda: [store.get("a", 1) for _ in range(1000)])
    assert answers == [None] * 1000
    assert seconds < 3
    assert not store.put("b", b"2")
    assert not store.exists("c")
    assert store.stats().misses == 1000
    assert 3 <= store.stats().errors < 20
    server.start()
    eventually(lambda: store.put("a", b"3"))
    eventually(lambda: store.get("a", 1) == b"3")


def test_there_may_be_no_server_at_first(serve, connect):
    port = free_port()
    store = connect(f"redis://127.0.0.1:{port}/0")
    assert store.get("a", 1) is None
    assert not store.put("a", b"1")
    serve(port=port)
    eventually(lambda: store.put("a", b"1"))
    assert store.get("a", 1) == b"1"


def test_a_server_that_is_stopped_costs_a_bounded_wait(serve, connect):
    server = serve()
    store = connect(f"{server.url}?timeout=0.3")
    assert store.put_many([("a", b"1"), ("b", b"2")]) == [True, True]
    server.process.send_signal(signal.SIGSTOP)
    waits = [timed(lambda: store.get("a", 1)) for _ in range(200)]
    assert [answer for answer, _ in waits] == [None] * 200
    assert max(seconds for _, seconds in waits) < 1
    # The first three wait, and one of those after each pause.
    assert sum(seconds for _, seconds in waits) < 3
    # A scheduler does not wait.
    peeks = [timed(lambda number=number: store.peek_many([f"new {number}"])) for number in range(500)]
    assert max(seconds for _, seconds in peeks) < 0.1
    server.process.send_signal(signal.SIGCONT)
    eventually(lambda: store.get("a", 1) == b"1")
    assert store.stats().lost == 0


def test_many_threads_wait_no_longer_than_one(serve, connect):
    server = serve()
    store = connect(f"{server.url}?timeout=0.3")
    store.put("a", b"1")
    server.process.send_signal(signal.SIGSTOP)
    waits = []

    def work():
        for _ in range(5):
            waits.append(timed(lambda: (store.get("a", 1), store.put("b", bytes(1 << 20)))))

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waits) == 200
    assert max(seconds for _, seconds in waits) < 2
    assert all(answer == (None, False) for answer, _ in waits)
    server.process.send_signal(signal.SIGCONT)
    eventually(lambda: store.get("a", 1) == b"1")


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for(connect):
    """Each read of it makes progress, and none ever ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        is_done = threading.Event()

        def drip(connection):
            with connection:
                try:
                    connection.sendall(b"$1000\r\n")
                    while not is_done.wait(0.05):
                        connection.sendall(b"x")
                except OSError:
                    pass

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        store = connect(f"redis://127.0.0.1:{listener.getsockname()[1]}/0?timeout=0.4")
        waits = [timed(lambda: store.get("a", 1)) for _ in range(20)]
        assert [answer for answer, _ in waits] == [None] * 20
        assert max(seconds for _, seconds in waits) < 1.2
        assert store.stats().misses == 20
        is_done.set()
        listener.shutdown(socket.SHUT_RDWR)


def test_a_peek_asks_in_the_background(serve, connect):
    server = serve()
    store, other = connect(server.url), connect(server.url)
    assert store.peek_many(["a", "b"]) == [None, None]
    eventually(lambda: store.peek_many(["a", "b"]) == [False, False])
    other.put("a", b"1")
    eventually(lambda: store.peek_many(["a", "b"]) == [True, False])
    other.remove("a")
    eventually(lambda: store.peek_many(["a"]) == [False])


def test_a_peek_without_a_server_says_no_before_long(connect):
    store = connect(f"redis://127.0.0.1:{free_port()}/0?timeout=0.3")
    eventually(lambda: store.peek_many(["a"]) == [False], seconds=2)
    for number in range(20):
        eventually(lambda number=number: store.peek_many([f"{number}"]) == [False], seconds=2)


@pytest.mark.parametrize("way", ["url", "file", "user"])
def test_a_password_is_never_told(serve, connect, tmp_path, caplog, way):
    server = serve("--requirepass", PASSWORD)
    quoted = "correct%20horse%2Fbattery%3Astaple%401"
    (tmp_path / "password").write_text(f"{PASSWORD}\n# the one before\n")
    url = f"redis://127.0.0.1:{server.port}/0?password_file={tmp_path}/password"
    if way != "file":
        url = f"redis://{'default' if way == 'user' else ''}:{quoted}@127.0.0.1:{server.port}/0"
    store = connect(url)
    with caplog.at_level(logging.DEBUG):
        assert store.put("a", b"1")
        server.process.kill()
        server.process.wait()
        assert store.get("a", 1) is None
        wrong = connect(f"redis://:wrong-{quoted}@127.0.0.1:{serve('--requirepass', PASSWORD).port}/0")
        assert not wrong.put("a", b"1")
    assert "does not work" in caplog.text
    assert wrong.stats().errors == 1
    for secret in (PASSWORD, quoted, "horse", "staple"):
        assert secret not in caplog.text
        assert secret not in repr(store) + repr(wrong)


def test_tls(tmp_path, serve, connect):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True)  # fmt: skip
    port = free_port()
    server = serve("--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key,
                   "--tls-ca-cert-file", certificate)  # fmt: skip
    assert server.process.poll() is None
    options = f"?ca={certificate}&certificate={certificate}&key={key}"
    assert connect(f"rediss://localhost:{port}/0{options}").put("a", b"1")
    assert connect(f"rediss://localhost:{port}/0{options}").get("a", 1) == b"1"
    # Another name, an authority that is not known, no certificate of its own.
    assert not connect(f"rediss://127.0.0.1:{port}/0{options}").put("a", b"1")
    assert not connect(f"rediss://localhost:{port}/0?certificate={certificate}&key={key}").put("a", b"1")
    assert not connect(f"rediss://localhost:{port}/0?ca={certificate}").put("a", b"1")


def test_a_unix_socket(tmp_path, serve, connect):
    path = tmp_path / "redis.sock"
    serve("--unixsocket", path)
    assert connect(f"unix://{path}?db=1").put("a", b"1")
    assert connect(f"unix://{path}?db=1").get("a", 1) == b"1"
    assert connect(f"unix://{path}").get("a", 1) is None


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("redis://:secret@", "a Redis has a host"),
        ("redis://:secret@host:port/0", "none, or has a port"),
        ("redis://:secret@host/name", "none, or has a port"),
        ("redis://:secret@host/0?timeout=0", "above 0"),
        ("redis://:secret@host/0?timeout=nan", "above 0"),
        ("redis://:secret@host/0?tiemout=1", "unknown option 'tiemout'"),
        ("redis://:secret@host/0?password_file=/none", "password_file cannot be read"),
        ("unix://", "a path"),
    ],
)
def test_a_url_is_checked_and_not_told(url, error):
    with pytest.raises(kvcompress.InvalidArgument, match=error) as raised:
        open_store(url, "n")
    assert "secret" not in str(raised.value)
    with pytest.raises(kvcompress.InvalidArgument, match="takes no capacity_bytes"):
        open_store(url, "n", 5)


def test_a_child_of_a_fork_has_the_store(serve, connect):
    # A child of a process as large as this one is slow at first.
    store = connect(f"{serve().url}?timeout=20")
    assert store.put("a", b"1")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with open(writer, "w") as told:
            faulthandler.dump_traceback_later(15, file=told)
            logging.getLogger().addHandler(logging.StreamHandler(told))
            is_well = store.get("a", 1) == b"1" and store.put("b", b"2")
            told.flush()
            os._exit(0 if is_well else 1)
    os.close(writer)
    with open(reader) as told:
        assert (os.waitpid(child, 0)[1], told.read()) == (0, "")
    assert store.get("b", 1) == b"2"
    assert store.stats().errors == 0
