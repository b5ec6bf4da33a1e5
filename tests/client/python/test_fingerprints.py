"""Whose frame it is: what frames carry, and what their readers expect."""

import asyncio

import grpc
import kvcompress
import numpy as np
import pytest
from fake_server import FakeServer
from kvcompress.v1 import kvcompress_pb2 as pb

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20
ONE, OTHER = b"model/7/key/\x00\xff", b"model/8/key/\x00\xff"
SIZES = pytest.mark.parametrize("size", [100, 3 * MIB], ids=["one_message", "stream"])
VERSION = kvcompress.__version__


def values(size):
    return np.random.default_rng(1).standard_normal(size).astype(np.float16)


@pytest.fixture(params=["connection", "shared memory", "in process"])
def client(request, daemon, connect):
    if request.param == "in process":
        return kvcompress.LocalClient(threads=2)
    flags = ["--shared-memory", "kvc-python-"] if request.param == "shared memory" else []
    return connect(daemon("--threads", "2", *flags))


@SIZES
@pytest.mark.parametrize("spec", ["raw", "int4", "transform(bits=3)"])
def test_a_frame_says_whose_it_is(client, size, spec):
    array = values(size)
    plain = client.compress(array, spec)
    frame = client.compress(array, spec, fingerprint=ONE)
    assert (frame.fingerprint, plain.fingerprint) == (ONE, b"")
    assert len(frame) == len(plain) + 1 + len(ONE) == frame.frame_bytes
    expected = client.decompress(plain).tobytes()
    for source in (frame, frame.data):
        for fingerprint in (ONE, None, b""):
            assert client.decompress(source, fingerprint=fingerprint).tobytes() == expected


@SIZES
def test_a_frame_of_another_is_refused_before_a_value_is_written(client, size):
    array = values(size)
    frame, none = client.compress(array, "raw", fingerprint=ONE), client.compress(array, "raw")
    out = np.full(size, 7, np.float16)
    for source, wrong in ((frame, OTHER), (frame, ONE[:-1]), (frame, ONE + b"x"), (none, ONE), (none.data, ONE)):
        with pytest.raises(kvcompress.FingerprintMismatch, match=f"not fingerprint {wrong.hex()}") as error:
            client.decompress(source, out=out, fingerprint=wrong)
        assert error.value.code == grpc.StatusCode.ABORTED
        assert not isinstance(error.value, kvcompress.DataLoss)
    assert (out == 7).all()
    assert client.decompress(frame, out=out, fingerprint=ONE) is out
    assert (out == array).all()


def test_a_flipped_bit_of_a_fingerprint_is_data_loss(client):
    frame = client.compress(values(100), "transform(bits=3)", fingerprint=ONE)
    at = frame.data.index(ONE)
    for bit in range(8 * (len(ONE) + 1)):  # and its length
        damaged = bytearray(frame.data)
        damaged[at - 1 + bit // 8] ^= 1 << bit % 8
        for expected in (None, ONE):
            with pytest.raises(kvcompress.DataLoss):
                client.decompress(bytes(damaged), fingerprint=expected)


@SIZES
def test_each_item_of_a_stream_has_its_own(client, size):
    arrays = {str(i): values(size) + np.float16(i) for i in range(3)}
    marks = {name: b"chunk " + name.encode() for name in arrays}
    frames = list(client.compress_many([(name, array, "raw", None, marks[name]) for name, array in arrays.items()]))
    assert [frame.fingerprint for frame in frames] == list(marks.values())
    assert next(iter(client.compress_many([("t", values(10), None, None, None)]))).fingerprint == b""
    items = [(frame.name, frame.data, ("F16", (size,)), marks[frame.name]) for frame in frames]
    for name, tensor in client.decompress_many(items):
        assert (tensor == arrays[name]).all()
    kept = [(frame.name, frame, None, marks[frame.name]) for frame in frames]
    assert [name for name, _ in client.decompress_many(kept)] == list(arrays)

    came = client.decompress_many([items[0], (*items[1][:3], marks["2"]), items[2]])
    assert next(came)[0] == "0"
    with pytest.raises(kvcompress.FingerprintMismatch, match='tensor "1"'):
        next(came)
    with pytest.raises(kvcompress.FingerprintMismatch):
        client.with_retries(lambda seconds: list(client.decompress_many([(*items[0][:3], OTHER)], timeout=seconds)))
    assert [name for name, _ in client.decompress_many(items)] == list(arrays), "the client works on"


def test_asyncio_expects_them_too(daemon):
    async def run(address):
        async with kvcompress.AsyncClient(address, timeout=30) as client:
            frame = await client.compress(values(100), "raw", fingerprint=ONE)
            assert (await client.decompress(frame, fingerprint=ONE)).tobytes() == values(100).tobytes()
            with pytest.raises(kvcompress.FingerprintMismatch):
                await client.decompress(frame, fingerprint=OTHER)
            marked = [frame async for frame in client.compress_many([("t", values(100), "raw", None, ONE)])]
            assert marked[0].data == (await client.compress(values(100), "raw", fingerprint=ONE)).data
            with pytest.raises(kvcompress.FingerprintMismatch):
                async for _ in client.decompress_many([("t", marked[0], None, OTHER)]):
                    pass

    asyncio.run(run(daemon().address))


def test_what_is_no_fingerprint(client):
    frame = client.compress(values(10), "raw", fingerprint=bytes(64))
    assert client.decompress(frame, fingerprint=bytes(64)).shape == (10,)
    for wrong, text in ((bytes(65), "at most 64 bytes, not 65"), ("text", "bytes, not str"), (7, "bytes, not int")):
        for call in (
            lambda wrong=wrong: client.compress(values(10), fingerprint=wrong),
            lambda wrong=wrong: client.decompress(frame, fingerprint=wrong),
            lambda wrong=wrong: list(client.compress_many([("t", values(10), None, None, wrong)])),
            lambda wrong=wrong: list(client.decompress_many([("t", frame, None, wrong)])),
        ):
            with pytest.raises(kvcompress.InvalidArgument, match=text):
                call()


def test_a_daemon_that_does_not_know_them_is_found_out(connect):
    """It leaves the fields alone, and decodes whatever it is given."""

    def compress(request, context):
        report = pb.TensorReport(name="t", frame_bytes=5)
        return pb.CompressTensorResponse(report=report, frame=b"frame").SerializeToString()

    def decompress(request, context):
        tensor = pb.Tensor(name="t", dtype=pb.DTYPE_F16, shape=[10])
        return pb.DecompressTensorResponse(header=tensor, data=bytes(20)).SerializeToString()

    out = np.full(10, 7, np.float16)
    with FakeServer(VERSION, {"CompressTensor": compress, "DecompressTensor": decompress}) as server:
        client = connect(server)
        with pytest.raises(kvcompress.Unimplemented, match="does not know fingerprints"):
            client.compress(values(10), fingerprint=ONE)
        with pytest.raises(kvcompress.FingerprintMismatch):
            client.decompress(kvcompress.Frame(
                data=b"frame", name="t", codec="raw", dtype="F16", shape=(10,), tensor_bytes=20, frame_bytes=5,
                quality=None, violations=(), codec_seconds=0), out=out, fingerprint=ONE)
    assert (out == 7).all()
