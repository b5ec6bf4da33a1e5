"""Daemons that know less than those which a client has asked before."""

import itertools
import time

import grpc
import kvcompress
import numpy as np
from fake_server import FakeServer
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


class NarrowDaemon(FakeServer):
    """Passes on what comes in messages, and ends calls whose output is to go to buffers: as a daemon does whose frames
    are larger than its client reckons, once it has no more buffers."""

    def __init__(self, server):
        self._channel = grpc.insecure_channel(server.address, options=[("grpc.max_receive_message_length", 8 * MIB)])
        self.refused = 0
        capabilities = self._channel.unary_unary("/kvcompress.v1.KvCompression/Capabilities")
        super().__init__(kvcompress.__version__, {"Capabilities": lambda request, _: capabilities(request)}, {
            "SharedMemory": self._shared_memory,
            "Compress": lambda *call: self._passed("Compress", *call)})

    def _shared_memory(self, messages, _):
        for message in messages:
            asked, answer = pb.SharedMemoryRequest.FromString(message), pb.SharedMemoryResponse()
            if asked.HasField("register"):
                answer.challenge = b"challenge"
            if asked.HasField("confirm"):
                answer.regions.add(name=asked.confirm.name, region=1)
            yield answer.SerializeToString()

    def _passed(self, method, messages, context):
        beginning = next(messages)
        first = pb.CompressRequest.FromString(beginning)
        if any(header.frame_to_buffer for header in (first.header, *first.batch.headers)):
            self.refused += 1
            context.abort(grpc.StatusCode.FAILED_PRECONDITION,
                          "the stream was half-closed, but its output needs another buffer")
        yield from self._channel.stream_stream(f"/kvcompress.v1.KvCompression/{method}")(
            itertools.chain([beginning], messages))


def test_frames_that_need_more_memory_than_was_given_come_in_messages(daemon, connect):
    server = daemon("--shared-memory", "kvc-narrow-")
    tensor = np.ones(4 * MIB, np.float16)
    expected = connect(server).compress(tensor, "int4(group=64)")
    with NarrowDaemon(server) as narrow:
        client = connect(narrow, native="require", retry=kvcompress.NO_RETRY)
        assert client.compress(tensor, "int4(group=64)").data == expected.data
        frames = list(client.compress_many([("tensor", tensor), *chunk()], "int4(group=64)"))
        assert frames[0].data == expected.data
        assert [frame.name for frame in frames[1:]] == [name for name, _ in chunk()]
        assert narrow.refused == 2
