"""kv4, kv3, kv2 and kv(bits=B,artifact=ID): the same frames wherever a codec is named."""

import json

import kvcompress
import pytest
from cli_helpers import File, run, run_ok
from frame_reader import read_frame

KEY, VALUE = "layer_10_key", "layer_10_value"
THETA, SPELLED = 100000, "1e+05"  # the sample's, and as specs have it
SPECS = {"kv4": "kv(bits=4)", "kv3": "kv(bits=3)", "kv2": "kv(bits=2)"}


def compress(bin_dir, sample, tmp_path, *flags):
    """The report, and the frames of a key and a value."""
    report = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "small", *flags)
    file = File(tmp_path / "small")
    return report, {name: file.bytes[name] for name in (KEY, VALUE)}


@pytest.mark.parametrize("name", SPECS)
def test_keys_and_values_take_the_bits_between_them(bin_dir, sample, tmp_path, name):
    bits = int(name.removeprefix("kv"))
    report, frames = compress(bin_dir, sample, tmp_path, "-codec", name, "-rope-theta", THETA)
    key, value = read_frame(frames[KEY]).codec, read_frame(frames[VALUE]).codec
    assert key.startswith("transform(bits=") and key.endswith(f",theta={SPELLED})") and "theta" not in value
    assert report["rotary"]["theta"] == THETA and report["rotary"]["from"] == "flags"
    values = 256 * 192
    sizes = [8 * len(frames[tensor]) / values for tensor in (KEY, VALUE)]
    assert sizes[0] < bits < sizes[1]
    assert bits - 0.05 < sum(sizes) / 2 <= bits
    _, same = compress(bin_dir, sample, tmp_path, "-codec", SPECS[name], "-rope-theta", THETA)
    assert same == frames
    report, same = compress(bin_dir, sample, tmp_path, "-bits", bits, "-rope-theta", THETA)
    assert same == frames and report["bits_per_value"] < bits + 0.05


def test_every_way_to_name_it_gives_the_same_frames(bin_dir, sample, tmp_path, daemon):
    _, frames = compress(bin_dir, sample, tmp_path, "-codec", "kv3", "-rope-theta", THETA)
    served = daemon("--default-codec", "kv3")
    for server in ([], ["-server", served.address]):
        assert compress(bin_dir, sample, tmp_path, "-codec", "kv3", "-rope-theta", THETA, *server)[1] == frames
        profile = tmp_path / "profile.json"
        profile.write_text(json.dumps({"version": 1, "default": "int4", "rotary": {"theta": THETA},
                                       "rules": [{"layers": [10, 10], "codec": "kv3"}]}))
        assert compress(bin_dir, sample, tmp_path, "-profile", profile, *server)[1] == frames
    source = File(sample)
    rotary = kvcompress.RotaryEmbedding(THETA)
    tensors = {name: source.values(name).reshape(dict(source.entries)[name]["shape"]) for name in frames}
    with kvcompress.Client(served.address) as client:
        for codec in ("kv3", ""):  # the default
            assert {name: client.compress(tensor, codec, name=name, rotary=rotary).data
                    for name, tensor in tensors.items()} == frames
        with pytest.raises(kvcompress.InvalidArgument, match="kv: bits=1 is not a number from 1.5 to 8"):
            client.compress(tensors[KEY], "kv(bits=1)", name=KEY)
        # A tensor of another name is taken for a key.
        assert client.compress(tensors[KEY], "kv3", name="latent").codec == read_frame(frames[KEY]).codec.replace(
            f",theta={SPELLED}", "")


def test_an_artifact_is_named_and_makes_it_better(bin_dir, sample, tmp_path, daemon):
    (tmp_path / "artifacts").mkdir()
    artifact = run_ok(bin_dir, "-calibrate", "-input", sample, "-output", tmp_path / "artifacts" / "m.kvcal", "-group-dim",
                      64, "-rope-theta", THETA)["artifact"]
    at = ["-artifacts", tmp_path / "artifacts"]
    plain, _ = compress(bin_dir, sample, tmp_path, "-codec", "kv3", "-rope-theta", THETA, *at)
    report, frames = compress(bin_dir, sample, tmp_path, "-codec", f"kv(bits=3,artifact={artifact})", *at)
    for frame in frames.values():
        assert f"artifact={artifact})" in read_frame(frame).codec
    assert report["snr_db"] > plain["snr_db"] + 1 and report["bits_per_value"] <= plain["bits_per_value"] + 0.02
    served = daemon("--artifacts", tmp_path / "artifacts")
    assert compress(bin_dir, sample, tmp_path, "-codec", f"kv(bits=3,artifact={artifact})", "-server",
                    served.address)[1] == frames
    done = run(bin_dir, "-input", sample, "-output", tmp_path / "out", "-codec", f"kv(bits=3,artifact={artifact})")
    assert done.returncode == 1 and artifact in done.stderr and "no directory of artifacts" in done.stderr
