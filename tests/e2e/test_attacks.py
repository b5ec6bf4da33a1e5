"""What hostile clients are told. The outcomes make the table of docs/operations.md, which is compared with them:
KVC_UPDATE_DOCS=1 writes it."""

import copy
import os
import pathlib
import resource
import shutil
import ssl
import subprocess
import time
import zlib

import grpc
import pytest
from daemon_helpers import MIB, SERVICE, Client, Feed, page, page_value, random_array, wait_for
from http2_helpers import (
    CONTINUATION,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Forwarder,
    Sender,
    connect,
    frame,
    header_field,
    is_closed,
    open_call,
    read_frames,
)
from load_helpers import descriptors, memory
from shm_helpers import PREFIX, Object, Registration
from tls_helpers import Authority, credentials, handshake, refuses, tls_flags

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "operations.md"
BEGIN, END = "<!-- attacks: begin -->\n", "<!-- attacks: end -->\n"
TOKEN = "correct-horse-battery-staple-0001"
# What was seen: (attack, refusal), in the order of the tests.
seen = []


def saw(attack, *refusals):
    """All of them, which must be alike."""
    assert len(set(refusals)) == 1, refusals
    seen.append((attack, refusals[0]))


def refusal(call, *args, **options):
    """"CODE: text" of a call that must fail."""
    with pytest.raises(grpc.RpcError) as error:
        result = call(*args, timeout=30, **options)
        for _ in result if hasattr(result, "__iter__") else ():
            pass
    return f"{error.value.code().name}: {error.value.details()}"


def failed(stream):
    """"CODE: text" of a stream that has failed."""
    return f"{stream.call.code().name}: {stream.call.details()}"


def serves(server, stubs, **options):
    """Whether a well-behaved client is served, its data there and back."""
    client = Client(server, stubs, ("grpc.use_local_subchannel_pool", 1), **options)
    frames, _, _ = client.compress({"t": random_array(1000)}, codec="raw", timeout=30)
    return list(client.decompress(frames, timeout=30)[0]) == ["t"]


# What the process may take besides its budget, whatever is done to it.
RSS_OVERHEAD = 150 * MIB


@pytest.fixture
def daemon(daemon):
    """Daemons with a small budget, none of which an attack makes larger than it may be."""
    started = []

    def start(*flags, budget=64 * MIB, **options):
        started.append((daemon("--memory-budget", str(budget), *flags, **options), budget))
        return started[-1][0]

    yield start
    for server, budget in started:
        if server.process.poll() is None:
            peak, _ = memory(server.pid)
            print(f"peak {peak / MIB:.0f} MiB, budget {budget / MIB:.0f}")
            assert peak <= budget + RSS_OVERHEAD


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path, "authority")


def test_plaintext_is_not_served_by_accident(bin_dir):
    result = subprocess.run([bin_dir / "kv-compressd", "--listen", "0.0.0.0:50051", "--metrics-listen", "off"],
                            capture_output=True, text=True, timeout=30)
    assert result.returncode == 2 and result.stderr.startswith("kv-compressd: --listen 0.0.0.0:50051: other machines ")
    saw("plaintext to other machines, by a careless setting", "the daemon does not start: " + result.stderr[14:].strip())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_connections_that_tls_refuses(daemon, stubs, tmp_path, authority):
    clients, stranger = Authority(tmp_path, "clients"), Authority(tmp_path, "stranger")
    server = daemon(*tls_flags(authority.issue("daemon"), clients))
    plain = connect(server.address)
    plain.sendall(PREFACE + frame(SETTINGS))
    assert is_closed(plain, 5)
    saw("plaintext to a port with TLS", "connection closed")
    for attack, pair in [
        ("no client certificate, where one is asked for", None),
        ("a client certificate of another authority", stranger.issue("other")),
        ("a client certificate that has expired", clients.issue("expired", (-2, -1))),
    ]:
        assert refuses(server.address, authority, pair)
        saw(attack, "connection closed in the handshake")
    with pytest.raises(ssl.SSLError, match="UNEXPECTED_EOF|ALERT_PROTOCOL_VERSION"):
        handshake(server.address, authority, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
    saw("TLS 1.1 or older", "connection closed in the handshake")
    with pytest.raises(ssl.SSLCertVerificationError) as error:
        handshake(server.address, stranger)
    saw("somebody else in the daemon's place", f"the client ends the handshake: {error.value.reason}")
    good = clients.issue("good")
    assert not refuses(server.address, authority, good)
    assert serves(server, stubs, credentials=credentials(authority, good))


def test_calls_without_a_token(daemon, stubs, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    server = daemon("--token-file", str(tokens))
    stub = Client(server, stubs).stub
    request = stubs.pb.MetricsRequest()
    saw("a call without a token", refusal(stub.Metrics, request), refusal(stub.Compress, iter([])))
    saw("a call with a wrong token", *(refusal(call, argument, metadata=[("authorization", f"Bearer {TOKEN}x")])
                                       for call, argument in [(stub.Metrics, request), (stub.Compress, iter([]))]))


def test_nothing_secret_in_what_the_daemon_says(daemon, stubs, tmp_path, authority):
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    pair = authority.issue("daemon")
    server = daemon(*tls_flags(pair), "--token-file", str(tokens), "--log-level", "debug",
                    env={"GRPC_VERBOSITY": "DEBUG"})
    creds = credentials(authority)
    metadata = [("authorization", f"Bearer {TOKEN}")]
    stub = Client(server, stubs, credentials=creds).stub
    refusal(stub.Metrics, stubs.pb.MetricsRequest(), metadata=[("authorization", TOKEN)])
    refusal(stub.Compress, iter([stubs.pb.CompressRequest(data=b"x")]), metadata=metadata)
    metrics = str(stub.Metrics(stubs.pb.MetricsRequest(), metadata=metadata))
    pair.key.write_text(pair.key.read_text().replace("BEGIN", "BEGUN"))
    tokens.write_text(TOKEN[:8])
    wait_for(lambda: "cannot be read again" in server.log() or not handshake(server.address, authority),
             "a broken key in the log")
    said = page(server.metrics_address) + metrics
    assert server.stop() == 0
    said += server.log()
    assert "code=INVALID_ARGUMENT" in said and "--tls-key" in said
    body = pair.key.read_text().splitlines()[1]
    assert len(body) > 40
    for secret in (TOKEN, TOKEN[:8], body, body[:40]):
        assert secret not in said


@pytest.fixture
def other_client():
    """Another client of a daemon, at an IP address of its own: other_client(server), the same with its address."""
    forwarders = []

    def start(server):
        forwarders.append(Forwarder(server.address, "127.0.0.2"))
        other = copy.copy(server)
        other.address = forwarders[-1].address
        return other

    yield start
    for forwarder in forwarders:
        forwarder.close()


def test_ten_thousand_streams(daemon, stubs, other_client):
    server = daemon(budget=256 * MIB)
    other = other_client(server)
    before, _ = memory(server.pid)
    connections = []
    for _ in range(32):
        connection = connect(server.address)
        # Those above what one connection may have, too: HTTP/2's own limit is only told.
        calls = [open_call(2 * number + 1, f"/{SERVICE}/Compress") for number in range(320)]
        connection.sendall(PREFACE + frame(SETTINGS) + b"".join(calls))
        connections.append(connection)
    stub = Client(server, stubs).stub

    def refused():
        text = page(server.metrics_address)
        return page_value(text, 'kvcompress_rejected_requests_total{reason="max_streams_per_client"}') >= 10_000 - 192
    wait_for(refused, "10,000 streams", 60)
    assert stub.Metrics(stubs.pb.MetricsRequest(), timeout=10).streams_in_flight == 192
    saw("10,000 streams of one client", refusal(stub.Compress, iter([])),
        refusal(stub.CompressTensor, stubs.pb.CompressTensorRequest()))
    assert serves(other, stubs)
    grown = memory(server.pid)[0] - before
    assert grown < 200 * MIB, grown / MIB
    for connection in connections:
        connection.close()
    wait_for(lambda: stub.Metrics(stubs.pb.MetricsRequest()).streams_in_flight == 0, "streams that end")
    assert serves(server, stubs)
    print(f"{grown / MIB:.0f} MiB")


def test_calls_without_end(daemon, stubs, other_client):
    server = daemon("--max-call-rate-per-client", "100")
    stub = Client(server, stubs).stub
    calls = [stub.Metrics.future(stubs.pb.MetricsRequest(), timeout=30) for _ in range(5000)]
    refused = [call for call in calls if call.code() != grpc.StatusCode.OK]
    assert len(refused) > 4000
    saw("calls without end, with `--max-call-rate-per-client 100`",
        *(f"{call.code().name}: {call.details()}" for call in refused))
    assert serves(other_client(server), stubs)


def test_health_watches_without_end(daemon, stubs, other_client):
    """No limit of ours counts them, and HTTP/2's own binds only who acknowledges it."""
    server = daemon()
    before, _ = memory(server.pid)
    connection = connect(server.address)
    calls = [open_call(2 * number + 1, "/grpc.health.v1.Health/Watch") for number in range(10_000)]
    connection.sendall(PREFACE + frame(SETTINGS) + b"".join(calls))
    assert serves(other_client(server), stubs)
    grown = memory(server.pid)[0] - before
    print(f"{grown / MIB:.0f} MiB")
    connection.close()
    assert grown < 300 * MIB


def zeros_in_a_message(mebibytes):
    """A gzip message of a CompressTensorRequest with so much data; as frames of HTTP/2."""
    size, tag = mebibytes * MIB, b"\x12"
    while size >= 0x80:
        tag, size = tag + bytes([size & 0x7f | 0x80]), size >> 7
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = packer.compress(tag + bytes([size]))
    body += b"".join(packer.compress(bytes(MIB)) for _ in range(mebibytes)) + packer.flush()
    return b"\1" + len(body).to_bytes(4, "big") + body


def test_compressed_messages(daemon, stubs, tmp_path):
    """Inflated before anything could ask for their size or their token: 60 kB were 60 MiB, also for health checks."""
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    server = daemon("--token-file", str(tokens))
    before, _ = memory(server.pid)
    message = zeros_in_a_message(60)
    assert len(message) < 65_536  # the window of a connection
    data = b"".join(frame(0, message[at:at + 16384], int(at + 16384 >= len(message)), 1)
                    for at in range(0, len(message), 16384))
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    for path in ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", reflection, "/no.such/Method",
                 f"/{SERVICE}/CompressTensor", f"/{SERVICE}/Compress"):
        for header in (("grpc-encoding", "gzip"), ("grpc-encoding", "deflate"), ("content-encoding", "gzip"),
                       ("grpc-encoding", "stream/gzip")):
            connection = connect(server.address)
            connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=1) +
                               open_call(1, path, ("authorization", f"Bearer {TOKEN}"), header) + data)
            assert any(kind in (HEADERS, RST_STREAM) for kind, _ in read_frames(connection)), (path, header)
            connection.close()
    assert memory(server.pid)[0] - before < 30 * MIB
    client = Client(server, stubs)
    metadata = [("authorization", f"Bearer {TOKEN}")]
    options = {"compression": grpc.Compression.Gzip, "metadata": metadata}
    request = stubs.pb.CompressTensorRequest(data=bytes(100_000))
    health = server.channel().unary_unary("/grpc.health.v1.Health/Check")
    saw("a compressed message", refusal(client.stub.CompressTensor, request, **options),
        refusal(client.stub.Compress, iter([stubs.pb.CompressRequest(data=bytes(100_000))]), **options),
        refusal(health, b"", **options))


def test_promises_without_work(daemon, stubs, other_client):
    """A header of 26 bytes asks for memory, and nothing comes after it."""
    server = daemon("--stream-idle-timeout", "3s", "--threads", "2")
    client, neighbour = Client(server, stubs), Client(other_client(server), stubs)
    whole = Feed(client.header("t", [14 * MIB], "sparse|int4"))
    calls = [client.stub.Compress(whole, timeout=60)]
    wait_for(lambda: client.metrics().bytes_in_flight > 0.9 * 64 * MIB, "a full budget")
    assert serves_at_once(neighbour)
    feeds = [Feed(client.header("t", [MIB], "int4")) for _ in range(30)]
    calls += [client.stub.Compress(feed, timeout=60) for feed in feeds]
    wait_for(lambda: client.metrics().streams_in_flight == 31, "streams")
    assert serves_at_once(neighbour)
    saw("headers that ask for all of the memory, and nothing after them, with `--stream-idle-timeout 3s`",
        *(failure_text(call) for call in calls))
    for feed in [whole, *feeds]:
        feed.close()
    client.wait_until_idle()
    assert client.metrics().rejected_by_reason["stream_idle"] == 31


def failure_text(call):
    """"CODE: text" of a call that has begun."""
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    return f"{error.value.code().name}: {error.value.details()}"


def serves_at_once(client):
    """Whether a small tensor and a stream are let in, without a second try."""
    header = client.header("t", [1000], "int4")
    client.stub.CompressTensor(client.pb.CompressTensorRequest(header=header.header, data=bytes(2000)), timeout=30)
    return list(client.compress({"t": random_array(MIB)}, timeout=30)[0]) == ["t"]


def stop_in_the_middle(server, count, beginning, source="127.0.0.1"):
    connections = [connect(server.address, source) for _ in range(count)]
    for connection in connections:
        try:
            connection.sendall(beginning)
        except OSError:
            pass  # closed already
    return connections


@pytest.mark.parametrize("beginning", [PREFACE[:10], PREFACE, PREFACE + frame(SETTINGS)[:5], b""],
                         ids=["half_a_preface", "no_settings", "half_of_the_settings", "nothing"])
def test_connections_that_stop_in_the_middle(daemon, stubs, other_client, beginning):
    server = daemon("--handshake-timeout", "2s", "--max-connections", "20")
    other = other_client(server)
    start = time.monotonic()
    connections = stop_in_the_middle(server, 40, beginning)
    closed = [is_closed(connection) for connection in connections]
    assert closed == [False] * 15 + [True] * 25 or time.monotonic() - start > 2
    assert serves(other, stubs)
    assert Client(other, stubs).metrics().rejected_by_reason["max_connections"] == 25
    assert all(is_closed(connection, 10) for connection in connections)
    assert time.monotonic() - start < 10
    # A client sees the end of its connection before the daemon has given the socket back.
    wait_for(lambda: page_value(page(server.metrics_address), "kvcompress_connections") < 5, "room for a client")
    assert serves(server, stubs)
    if beginning == PREFACE[:10]:
        saw("connections that stop in the middle of the handshake",
            "of one client, 768 may do so, for 10 s; what comes above is closed at once")


@pytest.mark.skipif(os.environ.get("KVC_TIER") != "long", reason="takes as long as a keepalive, 80 s")
def test_a_header_that_stops_in_the_middle(daemon, stubs):
    server = daemon()
    connections = stop_in_the_middle(server, 10, PREFACE + frame(SETTINGS) + open_call(1, f"/{SERVICE}/Compress")[:30])
    assert not any(is_closed(connection, 0.1) for connection in connections)
    assert serves(server, stubs)
    deadline = time.monotonic() + 100
    assert all(is_closed(connection, deadline - time.monotonic()) for connection in connections)


def test_a_tls_handshake_that_stops_in_the_middle(daemon, stubs, authority):
    server = daemon(*tls_flags(authority.issue("daemon")), "--handshake-timeout", "2s")
    hello = bytes([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])
    connections = stop_in_the_middle(server, 10, hello)
    assert serves(server, stubs, credentials=credentials(authority))
    assert all(is_closed(connection, 10) for connection in connections)


def test_no_descriptor_left(daemon, stubs):
    server = daemon()
    assert serves(server, stubs)
    limit = descriptors(server.pid) + 10
    before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, resource.prlimit(
        server.pid, resource.RLIMIT_NOFILE)[1]))
    connections = [connect(server.address) for _ in range(50)]
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    assert serves(server, stubs)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)


def test_pings_without_end(daemon, stubs):
    server = daemon()
    connection = connect(server.address)
    connection.sendall(PREFACE + frame(SETTINGS))
    try:
        for _ in range(100):
            connection.sendall(frame(PING, bytes(8)))
    except OSError:
        pass  # the daemon has had enough
    (reason,) = {payload[8:].decode() for kind, payload in read_frames(connection)
                 if kind == GOAWAY and int.from_bytes(payload[4:8], "big") == 11}
    saw("pings without end", f"connection closed with ENHANCE_YOUR_CALM: {reason}")
    assert serves(server, stubs)


def flood(connection, data, most):
    """Sends the same over and over, until the other side has closed the connection: how many bytes."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(data)
            sent += len(data)
    except OSError:
        return sent
    raise AssertionError(f"{sent} bytes were taken")


def test_header_blocks_without_end(daemon, stubs, other_client):
    """CONTINUATION after CONTINUATION: no call exists that could be refused. gRPC ends most such connections by
    itself, as the bytes happen to come; the others, which it would take in for ever, the daemon closes."""
    server = daemon()
    other = Client(other_client(server), stubs)
    small = header_field("x", "y" * 100) * 150
    part_of_a_long_value = frame(CONTINUATION, b"\0\1x\x7f\x81\xfe\x3f" + bytes(8192), 0, 1)
    taken = []
    while len(taken) < 100 and other.metrics().rejected_by_reason["connection_memory"] == 0:
        connection = connect(server.address)
        try:
            connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=1) +
                               open_call(1, f"/{SERVICE}/Compress", flags=0) + frame(CONTINUATION, small, 0, 1))
            taken.append(flood(connection, part_of_a_long_value * 16, 1024 * MIB))
        except OSError:
            taken.append(0)
    assert serves_at_once(other)
    print(f"{len(taken)} connections, closed after {max(taken) / MIB:.0f} MiB at most")
    saw("a header block without end", "connection closed, at the latest when the process has 64 MiB more than its budget")


def test_messages_that_stop_in_the_middle(daemon, stubs, other_client):
    """All but the last byte of as many messages as there can be. gRPC has them; no call of a single tensor exists."""
    server = daemon("--stream-idle-timeout", "2s")
    other = Client(other_client(server), stubs)
    header = b"\0" + (4 * MIB - 100).to_bytes(4, "big")
    senders = []
    for method in ("Compress", "CompressTensor"):
        for _ in range(2):
            sender = Sender(server.address)
            senders.append(sender)
            try:
                for stream in range(1, 81, 2):
                    sender.open(stream, f"/{SERVICE}/{method}")
                    sender.send(stream, header + bytes(4 * MIB - 101))
            except OSError:
                pass  # it has been closed
    assert serves_at_once(other)
    wait_for(lambda: other.metrics().streams_in_flight == 0, "streams that end")
    peak, now = memory(server.pid)
    print(f"{peak / MIB:.0f} MiB, then {now / MIB:.0f}")
    rejected = other.metrics().rejected_by_reason
    assert rejected["stream_idle"] + rejected["connection_memory"] > 0
    saw("messages that stop in the middle", "of streams, DEADLINE_EXCEEDED after `--stream-idle-timeout`; connections "
        "are closed once the process has 64 MiB more than its budget")
    for sender in senders:
        sender.connection.close()


def test_calls_reset_as_fast_as_they_come(daemon, stubs, other_client):
    server = daemon()
    other = other_client(server)
    connection = connect(server.address)
    connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=1))
    cancel = (8).to_bytes(4, "big")
    try:
        for first in range(1, 400_001, 2000):
            connection.sendall(b"".join(
                open_call(stream, f"/{SERVICE}/Compress") + frame(RST_STREAM, cancel, 0, stream)
                for stream in range(first, first + 2000, 2)))
    except OSError:
        pass
    assert serves(other, stubs)
    connection.close()


def test_headers_and_messages_without_end(daemon, stubs):
    server = daemon()
    stub = Client(server, stubs, ("grpc.max_metadata_size", MIB)).stub
    text = refusal(stub.Metrics, stubs.pb.MetricsRequest(), metadata=[("x", "x" * 10_000)])
    saw("headers of 10 kB", text.split(" (")[0])
    # gRPC ends the connection of such headers, and with it what follows there: messages go another way.
    stub = Client(server, stubs, ("grpc.use_local_subchannel_pool", 1)).stub
    saw("a message of 5 MB", refusal(stub.CompressTensor, stubs.pb.CompressTensorRequest(data=bytes(5_000_000))),
        refusal(stub.Compress, iter([stubs.pb.CompressRequest(data=bytes(5_000_000))])))
    assert serves(server, stubs)


def test_small_fields_without_end(daemon, stubs):
    """Two bytes of an unknown, empty field become some sixty when they are parsed."""
    server = daemon("--shared-memory", PREFIX)
    message = b"\x7a\x00" * (3 * MIB // 2)
    before, _ = memory(server.pid)
    with grpc.insecure_channel(server.address) as channel:
        def unary(method):
            return refusal(channel.unary_unary(f"/{SERVICE}/{method}"), message)

        def stream(method):
            return refusal(channel.stream_stream(f"/{SERVICE}/{method}"), iter([message]))
        texts = [unary(method) for method in ("Metrics", "Capabilities", "CompressTensor", "DecompressTensor")]
        texts += [stream(method) for method in ("Compress", "Decompress", "SharedMemory")]
    saw("a message of 3 MiB in fields of two bytes", *(text.split(" of ")[0] for text in texts))
    assert memory(server.pid)[0] - before < 30 * MIB
    assert serves(server, stubs)


def front_of_a_frame(daemon, stubs, elements):
    """The first bytes of a frame that claims so many values of F32."""
    client = Client(daemon("--max-tensor-bytes", "1024TiB"), stubs)
    feed = Feed(client.header("t", [elements], "raw|zstd(level=3)", dtype=3), client.data(bytes(MIB // 2)))  # a block
    call = client.stub.Compress(feed, timeout=30)
    front = next(call).frame
    call.cancel()
    feed.close()
    return front


def test_claims_of_sizes(daemon, stubs):
    tebibyte, gib60 = 1 << 38, 15 << 30
    server = daemon("--threads", "2")
    client = Client(server, stubs)
    bomb, within = front_of_a_frame(daemon, stubs, tebibyte), front_of_a_frame(daemon, stubs, gib60)
    before, _ = memory(server.pid)

    def in_one_message(front):
        header = stubs.pb.DecompressHeader(name="t")
        return refusal(client.stub.DecompressTensor, stubs.pb.DecompressTensorRequest(header=header, frame=front))
    saw("a small frame that claims a TiB", in_one_message(bomb),
        refusal(client.stub.Decompress, iter([client.frame_header("t"), client.frame(bomb)])))
    saw("a small frame that claims 60 GiB, in one message", in_one_message(within))
    saw("the same on a stream, which then ends", refusal(client.stub.Decompress,
                                        iter([client.frame_header("t"), client.frame(within)])))
    saw("a tensor of 2^60 values", refusal(client.stub.Compress, iter([client.header("t", [1 << 60])])))
    assert memory(server.pid)[0] - before < 30 * MIB


def test_shared_memory_that_was_not_asked_for(daemon, stubs):
    server = daemon()
    register = stubs.pb.SharedMemoryRequest(
        register=stubs.pb.SharedMemoryRegister(name="a", key="/kvcompress-a", byte_size=4096))
    saw("shared memory, which is off by default", refusal(Client(server, stubs).stub.SharedMemory, iter([register])))


def test_shared_memory_without_end(daemon, stubs, other_client):
    """One object, registered over and over: each time it has page tables of its own."""
    server = daemon("--shared-memory", PREFIX)
    client = Client(server, stubs)
    streams = [Registration(client)]
    other = Registration(Client(other_client(server), stubs))
    with Object("again", 4096) as thing:
        try:
            with pytest.raises(grpc.RpcError):
                for number in range(4096):
                    if number % 64 == 0 and number > 0:
                        streams.append(Registration(client))
                    streams[-1].register(str(number), thing)
            saw("shared memory registered without end", f"{failed(streams[-1])}")
            other.register("a", thing)

            capacity = shutil.disk_usage("/dev/shm").total
            thing.truncate(capacity)
            with pytest.raises(grpc.RpcError):
                other.begin("too large beside the first", thing, size=capacity)
            assert "RESOURCE_EXHAUSTED: regions of one client may have" in failed(other)
            assert serves(server, stubs)
        finally:
            for stream in [*streams, other]:
                stream.cancel()


def test_shared_memory_that_is_a_link(daemon, stubs):
    """What its client has made of a key is no fault of the daemon, of which its operator would hear."""
    server = daemon("--shared-memory", PREFIX)
    path = pathlib.Path(f"/dev/shm/{PREFIX}{os.getpid()}-link")
    path.symlink_to("/dev/zero")
    try:
        register = stubs.pb.SharedMemoryRequest(
            register=stubs.pb.SharedMemoryRegister(name="a", key=f"/{path.name}", byte_size=4096))
        text = refusal(Client(server, stubs).stub.SharedMemory, iter([register]))
    finally:
        path.unlink()
    saw("a link in the place of shared memory", text.replace(f" /{path.name}", ""))
    assert page_value(page(server.metrics_address),
                      'kvcompress_requests_total{code="UNKNOWN",method="SharedMemory"}') is None


def scrape_seconds(server):
    begun = time.monotonic()
    assert "kvcompress_build_info" in page(server.metrics_address)
    return time.monotonic() - begun


def test_a_metrics_page_kept_busy(daemon, stubs):
    server = daemon()
    for attack, beginning, count in [("16 halves of a request for the metrics page", b"GET /metrics HTTP/1.1\r\n", 16),
                                     ("500 idle connections to the metrics page", b"", 500),
                                     ("100 that do not read the metrics page",
                                      b"GET /metrics HTTP/1.1\r\n\r\n" * 100, 100)]:
        connections = []
        for _ in range(count):
            connections.append(connect(server.metrics_address))
            try:
                connections[-1].sendall(beginning)
            except OSError:
                pass  # closed in favour of a younger one
        assert scrape_seconds(server) < 2
        saw(attack, "nothing: a scrape beside them is answered at once; each has 5 s for its request, and of 64 the oldest goes")
        for connection in connections:
            connection.close()
    assert serves(server, stubs)


def test_the_table_in_the_document():
    if len(seen) < 20:
        pytest.skip("only some of the attacks were made")
    rows = ["| attack | what the attacker gets |\n", "|---|---|\n"]
    rows += [f"| {attack} | {refused.replace('|', chr(92) + '|')} |\n" for attack, refused in seen]
    front, rest = DOCUMENT.read_text().split(BEGIN)
    table, back = rest.split(END)
    if os.environ.get("KVC_UPDATE_DOCS"):
        table = "".join(rows)
        DOCUMENT.write_text(front + BEGIN + table + END + back)
    assert table.splitlines(keepends=True) == rows  # as lists, so that a failure names the row that differs
