"""Tensors that share a message with their headers, and answers that hold output of several."""

import grpc
import numpy as np
import pytest
from daemon_helpers import DTYPES, MIB, failure, random_array


def tensors():
    arrays = {f"layer_{i}_key": random_array((1, 4, 64, 64), seed=i) for i in range(64)}
    arrays["one"] = random_array((1,), np.float32)
    arrays["none"] = np.zeros((0, 3), np.float16)
    arrays["large"] = random_array((700_001,), np.float32, seed=100)
    return arrays


def batch(client, arrays, codec=""):
    requests = list(client.compress_requests(arrays, codec=codec))
    headers = [request.header for request in requests if request.HasField("header")]
    payload = b"".join(request.data for request in requests)
    yield client.pb.CompressRequest(batch=client.pb.CompressBatch(headers=headers))
    for at in range(0, len(payload), MIB):
        yield client.data(payload[at:at + MIB])


def outputs(responses, kind, size_of):
    """What came of each tensor, by its name, and how many messages it took."""
    found, current, count = {}, b"", 0
    for count, response in enumerate(responses, 1):
        assert response.WhichOneof("payload") in (kind, "stream", None)
        payload = getattr(response, kind)
        assert len(payload) <= MIB
        for report in response.ended:
            rest = size_of(report) - len(current)
            assert 0 <= rest <= len(payload), report.name
            found[report.name] = current + payload[:rest]
            current, payload = b"", payload[rest:]
        current += payload
    assert not current
    return found, count


def test_frames_and_values_are_those_of_single_tensors(client):
    arrays = tensors()
    frames, _, _ = client.compress(arrays)
    found, messages = outputs(client.stub.Compress(batch(client, arrays), timeout=60), "frame", lambda r: r.frame_bytes)
    assert found == frames
    assert messages < len(arrays) / 2
    headers = [client.pb.DecompressHeader(name=name, frame_bytes=len(frame)) for name, frame in frames.items()]
    whole = b"".join(frames.values())
    requests = [client.pb.DecompressRequest(batch=client.pb.DecompressBatch(headers=headers))]
    requests += [client.frame(whole[at:at + MIB]) for at in range(0, len(whole), MIB)]
    begun = []

    def responses():
        for response in client.stub.Decompress(iter(requests), timeout=60):
            begun.extend(response.begun)
            yield response

    values, _ = outputs(responses(), "data", lambda r: r.tensor_bytes)
    expected, _, _ = client.decompress(frames)
    assert [(tensor.name, tuple(tensor.shape)) for tensor in begun] == [(n, a.shape) for n, a in expected.items()]
    assert all(np.array_equal(np.frombuffer(values[tensor.name], DTYPES[tensor.dtype]), expected[tensor.name].ravel())
               for tensor in begun)


def test_every_tensor_is_counted(client):
    arrays = {f"t{i}": random_array((100,), seed=i) for i in range(20)}

    def compressed():
        return sum(codec.tensors_compressed for codec in client.metrics().codecs)

    before = compressed()
    list(client.stub.Compress(batch(client, arrays), timeout=60))
    assert compressed() == before + len(arrays)


def test_a_bad_tensor_is_named_after_those_before_it(client):
    arrays = tensors()
    arrays["layer_30_key"][0, 0, 0, 5] = np.inf
    names = []
    with pytest.raises(grpc.RpcError) as error:
        for response in client.stub.Compress(batch(client, arrays, "int4"), timeout=60):
            names += [report.name for report in response.ended]
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert 'tensor "layer_30_key": value 5 is infinity' in error.value.details()
    assert names == [f"layer_{i}_key" for i in range(30)]


def test_more_than_a_batch_takes_is_refused(client):
    most = client.stub.Capabilities(client.pb.CapabilitiesRequest(), timeout=10).limits.max_batch_tensors
    arrays = {f"t{i}": np.zeros(1, np.float16) for i in range(most + 1)}
    code, text, _ = failure(client.stub.Compress(batch(client, arrays), timeout=60))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"a batch of {most + 1} tensors, not of 1 to {most}"
    del arrays["t0"]
    found, _ = outputs(client.stub.Compress(batch(client, arrays), timeout=60), "frame", lambda r: r.frame_bytes)
    assert len(found) == most
