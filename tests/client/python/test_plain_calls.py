"""Calls of one tensor or frame that the module makes as a whole, and those that it leaves to the plan of a call."""

import time

import grpc
import kvcompress
import ml_dtypes
import numpy as np
import pytest
import torch
from fake_server import FakeServer
from kvcompress import _client
from kvcompress.v1 import kvcompress_pb2 as pb

SPEC = "int4(group=64)"
SMALL = np.linspace(-3, 5, 3 * 16 * 64, dtype=np.float32).astype(np.float16).reshape(1, 3, 16, 64)
LARGE = np.linspace(-3, 5, 3 << 20, dtype=np.float32).astype(np.float16).reshape(3, -1, 64)


@pytest.fixture
def planned(monkeypatch):
    """The names of plans that are carried out."""
    names = []
    run = _client.Client._run

    def watched(client, plan, failed=None):
        names.append(plan.__name__)
        return run(client, plan, failed)

    monkeypatch.setattr(_client.Client, "_run", watched)
    return names


@pytest.fixture
def ready(daemon, connect):
    """A client that knows its daemon."""
    client = connect(daemon("--threads", "2", "--shared-memory", "kvc-plain-"), native="require")
    client.compress(LARGE)  # has memory from now on
    return client


def other_kinds(array):
    yield array
    yield array.astype(np.float32)
    yield array.astype(ml_dtypes.bfloat16)
    yield array.astype(np.int16)
    yield array.swapaxes(0, 1)
    yield array[:, ::2]
    yield array.astype(">f2")
    yield torch.from_numpy(array)
    yield torch.from_numpy(array).to(torch.bfloat16)[..., :32]


@pytest.mark.parametrize("array", [SMALL, np.asarray(SMALL[0, 0, 0, 0]), LARGE], ids=["small", "scalar", "large"])
def test_results_are_those_of_plans(ready, connect, planned, array):
    other = connect(ready._arguments[0], native="off")
    for tensor in other_kinds(array) if array.ndim else [array]:
        del planned[:]
        frame = ready.compress(tensor, SPEC, name="t")
        back = ready.decompress(frame)
        assert planned == []
        expected = other.compress(tensor, SPEC, name="t")
        assert vars(frame).keys() == vars(expected).keys()
        shown = ("data", "name", "dtype", "shape", "framework", "tensor_bytes", "violations", "fingerprint")
        assert [getattr(frame, name) for name in shown] == [getattr(expected, name) for name in shown]
        snr, expected_snr = (found.quality and found.quality.snr_db for found in (frame, expected))
        assert snr == pytest.approx(expected_snr, nan_ok=True)
        decoded = other.decompress(expected)
        assert (type(back), back.dtype, back.shape) == (type(decoded), decoded.dtype, decoded.shape)
        assert bool((back == decoded).all())


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
def test_an_output_is_written_into(ready, planned, array):
    frame = ready.compress(array, SPEC)
    del planned[:]
    out = np.zeros_like(array)
    assert ready.decompress(frame, out=out) is out
    assert planned == []
    assert np.array_equal(out, ready.decompress(frame))
    with_gaps = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), np.float16)[..., ::2]
    assert np.array_equal(ready.decompress(frame, out=with_gaps), out)
    assert len(planned) == 1
    for wrong in (out[..., 1:], out.astype(np.float32), out.view(np.int16), list(out)):
        with pytest.raises(kvcompress.InvalidArgument):
            ready.decompress(frame, out=wrong)
    out.flags.writeable = False
    with pytest.raises(kvcompress.InvalidArgument):
        ready.decompress(frame, out=out)


def test_what_is_not_plain_is_planned(ready, planned):
    frame = ready.compress(SMALL, spec=SPEC, name="t", axes=None, rotary=None, profile=None, timeout=5)
    ready.decompress(frame=frame, out=None, as_=None, fingerprint=None, timeout=5.0)
    assert planned == []
    ready.compress(SMALL, SPEC, axes=("other",) * 4)
    ready.compress(SMALL, SPEC, fingerprint=b"f")
    ready.compress(SMALL, "", profile={"version": 1, "default": SPEC})
    ready.compress(SMALL, SPEC, on_nonfinite="lossless")
    ready.decompress(frame, as_="torch")
    ready.decompress(bytes(frame))
    assert len(planned) == 6


@pytest.mark.parametrize(("arguments", "options"), [
    ((), {}), ((SMALL, SPEC, "t"), {}), ((SMALL,), {"unknown": None}), ((SMALL, SPEC), {"spec": SPEC}),
])
def test_arguments_that_do_not_fit_are_type_errors(ready, arguments, options):
    with pytest.raises(TypeError):
        ready.compress(*arguments, **options)


@pytest.mark.parametrize("options", [
    {"spec": None}, {"spec": 5}, {"spec": "\ud800"}, {"spec": "no such"}, {"name": None}, {"name": b"t"},
    {"name": "\ud800"}, {"name": ""}, {"timeout": -1}, {"timeout": -(10**400)}, {"timeout": "1"},
    {"timeout": float("nan")},
])  # fmt: skip
def test_arguments_that_are_none_are_named(ready, options):
    with pytest.raises(kvcompress.InvalidArgument):
        ready.compress(SMALL, **options)


def test_what_interrupts_the_reading_of_a_tensor_is_raised(ready):
    class Interrupted(np.ndarray):
        @property
        def shape(self):
            if interruptions:
                raise interruptions.pop()
            return super().shape

    tensor = SMALL.view(Interrupted)
    for interruption in (TimeoutError("a handler of a signal"), KeyboardInterrupt()):
        interruptions = [interruption]
        with pytest.raises((kvcompress.InvalidArgument, KeyboardInterrupt)) as raised:
            ready.compress(tensor, SPEC)
        assert interruption in (raised.value, raised.value.__cause__)
    assert ready.compress(tensor, SPEC).data == ready.compress(SMALL, SPEC).data


@pytest.mark.parametrize("timeout", [0, 1e-9])
def test_no_time(ready, timeout):
    with pytest.raises(kvcompress.DeadlineExceeded):
        ready.compress(SMALL, timeout=timeout)


def test_without_a_limit_of_time(daemon, connect, planned):
    client = connect(daemon(), native="require", timeout=None)
    client.compress(SMALL)
    del planned[:]
    for seconds in (1e12, 10**400):  # no time that gRPC knows
        client.compress(SMALL, timeout=seconds)
    assert len(planned) == 2
    client.compress(SMALL)
    assert len(planned) == 2


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
def test_a_frame_of_another_tensor_is_a_data_loss(ready, array):
    frame, other = ready.compress(array, SPEC), ready.compress(array.astype(np.float32), SPEC)
    false = kvcompress.Frame(other.data, "t", SPEC, "F16", frame.shape, 1, 1, None, (), 0.0)
    with pytest.raises(kvcompress.DataLoss, match=r'frame "t" holds F32 .* not what was compressed'):
        ready.decompress(false)
    damaged = kvcompress.Frame(frame.data[:-9] + bytes(9), "t", SPEC, "F16", frame.shape, 1, 1, None, (), 0.0)
    with pytest.raises(kvcompress.DataLoss):
        ready.decompress(damaged)
    assert np.array_equal(ready.decompress(frame), ready.decompress(frame))


class Busy:
    """Answers some calls, and fails others."""

    def __init__(self, failures):
        self.calls = 0
        self._failures = failures  # by the number of the call

    def __call__(self, request, context):
        self.calls += 1
        if failure := self._failures.get(self.calls):
            context.set_trailing_metadata([("grpc-retry-pushback-ms", "1")])
            context.abort(*failure)
        report = pb.TensorReport(name="t", tensor_bytes=SMALL.nbytes, frame_bytes=5)
        return pb.CompressTensorResponse(report=report, frame=b"frame").SerializeToString()


def test_a_failed_attempt_is_counted(connect):
    busy = Busy(dict.fromkeys((2, 3, 5, 6, 7), (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")))
    with FakeServer(kvcompress.__version__, {"CompressTensor": busy}) as server:
        client = connect(server, native="require", retry=kvcompress.RetryPolicy(3, 0.001))
        for calls in (1, 4):  # the third attempt is well
            assert client.compress(SMALL).data == b"frame"
            assert busy.calls == calls
        with pytest.raises(kvcompress.ResourceExhausted, match="busy"):
            client.compress(SMALL)
        assert busy.calls == 7


def test_attempts_share_the_time_of_the_call(connect):
    def slow(request, context):
        if slow.is_slow:
            left.append(context.time_remaining())
            time.sleep(0.2)
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        return Busy({})(request, context)

    slow.is_slow, left = False, []
    with FakeServer(kvcompress.__version__, {"CompressTensor": slow}) as server:
        client = connect(server, native="require", retry=kvcompress.RetryPolicy(4, 0.01))
        client.compress(SMALL)
        slow.is_slow = True
        with pytest.raises(kvcompress.KvCompressError):
            client.compress(SMALL, timeout=20)
        assert len(left) == 4
        assert left[-1] < 19.6  # after the sleeps of three others; gRPC rounds to tenths


@pytest.mark.parametrize("shared_memory", [False, True])
def test_large_results_wherever_they_begin(daemon, connect, shared_memory):
    client = connect(daemon("--shared-memory", "kvc-plain-"), native="require", shared_memory=shared_memory)
    whole = np.random.default_rng(1).integers(0, 1 << 15, (17 << 20) + 50, np.uint16)
    for first, last in ((0, None), (1, -1), (33, -8)):  # a large result does not go through the caches
        values = whole[first:last]
        frame = client.compress(values, "raw")
        assert len(frame) > values.nbytes > 32 << 20
        room = np.zeros_like(whole)
        assert client.decompress(frame, out=room[first:last].view(np.uint16)) is not None
        assert np.array_equal(room[first:last], values)
        assert not room[:first].any()
        assert last is None or not room[last:].any()
        assert np.array_equal(client.decompress(frame), values)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_many_results_that_are_large_together(daemon, connect, shared_memory):
    client = connect(daemon("--shared-memory", "kvc-plain-"), native="require", shared_memory=shared_memory)
    whole = np.random.default_rng(1).integers(0, 1 << 15, (17 << 20) + 50, np.uint16)
    places = [slice(begin + begin % 7, min(begin + 400_000, whole.size)) for begin in range(0, whole.size, 400_000)]
    frames = list(client.compress_many([(str(place), whole[place]) for place in places], "raw"))
    assert sum(map(len, frames)) > 32 << 20
    room = np.zeros_like(whole)
    list(client.decompress_many(frames, out=[room[place] for place in places]))
    for place in places:
        assert np.array_equal(room[place], whole[place])
        room[place] = 0
    assert not room.any()
    for place, (name, values) in zip(places, client.decompress_many(frames), strict=True):
        assert name == str(place)
        assert np.array_equal(values, whole[place])
