"""The HiCache backend: pages of host pools with SGLang's layouts, on the CPU, through a real daemon."""

import importlib.metadata
import logging
import types

import engines
import kvcompress
import pytest

torch = pytest.importorskip("torch")
engines.provide_sglang()
from frame_reader import read_frame  # noqa: E402
from kvcompress.adapters._codec import Kind, unpack  # noqa: E402
from kvcompress.adapters._sglang_pools import HostPool, Ranks  # noqa: E402
from kvcompress.adapters.sglang import KvCompressStorage  # noqa: E402

LAYERS, HEADS, SIZE, PAGE, PAGES = 3, 2, 32, 16, 4
SHAPES = {
    "layer_first": (2, LAYERS, PAGE * PAGES, HEADS, SIZE),
    "page_first": (2, PAGE * PAGES, LAYERS, HEADS, SIZE),
    "page_first_direct": (2, PAGES, LAYERS, PAGE, HEADS, SIZE),
    "page_head": (2, PAGES, HEADS, PAGE, LAYERS, SIZE),
}


class Pool:
    """MHATokenToKVPoolHost, as far as storage goes."""

    layer_num, head_num, head_dim, page_size = LAYERS, HEADS, SIZE, PAGE

    def __init__(self, layout, dtype=torch.bfloat16):
        self.layout, self.dtype, self.size = layout, dtype, PAGE * PAGES
        generator = torch.Generator().manual_seed(5)
        self.kv_buffer = torch.randn(SHAPES[layout], generator=generator).to(dtype)

    def _memory(self, index):
        if self.layout == "layer_first":
            return self.kv_buffer[:, :, index : index + PAGE]
        if self.layout == "page_first":
            return self.kv_buffer[:, index : index + PAGE]
        return self.kv_buffer[:, index // PAGE : index // PAGE + 1]

    def get_data_page(self, index, flat=True):
        return self._memory(index).flatten()

    def get_dummy_flat_data_page(self):
        return torch.zeros(2 * LAYERS * PAGE * HEADS * SIZE, dtype=self.dtype)

    def set_from_flat_data_page(self, index, page):
        memory = self._memory(index)
        memory.copy_(page.view(memory.shape))


    def get_page_buffer_meta(self, indices):
        """As SGLang's: a block for each side, or for each layer and side."""
        if not self.layout:
            raise ValueError("Unsupported layout")
        token, sides = HEADS * SIZE * self.dtype.itemsize, self.kv_buffer.shape[0]
        base, side = self.kv_buffer.data_ptr(), self.kv_buffer[0].nbytes
        starts = indices.tolist()[::PAGE]
        if self.layout == "layer_first":
            where = [base + number * side + (layer * self.size + start) * token
                     for start in starts for layer in range(LAYERS) for number in range(sides)]
            return where, [PAGE * token] * len(where)
        where = [base + number * side + start * LAYERS * token for start in starts for number in range(sides)]
        return where, [PAGE * LAYERS * token] * len(where)


class LatentPool(Pool):
    """MLATokenToKVPoolHost, whose latents have the size of two heads here."""

    head_num = head_dim = None
    kv_lora_rank, qk_rope_head_dim = 16, HEADS * SIZE - 16

    def __init__(self, layout, dtype=torch.bfloat16):
        super().__init__(layout, dtype)
        self.kv_buffer = self.kv_buffer[:1].clone()

    def get_data_page(self, index, flat=True):
        return self._memory(index)[0].flatten()

    def get_dummy_flat_data_page(self):
        return super().get_dummy_flat_data_page()[: LAYERS * PAGE * HEADS * SIZE]

    def set_from_flat_data_page(self, index, page):
        memory = self._memory(index)[0]
        memory.copy_(page.view(memory.shape))


@pytest.fixture
def make(daemon, tmp_path):
    server = daemon("--threads", "2")
    made = []

    def start(pool, **options):
        extra = {"backend_name": "kvcompress", "module_path": "kvcompress.adapters.sglang",
                 "class_name": "KvCompressStorage", "target": server.address, "path": str(tmp_path / "pages"),
                 "codec": "lossless", **{key: value for key, value in options.items() if not key.startswith("rank_")}}
        config = types.SimpleNamespace(
            tp_rank=options.get("rank_tp", 0), tp_size=2, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
            is_mla_model=isinstance(pool, LatentPool), model_name="org/model", extra_config=extra)
        made.append(KvCompressStorage(config, {}))
        made[-1].register_mem_pool_host(pool)
        return made[-1]

    start.server, start.folder = server, str(tmp_path)
    yield start
    for storage in made:
        storage.close()


def parts(storage, page):
    """Of a flat page, by name, where codecs tell layers apart."""
    pool = HostPool("kv", storage.mem_pool_host, Ranks("", 0, 1), by_layer=True)
    return {part.name: part.tensor for chunk in pool.chunks("x", pool.flat_page(page)) for part in chunk.parts}


def chunk_keys(storage, key):
    return storage._pool().keys(key, flat=storage._is_flat)


def pages(pool, numbers):
    return [pool.get_data_page(number * PAGE) for number in numbers]


@pytest.mark.parametrize("layout", SHAPES)
def test_pages_come_back_the_same(make, layout, tmp_path):
    pool = Pool(layout)
    storage = make(pool)
    assert storage.batch_set(["a", "b", "c"], pages(pool, [0, 1, 2]))
    assert storage.batch_exists(["a", "b", "x", "c"]) == 2
    buffers = [pool.get_dummy_flat_data_page() for _ in range(3)]
    found = make(pool).batch_get(["a", "x", "c"], buffers)
    assert found[1] is None
    assert found[0] is buffers[0]
    assert torch.equal(found[0], pages(pool, [0])[0])
    assert torch.equal(found[2], pages(pool, [2])[0])
    assert storage.set("d", pages(pool, [3])[0])
    assert torch.equal(storage.get("d"), pages(pool, [3])[0])
    stored = sum(file.stat().st_size for file in (tmp_path / "pages").glob("*/*.kvc"))
    assert stored < 0.9 * pool.kv_buffer.nbytes
    storage.clear()
    assert storage.batch_exists(["a"]) == 0


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float8_e4m3fn, False), (torch.float8_e5m2, False), (torch.uint8, True)]
)
def test_pages_of_one_byte_elements(make, dtype, kept):
    pool = Pool("page_first")
    pool.kv_buffer, pool.dtype = (4 * pool.kv_buffer.float()).abs().to(dtype), dtype
    storage = make(pool, codec="int4")
    assert storage.batch_set(["a"], pages(pool, [1]))
    (found,) = storage.batch_get(["a"])
    (page,) = pages(pool, [1])
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), page.view(torch.uint8)) == kept
    assert (found.float() - page.float()).abs().max() < 0.2 * page.float().max()


def test_a_buffer_whose_elements_are_not_one_after_another(make):
    pool = Pool("layer_first")
    storage = make(pool)
    (page,) = pages(pool, [1])
    assert storage.set("a", page)
    strided = torch.zeros(2, page.numel(), dtype=pool.dtype).t()[:, 0]
    folded = torch.zeros(page.numel() // 8, 8, dtype=pool.dtype).t().contiguous().t()
    assert storage.batch_get(["a", "a"], [strided, folded]) == [strided, folded]
    assert torch.equal(strided, page)
    assert torch.equal(folded.reshape(-1), page)


@pytest.mark.parametrize("layout", SHAPES)
def test_codecs_are_told_what_each_part_is(make, layout):
    """A view [heads, tokens, head_dim] of each layer, from wherever the layout has it."""
    pool = Pool(layout)
    storage = make(pool)
    named = parts(storage, pool.get_data_page(PAGE))
    assert list(named)[:3] == ["layer_0_key", "layer_0_value", "layer_1_key"]
    assert named["layer_2_value"].shape == (1, HEADS, PAGE, SIZE)
    buffer = pool.kv_buffer
    wanted = {"layer_first": lambda: buffer[1, 2, PAGE + 3, 1], "page_first": lambda: buffer[1, PAGE + 3, 2, 1],
              "page_first_direct": lambda: buffer[1, 1, 2, 3, 1], "page_head": lambda: buffer[1, 1, 1, 3, 2]}[layout]()
    assert torch.equal(named["layer_2_value"][0, 1, 3], wanted)
    (chunk,) = storage._pool().chunks("x", storage._pool().flat_page(pool.get_data_page(PAGE)))
    assert [part.name for part in chunk.parts] == ["layer_0_key", "layer_0_value"]  # a tensor for all layers
    assert torch.equal(chunk.parts[1].tensor[2], named["layer_2_value"][0])


@pytest.mark.parametrize("layout", ["layer_first", "page_first"])
def test_the_interface_with_host_indices(make, layout):
    pool = Pool(layout)
    storage = make(pool)
    before = pool.kv_buffer.clone()
    indices = torch.arange(2 * PAGE)
    assert storage.batch_set_v1(["a", "b"], indices) == [True, True]
    pool.kv_buffer[:] = 0
    assert storage.batch_get_v1(["a", "x", "b"], torch.arange(3 * PAGE)) == [True, False, True]
    pool.kv_buffer[:] = 0
    assert storage.batch_get_v1(["a", "b"], indices) == [True, True]
    here = (slice(None), slice(None), slice(2 * PAGE)) if layout == "layer_first" else (slice(None), slice(2 * PAGE))
    assert torch.equal(pool.kv_buffer[here], before[here])
    with pytest.raises(kvcompress.InvalidArgument, match="indices"):
        storage.batch_get_v1(["a"], indices)


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_latents_are_keys_of_one_head(make, layout):
    pool = LatentPool(layout, torch.float16)
    storage = make(pool)
    named = parts(storage, pool.get_data_page(PAGE))
    assert [(name, tuple(tensor.shape)) for name, tensor in named.items()] == [
        (f"layer_{layer}_key", (1, 1, PAGE, HEADS * SIZE)) for layer in range(LAYERS)]
    buffer = pool.kv_buffer[0]
    wanted = {"layer_first": lambda: buffer[2, PAGE + 3], "page_first": lambda: buffer[PAGE + 3, 2],
              "page_first_direct": lambda: buffer[1, 2, 3]}[layout]()
    assert torch.equal(named["layer_2_key"][0, 0, 3], wanted.flatten())
    assert storage.batch_set(["a"], pages(pool, [0]))
    assert torch.equal(make(pool, rank_tp=1).get("a"), pages(pool, [0])[0])


def test_a_pool_of_another_kind_is_stored_in_one_piece(make):
    pool = LatentPool("layer_first", torch.float16)
    pool.qk_rope_head_dim = 8
    storage = make(pool)
    assert list(parts(storage, pool.get_data_page(0))) == ["kv_0"]
    assert storage.batch_set(["a"], pages(pool, [0]))
    assert torch.equal(make(pool, rank_tp=1).get("a"), pages(pool, [0])[0])


def stored_bytes(storage, keys):
    return [storage._store.get(one, 1 << 20) for key in keys for one in chunk_keys(storage, key)]


# Of latents each small frame's spec is longer by 46 of its 590 bytes, which the values must save before.
@pytest.mark.parametrize(("kind", "layout", "most", "rotary"), [
    *((Pool, layout, 0.93, {"theta": 10000.0}) for layout in SHAPES),
    (LatentPool, "page_first", 0.99,
     {"theta": 10000.0, "pairs": "interleaved", "dims": HEADS * SIZE - 16, "offset": 16})])
def test_keys_are_turned_back(make, turned_keys, kind, layout, most, rotary):
    """Of all tokens of the pool as one prompt, in every layout, with and without what turns them."""
    pool = kind(layout, torch.float16)
    heads, size = (HEADS, SIZE) if kind is Pool else (1, HEADS * SIZE)
    plain = make(pool, codec="transform(step=0.5)", path=make.folder + "/plain")
    turned = make(pool, codec="transform(step=0.5)", path=make.folder + "/turned", rotary=rotary)
    for layer in range(LAYERS):
        keys = turned_keys(heads, PAGE * PAGES, size, seed=layer, **rotary)
        for start in range(0, PAGE * PAGES, PAGE):
            page = pool.get_data_page(start).clone()
            parts(plain, page)[f"layer_{layer}_key"][0] = keys[:, start : start + PAGE]
            pool.set_from_flat_data_page(start, page)
    names = ["a", "b", "c", "d"]
    for storage in (plain, turned):
        assert storage.batch_set(names, pages(pool, range(PAGES)))
        for found, page in zip(storage.batch_get(names), pages(pool, range(PAGES)), strict=True):
            assert 0 < (found.float() - page.float()).abs().max() < 1
    sizes = [[len(data) for data in stored_bytes(storage, names)] for storage in (plain, turned)]
    assert sum(sizes[1]) < most * sum(sizes[0]), sizes


@pytest.mark.parametrize(("before", "starts"), [([], [0, 16, 32]), (["x", "y"], [32, 48, 64]), (None, [0, 0, 0])])
def test_pages_begin_where_sglang_says(make, before, starts):
    pool = Pool("layer_first", torch.float16)
    storage = make(pool, codec="transform(step=0.5)", rotary={"theta": 10000.0})
    info = types.SimpleNamespace(prefix_keys=before, extra_info=None)
    assert storage.batch_set_v1(["a", "b", "c"], torch.arange(3 * PAGE), info) == [True] * 3
    for data, start in zip(stored_bytes(storage, "abc"), starts, strict=True):
        kinds = [Kind(torch.float16, (LAYERS, HEADS, PAGE, SIZE))] * 2
        specs = [read_frame(bytes(frame)).codec for _, frame, _ in unpack(data, kinds)]
        place = f",start={start}" if start else ""
        assert specs == [f"fallback|transform(step=0.5{theta}{place})" for theta in (",theta=10000", "")]


def test_an_artifact_needs_positions(make):
    pool, codec = Pool("layer_first"), f"transform(bits=3,artifact={'0' * 32})"
    for options in ({}, {"interface_v1": 1}, {"hicache_storage_pass_prefix_keys": True}):
        with pytest.raises(kvcompress.InvalidArgument, match="positions"):
            make(pool, codec=codec, **options)
    make(pool, codec=codec, interface_v1=1, hicache_storage_pass_prefix_keys=True)


def test_what_is_another_page_is_a_miss(make):
    pool = Pool("layer_first")
    assert make(pool).set("a", pages(pool, [0])[0])
    assert make(pool).exists("a")
    assert not make(pool, rank_tp=1).exists("a")
    assert not make(pool, codec="raw").exists("a")
    assert make(Pool("page_first")).exists("a")  # the same, in another order
    assert not make(Pool("layer_first", torch.float16)).exists("a")


def test_a_damaged_page_is_a_miss_and_goes(make, tmp_path, caplog):
    pool = Pool("layer_first")
    storage = make(pool)
    assert storage.batch_set(["a", "b", "c"], pages(pool, [0, 1, 2]))
    damaged = storage._store._path(chunk_keys(storage, "b")[0])
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)
    storage._store._path(chunk_keys(storage, "c")[0]).write_bytes(b"KVCB")
    with caplog.at_level(logging.WARNING):
        found = storage.batch_get(["a", "b", "c"])
    assert torch.equal(found[0], pages(pool, [0])[0])
    assert found[1:] == [None, None]
    assert storage._store.stats().lost == 1
    assert (storage.stats()["damaged"], storage.stats()["missing"]) == (1, 1)
    assert [storage.exists(key) for key in "abc"] == [True, False, False]
    assert storage.set("b", pages(pool, [1])[0])
    assert torch.equal(storage.get("b"), pages(pool, [1])[0])


def test_without_a_daemon_all_is_a_miss(make, caplog):
    pool = Pool("layer_first")
    storage = make(pool, timeout=1)
    assert storage.set("a", pages(pool, [0])[0])
    make.server.stop()
    with caplog.at_level(logging.WARNING):
        assert not storage.batch_set(["a", "b"], pages(pool, [0, 1]))
        assert storage.batch_get(["a"]) == [None]
    assert storage.exists("a")
    assert "chunks unsaved: 1" in caplog.text
    assert "chunks undecoded: 1" in caplog.text
    assert (storage.stats()["unsaved"], storage.stats()["undecoded"]) == (1, 1)


def test_what_cannot_work_is_said_at_the_start(make):
    with pytest.raises(kvcompress.InvalidArgument, match="complex128"):
        make(Pool("layer_first", torch.complex128))
    with pytest.raises(kvcompress.InvalidArgument, match="unknown option 'pth'"):
        make(Pool("layer_first"), pth="x")
    config = types.SimpleNamespace(extra_config={})
    with pytest.raises(kvcompress.InvalidArgument, match="path"):
        KvCompressStorage(config, {})


@pytest.mark.skipif("sglang" not in importlib.metadata.packages_distributions(), reason="SGLang is not installed")
def test_sglang_loads_it_by_its_configuration(tmp_path):
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    pool = Pool("layer_first")
    config = HiCacheStorageConfig(
        tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
        enable_storage_metrics=False, is_page_first_layout=False, model_name="org/model",
        extra_config={"backend_name": "kvcompress", "module_path": "kvcompress.adapters.sglang",
                      "class_name": "KvCompressStorage", "path": str(tmp_path)})
    storage = StorageBackendFactory.create_backend("dynamic", config, pool)
    assert type(storage) is KvCompressStorage
    storage.register_mem_pool_host(pool)
    assert storage.batch_exists(["a"]) == 0
    storage.close()
