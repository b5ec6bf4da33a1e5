"""A cache whose tensors have many types: nothing is refused, values are compressed, everything else is kept bit for bit."""

import json
import pathlib
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from cli_helpers import File, run, run_ok, write_bytes
from daemon_helpers import Client

CHECK = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check_roundtrip.py"
RNG = np.random.default_rng(5)
KEYS = {f"layer_{layer}_{kind}": RNG.standard_normal((1, 4, 300, 64)).astype(np.float16)
        for layer in range(2) for kind in ("key", "value")}
LATENT = RNG.standard_normal((300, 512)).astype(ml_dtypes.float8_e4m3fn)


def bits(count):
    return RNG.integers(0, 256, count, dtype=np.uint8).tobytes()


# Name, dtype, shape and bytes of what is kept.
OPAQUE = {
    "cache_position": ("I64", [300], np.arange(300, dtype="<i8").tobytes()),
    "mask": ("BOOL", [1, 1, 300], (RNG.random(300) < 0.9).tobytes()),
    "indexer": ("U8", [300, 132], bits(300 * 132)),
    "sizes": ("I32", [3], bits(12)),
    "moments": ("F64", [4, 5], bits(160)),
    "spectrum": ("C64", [7], bits(56)),
    "hash": ("U64", [2, 3], bits(48)),
    "u16": ("U16", [9], bits(18)),
    "i16": ("I16", [9], bits(18)),
    "u32": ("U32", [9], bits(36)),
    "i8": ("I8", [9], bits(9)),
    "mx_scales": ("F8_E8M0", [300, 4], bits(1200)),
    "mx": ("F4", [300, 32], bits(4800)),
    "f6a": ("F6_E2M3", [3, 4], bits(9)),
    "f6b": ("F6_E3M2", [100, 64], bits(4800)),
    "fnuz": ("F8_E4M3FNUZ", [5], bits(5)),
    "fnuz5": ("F8_E5M2FNUZ", [5], bits(5)),
    "layer_0_none": ("I64", [0, 4], b""),
}
VALUES = {
    **{name: ("F16", list(array.shape), array.tobytes()) for name, array in KEYS.items()},
    "latent": ("F8_E4M3", [300, 512], LATENT.tobytes()),
    "latent5": ("F8_E5M2", [300, 512], LATENT.astype(np.float32).astype(ml_dtypes.float8_e5m2).tobytes()),
    "k_scale": ("F32", [], np.float32(0.37).tobytes()),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    write_bytes(folder / "keys", {name: VALUES[name] for name in KEYS})
    return write_bytes(folder / "in", {**VALUES, **OPAQUE})


@pytest.mark.parametrize("codec", ["int4", "lossless", "near-lossless", "mixed", "raw", "sparse(ratio=0.5)|int8|rans",
                                   "quant(bits=4,per=channel,symmetric=false)"])
@pytest.mark.parametrize("where", ["local", "server"])
def test_nothing_is_refused_and_what_is_no_value_is_kept(bin_dir, mixed, tmp_path, daemon, codec, where):
    flags = ["-server", daemon().address] if where == "server" else []
    report = run_ok(bin_dir, "-input", mixed, "-output", tmp_path / "small", "-codec", codec, "-verbose", *flags)
    assert report["passed_through_tensors"] == len(OPAQUE)
    assert report["passed_through_bytes"] == sum(len(data) for _, _, data in OPAQUE.values())
    assert report["original_size_bytes"] == sum(len(data) for _, _, data in {**VALUES, **OPAQUE}.values())
    for name in OPAQUE:
        assert report["tensor_metrics"][f"{name}_passed_through"] is True
        assert f"{name}_rmse" not in report["tensor_metrics"]
    # What is said of the keys is what is said of them alone.
    alone = run_ok(bin_dir, "-input", mixed.parent / "keys", "-output", tmp_path / "keys", "-codec", codec, "-verbose")
    for name, value in alone["tensor_metrics"].items():
        assert report["tensor_metrics"][name] == value, name
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back", *flags)
    back = File(tmp_path / "back")
    assert {name: (dtype, shape) for name, dtype, shape in back.layout} == {
        name: (dtype, shape) for name, (dtype, shape, _) in {**VALUES, **OPAQUE}.items()}
    for name, (_, _, data) in {**VALUES, **OPAQUE}.items():
        if name in OPAQUE or codec in ("lossless", "raw"):
            assert back.bytes[name] == data, name
    if codec == "int4":
        restored = np.frombuffer(back.bytes["latent"], ml_dtypes.float8_e4m3fn).astype(np.float32)
        error = restored - LATENT.astype(np.float32).ravel()
        assert 0.02 < np.sqrt(np.mean(error**2)) < 0.15


def test_local_and_remote_files_are_the_same(bin_dir, mixed, tmp_path, daemon):
    run_ok(bin_dir, "-input", mixed, "-output", tmp_path / "a", "-codec", "int4")
    run_ok(bin_dir, "-input", mixed, "-output", tmp_path / "b", "-codec", "int4", "-server", daemon().address)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_check_of_round_trips_reads_every_type(bin_dir, mixed, tmp_path):
    def faults(output):
        check = subprocess.run([sys.executable, CHECK, mixed, tmp_path / "small", output], capture_output=True, text=True, timeout=60)
        assert check.returncode == (1 if check.stderr else 0)
        return check.stderr.splitlines()

    run_ok(bin_dir, "-input", mixed, "-output", tmp_path / "small", "-codec", "int4")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back")
    assert faults(tmp_path / "back") == []
    back = File(tmp_path / "back")
    for name in ("mask", "mx", "u16", "latent", "latent5"):
        changed = {other: (dtype, shape, back.bytes[other]) for other, dtype, shape in back.layout}
        dtype, shape, data = changed[name]
        changed[name] = (dtype, shape, bytes([data[0] ^ 0x78]) + data[1:])
        (fault,) = faults(write_bytes(tmp_path / "changed", changed))
        assert fault.startswith(f"FAILED: {name}: ")


def test_a_rule_chooses_the_byte_codec_of_what_is_kept(bin_dir, mixed, tmp_path):
    profile = tmp_path / "profile"
    profile.write_text(json.dumps({"version": 1, "default": "int4", "rules": [
        {"name": "indexer", "codec": "raw"}, {"name": "cache_position", "codec": "planes|rans"},
        {"name": "mask", "codec": "int2"}, {"name": "latent", "codec": "int4"}]}))
    run_ok(bin_dir, "-input", mixed, "-output", tmp_path / "small", "-profile", profile)
    shown = run(bin_dir, "-inspect", tmp_path / "small").stdout
    codecs = {line.split()[0].strip('"'): line.split()[-1] for line in shown.splitlines()[1:]}
    assert codecs["indexer"] == "raw"
    assert codecs["cache_position"] == "planes(split=auto,delta=auto)|rans"
    assert codecs["mask"] == codecs["i8"] == codecs["hash"]
    assert codecs["latent"] == "int4(group=64)"


def test_inspect_analyzes_values_alone(bin_dir, mixed):
    done = run(bin_dir, "-inspect", mixed)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in VALUES:
        assert sum(line.startswith(f'"{name}"') or line.startswith(f"{name} ") for line in lines) == 4 + (VALUES[name][0] == "F32"), name
    for name in OPAQUE:
        assert sum(line.startswith(f'"{name}"') or line.startswith(f"{name} ") for line in lines) == 1, name


def test_sweep_measures_values_alone(bin_dir, mixed):
    done = run(bin_dir, "-sweep", "-input", mixed)
    assert done.returncode == 0, done.stderr
    specs = {one["spec"]: one for one in json.loads(done.stdout)["specs"]}
    assert specs["raw"]["max_error"] == 0
    assert specs["raw"]["compression_ratio"] < 1 < specs["int4(group=64)"]["compression_ratio"]
    assert 15 < specs["int4(group=64)"]["keys"]["snr_db"] < 25


def test_streams_tell_what_they_passed_through(daemon, stubs):
    client = Client(daemon(), stubs)
    pb = client.pb
    tensors = [("a", pb.DTYPE_F16, [100], np.ones(100, np.float16).tobytes()), ("p", pb.DTYPE_I64, [50], bits(400)),
               ("m", pb.DTYPE_BOOL, [70], bytes(70))]

    def requests():
        for name, dtype, shape, data in tensors:
            yield pb.CompressRequest(header=pb.CompressHeader(tensor=pb.Tensor(name=name, dtype=dtype, shape=shape)))
            yield pb.CompressRequest(data=data)

    responses = list(client.stub.Compress(requests(), timeout=30))
    stream = responses[-1].stream
    assert (stream.tensors, stream.passed_through_tensors, stream.passed_through_bytes) == (3, 2, 470)
    reports = {response.tensor.name: response.tensor for response in responses if response.HasField("tensor")}
    assert [reports[name].passed_through for name in "apm"] == [False, True, True]
    assert [reports[name].HasField("quality") for name in "apm"] == [True, False, False]
    assert stream.quality.cosine_similarity == reports["a"].quality.cosine_similarity


def test_sizes_that_are_no_whole_bytes_are_refused(bin_dir, tmp_path):
    text = json.dumps({"odd": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "in").write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0")
    done = run(bin_dir, "-input", tmp_path / "in", "-output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'Error: parse header: {tmp_path / "in"}: tensor "odd": F4 [3] is not a whole number of bytes\n'
