"""Frames with fingerprints: the command line and the daemon, beside a reader that was written from docs/format.md alone."""

import csv
import io
import json

import grpc
import numpy as np
import pytest
from chain_decoder import decode_frame
from cli_helpers import File, run, run_ok, write_file
from daemon_helpers import failure, random_array
from frame_reader import read_frame

ONE, OTHER = b"layer 1\x00", b"layer 2\x00"


@pytest.fixture
def packed(bin_dir, sample, tmp_path):
    """The same file with fingerprints in its frames and without."""
    for name, flags in (("marked", ["-fingerprint", ONE.hex()]), ("plain", [])):
        run_ok(bin_dir, "-input", sample, "-output", tmp_path / name, "-codec", "int4(group=64)", *flags)
    return tmp_path / "marked", tmp_path / "plain"


@pytest.mark.parametrize("codec", ["raw", "int4(group=64)", "transform(bits=3)", "rotated(bits=3)|zstd(level=1)"])
@pytest.mark.parametrize("fingerprint", [b"x", bytes(range(64))], ids=["shortest", "longest"])
def test_another_reader_finds_the_fingerprint_and_the_same_values(bin_dir, tmp_path, codec, fingerprint):
    values = random_array((1, 2, 64, 64))
    write_file(tmp_path / "in", {"layer_0_key": values})
    flags = ["-input", tmp_path / "in", "-codec", codec]
    run_ok(bin_dir, *flags, "-output", tmp_path / "marked", "-fingerprint", fingerprint.hex())
    run_ok(bin_dir, *flags, "-output", tmp_path / "plain")
    marked, plain = (File(tmp_path / name).bytes["layer_0_key"] for name in ("marked", "plain"))
    read = read_frame(marked)
    assert (read.fingerprint, read.codec, read.shape) == (fingerprint, codec, (1, 2, 64, 64))
    assert len(marked) == len(plain) + 1 + len(fingerprint)
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "marked", "-output", tmp_path / "out",
           "-fingerprint", fingerprint.hex())
    decoded = File(tmp_path / "out").bytes["layer_0_key"]
    assert decode_frame(marked).tobytes() == decoded == decode_frame(plain).tobytes()


@pytest.mark.parametrize("with_daemon", [False, True], ids=["here", "daemon"])
def test_a_file_of_another_fingerprint_is_refused(bin_dir, packed, tmp_path, daemon, with_daemon):
    flags = ["-server", daemon().address] if with_daemon else []
    out = tmp_path / "out"
    out.write_text("old")
    for path, found in zip(packed, [f"fingerprint {ONE.hex()}", "none"]):
        done = run(bin_dir, "-decompress", "-input", path, "-output", out, "-fingerprint", OTHER.hex(), *flags)
        said = f'Error: tensor "layer_10_key": frame: it has {found}, not fingerprint {OTHER.hex()}\n'
        assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
        assert out.read_text() == "old"
    values = []
    for path, expected in ((packed[0], ["-fingerprint", ONE.hex()]), (packed[0], []), (packed[1], [])):
        run_ok(bin_dir, "-decompress", "-input", path, "-output", out, *expected, *flags)
        values.append(out.read_bytes())
    assert values[0] == values[1] == values[2]


def test_inspect_shows_them(bin_dir, packed):
    for path, expected in zip(packed, [ONE.hex(), None]):
        said = json.loads(run(bin_dir, "-inspect", "-format", "json", path).stdout)
        assert {tensor["fingerprint"] for tensor in said["tensors"]} == {expected}
        rows = csv.DictReader(io.StringIO(run(bin_dir, "-inspect", "-format", "csv", path).stdout, newline=""))
        assert {row["fingerprint"] for row in rows} == {expected or ""}
        assert (f", fingerprint {ONE.hex()}" in run(bin_dir, "-inspect", path).stdout) is (expected is not None)


def marked_frame(client, array, fingerprint, codec="int4"):
    tensor = client.pb.Tensor(name="t", dtype=1, shape=array.shape, fingerprint=fingerprint)
    header = client.pb.CompressHeader(tensor=tensor, codec=codec)
    answer = client.stub.CompressTensor(
        client.pb.CompressTensorRequest(header=header, data=array.tobytes()), timeout=20)
    assert answer.report.fingerprint == fingerprint
    return answer.frame


def ask(client, frame, fingerprint):
    """The header of a stream's answer, and the status of what was refused."""
    header = client.pb.DecompressHeader(name="t", fingerprint=fingerprint)
    return client.stub.Decompress(
        iter([client.pb.DecompressRequest(header=header), client.pb.DecompressRequest(frame=frame)]), timeout=20)


@pytest.mark.parametrize("codec", ["int4", "transform(bits=3)"])
def test_the_daemon_tells_them_and_refuses_others(client, codec):
    array = random_array(1000, np.float16)
    frame, plain = marked_frame(client, array, ONE, codec), marked_frame(client, array, b"", codec)
    for expected in (ONE, b""):
        header, *_ = ask(client, frame, expected)
        assert header.header.fingerprint == ONE
    for wrong, found in ((frame, f"fingerprint {ONE.hex()}"), (plain, "none")):
        code, text, kinds = failure(ask(client, wrong, OTHER))
        assert (code, kinds) == (grpc.StatusCode.ABORTED, [])
        assert text == f'tensor "t": frame: it has {found}, not fingerprint {OTHER.hex()}'
        with pytest.raises(grpc.RpcError) as error:
            client.stub.DecompressTensor(client.pb.DecompressTensorRequest(
                header=client.pb.DecompressHeader(name="t", fingerprint=OTHER), frame=wrong), timeout=20)
        assert (error.value.code(), error.value.details()) == (code, text)
    client.wait_until_idle()
    assert client.calls_by_code("DecompressTensor", 2) == {"ABORTED": 2}


def test_one_that_is_too_long_is_a_bad_request(client):
    long_one = bytes(65)
    tensor = client.pb.Tensor(name="t", dtype=1, shape=[1], fingerprint=long_one)
    header = client.pb.CompressHeader(tensor=tensor)
    said = 'tensor "t": a fingerprint of 65 bytes, of which there are at most 64'
    for call in (client.stub.Compress(iter([client.pb.CompressRequest(header=header)]), timeout=20),
                 ask(client, b"", long_one)):
        assert failure(call) == (grpc.StatusCode.INVALID_ARGUMENT, said, [])
    with pytest.raises(grpc.RpcError) as error:
        client.stub.Capabilities(client.pb.CapabilitiesRequest(headers=[header]), timeout=20)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_bound_counts_the_fingerprint(client):
    array = random_array(1000, np.float16)
    tensors = [client.pb.Tensor(name="t", dtype=1, shape=[1000], fingerprint=mark) for mark in (b"", bytes(64))]
    said = client.stub.Capabilities(client.pb.CapabilitiesRequest(
        headers=[client.pb.CompressHeader(tensor=tensor, codec="int4") for tensor in tensors]), timeout=20)
    assert list(said.max_frame_bytes) == [len(marked_frame(client, array, mark)) for mark in (b"", bytes(64))]
