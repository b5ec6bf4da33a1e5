"""TLS of the daemon's TCP listeners: whom it serves, and how its certificates are replaced while it runs."""

import ssl
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from daemon_helpers import Client, Feed, failure, page, page_value, random_array, wait_for
from tls_helpers import Authority, credentials, handshake, tls_flags


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


@pytest.fixture
def pair(authority):
    return authority.issue("daemon")


def code_of(client):
    """Of a call on a new connection; None: it goes well."""
    try:
        client.metrics()
    except grpc.RpcError as error:
        return error.code()
    return None


def test_a_cache_goes_there_and_back(daemon, stubs, authority, pair):
    client = Client(daemon(*tls_flags(pair)), stubs, credentials=credentials(authority))
    array = random_array([64, 1000])
    frames, _, _ = client.compress({"t": array}, codec="raw")
    assert np.array_equal(client.decompress(frames)[0]["t"], array)


def test_clients_that_do_not_speak_it_or_do_not_believe_it(daemon, stubs, tmp_path, authority, pair):
    server = daemon(*tls_flags(pair))
    stranger = Authority(tmp_path, "stranger")
    assert code_of(Client(server, stubs)) == grpc.StatusCode.UNAVAILABLE
    assert code_of(Client(server, stubs, credentials=credentials(stranger))) == grpc.StatusCode.UNAVAILABLE
    other_name = ("grpc.ssl_target_name_override", "example.org")
    client = Client(server, stubs, other_name, credentials=credentials(authority))
    assert code_of(client) == grpc.StatusCode.UNAVAILABLE
    assert code_of(Client(server, stubs, credentials=credentials(authority))) is None


def test_mutual_tls(daemon, stubs, tmp_path, authority, pair):
    clients = Authority(tmp_path, "clients")
    server = daemon(*tls_flags(pair, clients))
    good = clients.issue("good")
    assert code_of(Client(server, stubs, credentials=credentials(authority, good))) is None
    for refused in [None, authority.issue("of-another"), clients.issue("expired", (-2, -1)),
                    clients.issue("not-yet", (1, 2))]:
        client = Client(server, stubs, credentials=credentials(authority, refused))
        assert code_of(client) == grpc.StatusCode.UNAVAILABLE


def test_clients_are_told_apart_by_their_certificates(daemon, stubs, tmp_path, authority, pair):
    clients = Authority(tmp_path, "clients")
    server = daemon(*tls_flags(pair, clients), "--max-streams-per-client", "1")
    first, second = (credentials(authority, clients.issue(name)) for name in ("first", "second"))
    feed = Feed()
    call = Client(server, stubs, credentials=first).stub.Compress(feed, timeout=30)
    again = Client(server, stubs, ("grpc.use_local_subchannel_pool", 1), credentials=first)
    wait_for(lambda: again.metrics().streams_in_flight == 1, "the first client's stream")
    assert failure(again.stub.Compress(iter([]), timeout=10))[:2] == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of 1 streams of one client is reached")
    assert len(list(Client(server, stubs, credentials=second).stub.Compress(iter([]), timeout=10))) == 1
    feed.close()
    assert len(list(call)) == 1


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_versions(daemon, authority, pair):
    server = daemon(*tls_flags(pair), "--log-level", "debug")
    versions = ssl.TLSVersion
    for version, name in [(versions.TLSv1_2, "TLSv1.2"), (versions.TLSv1_3, "TLSv1.3")]:
        assert handshake(server.address, authority, version, version) == (name, pair.serial)
    # gRPC closes the connection without the alert that would say why; its log does.
    with pytest.raises(ssl.SSLError, match="UNEXPECTED_EOF|ALERT_PROTOCOL_VERSION"):
        handshake(server.address, authority, versions.TLSv1, versions.TLSv1_1)
    wait_for(lambda: "unsupported protocol" in server.log().lower(), "the reason in the log")


def test_unix_sockets_stay_without_tls(daemon, pair, socket_dir, stubs):
    address = f"unix:{socket_dir}/s"
    server = daemon(*tls_flags(pair), "--listen", address)
    server.address = address
    assert code_of(Client(server, stubs)) is None


class Load:
    """Clients that make a connection for each call, and one that keeps its own, until it is left; the errors of all."""

    def __init__(self, server, stubs, creds):
        self.calls, self.errors, self._ended = 0, [], threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(server, stubs, creds, lasting))
                         for lasting in (True, False, False)]

    def _run(self, server, stubs, creds, lasting):
        array = random_array([64, 1000])
        channel = None
        while not self._ended.is_set():
            try:
                if channel is None:
                    channel = grpc.secure_channel(server.address, creds, [("grpc.use_local_subchannel_pool", 1)])
                request = stubs.pb.CompressTensorRequest(
                    header=stubs.pb.CompressHeader(tensor=stubs.pb.Tensor(name="t", dtype=1, shape=array.shape)),
                    data=array.tobytes())
                stubs.rpc.KvCompressionStub(channel).CompressTensor(request, timeout=20)
                self.calls += 1
            except grpc.RpcError as error:
                self.errors.append(error)
            if not lasting:
                channel.close()
                channel = None
        if channel is not None:
            channel.close()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_a_new_certificate_is_served_without_a_restart(daemon, stubs, authority, pair):
    server = daemon(*tls_flags(pair))
    with Load(server, stubs, credentials(authority)) as load:
        for number in range(3):
            before, calls = pair.serial, load.calls
            assert handshake(server.address, authority)[1] == before
            pair.replace(authority.issue(f"next-{number}"))
            wait_for(lambda: handshake(server.address, authority)[1] == pair.serial, "the new certificate")
            wait_for(lambda calls=calls: load.calls > calls + 5, "calls with it")
    assert load.errors == []
    assert "TLS certificate read again" in server.log()
    text = page(server.metrics_address)
    expiry = page_value(text, "kvcompress_tls_certificate_expiry_timestamp_seconds")
    assert abs(expiry - pair.expires) < 2


def test_broken_files_leave_what_was_good_in_use(daemon, stubs, authority, pair):
    server = daemon(*tls_flags(pair))
    creds = credentials(authority)
    another = authority.issue("another")
    good = {path: path.read_bytes() for path in (pair.certificate, pair.key)}
    for path, content, why in [
        (pair.certificate, b"nonsense", "--tls-cert: no certificate in PEM is in it"),
        (pair.certificate, b"", "--tls-cert: no certificate in PEM is in it"),
        (pair.certificate, good[pair.certificate][:200], "--tls-cert: no certificate in PEM is in it"),
        (pair.key, another.key.read_bytes(), "--tls-key: the key is not that of the first certificate of --tls-cert"),
        (pair.key, None, f"{pair.key}: no such file or directory"),
    ]:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        logged = server.log().count(why)

        def refused(why=why, logged=logged):
            assert handshake(server.address, authority)[1] == pair.serial
            return server.log().count(why) > logged
        wait_for(refused, f"the log says: {why}")
        assert code_of(Client(server, stubs, credentials=creds)) is None
        path.write_bytes(good[path])
    time.sleep(1.1)  # the daemon looks once a second
    pair.replace(another)
    wait_for(lambda: handshake(server.address, authority)[1] == pair.serial, "the next good one")


def test_clients_of_a_new_authority(daemon, stubs, tmp_path, authority, pair):
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    server = daemon(*tls_flags(pair, old))
    first, second = credentials(authority, old.issue("first")), credentials(authority, new.issue("second"))
    assert code_of(Client(server, stubs, credentials=first)) is None
    assert code_of(Client(server, stubs, credentials=second)) == grpc.StatusCode.UNAVAILABLE
    old.certificate.write_bytes(new.certificate.read_bytes())
    wait_for(lambda: code_of(Client(server, stubs, credentials=second)) is None, "the new authority")
    assert code_of(Client(server, stubs, credentials=first)) == grpc.StatusCode.UNAVAILABLE


def run(bin_dir, *args):
    return subprocess.run([bin_dir / "kv-compressd", *map(str, args)], capture_output=True, text=True, timeout=30)


def test_the_health_probe_speaks_it_too(bin_dir, daemon, authority, pair):
    for flags in [tls_flags(pair), tls_flags(pair, authority)]:
        server = daemon(*flags)
        assert run(bin_dir, "--healthcheck", "--listen", server.address, *flags).returncode == 0
        without = run(bin_dir, "--healthcheck", "--listen", server.address)
        assert without.returncode == 1 and server.address in without.stderr
        assert without.stderr.endswith("(one with TLS is asked with its --tls-cert and --tls-key)\n")


def test_files_that_cannot_be_used_end_the_start(bin_dir, tmp_path, authority, pair):
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nonsense")
    another = authority.issue("another")
    weak = authority.issue("weak", key=rsa.generate_private_key(65537, 1024))
    weak_chain = tmp_path / "weak-chain"
    weak_chain.write_bytes(pair.certificate.read_bytes() + weak.certificate.read_bytes())
    locked = tmp_path / "locked"
    subprocess.run(["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", "pass:x", "-out", locked], check=True)
    for cert, key, ca, why in [
        ("/nowhere", pair.key, None, "TLS certificate: /nowhere: no such file or directory"),
        (nonsense, pair.key, None, "--tls-cert: no certificate in PEM is in it"),
        (pair.certificate, nonsense, None, "--tls-key: no private key in PEM, unencrypted, is in it"),
        (pair.certificate, locked, None, "--tls-key: no private key in PEM, unencrypted, is in it"),
        (pair.certificate, another.key, None, "--tls-key: the key is not that of the first certificate of --tls-cert"),
        (weak.certificate, weak.key, None, "--tls-cert: refused: ee key too small"),
        (weak_chain, pair.key, None, "--tls-cert: refused: ca key too small"),
        (pair.certificate, pair.key, nonsense, "--tls-client-ca: no certificate in PEM is in it"),
    ]:
        flags = ["--tls-cert", cert, "--tls-key", key, *(["--tls-client-ca", ca] if ca else [])]
        result = run(bin_dir, "--listen", "127.0.0.1:0", "--metrics-listen", "off", *flags)
        assert (result.returncode, result.stderr) == (1, f"kv-compressd: {why}\n")
