"""A profile in the header of a call: the frames are those of the command line with -profile."""

import json

import grpc
import numpy as np
import pytest
from cli_helpers import File, run, run_ok, write_file
from daemon_helpers import failure, random_array

PROFILE = """{"version": 1, "default": "int4(group=32)", "rules": [
    {"layers": [0, 0], "codec": "lossless"},
    {"heads": [1, 2], "codec": "int8(group=32)"},
    {"kind": "key", "codec": "int8|zstd(level=1)"},
    {"name": "other_*", "codec": "raw"}]}"""


@pytest.fixture
def tensors():
    names = ["layer_0_key", "layer_0_value", "layer_1_key", "layer_1_value", "other_1", "ssm_state"]
    return {name: random_array((1, 4, 300, 64), np.float16, seed) for seed, name in enumerate(names)}


@pytest.fixture
def frames(bin_dir, tmp_path, tensors):
    (tmp_path / "profile.json").write_text(PROFILE)
    source, output = write_file(tmp_path / "in.safetensors", tensors), tmp_path / "out.safetensors"
    report = run_ok(bin_dir, "-input", source, "-output", output, "-profile", tmp_path / "profile.json", "-verbose")
    policies = {name: value for name, value in report["tensor_metrics"].items() if name.endswith("_policy")}
    assert policies == {"ssm_state_policy": "others"}
    return File(output).bytes


@pytest.mark.parametrize("where", ["local", "server"])
def test_without_a_profile_tensors_that_are_no_keys_or_values_are_named(bin_dir, tmp_path, tensors, daemon, where):
    flags = ["-server", daemon().address] if where == "server" else []
    recurrent = {**tensors, "conv_state": tensors["ssm_state"]}
    del recurrent["other_1"]
    source = write_file(tmp_path / "in.safetensors", recurrent)

    def outcome(*args, file=source):
        done = run(bin_dir, "-input", file, "-metrics-only", "-verbose", *args, *flags)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert [line for line in done.stderr.splitlines() if line.startswith("Warning: tensor ")] == [
            f"Warning: {text}" for text in report["warnings"]]
        policies = {name: value for name, value in report["tensor_metrics"].items() if name.endswith("_policy")}
        return report["warnings"], policies

    advice = "with -profile such tensors are lossless unless it says otherwise"
    both = {"ssm_state_policy": "default", "conv_state_policy": "default"}
    assert outcome("-codec", "int4") == ([
        'tensor "ssm_state" and 1 more are neither keys nor values by their names, and int4(group=64) changed them; ' + advice], both)
    assert outcome("-min-snr", "20")[1] == both
    one = write_file(tmp_path / "one.safetensors", {"ssm_state": tensors["ssm_state"]})
    (warning,), policies = outcome("-codec", "mixed", file=one)
    assert warning.startswith('tensor "ssm_state" is neither key nor value by its name, and quant(bits=10')
    assert warning.endswith(" changed it; " + advice) and policies == {"ssm_state_policy": "default"}
    assert outcome("-codec", "lossless") == ([], both)  # which changes nothing
    (tmp_path / "profile.json").write_text(PROFILE)
    assert outcome("-profile", tmp_path / "profile.json") == ([], {"ssm_state_policy": "others", "conv_state_policy": "others"})


def header(client, name, shape, profile=PROFILE):
    tensor = client.pb.Tensor(name=name, dtype=1, shape=shape)
    return client.pb.CompressHeader(tensor=tensor, profile=profile)


def requests(client, tensors):
    for name, array in tensors.items():
        yield client.pb.CompressRequest(header=header(client, name, array.shape))
        yield client.data(array.tobytes())


def test_a_stream_gives_the_frames_of_the_command_line(client, tensors, frames):
    streamed, frame, policies = {}, b"", {}
    for response in client.stub.Compress(requests(client, tensors), timeout=60):
        frame += response.frame
        if response.WhichOneof("payload") == "tensor":
            streamed[response.tensor.name], frame = frame, b""
            policies[response.tensor.name] = response.tensor.policy
    assert streamed == frames
    assert policies.pop("ssm_state") == "others"
    assert set(policies.values()) == {""}


def test_a_tensor_in_a_message_gives_them_too(client, tensors, frames):
    for name, array in tensors.items():
        request = client.pb.CompressTensorRequest(header=header(client, name, array.shape), data=array.tobytes())
        answer = client.stub.CompressTensor(request, timeout=20)
        assert answer.frame == frames[name]
        assert answer.report.policy == ("others" if name == "ssm_state" else "")


def test_capabilities_bounds_them(client, tensors, frames):
    headers = [header(client, name, array.shape) for name, array in tensors.items()]
    bounds = client.stub.Capabilities(client.pb.CapabilitiesRequest(headers=headers), timeout=20).max_frame_bytes
    assert len(bounds) == len(frames)
    for name, bound in zip(tensors, bounds):
        assert len(frames[name]) <= bound
    assert bounds[list(tensors).index("other_1")] == len(frames["other_1"])


@pytest.mark.parametrize("profile, codec, text", [
    (PROFILE, "raw", "header with a codec and a profile"),
    ("[]", "", "profile: must be a JSON object"),
    (PROFILE.replace("raw", "rwa"), "", 'profile: rule 4: unknown codec "rwa" (similar: raw)'),
    (PROFILE + " " * 65536, "", f"profile of {len(PROFILE) + 65536} bytes is above the limit of 65536"),
])
def test_refusals_are_the_same_for_all_calls(client, profile, codec, text):
    refused = header(client, "layer_0_key", [2], profile)
    refused.codec = codec
    streamed = failure(client.stub.Compress(iter([client.pb.CompressRequest(header=refused)]), timeout=20))
    assert streamed[:2] == (grpc.StatusCode.INVALID_ARGUMENT, text)
    for call, request in (
            (client.stub.CompressTensor, client.pb.CompressTensorRequest(header=refused, data=bytes(4))),
            (client.stub.Capabilities, client.pb.CapabilitiesRequest(headers=[refused]))):
        with pytest.raises(grpc.RpcError) as error:
            call(request, timeout=20)
        assert (error.value.code(), error.value.details()) == streamed[:2]
