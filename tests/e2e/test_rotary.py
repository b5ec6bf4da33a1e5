"""Where the rotary embedding that codecs undo comes from: spec, profile, header, flags, the file's metadata."""

import json
from dataclasses import replace
from types import SimpleNamespace

import grpc
import kvcompress
import numpy as np
import pytest
import rotary as reference
from cli_helpers import File, run, run_ok, write_file
from frame_reader import read_frame

KEY, VALUE = "layer_10_key", "layer_10_value"
THETA, SPELLED = 100000, "1e+05"  # the sample's, and as specs have it
CODEC = "transform(step=0.25)"


@pytest.fixture
def cache(sample, tmp_path):
    """Writes a key and a value of the sample with these metadata."""
    file = File(sample)
    tensors = {name: file.values(name).reshape(dict(file.entries)[name]["shape"]) for name in (KEY, VALUE)}

    def write(name, **metadata):
        return write_file(tmp_path / name, tensors, {key: str(value) for key, value in metadata.items()})

    return write


def codecs(path):
    """The spec in each frame."""
    file = File(path)
    return {name: read_frame(data).codec for name, data in file.bytes.items()}


def compress(bin_dir, source, *flags):
    report = run_ok(bin_dir, "-input", source, "-output", f"{source}.kvc", *flags)
    return report, source.with_name(f"{source.name}.kvc")


def test_metadata_make_keys_smaller_and_values_no_larger(bin_dir, cache, tmp_path):
    plain, _ = compress(bin_dir, cache("silent"), "-codec", CODEC)
    report, small = compress(bin_dir, cache("says", rope_theta=THETA), "-codec", CODEC)
    assert report["compressed_size_bytes"] < 0.95 * plain["compressed_size_bytes"]
    assert report["snr_db"] == pytest.approx(plain["snr_db"], abs=0.5)
    assert plain["rotary"] is None
    saved = report["rotary"].pop("saved_bits_per_value")
    assert report["rotary"] == {"theta": THETA, "pairs": "half", "dims": 0, "offset": 0, "start": 0, "scaling": None,
                                "from": "metadata", "tensors": 1, "undone_tensors": 1}
    assert 0.1 < saved < 3
    assert codecs(small) == {KEY: f"transform(step=0.25,theta={SPELLED})", VALUE: CODEC}
    run_ok(bin_dir, "-input", small, "-output", tmp_path / "back", "-decompress")
    assert np.isfinite(File(tmp_path / "back").values(KEY).astype(np.float32)).all()


def test_the_nearest_source_decides(bin_dir, cache, tmp_path):
    source = cache("in", rope_theta=500, rope_pairs="interleaved", rope_dims=32, rope_offset=8, seq_start=64)
    for flags, key in (
            (["-codec", CODEC], "theta=500,rotary=interleaved,rotary_dims=32,rotary_offset=8,start=64"),
            (["-codec", CODEC, "-rope-theta", 10000], "theta=10000,start=64"),
            (["-codec", CODEC, "-rope-theta", 10000, "-rope-start", 0], "theta=10000"),
            (["-codec", "transform(step=0.25,theta=77)", "-rope-theta", 10000], "theta=77,start=64")):
        report, small = compress(bin_dir, source, *flags)
        assert codecs(small)[KEY] == f"transform(step=0.25,{key})"
        source_of_it = "codec" if "theta=77" in key else "flags" if "-rope-theta" in flags else "metadata"
        assert report["rotary"]["from"] == source_of_it
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"version": 1, "default": CODEC, "rotary": {"theta": 1234}}))
    report, small = compress(bin_dir, source, "-profile", profile, "-rope-theta", 10000, "-rope-start", 0)
    assert codecs(small)[KEY] == "transform(step=0.25,theta=1234)" and report["rotary"]["from"] == "profile"


def test_metadata_that_cannot_be_are_refused_where_the_codec_needs_them(bin_dir, cache, tmp_path):
    for metadata in ({"rope_theta": "dynamic"}, {"rope_theta": "nan"}, {"rope_theta": 0.5}, {"seq_start": -1},
                     {"rope_theta": 9, "rope_dims": 3}, {"rope_theta": 9, "rope_pairs": "both"},
                     {"rope_theta": 9, "rope_scaling": "llama3"}, {"rope_theta": 9, "rope_scaling": '{"type": "dynamic"}'},
                     {"rope_theta": 9, "rope_scaling": '{"type": "linear", "factor": NaN}'},
                     {"rope_theta": 9, "rope_scaling": '{"type": "linear", "factor": 0}'}):
        source = cache("bad", **metadata)
        done = run(bin_dir, "-input", source, "-output", tmp_path / "out", "-codec", CODEC)
        assert done.returncode == 1 and "its metadata" in done.stderr, metadata
        assert not (tmp_path / "out").exists()
        compress(bin_dir, source)  # int4 has no use for them


def test_a_daemon_gives_the_bytes_of_this_process(bin_dir, cache, daemon):
    source = cache("in", rope_theta=THETA)
    _, local = compress(bin_dir, source, "-codec", CODEC)
    expected = local.read_bytes()
    _, remote = compress(bin_dir, source, "-codec", CODEC, "-server", daemon().address)
    assert remote.read_bytes() == expected


def test_a_header_has_the_embedding(bin_dir, cache, client):
    source = File(cache("in"))
    pb = client.pb
    expected = {name: source.bytes[name] for name in source.bytes}

    def frame_of(name, **rotary):
        shape = dict(source.entries)[name]["shape"]
        header = pb.CompressHeader(tensor=pb.Tensor(name=name, dtype=pb.DTYPE_BF16, shape=shape), codec=CODEC,
                                   rotary=pb.RotaryEmbedding(**rotary))
        return client.stub.CompressTensor(pb.CompressTensorRequest(header=header, data=expected[name])).frame

    for name, theta in ((KEY, f",theta={SPELLED}"), (VALUE, "")):
        assert read_frame(frame_of(name, theta=THETA, start=5)).codec == f"transform(step=0.25{theta},start=5)"
    assert len(frame_of(KEY, theta=THETA)) < 0.9 * len(frame_of(KEY))
    both = frame_of(KEY, theta=THETA, pairs=pb.ROTARY_PAIRS_INTERLEAVED, dims=32, offset=2)
    assert "rotary=interleaved,rotary_dims=32,rotary_offset=2" in read_frame(both).codec


@pytest.mark.parametrize("rotary", [{"theta": float("nan")}, {"theta": float("inf")}, {"theta": -1}, {"theta": 0.5},
                                    {"theta": 1e16}, {"theta": 9, "dims": 3}, {"theta": 9, "dims": 1 << 31},
                                    {"theta": 9, "offset": 1 << 31}, {"theta": 9, "start": 1 << 63},
                                    {"theta": 9, "pairs": 7}, {"dims": 64}, {"theta": 9, "scaling": {"kind": 9}},
                                    {"theta": 9, "scaling": {"factor": 2}}, {"scaling": {"kind": 1, "factor": 2}},
                                    *({"theta": 9, "scaling": {"kind": 1 + n % 3, "factor": factor, "original": n}}
                                      for n, factor in enumerate((0, -1, 0.5, 1e300, float("nan"), float("inf")))),
                                    {"theta": 9, "scaling": {"kind": 2, "factor": 2, "low": float("nan")}},
                                    {"theta": 9, "scaling": {"kind": 2, "factor": 2, "high": 0.5}},
                                    {"theta": 9, "scaling": {"kind": 3, "factor": 2}},
                                    {"theta": 1, "scaling": {"kind": 3, "factor": 2, "original": 9}},
                                    {"theta": 9, "scaling": {"kind": 3, "factor": 2, "original": 1 << 63}}])
@pytest.mark.parametrize("codec", ["int4", CODEC])
def test_hostile_headers_are_refused(client, rotary, codec):
    pb = client.pb
    header = pb.CompressHeader(tensor=pb.Tensor(name=KEY, dtype=1, shape=[1, 1, 4, 64]), codec=codec,
                               rotary=pb.RotaryEmbedding(**rotary))
    with pytest.raises(grpc.RpcError) as error:
        client.stub.CompressTensor(pb.CompressTensorRequest(header=header, data=bytes(512)))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "rotary: " in error.value.details()


def test_python_passes_it_on(cache, daemon):
    source = File(cache("in"))
    tensors = {name: source.values(name).reshape(dict(source.entries)[name]["shape"]) for name in (KEY, VALUE)}
    scaling = kvcompress.RotaryScaling.of({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0})
    rotary = kvcompress.RotaryEmbedding(10000, dims=32, pairs="interleaved", start=5, scaling=scaling)
    expected = "theta=10000,rotary=interleaved,rotary_dims=32,start=5,scaling=llama3,factor=8"
    with kvcompress.Client(daemon().address) as client:
        frame = client.compress(tensors[KEY], CODEC, name=KEY, rotary=rotary)
        assert frame.codec == f"transform(step=0.25,{expected})"
        assert frame.rotary.undone_share in (0, 1) and (frame.rotary.saved_bits_per_value > 0) == frame.rotary.undone_share
        assert client.compress(tensors[VALUE], CODEC, name=VALUE, rotary=rotary).rotary is None
        many = list(client.compress_many(tensors.items(), CODEC, rotary=rotary))
        assert [one.codec for one in many] == [frame.codec, "transform(step=0.25,start=5)"]
        own = [(KEY, tensors[KEY], None, rotary), (KEY, tensors[KEY], "transform(step=1)", None), (KEY, tensors[KEY])]
        many = list(client.compress_many(own, CODEC, rotary=kvcompress.RotaryEmbedding(7)))
        assert [one.codec for one in many] == [frame.codec, "transform(step=1)", "transform(step=0.25,theta=7)"]
        with pytest.raises(kvcompress.InvalidArgument, match="theta is 0.5"):
            client.compress(tensors[KEY], CODEC, rotary=kvcompress.RotaryEmbedding(0.5))
        for wrong in (10000.0, {"theta": 1}, kvcompress.RotaryEmbedding(9, pairs="both"),
                      kvcompress.RotaryEmbedding(9, dims=-2), kvcompress.RotaryEmbedding("9"),
                      kvcompress.RotaryEmbedding(9, scaling=kvcompress.RotaryScaling("dynamic", 2)),
                      kvcompress.RotaryEmbedding(9, scaling=kvcompress.RotaryScaling("linear", 0)),
                      kvcompress.RotaryEmbedding(9, scaling=kvcompress.RotaryScaling("linear", "2"))):
            for call in (lambda rotary: client.compress(tensors[KEY], CODEC, rotary=rotary),
                         lambda rotary: list(client.compress_many(tensors.items(), CODEC, rotary=rotary))):
                with pytest.raises(kvcompress.InvalidArgument):
                    call(wrong)


HEADS, TOKENS, SIZE, BLOCK = 2, 256, 64, 64
PAGED = ("batch", "seq", "heads", "head_dim")


# From [heads, tokens, channels], which parts of a tensor are keys and which their axes are. Blocks of a paged cache are
# sequences of their own, whose positions differ from those in the prompt by as much for all of their tokens.
@pytest.mark.parametrize(("arrange", "axes", "most"), [
    (lambda x: x.transpose(1, 0, 2), PAGED[1:], 0.9),
    (lambda x: x.reshape(HEADS, -1, BLOCK, SIZE).transpose(1, 0, 2, 3), ("batch", "heads", "seq", "head_dim"), 0.9),
    (lambda x: x.reshape(HEADS, -1, BLOCK, SIZE).transpose(1, 2, 0, 3), PAGED, 0.9),
    (lambda x: np.stack([x.reshape(HEADS, -1, BLOCK, SIZE).transpose(1, 2, 0, 3),
                         np.random.default_rng(2).standard_normal((TOKENS // BLOCK, BLOCK, HEADS, SIZE))]),
     ("other", *PAGED), 0.95),
    (lambda x: x.reshape(HEADS * TOKENS, SIZE), ("seq", "head_dim"), 0.9)],
    ids=["tokens, heads", "blocks, heads, tokens", "blocks, tokens, heads", "2, blocks, tokens, heads", "latents"])
def test_axes_say_where_tokens_are(daemon, arrange, axes, most):
    """Keys with constants, in the layouts of engines."""
    generator = np.random.default_rng(1)
    rotary = kvcompress.RotaryEmbedding(10000, dims=SIZE // 2, offset=SIZE // 2, pairs="interleaved")
    tokens = HEADS * TOKENS if axes == ("seq", "head_dim") else TOKENS
    keys = generator.standard_normal((HEADS * TOKENS // tokens, tokens, SIZE))
    keys += 8 * generator.standard_normal((len(keys), 1, SIZE))
    turns = np.arange(tokens)[:, None] * 10000.0 ** (-np.arange(SIZE // 4) / (SIZE // 4))
    pairs = (keys[..., SIZE // 2::2] + 1j * keys[..., SIZE // 2 + 1::2]) * np.exp(1j * turns)
    keys[..., SIZE // 2::2], keys[..., SIZE // 2 + 1::2] = pairs.real, pairs.imag
    tensor = np.ascontiguousarray(arrange(keys), dtype=np.float16)
    with kvcompress.Client(daemon().address) as client:
        plain, turned = (client.compress(tensor, CODEC, name="kv", axes=axes, rotary=found) for found in (None, rotary))
        assert len(turned) < most * len(plain), (len(turned), len(plain))
        assert 0 < np.abs(client.decompress(turned).astype(float) - tensor).max() < 0.5


def test_a_models_configuration_tells_it():
    def of(**fields):
        return kvcompress.RotaryEmbedding.of_config(SimpleNamespace(**fields))

    plain = kvcompress.RotaryEmbedding(500000.0)
    assert of(rope_theta=500000.0) == plain
    llama = kvcompress.RotaryScaling("llama3", 8.0, low=1.0, high=4.0, original=8192)
    parameters = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    for scaled in ({"rope_parameters": {**parameters, "rope_theta": 500000.0, "rope_type": "llama3"}},
                   {"rope_theta": 500000.0, "rope_scaling": {**parameters, "type": "llama3"}},
                   {"rope_theta": 500000.0, "rope_scaling": {**parameters, "rope_type": "llama3"}}):
        assert of(**scaled, max_position_embeddings=131072) == replace(plain, scaling=llama)
    assert of(rope_theta=500000.0, rope_scaling={"type": "linear", "factor": 2.0}).scaling == kvcompress.RotaryScaling("linear", 2.0)
    assert of(rope_theta=500000.0, rope_scaling={"type": "yarn", "factor": 4.0, "beta_fast": None}, max_position_embeddings=32768
              ).scaling == kvcompress.RotaryScaling("yarn", 4.0, original=32768)
    assert of(rope_theta=500000.0, rope_scaling=None) == of(rope_theta=500000.0, rope_scaling={"rope_type": "default"}) == plain
    for unknown in ({"type": "dynamic", "factor": 2.0}, {"rope_type": "longrope", "short_factor": [1.0]}, {"type": 3},
                    {"rope_type": "yarn", "factor": 2.0, "truncate": False}):
        with pytest.warns(UserWarning, match="is not known"):
            assert of(rope_theta=500000.0, rope_scaling=unknown) is None
    assert of(rope_theta=10000, partial_rotary_factor=0.25, hidden_size=512, num_attention_heads=8).dims == 16
    assert of(rope_theta=10000, partial_rotary_factor=0.5, head_dim=96, hidden_size=1).dims == 48
    assert of(n_embd=768) is None
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "head_dim": 64}
    turned = kvcompress.RotaryEmbedding(10000.0, "interleaved", dims=64, offset=512)
    assert of(rope_theta=10000, **latent) == of(rope_theta=10000, rope_interleave=True, **latent) == turned
    assert of(rope_theta=10000, rope_interleave=False, **latent).pairs == "half"
    assert of(rope_theta=10000, model_type="llama").pairs == "half"
    assert of(rope_theta=10000, model_type="glm4", head_dim=128, partial_rotary_factor=0.5) == (
        kvcompress.RotaryEmbedding(10000.0, "interleaved", dims=64))
    assert of(rope_parameters={"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}) is None


# How transformers writes them, as specs do, and their bases.
SCALINGS = [
    ({"rope_type": "linear", "factor": 2.5}, {"scaling": "linear", "factor": "2.5"}, 10000.0),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}, {"scaling": "llama3", "factor": "8"}, 500000.0),
    ({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 0.5, "high_freq_factor": 6.0,
      "original_max_position_embeddings": 64},
     {"scaling": "llama3", "factor": "4", "low": "0.5", "high": "6", "original": "64"}, 10000.0),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
     {"scaling": "yarn", "factor": "4", "original": "32768"}, 1000000.0),
    ({"rope_type": "yarn", "factor": 40.0, "beta_fast": 32, "beta_slow": 2, "original_max_position_embeddings": 4096},
     {"scaling": "yarn", "factor": "40", "low": "2", "original": "4096"}, 10000.0),
]


def spec_of(options, theta):
    return f"transform(step=0.25,theta={theta:g}," + ",".join(f"{key}={value}" for key, value in options.items()) + ")"


@pytest.mark.parametrize(("parameters", "options", "theta"), SCALINGS)
def test_frequencies_are_those_of_transformers(parameters, options, theta):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=256, num_attention_heads=2, max_position_embeddings=131072,
                         rope_parameters={**parameters, "rope_theta": theta})
    theirs = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")[0].double().numpy() / (2 * np.pi)
    ours = np.array([reference.frequency(theta, reference.scaling_of(options), 128, i) for i in range(64)]) * 2.0**-64
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)  # theirs are in binary32
    assert kvcompress.RotaryEmbedding.of_config(config).scaling.factor == float(options["factor"])


def scaled_keys(options, theta, start):
    """Keys whose channels have means and deviations of their own, turned by the second implementation."""
    random = np.random.default_rng(3)
    keys = random.standard_normal((3000, 1, 64)) * random.uniform(0.1, 0.4, 64) + 4 * random.standard_normal(64)
    turned = reference.turn_forward(keys.astype(np.float32), {**options, "theta": theta}, start)
    return turned.transpose(1, 0, 2)[None].astype(np.float16)


@pytest.mark.parametrize(("parameters", "options", "theta"), SCALINGS)
def test_the_right_scaling_saves_bits_and_a_wrong_one_no_accuracy(bin_dir, tmp_path, parameters, options, theta):
    keys = scaled_keys(options, theta, 5000)

    def run_with(metadata, *flags):
        source = write_file(tmp_path / "in", {KEY: keys}, {"seq_start": "5000", **metadata})
        report, small = compress(bin_dir, source, "-codec", CODEC, *flags)
        run_ok(bin_dir, "-input", small, "-output", tmp_path / "back", "-decompress")
        error = File(tmp_path / "back").values(KEY).astype(np.float32).reshape(keys.shape) - keys
        assert np.abs(error).max() < 0.5, metadata  # of values up to 16, in steps of 0.25
        return report, codecs(small)[KEY]

    scaling = {"rope_theta": str(theta), "rope_scaling": json.dumps(parameters)}
    right, spec = run_with(scaling)
    assert spec.split("start=5000,")[1] == spec_of(options, theta).split(f"theta={theta:g},")[1]
    assert right["rotary"]["scaling"]["rope_type"] == parameters["rope_type"]
    assert right["rotary"]["undone_tensors"] == 1 and right["rotary"]["saved_bits_per_value"] > 1
    flags, _ = run_with({}, "-rope-theta", theta, "-rope-scaling", json.dumps(parameters))
    assert flags["compressed_size_bytes"] == pytest.approx(right["compressed_size_bytes"], abs=200)
    for wrong in ({}, {"rope_theta": str(theta)}, {"rope_theta": "77"},
                  {"rope_theta": str(theta), "rope_scaling": '{"rope_type": "linear", "factor": 999.5}'}):
        assert run_with(wrong)[0]["compressed_size_bytes"] > 1.2 * right["compressed_size_bytes"], wrong


def test_a_rotation_that_gains_nothing_is_told(bin_dir, tmp_path):
    source = write_file(tmp_path / "in", {KEY: scaled_keys({}, 10000, 0)}, {"rope_theta": "10000"})
    done = run(bin_dir, "-input", source, "-output", tmp_path / "out", "-codec", CODEC, "-verbose")
    assert "undone in 1 of 1 key tensors, which saves about " in done.stderr and "Warning" not in done.stderr
    report = json.loads(done.stdout)
    gain = report["tensor_metrics"][f"{KEY}_rotary"]
    assert gain["undone_share"] == 1 and gain["saved_bits_per_value"] == report["rotary"]["saved_bits_per_value"]
    for codec in (CODEC, "rotated(bits=4,mean=channel)", f"heads(0-:{CODEC})"):
        done = run(bin_dir, "-input", source, "-output", tmp_path / "out", "-codec", codec, "-rope-theta", "3", "-verbose")
        report = json.loads(done.stdout)
        assert report["tensor_metrics"][f"{KEY}_rotary"] == {"undone_share": 0, "saved_bits_per_value": 0}
        assert "undoing the rotation gained nothing on 1 of 1 key tensors: check -rope-theta" in done.stderr
        assert len(report["warnings"]) >= 1 and "undone in 0 of 1 key tensors" in done.stderr


def test_of_keys_that_do_not_turn_nothing_is_told(bin_dir, tmp_path):
    values = {name: scaled_keys({}, 10000, 0) for name in (KEY, "layer_0_value")}
    source = write_file(tmp_path / "in", values, {"rope_theta": "0", "rope_pairs": "half"})
    unknown = write_file(tmp_path / "unknown", values)
    for args in (("-metrics-only", "-codec", "kv3"), ("-sweep", "-codec", "kv3 raw"), ("-calibrate", "-output", tmp_path / "a.kvcal")):
        told, warned = (run(bin_dir, "-input", path, *args) for path in (source, unknown))
        assert told.returncode == warned.returncode == 0, told.stderr + warned.stderr
        assert ("rope_theta" in told.stderr, "rope_theta" in warned.stderr) == (False, True), args
    both = run_ok(bin_dir, "-calibrate", "-input", f"{source},{unknown}", "-output", tmp_path / "a.kvcal")
    assert any("rope_theta" in warning for warning in both["warnings"]), "one of the files does not say"
    given = run_ok(bin_dir, "-input", source, "-metrics-only", "-codec", "kv3", "-rope-theta", "10000")
    assert given["rotary"]["from"] == "flags"


def test_keys_that_nobody_says_how_to_turn_back_are_told_of(bin_dir, tmp_path):
    source = write_file(tmp_path / "in", {KEY: scaled_keys({}, 10000, 0), "layer_0_value": scaled_keys({}, 10000, 0)})
    warning = "the keys' rotary embedding is not known, so none was undone: -rope-theta or the file's metadata (rope_theta) say it"

    def warnings(*args):
        done = run(bin_dir, "-input", source, "-metrics-only", *args)
        assert done.returncode == 0, done.stderr
        found = [text for text in json.loads(done.stdout)["warnings"] if "rotary" in text]
        assert done.stderr.count(f"Warning: {warning}\n") == len(found)
        return found

    for codec in ("kv3", CODEC, "rotated(bits=4,mean=channel)", f"heads(0-:{CODEC})"):
        assert warnings("-codec", codec) == [warning], codec
    for args in (["-codec", "kv3", "-rope-theta", "10000"], ["-codec", "transform(bits=3,theta=10000)"], ["-codec", "int4"],
                 ["-codec", "rotated"], ["-codec", "lossless"]):
        assert warnings(*args) == [], args


@pytest.mark.parametrize("rope, said", [(("-rope-dims", 200), "200"), (("-rope-offset", 40, "-rope-dims", 40), "40"),
                                        (("-rope-offset", 64), "64")])
def test_channels_beyond_a_head_turn_in_no_mode(bin_dir, tmp_path, daemon, rope, said):
    source = write_file(tmp_path / "in", {KEY: scaled_keys({}, 10000, 0)})
    profile = tmp_path / "profile.json"
    names = {"-rope-dims": "dims", "-rope-offset": "offset"}
    rotary = {"theta": 10000, **{names[flag]: count for flag, count in zip(rope[::2], rope[1::2], strict=True)}}
    profile.write_text(json.dumps({"version": 1, "default": "kv3", "rotary": rotary}))
    metadata = {f"rope_{name}": str(value) for name, value in rotary.items()}
    told = write_file(tmp_path / "told", {KEY: scaled_keys({}, 10000, 0)}, metadata)
    flags = ("-rope-theta", 10000, *rope)
    outputs = ("-output", tmp_path / "out")
    for args in ((*outputs, "-codec", "kv3", *flags, "-input", source), ("-inspect", *flags, "-input", source),
                 ("-sweep", *flags, "-input", source), ("-calibrate", *outputs, *flags, "-input", source),
                 (*outputs, "-profile", profile, "-input", source), (*outputs, "-codec", "kv3", "-input", told),
                 (*outputs, "-codec", "kv3", *flags, "-input", source, "-server", daemon().address)):
        done = run(bin_dir, *args)
        assert done.returncode == 1 and said in done.stderr and "head" in done.stderr, (args, done.stderr)
        assert not (tmp_path / "out").exists()
    assert run(bin_dir, *outputs, "-codec", "int4", *flags, "-input", source).returncode == 0  # which turns nothing


def test_a_daemon_tells_what_undoing_brought(bin_dir, tmp_path, daemon):
    source = write_file(tmp_path / "in", {KEY: scaled_keys({}, 10000, 0)}, {"rope_theta": "10000"})
    local, _ = compress(bin_dir, source, "-codec", CODEC)
    remote, _ = compress(bin_dir, source, "-codec", CODEC, "-server", daemon().address)
    assert remote["rotary"] == local["rotary"] and local["rotary"]["saved_bits_per_value"] > 1
