"""What the adapters share: payloads of several frames, read back as what anyone wrote."""

import struct
from dataclasses import replace

import kvcompress
import pytest

torch = pytest.importorskip("torch")
from kvcompress._payload import SelfChecked  # noqa: E402
from kvcompress.adapters._codec import Codec, Kind, check_keys, most_packed, pack, packed_size, unpack  # noqa: E402

KINDS = [Kind(torch.float16, (1, 2, 40, 32))] * 3


@pytest.fixture
def codec(client):
    return Codec.of(client, "int4(group=32)", None, 20)


@pytest.fixture
def frames(codec, kv_values):
    return codec.compress([(f"layer_{i}_key", kv_values((1, 2, 40, 32), seed=i)) for i in range(3)])


def test_a_payload_gives_its_frames_back(codec, frames, kv_values):
    payload = b"".join(pack(frames))
    assert len(payload) == packed_size([len(frame) for frame in frames])
    for found in (unpack(payload, KINDS), unpack(payload + b"rest", KINDS, padded=True)):
        assert [bytes(data) for _, data, _ in found] == [frame.data for frame in frames]
        assert {expected for _, _, expected in found} == {("F16", (1, 2, 40, 32))}
    tensors = codec.decompress(unpack(payload, KINDS))
    assert (tensors[2] - kv_values((1, 2, 40, 32), seed=2)).abs().max() < 0.3
    assert pack([]) == pack([])
    assert unpack(b"".join(pack([])), []) == []
    assert all(torch.equal(*pair) for pair in zip(codec.decompress(frames), tensors, strict=True))


def test_values_that_a_codec_refuses_are_stored(codec, kv_values):
    tensor = kv_values((1, 2, 40, 32))
    tensor[0, 1, 2, 3] = float("nan")
    (frame,) = codec.compress([("layer_0_key", tensor)])
    assert frame.nonfinite_blocks == 1
    assert torch.equal(codec.decompress([frame])[0].view(torch.int16), tensor.view(torch.int16))
    for name, error in (("error", "value 1347 is NaN"), ("clamp", "on_nonfinite is")):
        with pytest.raises(kvcompress.InvalidArgument, match=error):
            replace(codec, on_nonfinite=name).compress([("layer_0_key", tensor)])


def test_a_payload_that_was_changed_is_data_loss(frames):
    payload = b"".join(pack(frames))
    for cut in (0, 5, 12, 35, len(payload) - 1):
        with pytest.raises(kvcompress.DataLoss):
            unpack(payload[:cut], KINDS)
    with pytest.raises(kvcompress.DataLoss, match="follow"):
        unpack(payload + b"rest", KINDS)
    with pytest.raises(kvcompress.DataLoss, match="begin"):
        unpack(payload, KINDS[:2])
    huge = payload[:12] + struct.pack("<Q", 2**64 - 1) + payload[20:]
    with pytest.raises(kvcompress.DataLoss, match="frame 0"):
        unpack(huge, KINDS)


def test_no_bit_of_a_payload_changes_a_value_unseen(codec, frames):
    """A store makes no checksum of it."""
    whole = b"".join(pack(frames))
    table = packed_size([0] * len(frames))
    for at in [*range(8 * table), *range(8 * table, 8 * len(whole), 61)]:
        payload = bytearray(whole)
        payload[at // 8] ^= 1 << at % 8
        with pytest.raises(kvcompress.DataLoss):
            codec.decompress(unpack(payload, KINDS))


def test_frames_check_themselves_unless_they_are_sealed(codec, frames, sealing):
    """A fault in one that is sealed may look like another key."""
    sealer = Codec.from_config({"target": "in-process", **sealing}).sealer
    sealed = [replace(frame, data=sealer.seal(frame.data)) for frame in frames]
    assert isinstance(pack(frames), SelfChecked)
    assert not isinstance(pack(sealed), SelfChecked)
    assert not isinstance(pack([*frames[1:], sealed[0]]), SelfChecked)


def test_sizes_that_are_wrong_together_are_data_loss(frames):
    payload = bytearray(b"".join(pack(frames)))
    for at, change in ((12, 8), (20, -8)):
        struct.pack_into("<Q", payload, at, struct.unpack_from("<Q", payload, at)[0] + change)
    with pytest.raises(kvcompress.DataLoss, match="frame 1 of 3 does not begin where the table says"):
        unpack(payload, KINDS)


def test_a_frame_of_another_tensor_is_data_loss(codec, frames):
    with pytest.raises(kvcompress.DataLoss, match="not what was compressed"):
        codec.decompress(unpack(b"".join(pack(frames[:1])), [Kind(torch.float16, (1, 2, 41, 32))]))


def test_each_frame_is_held_to_its_own_fingerprint(codec, kv_values):
    named = [(f"layer_{i}_key", kv_values((1, 2, 40, 32), seed=i)) for i in range(3)]
    marks = [b"a", b"b" * 64, b""]
    frames = codec.compress(named, fingerprints=marks)
    assert [frame.fingerprint for frame in frames] == marks
    stored = unpack(b"".join(pack(frames)), KINDS)
    for kept in (frames, stored):
        tensors = codec.decompress(kept, marks)
        assert all(torch.equal(*pair) for pair in zip(tensors, codec.decompress(kept), strict=True))
        for wrong in ([b"a", b"a", b""], [b"a", b"b", b""], [b"a", b"b" * 64, b"c"]):
            with pytest.raises(kvcompress.FingerprintMismatch):
                codec.decompress(kept, wrong)
        for short in ([], marks[:2]):
            with pytest.raises(ValueError, match="zip"):
                codec.decompress(kept, short)
    exact = replace(codec, on_nonfinite="error")
    assert exact.most_bytes([("layer_0_key", KINDS[0])], fingerprint_bytes=64) == [
        len(frame) for frame in exact.compress(named[:1], fingerprints=[bytes(64)])
    ]


def test_sealed_frames_open_with_their_key_and_fingerprint_alone(codec, kv_values, sealing):
    sealing = [
        replace(codec, sealer=Codec.from_config({"target": "in-process", **sealing, **changed}).sealer)
        for changed in ({}, {"seal_key": "two"}, {"tenant": "other"})
    ]
    assert sealing[0].text == sealing[1].text
    assert len({sealing[0].text, sealing[2].text, codec.text}) == 3
    named = [(f"layer_{i}_key", kv_values((1, 2, 40, 32), seed=i)) for i in range(3)]
    plain = codec.decompress(codec.compress(named, fingerprints=[b"a", b"b", b"c"]))
    frames = sealing[0].compress(named, fingerprints=[b"a", b"b", b"c"])
    stored = unpack(b"".join(pack(frames)), KINDS)
    for kept in (frames, stored):
        for opener in sealing[:2]:
            for tensor, wanted in zip(opener.decompress(kept, [b"a", b"b", b"c"]), plain, strict=True):
                assert torch.equal(tensor, wanted)
        with pytest.raises(kvcompress.DataLoss, match="under another fingerprint"):
            sealing[0].decompress(kept, [b"a", b"c", b"c"])
        for other in (sealing[2], codec):
            with pytest.raises(kvcompress.DataLoss):
                other.decompress(kept, [b"a", b"b", b"c"])
    assert all(torch.equal(*pair) for pair in zip(sealing[0].decompress(frames), plain, strict=True))
    with pytest.raises(kvcompress.DataLoss, match="under another fingerprint"):
        sealing[0].decompress(stored)
    with pytest.raises(kvcompress.DataLoss, match="this is no sealed frame"):
        sealing[0].decompress(codec.compress(named))
    exact = replace(sealing[0], on_nonfinite="error")
    assert exact.most_bytes([("layer_0_key", KINDS[0])]) == [len(exact.compress(named[:1])[0])]
    for part in ({"keys_dir": "x"}, {"seal_key": "x"}, {"tenant": "x"}):
        with pytest.raises(kvcompress.InvalidArgument, match="go together"):
            Codec.from_config({"target": "in-process", **part})


def test_bounds_hold(codec, kv_values):
    kind = Kind(torch.float16, (1, 2, 40, 32))
    for on_nonfinite, most in (("error", 1.2), ("lossless", 1.2 + 5120 / 1500)):  # and all values as they are
        one = replace(codec, on_nonfinite=on_nonfinite)
        (bound,) = one.most_bytes([("layer_0_key", kind)])
        (frame,) = one.compress([("layer_0_key", kv_values(kind.shape))])
        assert len(frame) <= bound < most * len(frame)
        assert packed_size([bound]) < most_packed([kind])


def test_a_configuration_is_checked(client):
    check_keys({"target": "x", "path": "y"}, ["path"])
    with pytest.raises(kvcompress.InvalidArgument, match="unknown option 'codex': there are artifacts, "):
        check_keys({"codex": "x"}, ["path"])
    with pytest.raises(kvcompress.InvalidArgument, match="the option path is missing"):
        check_keys({"target": "x"}, [], required=["path"])
    with pytest.raises(kvcompress.InvalidArgument, match="exclude"):
        Codec.from_config({"codec": "raw", "profile": {"version": 1}})


def test_a_configuration_of_the_codec_in_this_process(client, kv_values):
    codec = Codec.from_config({"target": "in-process", "codec": "kv3", "threads": 2})
    named = [(f"layer_{layer}_key", kv_values((1, 2, 40, 32))) for layer in range(3)]
    assert [frame.data for frame in codec.compress(named)] == [frame.data for frame in
                                                              Codec.of(client, "kv3", None, 10).compress(named)]
    with pytest.raises(kvcompress.InvalidArgument, match="token_file is for a daemon"):
        Codec.from_config({"target": "in-process", "token_file": "x"})
    with pytest.raises(kvcompress.InvalidArgument, match='threads is for the target "in-process"'):
        Codec.from_config({"threads": 2})


def test_a_configuration_has_the_token(daemon, tmp_path, kv_values):
    path = tmp_path / "tokens"
    path.write_text("correct-horse-battery-staple-0001\n# the one before\n")
    server = daemon("--token-file", str(path))
    named = [("layer_0_key", kv_values((1, 2, 40, 32)))]
    codec = Codec.from_config({"target": server.address, "token_file": str(path)})
    assert len(codec.compress(named)) == 1
    codec.client.close()
    without = Codec.from_config({"target": server.address})
    with pytest.raises(kvcompress.Unauthenticated):
        without.compress(named)
    without.client.close()
    with pytest.raises(kvcompress.InvalidArgument, match="in plaintext"):
        Codec.from_config({"target": "kv.example.org:1", "token_file": str(path)})


def test_an_engines_memory_is_decoded_into(codec, monkeypatch):
    codec = replace(codec, spec="raw")
    whole = torch.zeros(4, 3, 8, 16, dtype=torch.float16)
    targets = [whole[0], whole[1:3, :, :, :8].transpose(0, 1), whole[3].view(torch.int16), whole[1, :, :, 8:]]
    tensors = [torch.arange(target.numel()).to(target.dtype).view(target.shape) for target in targets]
    frames = codec.compress([(str(number), tensor) for number, tensor in enumerate(tensors)])
    kept = unpack(b"".join(pack(frames)), [Kind.of(tensor) for tensor in tensors])
    given, real = [], kvcompress.Client.decompress_many
    monkeypatch.setattr(kvcompress.Client, "decompress_many", lambda client, items, **options: given.append(
        options["out"]) or real(client, items, **options))
    codec.decompress_into(targets, kept, [b""] * 4)
    assert all(map(torch.equal, targets, tensors))
    assert all(one is target for one, target in zip(given[0], targets, strict=True))
