"""A client of the service in terms of arrays and bytes, and what else tests of the daemon share."""

import http.client
import threading
import time

import grpc
import ml_dtypes
import numpy as np
import pytest

SERVICE = "kvcompress.v1.KvCompression"
MIB = 1 << 20
DTYPES = {1: np.dtype(np.float16), 2: np.dtype(ml_dtypes.bfloat16), 3: np.dtype(np.float32)}  # by their numbers in the service


def wait_for(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def page(address):
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 200
    return response.read().decode()


def page_value(text, series):
    """The value of one series, named as the page has it."""
    for line in text.splitlines():
        if line.startswith(series + " "):
            return float(line.rsplit(" ", 1)[1])
    return None


class Client:
    """The service of one daemon, in terms of arrays and bytes."""

    def __init__(self, daemon, stubs, *options, **credentials):
        self.pb = stubs.pb
        self.stub = stubs.rpc.KvCompressionStub(daemon.channel(*options, **credentials))

    def header(self, name, shape, codec="", dtype=1, axes=()):
        tensor = self.pb.Tensor(name=name, dtype=dtype, shape=shape, axes=axes)
        return self.pb.CompressRequest(header=self.pb.CompressHeader(tensor=tensor, codec=codec))

    def data(self, payload):
        return self.pb.CompressRequest(data=payload)

    def frame_header(self, name):
        return self.pb.DecompressRequest(header=self.pb.DecompressHeader(name=name))

    def frame(self, payload):
        return self.pb.DecompressRequest(frame=payload)

    def compress_requests(self, tensors, chunk=MIB, codec=""):
        for name, array in tensors.items():
            (dtype,) = (number for number, dtype in DTYPES.items() if dtype == array.dtype)
            yield self.header(name, array.shape, codec, dtype)
            payload = array.tobytes()
            for at in range(0, len(payload), chunk):
                yield self.data(payload[at:at + chunk])

    def compress(self, tensors, chunk=MIB, codec="", timeout=60):
        """Frames by name, reports by name, the stream's report."""
        frames, reports, stream, frame = {}, {}, None, b""
        for response in self.stub.Compress(self.compress_requests(tensors, chunk, codec), timeout=timeout):
            kind = response.WhichOneof("payload")
            if kind == "frame":
                assert 0 < len(response.frame) <= MIB
                frame += response.frame
            elif kind == "tensor":
                reports[response.tensor.name] = response.tensor
                frames[response.tensor.name], frame = frame, b""
            else:
                assert stream is None and not frame
                stream = response.stream
        return frames, reports, stream

    def decompress_requests(self, frames, chunk=MIB):
        for name, frame in frames.items():
            yield self.frame_header(name)
            for at in range(0, len(frame), chunk):
                yield self.frame(frame[at:at + chunk])

    def decompress(self, frames, chunk=MIB, timeout=60):
        arrays, reports, stream, tensor, data = {}, {}, None, None, []
        for response in self.stub.Decompress(self.decompress_requests(frames, chunk), timeout=timeout):
            kind = response.WhichOneof("payload")
            if kind == "header":
                assert tensor is None
                tensor = response.header
            elif kind == "data":
                assert 0 < len(response.data) <= MIB
                data.append(response.data)
            elif kind == "tensor":
                assert tensor.name == response.tensor.name
                arrays[tensor.name] = np.frombuffer(b"".join(data), DTYPES[tensor.dtype]).reshape(tuple(tensor.shape))
                reports[tensor.name] = response.tensor
                tensor, data = None, []
            else:
                stream = response.stream
        return arrays, reports, stream

    def metrics(self):
        return self.stub.Metrics(self.pb.MetricsRequest(), timeout=10)

    def calls_by_code(self, method, count):
        """Of the method's calls, once `count` have ended: a call is counted when gRPC is done with it, which may be
        after its client has its status."""
        calls = {}

        def ended():
            found = [entry for entry in self.metrics().methods if entry.method == method]
            calls.update(found[0].calls_by_code if found else {})
            return sum(calls.values()) >= count
        wait_for(ended, f"{count} calls of {method}")
        return calls

    def wait_until_idle(self):
        def idle():
            metrics = self.metrics()
            return metrics.streams_in_flight == 0 and metrics.bytes_in_flight == 0 and metrics.jobs_queued == 0
        wait_for(idle, "an idle daemon")


class Feed:
    """Requests of a call that is kept open: an iterator that a test fills and closes."""

    def __init__(self, *requests):
        self._requests = list(requests)
        self._closed = False
        self._changed = threading.Condition()

    def send(self, *requests):
        with self._changed:
            self._requests.extend(requests)
            self._changed.notify()

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            if not self._requests:
                raise StopIteration
            return self._requests.pop(0)


def random_array(shape, dtype=np.float16, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def failure(call):
    """The status of a call that must fail, and the payloads in front of it."""
    kinds = []
    with pytest.raises(grpc.RpcError) as error:
        for response in call:
            kinds.append(response.WhichOneof("payload"))
    return error.value.code(), error.value.details(), kinds


def failure_of_raw(call):
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    return error.value.code(), error.value.details()
