"""Calls without a network: the steps that they name, and what becomes of answers and failures."""

import copy
import dataclasses
import pickle

import grpc
import kvcompress
import numpy as np
import pytest
from fake_server import capabilities
from google.rpc import error_details_pb2, status_pb2
from kvcompress._core import Core, Message, Streaming, Unary, Wait
from kvcompress._status import from_rpc
from kvcompress.v1 import kvcompress_pb2 as pb

SMALL, LARGE = np.ones(10, np.float16), np.ones(1 << 20, np.float16)
OFFER = capabilities(kvcompress.__version__)
ANSWER = pb.CompressTensorResponse(report=pb.TensorReport(name="t", frame_bytes=5), frame=b"frame").SerializeToString()
POLICY = kvcompress.RetryPolicy(max_attempts=3, initial_backoff=1, multiplier=2, max_backoff=10, jitter=0)


class Failure(grpc.RpcError):
    def __init__(self, code, pushback=None, details=None):
        sent = {"grpc-retry-pushback-ms": pushback, "grpc-status-details-bin": details}
        self._code, self._trailers = code, [(key, value) for key, value in sent.items() if value]

    def code(self):
        return self._code

    def details(self):
        return "not now"

    def trailing_metadata(self):
        return self._trailers


def failure(code, pushback=None):
    return from_rpc(Failure(code, pushback))


UNAVAILABLE = failure(grpc.StatusCode.UNAVAILABLE)


@pytest.fixture
def core():
    return Core(60, POLICY, lambda said: None)


def run(plan, *came):
    """The steps of a plan, which is told what came of each of them, and its result or what it raises."""
    steps, came = [], list(came)
    try:
        step = next(plan)
        while True:
            steps.append(step)
            answer = came.pop(0)
            step = plan.throw(answer) if isinstance(answer, Exception) else plan.send(answer)
    except StopIteration as end:
        return steps, end.value
    except Exception as error:
        return steps, error


def test_a_small_tensor_goes_by_one_message_and_a_large_one_by_a_stream(core):
    steps, frame = run(core.compress(SMALL, "raw", name="t"), OFFER, ANSWER)
    assert [step.method for step in steps] == ["Capabilities", "CompressTensor"]
    assert all(59 < step.timeout <= 60 for step in steps)
    assert frame.data == b"frame"
    assert pb.CompressTensorRequest.FromString(steps[1].request).data == SMALL.tobytes()
    (step,), found = run(core.compress(LARGE), [frame])
    assert isinstance(step, Streaming)
    assert step.exchange.method == "Compress"
    assert found is frame
    steps, many = run(core.compress_many([("t", SMALL)], "raw", None, "error", None, None))
    assert steps == []
    assert (many.exchange.method, many.items) == ("Compress", [("t", SMALL)])


def test_a_driver_that_takes_items_is_given_small_tensors_as_they_are():
    core = Core(60, POLICY, lambda said: None, lambda: True)
    (_, step), found = run(core.compress(SMALL, "raw", name="t"), OFFER, "frame")
    assert isinstance(step, Message)
    assert step.item.data == SMALL.tobytes()
    assert 59 < step.left() <= 60
    assert found == "frame"


@pytest.mark.parametrize("shares", [False, True])
def test_a_tensor_of_the_recommended_size_goes_by_a_message_unless_streams_share_memory(shares):
    core = Core(60, POLICY, lambda said: None, lambda: True, lambda: shares)
    run(core.wait_ready(), pb.MetricsResponse().SerializeToString(), OFFER)
    most = 1 << 20  # as the offer recommends
    for size, by_message in ((most // 4, True), (most, not shares), (most + 8192, False)):
        frame = kvcompress.Frame(bytes(5), "t", "raw", "F16", (size // 2,), size, 5, None, (), 0.5)
        for plan in (core.compress(np.ones(size // 2, np.float16)), core.decompress(frame)):
            assert isinstance(next(plan), Message if by_message else Streaming)


def test_without_a_driver_that_takes_items_no_size_shares_memory_for_a_message_alone():
    core = Core(60, POLICY, lambda said: None, lambda: False, lambda: True)
    run(core.wait_ready(), pb.MetricsResponse().SerializeToString(), OFFER)
    assert isinstance(next(core.compress(np.ones(1 << 19, np.float16))), Unary)


def test_a_frame_is_the_same_whether_its_report_is_read_or_not(core):
    quality = kvcompress.Quality(1.0, 0.5, 16.0, 0.75, 2.0, "POOR", 8.0)
    report = pb.TensorReport(name="t", codec="raw", tensor_bytes=20, frame_bytes=5, violations=["rmse"],
                             policy="others", quality=pb.Quality(**dataclasses.asdict(quality)), codec_seconds=0.5,
                             nonfinite_blocks=1)
    answer = pb.CompressTensorResponse(report=report, frame=b"frame").SerializeToString()
    run(core.wait_ready(), pb.MetricsResponse().SerializeToString(), OFFER)

    def made():
        return run(core.compress(SMALL, "raw", name="t"), answer)[1]

    equal = kvcompress.Frame(b"frame", "t", "raw", "F16", (10,), 20, 5, quality, ("rmse",), 0.5, policy="others",
                             nonfinite_blocks=1)
    for other in (made(), copy.copy(made()), copy.deepcopy(made()), pickle.loads(pickle.dumps(made())),
                  dataclasses.replace(made())):
        assert (other.policy, other.rotary, other.passed_through) == ("others", None, False)
        assert vars(other) == vars(equal)
    assert (made() == equal, hash(made()), repr(made())) == (True, hash(equal), repr(equal))
    with pytest.raises(AttributeError, match="no_such"):
        _ = made().no_such
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().name = "u"


def test_what_is_tried_again_and_after_which_wait(core):
    run(core.wait_ready(), pb.MetricsResponse().SerializeToString(), OFFER)
    busy = failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "5000")
    steps, frame = run(core.compress(SMALL), UNAVAILABLE, None, busy, None, ANSWER)
    assert frame.data == b"frame"
    assert [step.seconds for step in steps if isinstance(step, Wait)] == [1, 5]
    steps, error = run(core.compress(SMALL), UNAVAILABLE, None, UNAVAILABLE, None, UNAVAILABLE)
    assert [step.seconds for step in steps if isinstance(step, Wait)] == [1, 2]
    assert (type(error), str(error)) == (kvcompress.Unavailable, "not now")
    for final in (failure(grpc.StatusCode.RESOURCE_EXHAUSTED), failure(grpc.StatusCode.DATA_LOSS, "1")):
        assert len(run(core.compress(SMALL), final)[0]) == 1
    steps, error = run(core.compress(SMALL, timeout=4), busy)
    assert (len(steps), error.retry_after) == (1, 5)


def test_a_daemon_that_drains_is_waited_for(core):
    drains = pb.MetricsResponse(draining=True).SerializeToString()
    steps, error = run(core.wait_ready(2), drains, None, pb.MetricsResponse().SerializeToString(), OFFER)
    assert error is None
    assert [type(step) for step in steps] == [Unary, Wait, Unary, Unary]


def test_answers_that_are_none(core):
    for answer, text in ((b"\xff", "cannot be parsed"), (None, "before it had answered")):
        _, error = run(core.metrics(), answer)
        assert type(error) is kvcompress.KvCompressError
        assert text in str(error)


def test_what_fails_after_the_client_is_closed_is_cancelled(core):
    _, error = run(core.metrics(), ValueError("Cannot invoke RPC on closed channel!"))
    assert type(error) is ValueError
    core.closed = True
    _, error = run(core.metrics(), ValueError("Cannot invoke RPC on closed channel!"))
    assert (type(error), str(error)) == (kvcompress.Cancelled, "the client is closed")


def details(reason="SHARED_MEMORY_LOST", domain="kvcompress"):
    status = status_pb2.Status(code=5, message="gone")
    status.details.add().Pack(error_details_pb2.RetryInfo())
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
    return status.SerializeToString()


@pytest.mark.parametrize(("sent", "reason"), [
    (details(), pb.SHARED_MEMORY_LOST),
    (details("OUTPUT_BUFFERS_TOO_SMALL"), pb.OUTPUT_BUFFERS_TOO_SMALL),
    (details("OF_A_LATER_VERSION"), 0),
    (details("\u00fc"), 0),
    (details(domain="another"), 0),
    (details()[:-1], 0),
    (b"not protobuf", 0),
    (b"\xff" * 100, 0),
    ("text", 0),
    (None, pb.SHARED_MEMORY_LOST),  # as 0.1.0 says it
])
def test_reasons_of_failures(sent, reason):
    assert from_rpc(Failure(grpc.StatusCode.NOT_FOUND, details=sent)).reason == reason
