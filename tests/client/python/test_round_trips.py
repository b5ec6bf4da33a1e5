"""Tensors through a real daemon and back: dtypes, layouts, transports, both ways to call, and the CLI's own bytes."""

import asyncio
import json
import struct
import subprocess

import kvcompress
import ml_dtypes
import numpy as np
import pytest
from cli_helpers import File, run_ok, write_file
from kvcompress.v1 import kvcompress_pb2 as pb

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20
DTYPES = [np.float16, np.float32, ml_dtypes.bfloat16]


def values(shape, dtype=np.float16, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.fixture(params=["tcp", "unix", "in_process"])
def anywhere(request, daemon, socket_dir, connect):
    """A client by each transport, and the codec in this process."""
    if request.param == "in_process":
        return kvcompress.LocalClient(threads=2)
    server = daemon("--threads", "2", "--listen", f"unix:{socket_dir}/s")
    return connect(server.listen[0 if request.param == "tcp" else 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1000,), (1, 2, 300, 64), (2 * MIB + 3,)], ids=str)
def test_lossless_gives_the_same_bytes(anywhere, dtype, shape):
    array = values(shape, dtype)
    frame = anywhere.compress(array, "raw", name="t")
    assert (frame.name, frame.shape, frame.codec) == ("t", shape, "raw")
    assert frame.dtype == {"float16": "F16", "float32": "F32", "bfloat16": "BF16"}[np.dtype(dtype).name]
    assert frame.tensor_bytes == array.nbytes
    assert frame.frame_bytes == len(frame) == len(bytes(frame))
    assert same(anywhere.decompress(frame), array)
    assert same(anywhere.decompress(bytes(frame)), array)
    assert same(anywhere.decompress(memoryview(frame.data)), array)
    out = np.empty(shape, dtype)
    assert anywhere.decompress(frame, out=out) is out
    assert same(out, array)


@pytest.mark.parametrize("size", [1000, 3 * MIB], ids=["one_message", "stream"])
def test_layouts(client, size):
    flat = values(size * 4)
    plane = flat.reshape(4, size)
    for array in (flat[::2], flat[::-1], plane.T, plane[:, 1:], np.asfortranarray(plane), flat.astype(">f2")):
        little = array.astype("<f2")
        assert same(client.decompress(client.compress(array, "raw")), np.ascontiguousarray(little))
    read_only = flat.copy()
    read_only.flags.writeable = False
    assert same(client.decompress(client.compress(read_only, "raw")), flat)


def test_quality_is_that_of_the_decoded_values(client):
    array = values((300, 64))
    frame = client.compress(array, "int4(group=64)")
    error = client.decompress(frame).astype(np.float64) - array.astype(np.float64)
    assert frame.quality.rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    assert frame.quality.max_error == np.abs(error).max()
    assert frame.quality.snr_db == pytest.approx(
        10 * np.log10(np.var(array.astype(np.float64)) / np.mean(error**2)), rel=1e-6)
    assert frame.ratio == array.nbytes / len(frame) > 3.5
    assert frame.quality.level == "POOR"
    assert frame.violations
    lossless = client.compress(array, "raw")
    assert lossless.quality.snr_db == float("inf")
    assert not lossless.violations


def test_token_snr_tells_what_constants_of_channels_hide(client):
    keys = values((1, 2, 300, 64), np.float32)
    keys[..., 5] += 300
    frame = client.compress(keys, "int4", name="layer_0_key")
    error = client.decompress(frame).astype(np.float64) - keys
    signal, noise = (np.sum((x - x.mean(-2, keepdims=True)) ** 2) for x in (keys.astype(np.float64), error))
    assert frame.quality.token_snr_db == pytest.approx(10 * np.log10(signal / noise), abs=0.01)
    assert frame.quality.snr_db > frame.quality.token_snr_db + 10
    assert frame.quality.level == "POOR"
    assert any("TokenSNR" in text for text in frame.violations)
    assert client.compress(keys, "raw", name="layer_0_key").quality.token_snr_db == np.inf


def test_exact_is_not_the_same_as_without_variance(client):
    scale = np.array([1234.567], np.float32)
    lossy, exact = client.compress(scale, "int4").quality, client.compress(scale, "raw").quality
    assert lossy.max_error > 0
    assert np.isnan(lossy.snr_db)
    assert np.isnan(lossy.token_snr_db)
    assert exact.max_error == 0
    assert exact.snr_db == np.inf
    assert np.isnan(exact.token_snr_db)
    assert lossy.level == exact.level == "EXCELLENT"


@pytest.mark.parametrize("spec", ["", "int8(group=32)", "lossless"])
def test_frames_are_those_of_the_command_line(bin_dir, anywhere, sample, f16_cache, tmp_path, spec):
    tensors = {"layer_0_key": values((1, 2, 5000, 64)), "layer_0_value": values((1, 2, 100, 64), seed=2),
               "other": values((500, 3), np.float32), "half": values((77,), ml_dtypes.bfloat16)}
    packed = tmp_path / "packed.safetensors"
    for source in (write_file(tmp_path / "in.safetensors", tensors), sample, f16_cache):
        flags = ["-codec", spec] if spec else []
        run_ok(bin_dir, "-input", source, "-output", packed, *flags)
        file = File(source)
        arrays = {name: file.values(name).reshape(shape) for name, _, shape in file.layout}
        expected = File(packed).bytes
        assert {name: anywhere.compress(array, spec, name=name).data for name, array in arrays.items()} == expected
        many = list(anywhere.compress_many(arrays.items(), spec))
        assert [(frame.name, frame.data) for frame in many] == [(name, expected[name]) for name in arrays]


def test_many_in_order_with_their_own_specs(client):
    arrays = [values(size, seed=size) for size in (5, 2 * MIB, 0, 3 * MIB, 17)]
    specs = ["raw", "int8", "int4", "raw|zstd", "raw"]
    frames = list(client.compress_many((str(i), *pair) for i, pair in enumerate(zip(arrays, specs, strict=True))))
    assert [frame.name for frame in frames] == list("01234")
    assert [frame.data for frame in frames] == [
        client.compress(array, spec).data for array, spec in zip(arrays, specs, strict=True)]
    back = list(client.decompress_many([frames[0], frames[1].data, ("x", frames[2]), ("y", frames[3].data), frames[4]]))
    assert [name for name, _ in back] == ["0", "tensor", "x", "y", "4"]
    for i in (0, 2, 3, 4):
        assert same(back[i][1], arrays[i])
    assert list(client.compress_many([])) == list(client.decompress_many([])) == []


def test_axes_are_kept(client):
    array = values((4, 300, 64))
    plain = client.compress(array, "int4")
    named = client.compress(array, "int4", axes=["heads", "seq", "head_dim"])
    assert plain.data != named.data
    assert same(client.decompress(plain), client.decompress(named))


def test_asyncio_gives_the_same(daemon, connect):
    server = daemon("--threads", "2")
    arrays = {str(size): values(size) for size in (10, 2 * MIB)}
    blocking = connect(server)
    expected = {name: blocking.compress(array, name=name).data for name, array in arrays.items()}

    async def later(items):
        for item in items:
            await asyncio.sleep(0)
            yield item

    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=30) as client:
            await client.wait_ready(10)
            frames = await asyncio.gather(*(client.compress(array, name=name) for name, array in arrays.items()))
            assert {frame.name: frame.data for frame in frames} == expected
            for items in (arrays.items(), later(arrays.items())):
                assert {frame.name: frame.data async for frame in client.compress_many(items)} == expected
            alone = [await client.decompress(frame) for frame in frames]
            together = [array async for _, array in client.decompress_many(later(frames))]
            for one, other, frame in zip(alone, together, frames, strict=True):
                assert same(one, other)
                assert same(one, blocking.decompress(frame))
            assert (await client.metrics()).build == (await client.capabilities()).build
            header = pb.CompressHeader(tensor=pb.Tensor(name="t", dtype=pb.DTYPE_F32, shape=[1000]), codec="raw")
            (most,) = (await client.capabilities([header])).max_frame_bytes
            assert most > 4000

    asyncio.run(work())


@pytest.mark.parametrize("size", [10, 2 * MIB], ids=["one_message", "stream"])
def test_torch(client, size):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        tensor = torch.randn(2, size, generator=torch.Generator().manual_seed(1)).to(dtype)
        for shown in (tensor, tensor.T, tensor[:, ::2], tensor.clone().requires_grad_(True), tensor[0, 0]):
            frame = client.compress(shown, "raw")
            back = client.decompress(frame)
            assert back.dtype == dtype
            assert torch.equal(back, shown.detach())
            out = torch.empty(shown.shape, dtype=dtype)
            assert client.decompress(bytes(frame), out=out) is out
            assert torch.equal(out, shown.detach())
        assert client.decompress(frame, as_="numpy").dtype.name == str(dtype).split(".")[1]
        assert client.decompress(bytes(frame), as_="torch").dtype == dtype
    with pytest.raises(kvcompress.InvalidArgument, match=r"complex128 is none that safetensors has"):
        client.compress(torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(kvcompress.InvalidArgument, match=r"on meta: use tensor.cpu\(\)"):
        client.compress(torch.empty(3, dtype=torch.float16, device="meta"))


def test_profiles(client, tmp_path):
    profile = {"version": 1, "default": "int4(group=64)", "rules": [{"layers": [0, 0], "codec": "raw"}]}
    array = values((1, 2, 30, 64))
    frame = client.compress(array, name="layer_0_key", profile=profile)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile))
    for form in (path, str(path), path.read_text()):
        assert client.compress(array, name="layer_0_key", profile=form).data == frame.data
    assert frame.codec == "raw"
    pairs = [("layer_0_key", array), ("layer_1_key", array)]
    assert [frame.codec for frame in client.compress_many(pairs, profile=profile)] == ["raw", "int4(group=64)"]
    with pytest.raises(kvcompress.InvalidArgument):
        client.compress(array, profile='{"version": 99}')


def test_a_profile_of_ranks_stands_beside_a_spec_with_an_artifact(client):
    array = values((1, 2, 30, 64))
    spec = f"kv(bits=4,artifact={'a' * 32})"
    head = {"enabled": True, "rank": 8, "reason": "x" * 70_000, "metrics": {"trace": 0.5}}
    config = {"per_layer_head": {"0/0": head}, "summary_stats": {"total_heads": 1}}
    assert json.loads(kvcompress.profile_json(config)) == {"per_layer_head": {"0/0": {"enabled": True, "rank": 8}}}
    with pytest.raises(kvcompress.FailedPrecondition, match="was given no directory of artifacts"):
        client.compress(array, spec, name="layer_0_key", profile=config)
    for wrong_spec, wrong, text in [
        ("raw", config, 'ranks are of coefficients in an artifact, and "raw" has none'),
        (spec, {"per_layer_head": {"0/0": {**head, "rank": 65}}}, "layer0/head0: rank 65 is not between 1 and d 64"),
        (spec, {"per_layer_head": {"0/0": 8}}, "layer0/head0 must be a JSON object"),
        (spec, '{"per_layer_head": {"0/0": {"rank": 8}, "0/0": {"rank": 9}}}', 'the second "0/0" of an object'),
        (spec, '{"per_layer_head": {"0/0": {"metrics": {"trace": NaN}}}}', "in per_layer_head.0/0.metrics.trace"),
        (spec, '{"per_layer_head": 1}', "a spec and a profile exclude each other"),
    ]:
        with pytest.raises(kvcompress.InvalidArgument) as error:
            client.compress(array, wrong_spec, name="layer_0_key", profile=wrong)
        assert text in str(error.value)


def test_an_asyncio_client_that_is_made_outside_of_an_event_loop_works_in_one_after_another(daemon):
    client = kvcompress.AsyncClient(daemon().address, timeout=20)

    async def work():
        for size in (1000, 3 * MIB):
            assert same(await client.decompress(await client.compress(values(size), "raw")), values(size))

    asyncio.run(work())
    asyncio.run(work())
    asyncio.run(client.close())


ALL_TORCH = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "uint8", "int8", "uint16", "int16",
             "uint32", "int32", "uint64", "int64", "bool", "float64", "complex64", "float8_e8m0fnu",
             "float8_e4m3fnuz", "float8_e5m2fnuz"]  # fmt: skip
LOSSY = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("name", ALL_TORCH)
@pytest.mark.parametrize("rows", [3, 9000])
def test_tensors_of_every_type_come_back(client, name, rows):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 2, (rows, 64 * getattr(torch, name).itemsize), generator=generator, dtype=torch.uint8)
    tensor = raw.view(getattr(torch, name))
    frame = client.compress(tensor, "int4")
    assert frame.passed_through is (name not in LOSSY)
    assert (frame.quality is None) is frame.passed_through
    back = client.decompress(frame)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    if frame.passed_through:
        assert torch.equal(back.view(torch.uint8), raw)
    kept = client.compress(tensor, "lossless")
    out = torch.empty_like(tensor)
    assert torch.equal(client.decompress(kept, out=out).view(torch.uint8), raw)
    array = client.decompress(kept, as_="numpy")
    assert array.dtype.name == name
    assert client.decompress(client.compress(array, "lossless")).tobytes() == raw.numpy().tobytes()


def test_a_conjugated_tensor_is_what_it_shows(client):
    torch = pytest.importorskip("torch")
    tensor = torch.complex(torch.arange(4.0), torch.arange(4.0) + 1).conj()
    assert torch.equal(client.decompress(client.compress(tensor)), tensor.resolve_conj())


def frame_of_file(bin_dir, folder, dtype, shape, data):
    """The frame that the command line makes of a tensor."""
    text = json.dumps({"mx": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    (folder / "in").write_bytes(struct.pack("<Q", len(text)) + text + data)
    subprocess.run([bin_dir / "kv-compress", "-input", folder / "in", "-output", folder / "out"], check=True,
                   capture_output=True)  # fmt: skip
    data = (folder / "out").read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


@pytest.mark.parametrize("rows", [4, 9000])
def test_values_that_pytorch_packs_are_those_of_the_file(client, bin_dir, tmp_path, rows):
    torch = pytest.importorskip("torch")
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this PyTorch has no float4")
    raw = torch.randint(0, 256, (rows, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    tensor = raw.view(torch.float4_e2m1fn_x2)
    frame = client.compress(tensor, "int4")
    assert (frame.dtype, frame.shape, frame.passed_through) == ("F4", (rows, 128), True)
    ours = frame_of_file(bin_dir, tmp_path, "F4", [rows, 128], raw.numpy().tobytes())
    out = torch.empty_like(tensor)
    for back in (client.decompress(frame), client.decompress(frame, out=out), client.decompress(ours, as_="torch"),
                 dict(client.decompress_many([("a", ours, ("F4", (rows, 128)))], as_="torch"))["a"]):
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(back.view(torch.uint8), raw)
    turned = client.decompress(client.compress(raw.t().view(torch.float4_e2m1fn_x2), "raw"))
    assert torch.equal(turned.view(torch.uint8), raw.t())
    with pytest.raises(kvcompress.InvalidArgument, match='the tensor is F4, which NumPy does not have: as_="torch"'):
        client.decompress(ours)
    with pytest.raises(kvcompress.InvalidArgument, match="needs an axis, along which its values lie"):
        client.compress(raw[0, 0].view(torch.float4_e2m1fn_x2))
    odd = frame_of_file(bin_dir, tmp_path, "F4", [2, 3], b"abc")
    with pytest.raises(kvcompress.InvalidArgument, match=r"F4 \[2, 3\], whose last axis PyTorch cannot pack"):
        client.decompress(odd, as_="torch")


def test_a_frame_of_a_type_that_python_does_not_have(client, bin_dir, tmp_path):
    frame = frame_of_file(bin_dir, tmp_path, "F6_E2M3", [4, 2], b"abcdef")
    for framework in ("numpy", "torch"):
        with pytest.raises(kvcompress.InvalidArgument, match="is F6_E2M3, which neither NumPy nor PyTorch has"):
            client.decompress(frame, as_=framework)
