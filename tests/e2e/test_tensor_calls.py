"""CompressTensor and DecompressTensor: one tensor in one message, the same bytes as by a stream."""

import grpc
import numpy as np
import pytest
from daemon_helpers import random_array


def request(client, array, codec="", **header):
    tensor = client.pb.Tensor(name="t", dtype=1, shape=array.shape)
    return client.pb.CompressTensorRequest(
        header=client.pb.CompressHeader(tensor=tensor, codec=codec, **header), data=array.tobytes())


def frame_request(client, frame, name="t"):
    return client.pb.DecompressTensorRequest(header=client.pb.DecompressHeader(name=name), frame=frame)


def refusal(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, timeout=20, **options)
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("codec", ["", "int8", "raw", "raw|zstd", "sparse(ratio=0.5)|int4"])
@pytest.mark.parametrize("size", [0, 1, 1000, 32_768, 1_500_000])
def test_bytes_and_reports_are_those_of_a_stream(client, codec, size):
    array = random_array(size, np.float16)
    frames, reports, _ = client.compress({"t": array}, codec=codec)
    response = client.stub.CompressTensor(request(client, array, codec), timeout=20)
    assert response.frame == frames["t"]
    for ours in (response.report, reports["t"]):  # what depends on time, and on how the bytes came
        ours.codec_seconds = 0
        ours.copied_bytes = 0
    if size <= 131_072:  # larger tensors have several blocks, whose sums are added up in another order
        assert response.report == reports["t"]
    assert response.report.quality.rmse == pytest.approx(reports["t"].quality.rmse, rel=1e-12)
    back = client.stub.DecompressTensor(frame_request(client, response.frame, "other"), timeout=20)
    assert back.header.name == back.report.name == "other"
    assert list(back.header.shape) == [size]
    assert back.report.tensor_bytes == 2 * size and back.report.frame_bytes == len(response.frame)
    assert not back.report.HasField("quality")
    arrays, _, _ = client.decompress(frames)
    assert back.data == arrays["t"].tobytes()


def test_refusals_are_those_of_a_stream(client):
    pb, stub = client.pb, client.stub
    array = random_array(100, np.float16)
    frame = stub.CompressTensor(request(client, array), timeout=20).frame
    invalid, lost = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS
    assert refusal(stub.CompressTensor, pb.CompressTensorRequest()) == (invalid, "header without a tensor")
    assert refusal(stub.CompressTensor, request(client, array, "int9")) == (
        invalid, 'tensor "t": unknown codec "int9" (similar: int2, int3, int4, int5, int6, int8)')
    assert refusal(stub.CompressTensor, request(client, array, frame_to_buffer=True)) == (
        invalid, "buffers are for output of streams")
    short = request(client, array)
    short.data = short.data[:-1]
    assert refusal(stub.CompressTensor, short) == (
        invalid, 'tensor "t": 199 bytes instead of the 200 that its shape says')
    infinite = np.full(100, np.inf, np.float16)
    assert refusal(stub.CompressTensor, request(client, infinite))[0] == invalid
    assert refusal(stub.DecompressTensor, frame_request(client, frame, ""))[0] == invalid
    assert refusal(stub.DecompressTensor, frame_request(client, frame + b"x"))[0] == invalid
    for end in (0, 7, 30, len(frame) - 1):
        assert refusal(stub.DecompressTensor, frame_request(client, frame[:end]))[0] == lost
    for at in range(0, len(frame), 7):
        damaged = frame[:at] + bytes([frame[at] ^ 16]) + frame[at + 1:]
        assert refusal(stub.DecompressTensor, frame_request(client, damaged))[0] == lost


def test_calls_count_and_leave_nothing_behind(client):
    array = random_array(200_000, np.float16)
    before = client.metrics()
    calls = [client.stub.CompressTensor.future(request(client, array, "raw|zstd"), timeout=20) for _ in range(50)]
    frames = {call.result().frame for call in calls}
    assert len(frames) == 1
    refusal(client.stub.DecompressTensor, frame_request(client, b"nothing"))
    client.wait_until_idle()
    assert client.calls_by_code("CompressTensor", 50) == {"OK": 50}
    assert client.calls_by_code("DecompressTensor", 1) == {"DATA_LOSS": 1}
    after = client.metrics()
    count = {codec.codec: codec.tensors_compressed for codec in after.codecs}
    assert count["raw"] - {codec.codec: codec.tensors_compressed for codec in before.codecs}.get("raw", 0) == 50


def test_budget_and_stream_limit_hold(daemon, stubs):
    from daemon_helpers import Client
    client = Client(daemon("--memory-budget", "1MiB", "--max-tensor-bytes", "2MiB"), stubs)
    code, text = refusal(client.stub.CompressTensor, request(client, random_array(600_000, np.float16)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and "budget" in text
    code, text = refusal(client.stub.CompressTensor, request(client, random_array(1_200_000, np.float16)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and "limit" in text
    assert client.stub.CompressTensor(request(client, random_array(1000, np.float16)), timeout=20).frame
