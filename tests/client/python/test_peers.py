"""Servers that are not what they should be, or speak TLS."""

import asyncio
import datetime
import ipaddress
import itertools
import time

import grpc
import kvcompress
import numpy as np
import pytest
from fake_server import FakeServer
from kvcompress.v1 import kvcompress_pb2 as pb

pytestmark = pytest.mark.usefixtures("way")

ARRAY = np.arange(8, dtype=np.float16)
BIG = np.zeros(1 << 20, np.float16)
VERSION = kvcompress.__version__
FAST = kvcompress.RetryPolicy(initial_backoff=0.01, max_backoff=0.02)


def answer(request, context):
    return pb.CompressTensorResponse(
        report=pb.TensorReport(name="t", frame_bytes=5), frame=b"frame"
    ).SerializeToString()


class Failing:
    """Fails as it is told, and then answers."""

    def __init__(self, code, pushbacks):
        self.code, self.pushbacks, self.calls = code, list(pushbacks), 0

    def __call__(self, request, context):
        self.calls += 1
        if not self.pushbacks:
            return answer(request, context)
        pushback = self.pushbacks.pop(0)
        if pushback is not None:
            context.set_trailing_metadata([("grpc-retry-pushback-ms", pushback)])
        context.abort(self.code, "not now")


UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("code", "pushbacks", "calls", "error"), [
    (UNAVAILABLE, [None, None], 3, None),
    (UNAVAILABLE, [None] * 4, 3, kvcompress.Unavailable),
    (EXHAUSTED, ["20", "30"], 3, None),
    (EXHAUSTED, [None], 1, kvcompress.ResourceExhausted),
    (EXHAUSTED, ["-1"], 1, kvcompress.ResourceExhausted),
    (EXHAUSTED, ["soon"], 1, kvcompress.ResourceExhausted),
    (EXHAUSTED, ["99999999"], 1, kvcompress.ResourceExhausted),
    (grpc.StatusCode.INTERNAL, ["1"], 1, kvcompress.KvCompressError),
    (grpc.StatusCode.DATA_LOSS, ["1"], 1, kvcompress.DataLoss),
    (grpc.StatusCode.FAILED_PRECONDITION, ["1"], 1, kvcompress.FailedPrecondition),
])
def test_what_is_tried_again(connect, code, pushbacks, calls, error):
    policy = kvcompress.RetryPolicy(max_attempts=3, initial_backoff=0.01, max_backoff=0.02)
    work = Failing(code, pushbacks)
    with FakeServer(VERSION, {"CompressTensor": work}) as server:
        client = connect(server, retry=policy)
        if error is None:
            assert client.compress(ARRAY).data == b"frame"
        else:
            with pytest.raises(error, match="not now") as raised:
                client.compress(ARRAY)
            assert type(raised.value) is error
            assert raised.value.code == code
    assert work.calls == calls


def test_a_wait_that_would_pass_the_deadline_is_not_begun(connect):
    work = Failing(EXHAUSTED, ["5000"] * 3)
    with FakeServer(VERSION, {"CompressTensor": work}) as server, pytest.raises(
        kvcompress.ResourceExhausted) as error:
        connect(server, timeout=1).compress(ARRAY)
    assert (error.value.retry_after, work.calls) == (5.0, 1)


def test_asyncio_tries_again(connect):
    work = Failing(EXHAUSTED, ["20", "20"])

    async def run(address):
        async with kvcompress.AsyncClient(address, timeout=20, retry=FAST) as client:
            assert (await client.compress(ARRAY)).data == b"frame"

    with FakeServer(VERSION, {"CompressTensor": work}) as server:
        asyncio.run(run(server.address))
    assert work.calls == 3


@pytest.mark.parametrize("version", ["7.0.0", "", "x"])
def test_another_major_version(connect, version):
    work = Failing(UNAVAILABLE, [])
    with FakeServer(version, {"CompressTensor": work}) as server:
        client = connect(server)
        for call in (lambda: client.compress(ARRAY), lambda: list(client.compress_many([("t", ARRAY)]))):
            with pytest.raises(kvcompress.VersionMismatch) as error:
                call()
            assert str(error.value) == f"the daemon is version {version or 'unknown'}, and this package {VERSION}"
    assert work.calls == 0


def test_a_later_minor_version(connect):
    with FakeServer(VERSION.split(".")[0] + ".999.0", {"CompressTensor": answer}) as server:
        assert connect(server).compress(ARRAY).data == b"frame"


def test_methods_that_are_not_there(connect):
    with FakeServer(VERSION) as server, pytest.raises(kvcompress.Unimplemented):
        connect(server).compress(ARRAY)


def report(size):
    return pb.CompressResponse(tensor=pb.TensorReport(name="t", frame_bytes=size))


def header(shape, dtype=1):
    return pb.DecompressResponse(header=pb.Tensor(name="t", dtype=dtype, shape=shape))


def data(payload):
    return pb.DecompressResponse(data=payload)


END = pb.DecompressResponse(tensor=pb.TensorReport(name="t"))


def run_stream(connect, method, answers, call):
    def serve(requests, context):
        for _ in requests:
            pass
        yield from (message if isinstance(message, bytes) else message.SerializeToString() for message in answers)

    with FakeServer(VERSION, streams={method: serve}) as server:
        return call(connect(server))


@pytest.mark.parametrize("answers", [
    [],
    [b"\x0a"],
    [b"\x0a\x05abc"],
    [b"\x0b"],
    [b"\xff" * 11],
    [b"\x12\x02\xff\xff"],
    [report(1)],
    [pb.CompressResponse(frame=b"abc"), report(2)],
    [report(0), report(0)],
    [pb.CompressResponse(frame=bytes(3 << 20))] * 4,
], ids=str)
def test_answers_to_compress_that_cannot_be(connect, answers):
    with pytest.raises(kvcompress.KvCompressError, match=r"cannot be parsed|came as|answered all") as error:
        run_stream(connect, "Compress", answers, lambda client: client.compress(BIG))
    assert error.value.code is None


def test_a_frame_without_an_end(connect):
    part = pb.CompressResponse(frame=bytes(1 << 20))
    with pytest.raises(kvcompress.KvCompressError, match="cannot be parsed"):
        run_stream(connect, "Compress", itertools.repeat(part), lambda client: client.compress(BIG))


@pytest.mark.parametrize("answers", [
    [],
    [header([4]), data(bytes(8))],
    [data(bytes(8))],
    [END],
    [header([4]), data(bytes(9)), END],
    [header([4]), data(bytes(7)), END],
    [header([4], dtype=9)],
    [header([1 << 62, 1 << 62])],
    [header([1] * 9)],
    [header([4]), data(bytes(8)), END, data(bytes(8))],
], ids=str)
def test_answers_to_decompress_that_cannot_be(connect, answers):
    with pytest.raises(kvcompress.KvCompressError, match=r"cannot be parsed|cannot be:|answered all") as error:
        run_stream(connect, "Decompress", answers, lambda client: client.decompress(b"frame"))
    assert error.value.code is None


class Refusing:
    """A stream that is refused so often, and then answered."""

    def __init__(self, times, code=UNAVAILABLE):
        self.times, self.code, self.seconds = times, code, []

    def __call__(self, requests, context):
        self.seconds.append(context.time_remaining())
        if len(self.seconds) <= self.times:
            context.abort(self.code, "not now")
        for _ in requests:
            pass
        yield from (message.SerializeToString() for message in (header([4]), data(bytes(8)), END))


@pytest.mark.parametrize(("refusals", "code", "calls", "error"), [
    (2, UNAVAILABLE, 3, None),
    (9, UNAVAILABLE, 4, kvcompress.Unavailable),
    (9, grpc.StatusCode.DATA_LOSS, 1, kvcompress.DataLoss),
])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_work_that_is_tried_again(connect, kind, refusals, code, calls, error):
    stream, given = Refusing(refusals, code), []
    policy = kvcompress.RetryPolicy(max_attempts=4, initial_backoff=0.01, max_backoff=0.02)

    def blocking(address):
        client = connect(address, retry=policy)

        def work(seconds):
            given.append(seconds)
            return list(client.decompress_many([b"frame"], timeout=seconds))

        return client.with_retries(work, timeout=20)

    async def awaited(address):
        async with kvcompress.AsyncClient(address, retry=policy) as client:

            async def work(seconds):
                given.append(seconds)
                return [pair async for pair in client.decompress_many([b"frame"], timeout=seconds)]

            return await client.with_retries(work, timeout=20)

    with FakeServer(VERSION, streams={"Decompress": stream}) as server:
        run = blocking if kind == "blocking" else lambda address: asyncio.run(awaited(address))
        if error is None:
            ((_, tensor),) = run(server.address)
            assert tensor.shape == (4,)
        else:
            with pytest.raises(error, match="not now"):
                run(server.address)
    assert len(given) == len(stream.seconds) == calls
    assert sorted(given, reverse=True) == given
    assert all(15 < seconds <= 20 for seconds in given)
    # gRPC rounds up on the way.
    assert stream.seconds == pytest.approx(given, abs=1)


def test_work_without_a_limit_and_errors_of_its_own(connect):
    given = []

    def work(seconds):
        given.append(seconds)
        raise ValueError("of its own")

    client = connect("127.0.0.1:1", timeout=None)
    with pytest.raises(ValueError, match="of its own"):
        client.with_retries(work)
    with pytest.raises(ValueError, match="of its own"):
        client.with_retries(work, timeout=5)
    assert given[0] == float("inf")
    assert 4 < given[1] <= 5
    assert len(given) == 2


UNANSWERED = "the daemon ended the call before it had answered all of it"


def test_a_small_call_that_ends_well_without_an_answer(connect):
    async def compress(address):
        async with kvcompress.AsyncClient(address, timeout=30) as client:
            await client.compress(ARRAY)

    with FakeServer(VERSION, streams={"CompressTensor": lambda *_: iter(())}) as server:
        for call in (lambda: connect(server).compress(ARRAY), lambda: asyncio.run(compress(server.address))):
            with pytest.raises(kvcompress.KvCompressError, match=UNANSWERED) as error:
                call()
            assert error.value.code is None


def test_a_deadline_that_passes_before_all_answers_are_taken_is_no_fault_of_the_daemon(connect):
    """gRPC drops answers that it has already when the deadline passes, and tells of the daemon's OK all the same."""
    def take(client):
        tensors = client.decompress_many([b"frame", b"frame"], timeout=0.5)
        next(tensors)
        time.sleep(1)
        next(tensors)

    with pytest.raises(kvcompress.DeadlineExceeded) as error:
        run_stream(connect, "Decompress", 2 * [header([4]), data(bytes(8)), END], take)
    assert error.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_another_tensor_than_the_one_that_was_compressed(connect):
    answers = [header([4]), data(bytes(8)), END]
    good = run_stream(connect, "Decompress", answers, lambda client: client.decompress(b"frame"))
    assert good.tobytes() == bytes(8)
    frame = kvcompress.Frame(b"frame", "t", "raw", "F16", (1 << 20,), 2 << 20, 5, None, (), 0.0)
    with pytest.raises(kvcompress.DataLoss, match=r'frame "t" holds F16 \[4\], and not what was compressed'):
        run_stream(connect, "Decompress", answers, lambda client: client.decompress(frame))


def test_unknown_fields_are_passed_over(connect):
    unknown = b"\xb8\x3e\x07" + b"\xba\x3e\x02ab" + b"\x99\x06" + bytes(8) + b"\x95\x06" + bytes(4)
    answers = [unknown + message.SerializeToString() + unknown for message in (header([4]), data(bytes(8)), END)]
    assert run_stream(connect, "Decompress", answers, lambda client: client.decompress(b"f")).shape == (4,)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Paths of a key and of a certificate for localhost that vouches for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_tls(connect, certificate):
    cert, key = certificate
    pair = (key.read_bytes(), cert.read_bytes())
    mutual = grpc.ssl_server_credentials([pair], cert.read_bytes(), require_client_auth=True)
    for credentials, ours in [(grpc.ssl_server_credentials([pair]), {}), (mutual, {"certificate": cert, "key": key})]:
        with FakeServer(VERSION, {"CompressTensor": answer}, credentials=credentials) as server:
            good = connect(server, credentials=kvcompress.tls(cert, **ours))
            assert good.compress(ARRAY).data == b"frame"
            wrong = [({}, kvcompress.Unavailable), ({"credentials": kvcompress.tls()}, kvcompress.FailedPrecondition)]
            if ours:
                wrong.append(({"credentials": kvcompress.tls(cert)}, kvcompress.Unavailable))
            for options, error in wrong:
                with pytest.raises(error):
                    connect(server, retry=kvcompress.NO_RETRY, **options).compress(ARRAY)

            async def later(address=server.address, ours=ours):
                async with kvcompress.AsyncClient(address, credentials=kvcompress.tls(cert, **ours)) as client:
                    assert (await client.compress(ARRAY, timeout=10)).data == b"frame"

            asyncio.run(later())
