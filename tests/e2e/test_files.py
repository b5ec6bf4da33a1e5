"""What the command line writes: ratios, errors and figures, checked by independent means; files in stock readers."""

import math
import re
import subprocess

import ml_dtypes
import numpy as np
import pytest
from cli_helpers import File, environment, run, run_ok, write_file
from safetensors import safe_open

# Ratios that must be reached for inputs of 16 bits, by group size; twice as much for those of 32.
LEAST_RATIO = {32: 3.5, 64: 3.7, 128: 3.8}
# Rounding of a decoded value to its dtype, relative.
HALF_ULP = {"F16": 2.0**-11, "BF16": 2.0**-8, "F32": 2.0**-24}


@pytest.fixture(params=["sample", "f16_cache", "docs.1024.f16", "docs.1024.bf16", "docs.1024.f32", "docs.batch8x1024.f16"])
def cache(request):
    """Real caches in every data type; those beside the checkout only where there are any."""
    if not request.param.startswith("docs."):
        return request.getfixturevalue(request.param)
    return request.getfixturevalue("kv_dir") / f"{request.param}.safetensors"


def figures(x, y):
    """Quality of `y` for `x`, in float64 and by definition."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    error = x - y
    mean_square = np.mean(error**2)
    norms = np.sqrt(np.sum(x**2)) * np.sqrt(np.sum(y**2))
    return {"rmse": math.sqrt(mean_square),
            "snr_db": 10 * math.log10(np.var(x) / mean_square) if mean_square > 0 else None,
            "cosine_similarity": float(np.sum(x * y) / norms) if norms > 0 else 0.0,
            "max_error": float(np.max(np.abs(error))),
            "mean_abs_error": float(np.mean(np.abs(error)))}


def token_snr_db(x, y):
    """Of keys [..., tokens, channels] and what they came back as, in float64 and by definition."""
    x, error = x.astype(np.float64), x.astype(np.float64) - y.astype(np.float64)
    noise = np.sum((error - error.mean(-2, keepdims=True)) ** 2)
    return 10 * math.log10(np.sum((x - x.mean(-2, keepdims=True)) ** 2) / noise)


def check_figures(result, original, decoded):
    """Every figure of the JSON against the decoded file, to 1e-6."""
    names = [name for name, _ in original.entries]
    own = {name: figures(original.values(name), decoded.values(name)) for name in names}
    judged = {name: quality["snr_db"] for name, quality in own.items()}
    for name, entry in original.entries:
        if re.fullmatch(r"layer_\d+_key", name):
            judged[name] = token_snr_db(*(file.values(name).reshape(entry["shape"]) for file in (original, decoded)))
    close = lambda value: pytest.approx(value, rel=1e-6)
    for name, quality in own.items():
        for figure in ("rmse", "snr_db", "cosine_similarity", "max_error"):
            assert result["tensor_metrics"][f"{name}_{figure}"] == close(quality[figure]), (name, figure)
    for figure in ("rmse", "snr_db", "cosine_similarity", "mean_abs_error"):
        assert result[figure] == close(np.mean([quality[figure] for quality in own.values()])), figure
    assert result["max_error"] == close(max(quality["max_error"] for quality in own.values()))
    assert result["worst_tensor"] == min(names, key=judged.get)
    total = figures(np.concatenate([original.values(name).astype(np.float64) for name in names]),
                    np.concatenate([decoded.values(name).astype(np.float64) for name in names]))
    for figure, value in total.items():
        assert result["element_weighted"][figure] == close(value), figure


def group_scales(x, group):
    """max|x| / 7 of each group, rounded to FP16, for each value."""
    padded = np.concatenate([np.abs(x), np.zeros(-len(x) % group)])
    scales = (padded.reshape(-1, group).max(axis=1) / 7).astype(np.float16).astype(np.float64)
    return np.repeat(scales, group)[:len(x)]


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_on_real_caches(bin_dir, cache, tmp_path, group):
    result = run_ok(bin_dir, "-input", cache, "-output", tmp_path / "packed", "-group-size", group, "-verbose")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    original, decoded = File(cache), File(tmp_path / "out")
    assert decoded.layout == original.layout
    assert decoded.metadata == original.metadata

    least = LEAST_RATIO[group] * (2 if original.layout[0][1] == "F32" else 1)
    assert cache.stat().st_size / (tmp_path / "packed").stat().st_size >= least
    assert result["compression_ratio"] >= least
    for name, dtype, _ in original.layout:
        x, y = original.values(name).astype(np.float64), decoded.values(name).astype(np.float64)
        bound = group_scales(x, group) / 2 + np.abs(y) * HALF_ULP[dtype]
        assert np.all(np.abs(x - y) <= bound * (1 + 1e-9)), name
    check_figures(result, original, decoded)


def test_short_groups_and_odd_shapes(bin_dir, tmp_path):
    rng = np.random.default_rng(3)
    original = File(write_file(tmp_path / "in", {
        "one": rng.standard_normal(1).astype(np.float32), "odd": rng.standard_normal((7, 131)).astype(np.float16),
        "blocks": rng.standard_normal(300001).astype(ml_dtypes.bfloat16)}))
    result = run_ok(bin_dir, "-input", tmp_path / "in", "-output", tmp_path / "packed", "-group-size", 128, "-verbose")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    decoded = File(tmp_path / "out")
    for name, dtype, _ in original.layout:
        x, y = original.values(name).astype(np.float64), decoded.values(name).astype(np.float64)
        assert np.all(np.abs(x - y) <= (group_scales(x, 128) / 2 + np.abs(y) * HALF_ULP[dtype]) * (1 + 1e-9)), name
    for figure in ("rmse", "max_error"):
        value = figures(original.values("odd"), decoded.values("odd"))[figure]
        assert result["tensor_metrics"][f"odd_{figure}"] == pytest.approx(value, rel=1e-6)


def test_stock_readers_read_both_files(bin_dir, cache, tmp_path):
    run_ok(bin_dir, "-input", cache, "-output", tmp_path / "packed")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    with safe_open(cache, "np") as original, safe_open(tmp_path / "out", "np") as out, \
            safe_open(tmp_path / "packed", "np") as packed:
        assert list(original.offset_keys()) == list(out.offset_keys()) == list(packed.offset_keys())
        assert out.metadata() == original.metadata()
        own = {key: value for key, value in packed.metadata().items() if not key.startswith("kvcompress.")}
        assert own == original.metadata()
        assert packed.metadata()["kvcompress.version"] == "1"
        assert packed.metadata()["kvcompress.codec"] == "int4(group=64)"
        for name in original.keys():
            theirs, ours = original.get_slice(name), out.get_slice(name)
            assert (ours.get_shape(), ours.get_dtype()) == (theirs.get_shape(), theirs.get_dtype())
            frame = packed.get_slice(name)
            assert frame.get_dtype() == "U8" and len(frame.get_shape()) == 1


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "é": "\n"}])
def test_metadata_comes_back_as_it_was(bin_dir, tmp_path, metadata):
    path = write_file(tmp_path / "in", {"a": np.ones(3, np.float32)}, metadata)
    run_ok(bin_dir, "-input", path, "-output", tmp_path / "packed")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    assert File(tmp_path / "out").metadata == metadata


# Sparsity.

@pytest.mark.parametrize("ratio", ["0.1", "0.5", "0.9", "1"])
def test_the_smallest_magnitudes_become_zero(bin_dir, sample, tmp_path, ratio):
    codec = f"sparse(ratio={ratio})|raw"
    result = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed", "-codec", codec, "-verbose")
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    original, decoded = File(sample), File(tmp_path / "out")
    for name, _ in original.entries:
        x, y = original.values(name), decoded.values(name)
        dropped = math.floor(float(ratio) * len(x))
        assert np.count_nonzero(y == 0) == max(dropped, np.count_nonzero(x == 0))
        assert np.array_equal(y[y != 0], x[y != 0])
        if 0 < dropped < len(x):
            assert np.abs(x[y == 0]).max() <= np.abs(y[y != 0]).min()
    if ratio != "1":
        check_figures(result, original, decoded)


def test_files_shrink_with_sparsity(bin_dir, sample, tmp_path):
    sizes = []
    for sparsity in ("0", "0.25", "0.5", "0.75", "0.95"):
        result = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed", "-sparsity", sparsity, "-verbose")
        run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
        original, decoded = File(sample), File(tmp_path / "out")
        check_figures(result, original, decoded)
        for name, _ in original.entries:
            zeros = np.count_nonzero(decoded.values(name) == 0)
            assert zeros >= math.floor(float(sparsity) * len(original.values(name)))
        sizes.append((tmp_path / "packed").stat().st_size)
    # Where the bitmask costs more than what it saves, the values are stored as they are.
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.85 * sizes[0] and sizes[4] < 0.4 * sizes[0]


# Values that are not finite, and codecs without loss.

@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "-infinity")])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_values_that_are_not_finite_are_refused_by_name(bin_dir, tmp_path, value, word, dtype):
    values = np.ones((1, 2, 1000, 128), dtype)
    values.reshape(-1)[200001] = value
    path = write_file(tmp_path / "in", {"layer_0_key": np.ones(8, dtype), "layer_0_value": values})
    done = run(bin_dir, "-input", path, "-output", tmp_path / "out")
    assert done.stderr.startswith(f'Error: tensor "layer_0_value": value 200001 is {word}, ')
    assert (done.stdout, done.returncode) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("codec", ["raw", "raw|zstd", "raw|zstd(level=-5)"])
def test_lossless_codecs_keep_every_bit(bin_dir, tmp_path, codec):
    rng = np.random.default_rng(4)
    original = write_file(tmp_path / "in", {
        "f16": rng.integers(0, 2**16, 70000, np.uint16).view(np.float16),
        "bf16": rng.integers(0, 2**16, 70000, np.uint16).view(ml_dtypes.bfloat16),
        "f32": rng.integers(0, 2**32, 70000, np.uint32).view(np.float32)}, {"a": "b"})
    result = run_ok(bin_dir, "-input", original, "-output", tmp_path / "packed", "-codec", codec, "-verbose")
    assert (result["snr_db"], result["rmse"], result["max_error"]) == (None, 0, 0)
    assert result["tensor_metrics"]["f16_snr_db"] is None
    assert (result["quality_level"], result["quality_passed"], result["violations"]) == ("EXCELLENT", True, [])
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    assert File(tmp_path / "out").bytes == File(original).bytes


# Paths, disks, memory.

def test_input_and_output_may_be_the_same_path(bin_dir, sample, tmp_path):
    path = tmp_path / "cache"
    path.write_bytes(sample.read_bytes())
    path.chmod(0o640)
    run_ok(bin_dir, "-input", path, "-output", path, "-codec", "raw|zstd")
    assert path.stat().st_size < sample.stat().st_size
    run_ok(bin_dir, "-decompress", "-input", path, "-output", path)
    assert File(path).bytes == File(sample).bytes
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_a_full_disk_leaves_the_old_file(bin_dir, sample, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        (disk / "out").write_text("old")
        done = run(bin_dir, "-input", sample, "-output", disk / "out")
        assert done.stderr == f"Error: write output: write {disk / 'out'}: no space left on device\n"
        assert (done.stdout, done.returncode) == ("", 1)
        assert (disk / "out").read_text() == "old"
        assert [path.name for path in disk.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_limit_on_file_sizes_is_an_error_and_no_crash(bin_dir, sample, tmp_path):
    done = subprocess.run(["sh", "-c", 'ulimit -f 64; exec "$@"', "sh", bin_dir / "kv-compress", "-input", sample,
                           "-output", tmp_path / "out"], capture_output=True, text=True, timeout=30, env=environment())
    assert done.stderr == f"Error: write output: write {tmp_path / 'out'}: file too large\n"
    assert done.returncode == 1 and list(tmp_path.iterdir()) == []


def test_an_unwritable_folder(bin_dir, sample):
    # Nobody makes files in /sys, not even root, whom the mode of a folder would not stop.
    done = run(bin_dir, "-input", sample, "-output", "/sys/kvcompress")
    assert re.fullmatch("Error: write output: open /sys/kvcompress: (permission denied|read-only file system)\n",
                        done.stderr)
    assert (done.stdout, done.returncode) == ("", 1)


def test_files_larger_than_the_memory_that_is_allowed(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"a": np.zeros(64 << 20, np.float16)})
    for flags in (["-input", path, "-output", tmp_path / "packed"],
                  ["-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out"]):
        # 96 MiB of data in all, for a file of 128 MiB.
        done = subprocess.run(["sh", "-c", 'ulimit -d 98304; exec "$@"', "sh", bin_dir / "kv-compress", "-threads", "2",
                               *flags], capture_output=True, text=True, timeout=60, env=environment())
        assert done.returncode == 0, done.stderr
    assert File(tmp_path / "out").bytes == File(path).bytes


def test_damaged_files_are_refused(bin_dir, sample, tmp_path):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed")
    good = (tmp_path / "packed").read_bytes()
    damaged = tmp_path / "damaged"
    rng = np.random.default_rng(5)
    cases = [good[:-1], good[:len(good) // 2], good + b"\0"]
    for bit in rng.integers(0, 8 * len(good), 40):
        case = bytearray(good)
        case[bit // 8] ^= 1 << (bit % 8)
        cases.append(bytes(case))
    for case in cases:
        damaged.write_bytes(case)
        done = run(bin_dir, "-decompress", "-input", damaged, "-output", tmp_path / "out")
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
    renamed = good.replace(b'"layer_10_key":', b'"layer_19_key":', 1)
    damaged.write_bytes(renamed)
    done = run(bin_dir, "-decompress", "-input", damaged, "-output", tmp_path / "out")
    assert done.stderr == "Error: compressed file is damaged: its header does not match the header's checksum\n"
