"""The command line: flags, words and exit codes of the reference, a daemon in place of the codec."""

import json
import os
import re
import socket
import time

import numpy as np
import pytest
from cli_helpers import File, run, run_ok, start, write_file, write_layers
from conftest import REPOSITORY

REFERENCE_KEYS = ["compression_ratio", "original_size_bytes", "compressed_size_bytes", "rmse", "snr_db",
                  "cosine_similarity", "max_error", "quality_level", "processing_time_ms", "quality_passed",
                  "violations"]


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# Words and exit codes.

@pytest.mark.parametrize("args, text", [
    ([], "-input is required; -help shows all flags"),
    (["-output", "o"], "-input is required; -help shows all flags"),
    (["-input", "{sample}"], "-output is required"),
    (["-input", "none", "-output", "o"], "read input: open none: no such file or directory"),
    (["-input", "none", "-metrics-only"], "read input: open none: no such file or directory"),
    (["-input", ".", "-output", "o"], "read input: read .: is a directory"),
    (["-input", "{sample}", "-output", "no/o"], "write output: open no/o: no such file or directory"),
    (["-input", "{sample}", "-output", "."], "write output: open .: is a directory"),
    (["-input", "{sample}", "-output", "o", "-group-size", "48"], "-group-size must be 32, 64 or 128, not 48"),
    (["-input", "{sample}", "-output", "o", "-sparsity", "1.5"], "-sparsity must be between 0 and 1, not 1.5"),
    (["-input", "{sample}", "-output", "o", "-sparsity", "nan"], "-sparsity must be between 0 and 1, not nan"),
    (["-input", "{sample}", "-output", "o", "word"], 'unexpected argument "word"'),
    (["-input", "{sample}", "-output", "o", "-codec", "int9"], 'unknown codec "int9" (similar: int2, int3, int4, int5, int6, int8); -codec help lists them'),
    (["-input", "{sample}", "-output", "o", "-codec", "int4(groups=3)"],
     'int4 has no parameter "groups" (it has group); -codec help describes them'),
    (["-input", "{sample}", "-output", "o", "-codec", "kv2.5"],
     """codec spec "kv2.5": expected '|' or the end at character 4; -codec help lists codecs and names"""),
    (["-input", "{sample}", "-output", "o", "-codec", f"kv(artifact={'a' * 32})"],
     f"transform: artifact {'a' * 32}: this program was given no directory of artifacts; "
     "-artifacts DIR names it, and for a daemon its own --artifacts DIR"),
    (["-input", "{sample}", "-output", "o", "-codec", "raw", "-profile", "{profile}"], "-codec and -profile exclude each other"),
    (["-input", "{sample}", "-output", "o", "-profile", "none"],
     "read profile: open none: no such file or directory"),
    (["-input", "{sample}", "-output", "o", "-server", "host"],
     '"host" is not the address of a daemon: use HOST:PORT or unix:PATH'),
    (["-decompress", "-input", "{sample}", "-output", "o"],
     "input is not a compressed file: its metadata has no kvcompress.version"),
    (["-inspect", "none"], "read input: open none: no such file or directory"),
])
def test_errors_are_one_line_and_exit_1(bin_dir, sample, tmp_path, args, text):
    done = run(bin_dir, *[arg.format(sample=sample, profile=REPOSITORY / "deploy/profiles/kv3-llama3.json") for arg in args], cwd=tmp_path)
    assert (done.stderr, done.stdout, done.returncode) == (f"Error: {text}\n", "", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args, text", [
    (["-x"], "flag provided but not defined: -x"),
    (["--input"], "flag needs an argument: -input"),
    (["-group-size", "abc"], 'invalid value "abc" for flag -group-size: parse error'),
    (["-sparsity=half"], 'invalid value "half" for flag -sparsity: parse error'),
    (["-verbose=2"], 'invalid boolean value "2" for -verbose: parse error'),
    (["-timeout", "30"], 'invalid value "30" for flag -timeout: parse error'),
])
def test_flags_that_do_not_parse_show_the_usage_between_two_errors_and_exit_2(bin_dir, args, text):
    done = run(bin_dir, *args)
    usage = run(bin_dir, "-h")
    assert (usage.returncode, usage.stdout) == (0, "")
    assert usage.stderr.startswith("Usage of kv-compress:\n")
    assert "  -group-size int\n    \tQuantization group size (32, 64, or 128) (default 64)\n" in usage.stderr
    assert (done.stderr, done.stdout, done.returncode) == (f"{text}\n{usage.stderr}\n{text}\n", "", 2)


@pytest.mark.parametrize("content, text", [
    (b"", ""),
    (b"\x05\0\0\0\0\0\0\0hello", "invalid JSON"),
    (b"\x02\0\0\0\0\0\0\0{}tail", ""),
    (b"\xff" * 100, ""),
])
def test_corrupt_safetensors(bin_dir, tmp_path, content, text):
    path = tmp_path / "corrupt"
    path.write_bytes(content)
    done = run(bin_dir, "-input", path, "-output", tmp_path / "out")
    assert done.stderr.startswith(f"Error: parse header: {path}: {text}") and done.stderr.count("\n") == 1
    assert (done.stdout, done.returncode) == ("", 1)


def test_names_with_control_characters_stay_on_one_line(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"a\nb": np.array([np.nan], np.float32)})
    done = run(bin_dir, "-input", path, "-output", tmp_path / "out")
    assert done.stderr.startswith('Error: tensor "a\\x0ab": value 0 is NaN')
    assert done.stderr.count("\n") == 1


def test_the_help_has_a_group_and_an_example_for_each_task(bin_dir):
    groups = run(bin_dir, "-help").stderr.split("\n\n")
    assert len(groups) > 1
    starts = {"Compress": "-input", "Decompress": "-decompress", "Bounds that choose the codec": "-min-snr",
              "Use a daemon": "-server", "Inspect": "-inspect", "Compare all codecs": "-sweep", "Calibrate": "-calibrate"}
    for title, flag in starts.items():
        (group,) = [group for group in groups if group.startswith(f"{title}: kv-compress -")]
        assert group.splitlines()[1].startswith(f"  {flag}"), title


def test_flag_forms_of_go(bin_dir, sample, tmp_path):
    expected = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "a", "-group-size", "32")
    forms = run_ok(bin_dir, f"--input={sample}", "-output", tmp_path / "x", "-output", tmp_path / "b",
                   "--group-size=0x20", "-verbose=false")
    assert {**forms, "processing_time_ms": 0} == {**expected, "processing_time_ms": 0}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not (tmp_path / "x").exists()


def test_version_and_codec_help(bin_dir):
    version = run(bin_dir, "-version")
    assert re.fullmatch(r"kv-compress \d+\.\d+\.\d+\n", version.stdout) and version.returncode == 0
    codecs = run(bin_dir, "-codec", "help")
    assert codecs.returncode == 0 and codecs.stderr == ""
    for name in ("int4", "sparse", "zstd", "raw", "clamp", "lossless", "lossless-fast", "near-lossless", "mixed",
                 "kv4", "kv3", "kv2", "kv"):
        assert re.search(rf"^  {name} ", codecs.stdout, re.M)


# JSON.

def test_json_has_the_keys_and_types_of_the_reference(bin_dir, sample, tmp_path):
    done = run(bin_dir, "-input", sample, "-output", tmp_path / "out")
    assert done.stderr == ""
    assert done.stdout.startswith('{\n  "compression_ratio": ')
    result = json.loads(done.stdout)
    assert list(result)[:11] == REFERENCE_KEYS
    assert "tensor_metrics" not in result
    for key in ("compression_ratio", "rmse", "snr_db", "cosine_similarity", "max_error", "processing_time_ms"):
        assert type(result[key]) is float, key
    for key in ("original_size_bytes", "compressed_size_bytes"):
        assert type(result[key]) is int, key
    assert type(result["quality_level"]) is str and type(result["quality_passed"]) is bool
    assert result["violations"] == [  # all limits: keys of this model have channels with large means
        f"RMSE {result['rmse']:.4f} > 0.1000", f"MaxError {result['max_error']:.4f} > 0.5000",
        f"CosineSim {result['cosine_similarity']:.4f} < 0.9900", f"TokenSNR {result['judged_snr_db']:.2f}dB < 18.00dB"]
    assert result["original_size_bytes"] == 393216
    assert result["compressed_size_bytes"] == (tmp_path / "out").stat().st_size
    assert result["compression_ratio"] == 393216 / result["compressed_size_bytes"]
    assert result["codec"] == "int4(group=64)"
    assert result["theoretical_ratio"] == 64 / 17


def test_verbose_adds_tensor_metrics_and_logs_on_stderr(bin_dir, sample, tmp_path):
    done = run(bin_dir, "-input", sample, "-output", tmp_path / "out", "-verbose")
    result = json.loads(done.stdout)
    assert list(result)[:12] == REFERENCE_KEYS + ["tensor_metrics"]
    names = [f"layer_{layer}_{kind}" for layer in (10, 20) for kind in ("key", "value")]
    figures = ("rmse", "snr_db", "token_snr_db", "cosine_similarity", "max_error")
    assert list(result["tensor_metrics"]) == [f"{name}_{figure}" for name in names for figure in figures]
    for name in names:
        assert f"{name} BF16 [1, 3, 256, 64]: int4(group=64), 98304 bytes" in done.stderr


def test_metrics_only_gives_the_same_figures_and_writes_nothing(bin_dir, sample, tmp_path):
    written = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "out")
    dry = run_ok(bin_dir, "-input", sample, "-metrics-only", "-output", tmp_path / "dry")
    assert {**dry, "processing_time_ms": 0} == {**written, "processing_time_ms": 0}
    assert not (tmp_path / "dry").exists()


def test_decompress_has_the_same_keys_and_does_not_invent_quality(bin_dir, sample, tmp_path):
    compressed = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed")
    result = run_ok(bin_dir, "-decompress", "-input", tmp_path / "packed", "-output", tmp_path / "out")
    assert list(result)[:11] == REFERENCE_KEYS
    for key in ("compression_ratio", "original_size_bytes", "compressed_size_bytes", "codec"):
        assert result[key] == compressed[key]
    for key in ("rmse", "snr_db", "cosine_similarity", "max_error", "quality_passed"):
        assert result[key] is None
    assert result["quality_level"] == "UNKNOWN" and result["violations"] == []


def test_inspect_lists_compressed_and_plain_files(bin_dir, sample, tmp_path):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed")
    packed = run(bin_dir, "-inspect", tmp_path / "packed")
    assert packed.returncode == 0
    row = r'^"layer_20_value" +BF16 +\[1,3,256,64\] +1 +98304 +(\d+) +3\.\d+ +int4\(group=64\)$'
    assert re.search(row, packed.stdout, re.M)
    size = (tmp_path / "packed").stat().st_size
    assert f"total: 4 tensors, 393216 bytes, compressed file of {size} bytes, ratio 3.7" in packed.stdout
    assert 'metadata "model": "SmolLM2-135M-Instruct"' in packed.stdout
    plain = run(bin_dir, "-inspect", "-input", sample)
    assert re.search(r'^"layer_10_key" +BF16 +\[1,3,256,64\] +98304$', plain.stdout, re.M)
    assert "not compressed" in plain.stdout


def test_inspect_says_what_values_are_like(bin_dir, sample, tmp_path):
    text = run(bin_dir, "-inspect", "-rope-theta", "10000", sample).stdout
    values = File(sample).values("layer_10_key").astype(np.float64)
    number = r" +(-?[\d.e+-]+)"
    found = re.search(rf'^"layer_10_key"{number * 9}$', text, re.M).groups()
    magnitudes = np.sort(np.abs(values))
    expected = [values.mean(), values.std(), values.min(), values.max(),
                *(magnitudes[int(np.ceil(p * len(values) / 100)) - 1] for p in (50, 90, 99, 99.9)), 0]
    assert [float(x) for x in found] == pytest.approx(expected, rel=1e-3)
    planes = np.frombuffer(File(sample).bytes["layer_10_key"], np.uint8).reshape(-1, 2)
    bits = 0
    for plane in planes.T:
        p = np.bincount(plane) / len(plane)
        bits -= (p[p > 0] * np.log2(p[p > 0])).sum()
    plain = re.search(r'^"layer_10_key" +[\d.]+ +[\d.]+ [\d.]+ +[\d.]+ [\d.]+ +([\d.]+) ', text, re.M).group(1)
    assert float(plain) == pytest.approx(16 / bits, abs=0.0006)
    assert len(re.findall(r'^"layer_\d+_key" unrotated ', text, re.M)) == 3 * 2
    assert not re.search(r'_value" unrotated', text)
    assert "unrotated" not in run(bin_dir, "-inspect", sample).stdout


def test_inspect_of_a_compressed_file_has_no_keys_to_rotate(bin_dir, sample, tmp_path):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "small")
    done = run(bin_dir, "-inspect", "-rope-theta", "10000", tmp_path / "small")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "Error: -rope-theta is for plain files, and this one is compressed\n"


def test_inspect_of_values_that_are_no_numbers(bin_dir, tmp_path):
    write_file(tmp_path / "in", {"ids": np.arange(3, dtype=np.int64), "none": np.zeros((0, 4), np.float16),
                                 "nan": np.full((2, 3), np.nan, np.float32)})
    done = run(bin_dir, "-inspect", "-rope-theta", "1", tmp_path / "in")
    assert done.returncode == 0
    assert re.search(r'^"ids" +I64 +\[3\] +24$', done.stdout, re.M)
    assert re.search(r'^"nan" .* 6$', done.stdout, re.M)
    assert len(re.findall(r'^"(?:ids|none)"', done.stdout, re.M)) == 2


def test_profiles_choose_codecs(bin_dir, sample, tmp_path):
    profile = tmp_path / "profile.json"
    profile.write_text('{"version": 1, "default": "int4", "rules": [{"kind": "key", "codec": "int8(group=64)"}]}')
    result = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "out", "-profile", profile)
    assert result["codec"] == "profile" and result["theoretical_ratio"] is None
    table = run(bin_dir, "-inspect", tmp_path / "out").stdout
    assert re.search(r'"layer_10_key".* int8\(group=64\)$', table, re.M)
    assert re.search(r'"layer_10_value".* int4\(group=64\)$', table, re.M)
    write_file(tmp_path / "others", {"model.layers.0.k": np.ones(64, np.float16)})
    for chooser, changed in ((["-profile", profile], 0), (["-codec", "mixed"], 1)):
        unused = run(bin_dir, "-input", tmp_path / "others", "-metrics-only", *chooser)
        assert unused.returncode == 0
        warning, *others = unused.stderr.splitlines()
        assert warning == ("Warning: no tensor is named layer_{i}_key or layer_{i}_value: rules about layers and kinds "
                           "hold for none")
        assert [line.startswith('Warning: tensor "model.layers.0.k" is neither key nor value') for line in others] == [True] * changed
        assert run(bin_dir, "-input", sample, "-metrics-only", *chooser).stderr == ""
    profile.write_text('{"version": 1}')
    broken = run(bin_dir, "-input", sample, "-output", tmp_path / "new", "-profile", profile)
    assert broken.returncode == 1 and broken.stderr.startswith("Error: profile: ")


def test_bounds_are_kept_and_the_report_says_by_what(bin_dir, sample, tmp_path):
    sizes = []
    for snr in (10, 25, 40, 90):
        result = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "out", "-min-snr", snr, "-verbose")
        metrics = result["tensor_metrics"]
        figures = [value for name, value in metrics.items() if name.endswith("_snr_db")]
        codecs = [value for name, value in metrics.items() if name.endswith("_codecs")]
        assert len(figures) == 2 * len(codecs) == 8
        assert all(figure is None or figure >= snr for figure in figures)
        assert all(sum(blocks.values()) == 1 for blocks in codecs)
        sizes.append(result["compressed_size_bytes"])
        table = run(bin_dir, "-inspect", tmp_path / "out").stdout
        chosen = next(iter(metrics["layer_10_key_codecs"]))
        assert re.search(rf'"layer_10_key".*: {re.escape(chosen)} x 1$', table, re.M)
    assert sizes == sorted(sizes) and sizes[0] * 3 < sizes[-1]  # of BF16, which lossless codes at 10.7 bits a value
    assert metrics["layer_10_key_codecs"] == {"planes(split=auto,delta=auto)": 1}
    result = run_ok(bin_dir, "-input", sample, "-metrics-only", "-max-error", "0.01")
    assert 0 < result["max_error"] <= 0.01 and result["codec"] == "bounded(min_snr=0,max_error=0.01,min_cosine=0)|rans"


def test_names_in_place_of_specs(bin_dir, sample, tmp_path):
    assert run_ok(bin_dir, "-input", sample, "-metrics-only", "-codec", "lossless")["rmse"] == 0
    near = run_ok(bin_dir, "-input", sample, "-metrics-only", "-codec", "near-lossless", "-verbose")
    assert all(value >= 40 for name, value in near["tensor_metrics"].items() if name.endswith("_snr_db"))
    layers = write_layers(tmp_path / "layers", sample, *range(4))
    mixed = run_ok(bin_dir, "-input", layers, "-output", tmp_path / "out", "-codec", "mixed", "-verbose")
    assert mixed["codec"] == "profile"
    for layer in range(4):
        assert (mixed["tensor_metrics"][f"layer_{layer}_key_max_error"] == 0) == (layer < 2)
    assert re.search(r'"layer_2_value".* quant\(bits=10,per=block,.*\)\|rans$', run(bin_dir, "-inspect", tmp_path / "out").stdout, re.M)


def test_standard_output_that_cannot_be_written(bin_dir, sample):
    with open("/dev/full", "w") as full:
        done = start(bin_dir, "-input", sample, "-metrics-only", stdout=full)
        assert done.stderr.read() == b"Error: write standard output: not all could be written\n"
        done.stderr.close()
        assert done.wait(30) == 1


# A daemon.

@pytest.mark.parametrize("flags", [[], ["-group-size", "32", "-sparsity", "0.3"], ["-codec", "raw|zstd"],
                                   ["-min-snr", "25", "-min-cosine", "0.99"], ["-codec", "mixed"], ["-codec", "kv3"]])
def test_a_daemon_gives_the_same_bytes_and_the_same_json(bin_dir, sample, tmp_path, daemon, flags):
    server = daemon()
    local = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "local", "-verbose", *flags)
    remote = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "remote", "-verbose", *flags,
                    "-server", server.address)
    assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()
    assert {**local, "processing_time_ms": 0} == {**remote, "processing_time_ms": 0}
    local = run_ok(bin_dir, "-decompress", "-input", tmp_path / "local", "-output", tmp_path / "a")
    remote = run_ok(bin_dir, "-decompress", "-input", tmp_path / "local", "-output", tmp_path / "b",
                    env={"KV_COMPRESS_SERVER": server.address})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {**local, "processing_time_ms": 0} == {**remote, "processing_time_ms": 0}


def test_odd_tensors_through_a_daemon(bin_dir, tmp_path, daemon):
    rng = np.random.default_rng(2)
    tensors = {"scalar": np.float32(1.5).reshape(()), "none": np.zeros((3, 0, 2), np.float16),
               "odd \"\\\té": rng.standard_normal(131073).astype(np.float32),
               "large": rng.standard_normal((3, 500000)).astype(np.float16)}
    path = write_file(tmp_path / "in", tensors, {})
    server = daemon().address
    for codec in ("int4", "sparse(ratio=0.5)|int8", "raw"):
        run_ok(bin_dir, "-input", path, "-output", tmp_path / "local", "-codec", codec)
        run_ok(bin_dir, "-input", path, "-output", tmp_path / "remote", "-codec", codec, "-server", server)
        assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "remote", "-output", tmp_path / "out", "-server", server)
    assert File(tmp_path / "out").layout == File(path).layout
    assert File(tmp_path / "out").bytes == File(path).bytes
    assert File(tmp_path / "out").metadata == {}


def test_a_daemon_says_the_same_of_bad_data(bin_dir, sample, tmp_path, daemon):
    server = daemon().address
    bad = write_file(tmp_path / "bad", {"layer_0_key": np.array([1, np.inf], np.float16)})
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed")
    damaged = bytearray((tmp_path / "packed").read_bytes())
    damaged[-100] ^= 4
    (tmp_path / "damaged").write_bytes(damaged)
    for flags in (["-input", bad], ["-decompress", "-input", tmp_path / "damaged"]):
        local = run(bin_dir, *flags, "-output", tmp_path / "out")
        remote = run(bin_dir, *flags, "-output", tmp_path / "out", "-server", server)
        assert local.returncode == remote.returncode == 1
        assert local.stderr == remote.stderr and local.stderr.startswith("Error: tensor ")
        assert not (tmp_path / "out").exists()


def test_a_daemon_that_is_not_there(bin_dir, sample, tmp_path):
    address = free_address()
    for how in ({"env": {"KV_COMPRESS_SERVER": address}}, {}):
        flags = [] if how else ["-server", address]
        began = time.monotonic()
        done = run(bin_dir, "-input", sample, "-output", tmp_path / "out", *flags, **how)
        assert done.stderr.startswith(f"Error: connect to {address}: ") and done.stderr.count("\n") == 1
        assert "Connection refused" in done.stderr
        assert (done.stdout, done.returncode) == ("", 1)
        assert time.monotonic() - began < 6
    assert list(tmp_path.iterdir()) == []


# Files and the environment.

def test_no_input_is_replaced_by_what_it_is_read_for(bin_dir, tmp_path, sample):
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(sample.read_bytes())
    (tmp_path / "link").symlink_to(victim)
    done = run(bin_dir, "-sweep", "-input", victim, "-report", tmp_path / "link")
    assert (done.stderr, done.returncode) == ("Error: -report is the input, which it would replace\n", 1)
    profile = tmp_path / "profile.json"
    profile.write_text('{"version": 1, "default": "raw"}')
    done = run(bin_dir, "-input", victim, "-profile", profile, "-output", profile)
    assert (done.stderr, done.returncode) == ("Error: -output is the profile, which it would replace\n", 1)
    assert victim.read_bytes() == sample.read_bytes()
    assert profile.read_text().startswith("{")


def test_root_leaves_a_file_to_its_owner(bin_dir, tmp_path, sample):
    if os.geteuid() != 0:
        pytest.skip("not root")
    theirs = tmp_path / "theirs.safetensors"
    theirs.write_bytes(sample.read_bytes())
    os.chown(theirs, 1000, 1001)
    theirs.chmod(0o640)
    assert run(bin_dir, "-input", theirs, "-output", theirs).returncode == 0
    info = theirs.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (1000, 1001, 0o640)


@pytest.mark.parametrize("text", ["1", "TRUE", "true"])
def test_tls_by_the_environment_is_never_plaintext(bin_dir, sample, text):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = start(bin_dir, "-input", sample, "-metrics-only", "-server", f"127.0.0.1:{listener.getsockname()[1]}",
                       "-timeout", "2s", env={**os.environ, "KV_COMPRESS_TLS": text})
        listener.settimeout(10)
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(10)
            assert peer.recv(3)[:1] == b"\x16"  # of a TLS handshake
        assert client.communicate(timeout=20) and client.returncode == 1


def test_tls_by_the_environment_that_is_no_word_for_it(bin_dir, sample):
    done = run(bin_dir, "-input", sample, "-metrics-only", "-server", "127.0.0.1:1", env={"KV_COMPRESS_TLS": "yes"})
    assert (done.stderr, done.returncode) == ('Error: KV_COMPRESS_TLS is "yes", not true or false\n', 1)
