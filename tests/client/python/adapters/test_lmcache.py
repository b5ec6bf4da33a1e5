"""The serde: objects of LMCache's shapes through a real daemon; with LMCache's own registry, threads and memory objects
where it is installed, and else with stand-ins of its interface."""

import importlib.metadata
import math
import struct
import subprocess
import sys
import time
from types import SimpleNamespace as Bag

import engines
import kvcompress
import pytest

torch = pytest.importorskip("torch")
engines.provide_lmcache()
from kvcompress.adapters import lmcache  # noqa: E402
from kvcompress.adapters._lmcache_objects import Geometry, parts  # noqa: E402

INSTALLED = "lmcache" in importlib.metadata.packages_distributions()
real = pytest.mark.skipif(not INSTALLED, reason="LMCache is not installed")
LAYERS, TOKENS, SIZE = 3, 64, 128
KV = torch.Size([2, LAYERS, TOKENS, SIZE])


class Memory:
    """A MemoryObj of the CPU: `shapes` in one buffer."""

    def __init__(self, shapes, dtypes):
        self.shapes, self.dtypes = shapes, dtypes
        self.ends = [0]
        for shape, dtype in zip(shapes, dtypes, strict=True):
            self.ends.append(self.ends[-1] + math.prod(shape) * dtype.itemsize)
        self.raw = torch.zeros(self.ends[-1], dtype=torch.uint8)

    def get_shapes(self):
        return self.shapes

    def get_size(self):
        return len(self.raw)

    def get_dtypes(self):
        return self.dtypes

    def get_tensor(self, index):
        return self.raw[self.ends[index] : self.ends[index + 1]].view(self.dtypes[index]).view(self.shapes[index])

    @property
    def tensor(self):
        return self.get_tensor(0)

    @property
    def byte_array(self):
        return self.raw.numpy().data


def object_key(number, **others):
    """Of LMCache, or with its fields."""
    from lmcache.v1.distributed.api import ObjectKey

    return ObjectKey(**{"chunk_hash": bytes([number] * 8), "model_name": "org/model", "kv_rank": 0x01000100, **others})


KEY = object_key(7)


@pytest.fixture
def serde(daemon):
    server, made = daemon("--threads", "2"), []

    def start(**options):
        made.append(lmcache.create({"target": server.address, "codec": "lossless", "latents": True, **options}))
        return made[-1]

    start.server = server
    yield start
    for one in made:
        one._serializer._codec.client.close()
        if INSTALLED:
            one.close()


@pytest.fixture
def filled(kv_values):
    def make(*shapes, dtype=torch.bfloat16):
        memory = Memory(list(shapes), [dtype] * len(shapes))
        for index, shape in enumerate(shapes):
            memory.get_tensor(index).copy_(kv_values(tuple(shape), dtype, index))
        return memory

    return make


def named_parts(memory, head_dim=0):
    return [(part.name, part.tensor) for part in parts(memory, Geometry(head_dim, latents=True))]


def layout(memory):
    return Bag(shapes=memory.get_shapes(), dtypes=memory.get_dtypes())


def buffer_for(serde, memory):
    return Memory([torch.Size([serde._serializer.estimate_serialized_size(layout(memory))])], [torch.uint8])


@pytest.mark.parametrize("shapes", [[KV], [torch.Size([1, LAYERS, TOKENS, 72])], [torch.Size([TOKENS, SIZE])],
                                    [KV, torch.Size([2, 1, TOKENS, 64])]], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_objects_come_back_the_same(serde, filled, shapes, dtype):
    one, source = serde(), filled(*shapes, dtype=dtype)
    stored = buffer_for(one, source)
    size = one._serializer.serialize(source, stored, KEY)
    assert size < 0.95 * len(source.raw)
    assert len(stored.raw) < 1.2 * len(source.raw) + 4096
    stored.raw[size:] = 255  # what a buffer that is used again may hold
    target = Memory(source.shapes, source.dtypes)
    one._deserializer.deserialize(stored, target, KEY)
    assert torch.equal(target.raw, source.raw)


@pytest.mark.parametrize("latent", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_an_indexer_of_bytes_beside_latents_is_kept_and_the_latents_are_compressed(serde, kv_values, latent):
    shapes = [torch.Size([1, LAYERS, TOKENS, 576]), torch.Size([1, LAYERS, TOKENS, 132])]
    source = Memory(shapes, [latent, torch.uint8])
    values = kv_values(tuple(shapes[0]), torch.float32)
    source.get_tensor(0).copy_(values)
    source.get_tensor(1).copy_(torch.randint(256, tuple(shapes[1]), generator=torch.Generator().manual_seed(3)))
    one = serde(codec="int6(group=64)")
    stored = buffer_for(one, source)
    size = one._serializer.serialize(source, stored, KEY)
    assert size < 0.9 * len(source.raw)
    target = Memory(source.shapes, source.dtypes)
    one._deserializer.deserialize(stored, target, KEY)
    assert torch.equal(target.get_tensor(1), source.get_tensor(1))
    error = (target.get_tensor(0).float() - source.get_tensor(0).float()).abs().max()
    assert 0 < error < 0.1 * values.abs().max()


@pytest.mark.parametrize(
    "dtype",
    [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int64, torch.bool, torch.complex128], ids=str
)
def test_objects_of_every_type_are_stored(serde, dtype):
    source = Memory([KV], [dtype])
    source.get_tensor(0).copy_(torch.randint(2, tuple(KV), generator=torch.Generator().manual_seed(3)))
    one = serde()
    stored = buffer_for(one, source)
    one._serializer.serialize(source, stored, KEY)
    target = Memory([KV], [dtype])
    one._deserializer.deserialize(stored, target, KEY)
    assert torch.equal(target.raw, source.raw)


def test_one_plane_is_kept_bit_for_bit_unless_it_is_latents(serde, filled):
    """A recurrent layer's states look the same."""
    source = filled(torch.Size([1, LAYERS, TOKENS, 72]), dtype=torch.float16)
    for latents in (False, True):
        one = serde(codec="int4(group=32)", latents=latents)
        stored, target = buffer_for(one, source), Memory(source.shapes, source.dtypes)
        one._serializer.serialize(source, stored, KEY)
        one._deserializer.deserialize(stored, target, KEY)
        assert torch.equal(target.raw, source.raw) != latents


def test_values_that_do_not_begin_where_their_type_can_are_kept(serde):
    source = Memory([torch.Size([3]), torch.Size([2, 1, 4, 32])], [torch.uint8, torch.bfloat16])
    source.raw.copy_(torch.randint(256, source.raw.shape, generator=torch.Generator().manual_seed(3)))
    one = serde(codec="int4(group=32)")
    stored, target = buffer_for(one, source), Memory(source.shapes, source.dtypes)
    one._serializer.serialize(source, stored, KEY)
    one._deserializer.deserialize(stored, target, KEY)
    assert torch.equal(target.raw, source.raw)


def test_the_serde_counts_what_goes_through_it(serde, filled):
    one, source = serde(), filled(KV)
    stored, target = buffer_for(one, source), Memory(source.shapes, source.dtypes)
    size = one._serializer.serialize(source, stored, KEY)
    one._deserializer.deserialize(stored, target, KEY)
    stored.raw[size // 2] ^= 1
    with pytest.raises(kvcompress.DataLoss):
        one._deserializer.deserialize(stored, target, KEY)
    found = one._serializer._counters.values()
    assert found.pop("serialize_seconds") > 0
    assert found.pop("deserialize_seconds") > 0
    assert found == {"serialized": 1, "deserialized": 1, "undeserialized": 1, "tensor_bytes": len(source.raw),
                     "frame_bytes": size}


def test_an_object_of_another_key_is_not_read(serde, filled):
    one, source = serde(), filled(KV)
    stored, target = buffer_for(one, source), Memory(source.shapes, source.dtypes)
    one._serializer.serialize(source, stored, KEY)
    for others in ({"chunk_hash": b"other"}, {"model_name": "org/other"}, {"kv_rank": 1}, {"cache_salt": "tenant"},
                   {"object_group_id": 1}):
        with pytest.raises(kvcompress.FingerprintMismatch):
            one._deserializer.deserialize(stored, target, object_key(7, **others))
    assert not target.raw.any()
    one._deserializer.deserialize(stored, target, KEY)


def test_codecs_are_told_what_each_part_is(filled):
    source = filled(KV, torch.Size([2, 1, TOKENS, 64]))
    named = named_parts(source)
    assert [name for name, _ in named] == [
        f"layer_{layer}_{side}" for layer in range(4) for side in ("key", "value")]
    assert torch.equal(named[5][1][0, 0], source.get_tensor(0)[1, 2])
    assert named[7][1].shape == (1, 1, TOKENS, 64)
    heads = named_parts(source, 32)
    assert torch.equal(heads[5][1][0, 3], source.get_tensor(0)[1, 2, :, 96:])
    assert heads[7][1].shape == (1, 2, TOKENS, 32)
    together = parts(source, Geometry(32, by_layer=False))  # where codecs do not tell layers apart
    assert [part.name for part in together] == ["layer_0_key", "layer_0_value", "layer_3_key", "layer_3_value"]
    assert together[1].tensor.shape == (LAYERS, 4, TOKENS, 32)
    assert torch.equal(together[1].tensor[2], heads[5][1][0])
    latent = filled(torch.Size([1, LAYERS, TOKENS, 96]))
    assert named_parts(latent, 32)[0][1].shape == (1, 1, TOKENS, 96)


@pytest.mark.parametrize(("shape", "head_dim", "rotary"), [
    (KV, 32, {"theta": 10000.0}), (KV, 32, {"theta": 10000.0, "pairs": "interleaved", "dims": 16}),
    (torch.Size([1, LAYERS, TOKENS, 96]), 0, {"theta": 10000.0, "pairs": "interleaved", "dims": 64, "offset": 32})],
    ids=["half", "partly", "latent"])
def test_keys_are_turned_back(serde, filled, turned_keys, shape, head_dim, rotary):
    source = filled(shape, dtype=torch.float16)
    size = head_dim or shape[-1]
    for layer in range(LAYERS):
        keys = turned_keys(shape[-1] // size, TOKENS, size, start=256, seed=layer, **rotary)
        source.get_tensor(0)[0, layer] = keys.transpose(0, 1).flatten(1)
    written = {}
    for name, options in (("plain", {}), ("turned", {"rotary": rotary})):
        one = serde(codec="transform(step=0.5)", head_dim=head_dim, **options)
        buffer, target = buffer_for(one, source), Memory([shape], [torch.float16])
        written[name] = one._serializer.serialize(source, buffer, KEY)
        one._deserializer.deserialize(buffer, target, KEY)
        assert (target.get_tensor(0).float() - source.get_tensor(0).float()).abs().max() < 1
    assert written["turned"] < 0.9 * written["plain"], written


@pytest.mark.parametrize("codec", ["int4(group=32)", "int8(group=64)", "raw"])
def test_the_estimate_is_tight(serde, filled, codec):
    one, source = serde(codec=codec, on_nonfinite="error"), filled(KV)
    stored = buffer_for(one, source)
    assert one._serializer.serialize(source, stored, KEY) == len(stored.raw)
    assert len(stored.raw) < len(source.raw) * {"i": 0.6, "r": 1.03}[codec[0]]


@pytest.mark.parametrize("codec", ["lossless", "int4(group=32)", "kv4"])
def test_padded_payloads_have_one_size_and_come_back(serde, filled, codec, caplog):
    one, source = serde(codec=codec, padded_to=0.95), filled(KV)
    stored = buffer_for(one, source)
    stored.raw[:] = 255
    assert one._serializer.serialize(source, stored, KEY) == len(stored.raw) == int(0.95 * len(source.raw))
    assert not stored.raw[-64:].any()  # nothing of what the buffer held before
    target = Memory(source.shapes, source.dtypes)
    one._deserializer.deserialize(stored, target, KEY)
    assert torch.equal(target.raw, source.raw) == (codec == "lossless")
    assert (target.tensor.float() - source.tensor.float()).abs().max() < 1
    assert "shorter" not in caplog.text


def test_what_cannot_be_padded_is_an_error(serde, filled):
    one, source = serde(padded_to=0.1), filled(KV)
    with pytest.raises(kvcompress.InvalidArgument, match="do not fit into"):
        one._serializer.serialize(source, buffer_for(one, source), KEY)
    for wrong in (0, -1, 3, "1", True):
        with pytest.raises(kvcompress.InvalidArgument, match="padded_to is"):
            serde(padded_to=wrong)


def test_a_chunk_with_nan_is_stored_unless_told_otherwise(serde, filled):
    source = filled(KV)
    source.raw[100:102] = 255
    source.get_tensor(0)[1, 2, 3, 4] = float("inf")
    one = serde(codec="int4")
    stored, target = buffer_for(one, source), Memory(source.shapes, source.dtypes)
    assert one._serializer.serialize(source, stored, KEY) <= len(stored.raw)
    one._deserializer.deserialize(stored, target, KEY)
    assert torch.equal(target.raw[100:102], source.raw[100:102])
    assert target.get_tensor(0)[1, 2, 3, 4] == float("inf")
    strict = serde(codec="int4", on_nonfinite="error")
    with pytest.raises(kvcompress.InvalidArgument, match="NaN"):
        strict._serializer.serialize(source, buffer_for(strict, source), KEY)


def test_damage_is_an_error(serde, filled):
    one, source = serde(), filled(KV)
    stored = buffer_for(one, source)
    size = one._serializer.serialize(source, stored, KEY)
    stored.raw[size // 2] ^= 1
    target = Memory(source.shapes, source.dtypes)
    with pytest.raises(kvcompress.DataLoss):
        one._deserializer.deserialize(stored, target, KEY)
    other = Memory([torch.Size([2, LAYERS, TOKENS + 1, SIZE])], source.dtypes)
    stored.raw[size // 2] ^= 1
    with pytest.raises(kvcompress.DataLoss, match="not what was compressed"):
        one._deserializer.deserialize(stored, other, KEY)


def test_a_size_that_reaches_into_the_padding_is_damage(serde, filled):
    one, source = serde(), filled(KV)
    stored = buffer_for(one, source)
    one._serializer.serialize(source, stored, KEY)
    (count,) = struct.unpack_from("<I", stored.byte_array, 8)
    last = 12 + 8 * (count - 1)
    struct.pack_into("<Q", stored.byte_array, last, struct.unpack_from("<Q", stored.byte_array, last)[0] + 16)
    with pytest.raises(kvcompress.DataLoss):
        one._deserializer.deserialize(stored, Memory(source.shapes, source.dtypes), KEY)


def test_an_estimate_needs_no_daemon_and_refuses_nothing(serde, filled):
    one, source = serde(timeout=0.5), filled(KV)
    odd = Bag(shapes=[KV], dtypes=[torch.complex128])
    assert one._serializer.estimate_serialized_size(odd) > KV.numel()
    serde.server.stop()
    assert one._serializer.estimate_serialized_size(layout(source)) > len(source.raw)
    with pytest.raises(kvcompress.Unavailable):
        one._serializer.serialize(source, Memory([torch.Size([1 << 20])], [torch.uint8]), KEY)


def test_what_does_not_fit_is_an_error(serde, filled):
    with pytest.raises(kvcompress.InvalidArgument, match="do not fit into 100"):
        serde()._serializer.serialize(filled(KV), Memory([torch.Size([100])], [torch.uint8]), KEY)
    with pytest.raises(kvcompress.InvalidArgument, match="unknown option 'workers'"):
        serde(workers=3)


@real
class TestWithLMCache:
    def objects(self, shapes, dtypes):
        from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

        size = sum(shape.numel() * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
        binary = dtypes[0] is torch.uint8
        return TensorMemoryObj(
            torch.zeros(size, dtype=torch.uint8),
            MemoryObjMetadata(shapes[0], dtypes[0], 0, size, 1, shapes=shapes, dtypes=dtypes,
                              fmt=MemoryFormat.BINARY if binary else MemoryFormat.KV_2LTD), None)

    def test_the_library_makes_and_drives_it(self, serde, kv_values):
        from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
        from lmcache.v1.distributed.serde import SerdeConfig, create_serde_processor, serialized_layout_desc

        lmcache.register()
        lmcache.register()
        processor = create_serde_processor(
            SerdeConfig("kvcompress", {"target": serde.server.address, "codec": "lossless", "max_workers": 2}))
        try:
            source, target = (self.objects([KV], [torch.bfloat16]) for _ in range(2))
            source.tensor.copy_(kv_values(tuple(KV), torch.bfloat16))
            described = serialized_layout_desc(MemoryLayoutDesc([KV], [torch.bfloat16]), processor)
            stored = self.objects(described.shapes, described.dtypes)
            keys = [ObjectKey(b"chunk", "org/model", 0)]
            assert self.wait(processor.query_serialize_result, processor.submit_serialize([source], [stored], keys))
            assert stored.get_size() < 0.9 * source.get_size()
            assert self.wait(processor.query_deserialize_result, processor.submit_deserialize([stored], [target], keys))
            assert torch.equal(source.tensor, target.tensor)
            memoryview(stored.byte_array).cast("B")[200] ^= 1
            task = processor.submit_deserialize([stored], [target], keys)
            assert self.wait(processor.query_deserialize_result, task) is False
        finally:
            processor.close()

    def wait(self, query, task):
        deadline = time.monotonic() + 20
        while (result := query(task)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return result

    def test_an_adapter_of_its_configuration_takes_it(self, tmp_path):
        from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase

        spec = {"type": "fs", "base_path": str(tmp_path), "serde": {"type": "kvcompress", "codec": "int8"}}
        found = L2AdapterConfigBase._parse_serde_config(spec)
        assert (found.type, found.kwargs) == ("kvcompress", {"codec": "int8"})

    def test_the_command_line_is_that_of_the_library(self):
        done = subprocess.run([sys.executable, "-m", "kvcompress.adapters.lmcache", "server", "--help"],
                              capture_output=True, text=True, timeout=100)
        assert "--l2-adapter" in done.stdout, done.stderr
