"""Daemons that know less than those which a client has asked before."""

import itertools
import time

import grpc
import kvcompress
import numpy as np
import pytest
from fake_server import FakeServer
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from kvcompress import _core
from kvcompress.v1 import kvcompress_pb2 as pb
from test_native import MIB, chunk


class OlderDaemon(FakeServer):
    """Passes calls on to a daemon, and knows no batches, whatever `said` makes of its capabilities."""

    def __init__(self, server, said):
        self._channel = grpc.insecure_channel(server.address, options=[("grpc.max_receive_message_length", 8 * MIB)])
        self.asked, self.refused, self._said = 0, 0, said
        super().__init__(kvcompress.__version__, {"Capabilities": self._capabilities}, {
            "Compress": lambda *call: self._passed("Compress", pb.CompressRequest, pb.CompressResponse, *call),
            "Decompress": lambda *call: self._passed("Decompress", pb.DecompressRequest, pb.DecompressResponse, *call)})

    def _capabilities(self, request, _):
        self.asked += 1
        said = pb.CapabilitiesResponse.FromString(
            self._channel.unary_unary("/kvcompress.v1.KvCompression/Capabilities")(request))
        self._said(said)
        return said.SerializeToString()

    def _passed(self, method, request, response, messages, context):
        refusals = []

        def single():
            for message in messages:
                if request.FromString(message).HasField("batch"):
                    refusals.append(message)
                    return
                yield message

        for answer in self._channel.stream_stream(f"/kvcompress.v1.KvCompression/{method}")(single()):
            if not refusals or not response.FromString(answer).HasField("stream"):
                yield answer
        if refusals:
            self.refused += 1
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "message without a payload")


def test_an_older_daemon_that_takes_over_gets_tensors_one_by_one(daemon, connect):
    server, first = daemon(), []
    tensors = [("large", np.ones(4 * MIB, np.float16)), *chunk()]
    expected = list(connect(server, native="off").compress_many(tensors, "int4(group=64)"))

    def said(capabilities):
        if first:
            capabilities.limits.max_batch_tensors = 0
        first.append(capabilities)

    with OlderDaemon(server, said) as older:
        client = connect(older, native="require", shared_memory=False)
        for asked in (1, 2):
            frames = list(client.compress_many(tensors, "int4(group=64)"))
            assert [(frame.name, frame.data) for frame in frames] == [(frame.name, frame.data) for frame in expected]
            assert (older.asked, older.refused) == (asked, 1)
        first.clear()
        client = connect(older, native="require", shared_memory=False)
        for refused in (2, 2):
            decoded = list(client.decompress_many(frames))
            assert [name for name, _ in decoded] == [name for name, _ in tensors]
            np.testing.assert_array_equal(decoded[0][1], tensors[0][1])
            assert older.refused == refused


def test_a_newer_daemon_that_takes_over_gets_small_tensors_together(daemon, connect, monkeypatch):
    """And shared memory, which the older one did not offer: after a while, as nobody tells of the change."""
    server, taken_over = daemon("--shared-memory", "kvc-older-"), []

    def said(capabilities):
        if not taken_over:
            capabilities.limits.max_batch_tensors = 0
            capabilities.transports.remove(pb.TRANSPORT_SHARED_MEMORY)

    with OlderDaemon(server, said) as older:
        client = connect(older, native="require")
        for asked, refused in ((1, 0), (1, 0)):
            assert len(list(client.compress_many(chunk(), "int4(group=64)"))) == len(chunk())
            assert (older.asked, older.refused) == (asked, refused)
            assert client.transport == "connection (the daemon does not offer shared memory)"
        taken_over.append(True)
        real = time.monotonic
        monkeypatch.setattr(_core.time, "monotonic", lambda: real() + 61)
        # The stand-in refuses a batch: that is how a client shows that it has learned of them.
        list(client.compress_many(chunk(), "int4(group=64)"))
        assert (older.asked, older.refused) == (2, 1)
        assert "does not offer" not in client.transport


class Between(FakeServer):
    """Passes calls on to a daemon with shared memory, and their messages as `change` makes them, which is given the
    headers of each and the context. `to_buffers` has of each Compress whether its output was to go to buffers."""

    def __init__(self, server, change):
        self._channel = grpc.insecure_channel(server.address, options=[("grpc.max_receive_message_length", 8 * MIB)])
        self._change, self.to_buffers = change, []
        capabilities = self._channel.unary_unary("/kvcompress.v1.KvCompression/Capabilities")
        super().__init__(kvcompress.__version__, {"Capabilities": lambda request, _: capabilities(request)}, {
            "SharedMemory": lambda messages, _: self._stream("SharedMemory", messages), "Compress": self._compress})

    def _stream(self, method, messages):
        return self._channel.stream_stream(f"/kvcompress.v1.KvCompression/{method}")(messages)

    def _changed(self, message, context, begins=False):
        request = pb.CompressRequest.FromString(message)
        headers = [request.header] if request.HasField("header") else list(request.batch.headers)
        if begins:
            self.to_buffers.append(any(header.frame_to_buffer for header in headers))
        self._change(headers, context)
        return request.SerializeToString()

    def _compress(self, messages, context):
        first = self._changed(next(messages), context, begins=True)
        following = (self._changed(message, context) for message in messages)
        try:
            yield from self._stream("Compress", itertools.chain([first], following))
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), "in words that change")


def test_frames_that_need_more_memory_than_was_given_come_in_messages_and_are_expected(daemon, connect):
    """One call is made again; those that follow give the memory at once."""
    server = daemon("--shared-memory", "kvc-larger-")
    tensor = np.ones(4 * MIB, np.float16)
    expected = connect(server).compress(tensor, "raw").data

    def enlarge(headers, _):
        for header in headers:
            header.codec = "raw"

    with Between(server, enlarge) as larger:
        client = connect(larger, native="require", retry=kvcompress.NO_RETRY)
        assert client.compress(tensor, "int4(group=64)").data == expected
        assert larger.to_buffers == [True, False]
        for _ in range(3):
            assert client.compress(tensor, "int4(group=64)").data == expected
            frames = list(client.compress_many([("tensor", tensor)] * 3, "int4(group=64)"))
            assert [frame.data for frame in frames] == [expected] * 3
        assert larger.to_buffers == [True, False] + [True] * 6


LOST = error_details_pb2.ErrorInfo(reason="SHARED_MEMORY_LOST", domain="kvcompress")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("code", "text", "info", "is_loss"), [
    (grpc.StatusCode.NOT_FOUND, "in words that change", LOST, True),
    (grpc.StatusCode.FAILED_PRECONDITION, "in words that change", LOST, True),
    (grpc.StatusCode.FAILED_PRECONDITION, "there is no artifact", None, False),
    (grpc.StatusCode.FAILED_PRECONDITION, "there is no artifact", error_details_pb2.ErrorInfo(
        reason="SHARED_MEMORY_LOST", domain="another"), False),
    # Of a daemon of a later version.
    (grpc.StatusCode.FAILED_PRECONDITION, "shared memory sleeps", error_details_pb2.ErrorInfo(
        reason="OF_A_LATER_VERSION", domain="kvcompress"), False),
    (grpc.StatusCode.NOT_FOUND, "the artifact has been archived", error_details_pb2.ErrorInfo(
        reason="OF_A_LATER_VERSION", domain="kvcompress"), False),
    # As 0.1.0 says it.
    (grpc.StatusCode.NOT_FOUND, "no shared memory region 0000000000000007", None, True),
    (grpc.StatusCode.FAILED_PRECONDITION, "shared memory is not enabled", None, True),
])
def test_shared_memory_that_a_daemon_has_lost(daemon, connect, code, text, info, is_loss):
    server, ends = daemon("--shared-memory", "kvc-forgetful-"), []
    tensor = np.ones(4 * MIB, np.float16)

    def end(_, context):
        if not ends:
            ends.append(code)
            if info is None:
                context.abort(code, text)
            status = status_pb2.Status(code=code.value[0], message=text)
            status.details.add().Pack(info)
            context.abort_with_status(rpc_status.to_status(status))

    with Between(server, end) as forgetful:
        client = connect(forgetful, retry=kvcompress.NO_RETRY)
        if is_loss:
            with pytest.raises(kvcompress.Unavailable, match=text) as error:
                client.compress(tensor)
            assert (error.value.code, error.value.retry_after) == (code, 0)
        else:
            with pytest.raises(kvcompress.KvCompressError, match=text) as error:
                client.compress(tensor)
            assert (error.value.code, error.value.detail, error.value.reason) == (code, text, 0)
            assert not isinstance(error.value, kvcompress.Unavailable)
        client.compress(tensor)
        assert client.transport == "shared memory"
        assert forgetful.to_buffers == [True, True]
