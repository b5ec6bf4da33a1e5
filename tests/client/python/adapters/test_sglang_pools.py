"""The HiCache backend with several host pools, ranks and types: pages where they stand in the pools' memory."""

import types

import engines
import kvcompress
import pytest

torch = pytest.importorskip("torch")
engines.provide_sglang()
from kvcompress.adapters.sglang import KvCompressStorage  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer  # noqa: E402
from test_sglang import HEADS, LAYERS, PAGE, PAGES, SHAPES, SIZE, LatentPool, Pool  # noqa: E402

# With a profile each layer is a frame.
PROFILE = {"version": 1, "default": "lossless", "rules": []}


class States:
    """MambaPoolHost in a page-first layout: a block of temporal states and one of convolutions for each slot."""

    page_size, layout, dtype = 1, "page_first", torch.bfloat16

    def __init__(self, slots=8):
        generator = torch.Generator().manual_seed(2)
        self.temporal = torch.randn(slots, LAYERS, 1, 6, 8, generator=generator)
        self.conv = torch.randn(slots, LAYERS, 1, 3, 5, generator=generator).to(torch.bfloat16)

    def get_page_buffer_meta(self, indices):
        blocks = [buffer[index] for index in indices.tolist() for buffer in (self.temporal, self.conv)]
        return [block.data_ptr() for block in blocks], [block.nbytes for block in blocks]


class Indexer:
    """A pool of bytes without pointers, as DSAIndexerPoolHost in the layout layer_first."""

    page_size, layout, dtype, layer_num = PAGE, "layer_first", torch.uint8, LAYERS

    def __init__(self):
        self.kv_buffer = torch.randint(256, (LAYERS, PAGES, 40), generator=torch.Generator().manual_seed(3)).byte()

    def get_page_buffer_meta(self, indices):
        raise ValueError(f"Unsupported layout: {self.layout}")

    def get_data_page(self, index, flat=True):
        return self.kv_buffer[:, index // PAGE].flatten()

    def get_dummy_flat_data_page(self):
        return torch.zeros(LAYERS * 40, dtype=torch.uint8)

    def set_from_flat_data_page(self, index, page):
        self.kv_buffer[:, index // PAGE] = page.view(LAYERS, 40)


class UnequalPool:
    """A page-first pool whose values are narrower than its keys, and which has pointers alone."""

    layer_num, head_num, head_dim, v_head_dim, page_size, layout = LAYERS, HEADS, SIZE, SIZE // 2, PAGE, "page_first"
    dtype = torch.float16

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        self.kv_buffer = [torch.randn(PAGE * PAGES, LAYERS, HEADS, size, generator=generator).half()
                          for size in (SIZE, SIZE // 2)]

    def get_page_buffer_meta(self, indices):
        blocks = [side[start : start + PAGE] for start in indices.tolist()[::PAGE] for side in self.kv_buffer]
        return [block.data_ptr() for block in blocks], [block.nbytes for block in blocks]


@pytest.fixture
def make(daemon, tmp_path):
    server = daemon("--threads", "2")
    made = []

    def start(pool, sidecars=(), **options):
        names = ("tp_rank", "tp_size", "tp_lcm_size", "pp_rank", "pp_size", "dcp_size")
        ranks = {name: options.pop(name) for name in names if name in options}
        extra = {"backend_name": "kvcompress", "module_path": "kvcompress.adapters.sglang", "interface_v1": 1,
                 "class_name": "KvCompressStorage", "target": server.address, "path": str(tmp_path / "pages"),
                 "codec": "lossless", **options}
        config = types.SimpleNamespace(**{
            "tp_rank": 0, "tp_size": 1, "tp_lcm_size": None, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0,
            "attn_cp_size": 1, "is_mla_model": isinstance(pool, LatentPool), "model_name": "org/model",
            "enable_storage_metrics": True, "extra_config": extra, **ranks})
        storage = KvCompressStorage(config, {})
        made.append(storage)
        storage.register_mem_pool_host(pool)
        for name, sidecar in sidecars:
            storage.register_mem_host_pool_v2(sidecar, name)
        storage.on_host_pools_registered()
        return storage

    start.server = server
    yield start
    for storage in made:
        storage.close()


def tokens(*numbers):
    return torch.cat([torch.arange(number * PAGE, (number + 1) * PAGE) for number in numbers])


def moved(name, keys, indices, policy=PoolHitPolicy.ALL_PAGES):
    return PoolTransfer(name=name, keys=keys, host_indices=indices, hit_policy=policy)


def blank(*buffers):
    for buffer in buffers:
        buffer.view(torch.uint8)[:] = 0


def test_sidecars_come_back_into_their_pools(make):
    pool, states, indexer, draft = Pool("page_first"), States(), Indexer(), Pool("layer_first", torch.float16)
    sidecars = [(PoolName.KV, pool), (PoolName.MAMBA, states), (PoolName.INDEXER, indexer), (PoolName.DRAFT, draft)]
    storage = make(pool, sidecars, codec="int4(group=32)")
    keys, indices = ["a", "b"], tokens(0, 2)
    transfers = [moved(PoolName.MAMBA, ["b"], torch.tensor([5]), PoolHitPolicy.TRAILING_PAGES),
                 moved(PoolName.INDEXER, keys, indices), moved(PoolName.DRAFT, keys, indices)]
    assert storage.batch_set_v2(transfers) == {
        PoolName.MAMBA: [True], PoolName.INDEXER: [True, True], PoolName.DRAFT: [True, True]}
    assert storage.batch_set_v1(keys, indices) == [True, True]
    kept = [buffer.clone() for buffer in (states.temporal, states.conv, indexer.kv_buffer, draft.kv_buffer)]
    blank(states.temporal, states.conv, indexer.kv_buffer, draft.kv_buffer)
    assert storage.batch_get_v2(transfers) == {
        PoolName.MAMBA: [True], PoolName.INDEXER: [True, True], PoolName.DRAFT: [True, True]}
    assert torch.equal(states.temporal[5], kept[0][5])  # bit for bit, beside a codec that loses
    assert torch.equal(states.conv[5], kept[1][5])
    assert not states.temporal[4].any()
    assert torch.equal(indexer.kv_buffer[:, [0, 2]], kept[2][:, [0, 2]])
    assert not indexer.kv_buffer[:, 1].any()
    error = (draft.kv_buffer.float() - kept[3].float())[:, :, indices].abs().max()
    assert 0 < error < 1


def test_hits_are_counted_by_the_policy_of_each_pool(make):
    pool, states, indexer = Pool("page_first"), States(), Indexer()
    storage = make(pool, [(PoolName.MAMBA, states), (PoolName.INDEXER, indexer)])
    keys = ["a", "b", "c", "d"]
    assert storage.batch_exists_v2(keys, []).kv_hit_pages == 0
    assert storage.batch_set_v1(keys[:3], tokens(0, 1, 2)) == [True] * 3
    state = moved(PoolName.MAMBA, ["a"], torch.tensor([1]), PoolHitPolicy.TRAILING_PAGES)
    storage.batch_set_v2([state, moved(PoolName.INDEXER, keys[:2], tokens(0, 1))])

    def found(*transfers):
        result = storage.batch_exists_v2(keys, list(transfers))
        return result.kv_hit_pages, result.extra_pool_hit_pages, result.restorable_prefix_pages

    trailing = moved(PoolName.MAMBA, ["d"], None, PoolHitPolicy.TRAILING_PAGES)
    assert found() == (3, {PoolName.KV: 3}, [1, 2, 3])
    assert found(moved(PoolName.INDEXER, None, None)) == (2, {PoolName.KV: 3, PoolName.INDEXER: 2}, [1, 2])
    assert found(trailing) == (1, {PoolName.KV: 3, PoolName.MAMBA: 1}, [1])
    storage.batch_set_v2([moved(PoolName.MAMBA, ["c"], torch.tensor([2]))])
    assert found(trailing) == (3, {PoolName.KV: 3, PoolName.MAMBA: 3}, [1, 3])
    assert found(trailing, moved(PoolName.INDEXER, None, None))[2] == [1]
    assert found(moved(PoolName.INDEXER, None, None, PoolHitPolicy.BLOCK_GROUPS)) == (3, {PoolName.KV: 3}, [1, 2, 3])


def test_what_cannot_be_moved_is_a_miss(make, caplog):
    storage = make(Pool("page_first"), [(PoolName.MAMBA, States())])
    short, unknown = moved(PoolName.MAMBA, ["a", "b"], torch.tensor([1])), moved(PoolName.SWA, ["a"], tokens(0))
    assert storage.batch_set_v2([short, unknown]) == {PoolName.MAMBA: [False, False], PoolName.SWA: [False]}
    assert storage.batch_get_v2([unknown, short]) == {PoolName.SWA: [False], PoolName.MAMBA: [False, False]}
    assert "1 indices for 2 pages" in caplog.text
    assert "no host pool swa" in caplog.text


def test_an_anchor_without_memory_leaves_all_to_other_pools(make):
    class Anchor:
        kv_buffer, page_size, layout = None, PAGE, "page_first"

    indexer = Indexer()
    storage = make(Anchor(), [(PoolName.INDEXER, indexer)])
    assert storage.batch_set_v1(["a", "b"], tokens(0, 1)) == [True, True]
    assert storage.batch_get_v1(["a"], tokens(0)) == [True]
    storage.batch_set_v2([moved(PoolName.INDEXER, ["a"], tokens(0))])
    assert storage.batch_exists_v2(["a", "b"], [moved(PoolName.INDEXER, None, None)]).kv_hit_pages == 1


@pytest.mark.parametrize("stored", SHAPES)
@pytest.mark.parametrize("read", SHAPES)
def test_pages_are_found_by_pools_of_every_layout(make, stored, read):
    """In the memory of both; the copying calls of the pools are not used."""
    source, target = Pool(stored), Pool(read)
    source.get_data_page = target.get_data_page = target.set_from_flat_data_page = None
    assert make(source).batch_set_v1(["a", "b"], tokens(1, 3)) == [True, True]
    blank(target.kv_buffer)
    assert make(target).batch_get_v1(["b", "x", "a"], tokens(2, 1, 0)) == [True, False, True]
    for here, there in ((3, 2), (1, 0)):
        assert torch.equal(values_of(target, there), values_of(source, here))
    assert not values_of(target, 1).any()


def values_of(pool, number):
    """[sides, layers, heads, tokens, channels] of a page, as the layout has it."""
    order = {"layer_first": (0, 1, 3, 2, 4), "page_first": (0, 2, 3, 1, 4), "page_first_direct": (0, 1, 3, 2, 4),
             "page_head": (0, 3, 1, 2, 4)}[pool.layout]
    memory = pool._memory(number * PAGE)
    return (memory.squeeze(1) if memory.dim() == 6 else memory).permute(order)


def test_ranks_with_more_and_fewer_heads_find_each_others_pages(make):
    """Two ranks of two heads each, and four of one, as tp_lcm_size says."""
    wide = [Pool("page_head"), Pool("layer_first")]
    wide[1].kv_buffer = wide[1].kv_buffer + 1
    for rank, pool in enumerate(wide):
        assert make(pool, tp_rank=rank, tp_size=2, tp_lcm_size=4).batch_set_v1(["a"], tokens(1)) == [True]
    heads = torch.cat([values_of(pool, 1) for pool in wide], dim=2)
    for rank in range(4):
        narrow = Narrow()
        storage = make(narrow, tp_rank=rank, tp_size=4, tp_lcm_size=4)
        assert storage.batch_get_v1(["a"], tokens(0)) == [True]
        assert torch.equal(narrow.kv_buffer[:, 0].permute(0, 1, 3, 2, 4), heads[:, :, rank : rank + 1])
    with pytest.raises(kvcompress.InvalidArgument, match="cannot be split into 3"):
        make(wide[0], tp_lcm_size=3)


class Narrow(Pool):
    """One head a rank, page by page."""

    head_num = 1

    def __init__(self):
        super().__init__("page_first_direct")
        self.kv_buffer = torch.zeros(2, PAGES, LAYERS, PAGE, 1, SIZE, dtype=self.dtype)

    def get_page_buffer_meta(self, indices):
        blocks = [side[start // PAGE] for start in indices.tolist()[::PAGE] for side in self.kv_buffer]
        return [block.data_ptr() for block in blocks], [block.nbytes for block in blocks]


def test_ranks_share_latents_and_nothing_else(make):
    pool, states, draft = LatentPool("page_first"), States(), Pool("page_first")
    sidecars = [(PoolName.MAMBA, states), (PoolName.INDEXER, Indexer()), (PoolName.DRAFT, draft)]
    first, second = (make(pool, sidecars, tp_rank=rank, tp_size=2) for rank in range(2))
    assert first.batch_set_v1(["a"], tokens(0)) == [True]
    first.batch_set_v2([moved(PoolName.MAMBA, ["a"], torch.tensor([0])), moved(PoolName.INDEXER, ["a"], tokens(0)),
                        moved(PoolName.DRAFT, ["a"], tokens(0))])
    assert second.batch_exists(["a"]) == 1
    for name, hits in ((PoolName.INDEXER, 1), (PoolName.MAMBA, 0), (PoolName.DRAFT, 0)):
        assert second.batch_exists_v2(["a"], [moved(name, None, None)]).kv_hit_pages == hits, name
    assert make(pool, pp_rank=1, pp_size=2).batch_exists(["a"]) == 0
    with pytest.raises(kvcompress.FailedPrecondition, match="decode context"):
        make(pool, dcp_size=2)


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_values_of_fp8_are_bytes_unless_told_what_they_are(make, dtype, tmp_path):
    kind = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[dtype]
    pool = Pool("page_first")
    pool.kv_buffer, pool.dtype = pool.kv_buffer.float().to(kind).view(torch.uint8), torch.uint8
    before = pool.kv_buffer.clone()
    for options, lossy in (({}, False), ({"kv_cache_dtype": dtype}, True)):
        storage = make(pool, codec="int4(group=32)", **options)
        assert storage.batch_set_v1(["a"], tokens(1)) == [True]
        blank(pool.kv_buffer)
        assert storage.batch_get_v1(["a"], tokens(1)) == [True]
        found, wanted = (buffer[:, PAGE : 2 * PAGE] for buffer in (pool.kv_buffer, before))
        assert torch.equal(found, wanted) != lossy
        assert (found.view(kind).float() - wanted.view(kind).float()).abs().max() < 1
        pool.kv_buffer.copy_(before)
    with pytest.raises(kvcompress.InvalidArgument, match="kv_cache_dtype is 'fp4'"):
        make(pool, kv_cache_dtype="fp4")


def test_values_may_be_narrower_than_keys(make):
    pool = UnequalPool()
    storage = make(pool)
    kept = [side.clone() for side in pool.kv_buffer]
    assert storage.batch_set_v1(["a"], tokens(1)) == [True]
    blank(*pool.kv_buffer)
    assert storage.batch_get_v1(["a"], tokens(2)) == [True]
    for side, before in zip(pool.kv_buffer, kept, strict=True):
        assert torch.equal(side[2 * PAGE : 3 * PAGE], before[PAGE : 2 * PAGE])
    (chunk,) = storage._pool().chunks("a", storage._pool().pages(tokens(0), to_write=False)[0])
    assert [(part.name, part.tensor.shape[-1]) for part in chunk.parts] == [
        ("layer_0_key", SIZE), ("layer_0_value", SIZE // 2)]


def test_layers_are_numbered_from_the_first_of_a_stage(make):
    pool = Pool("layer_first")
    pool.start_layer = 24
    for options, names in (({}, ["layer_24_key", "layer_24_value"]),
                           ({"codec": "", "profile": PROFILE}, [
                               "layer_24_key", "layer_24_value", "layer_25_key", "layer_25_value", "layer_26_key",
                               "layer_26_value"])):
        found = make(pool, pp_rank=1, pp_size=2, **options)._pool()
        (chunk,) = found.chunks("a", found.pages(tokens(0), to_write=False)[0])
        assert [part.name for part in chunk.parts] == names


def test_metrics_of_a_storage(make):
    pool = Pool("page_first")
    storage = make(pool)
    storage.batch_set_v1(["a", "b"], tokens(0, 1))
    storage.batch_set_v1(["a", "b"], tokens(0, 1))  # held already: nothing is written
    storage.batch_get_v1(["a", "x"], tokens(0, 1))
    found = storage.get_stats()
    assert (found.prefetch_pgs, found.backup_pgs) == ([1], [2])
    assert len(found.prefetch_bandwidth) == len(found.backup_bandwidth) == 1
    assert min(found.prefetch_bandwidth + found.backup_bandwidth) > 0
    rest = storage.get_stats()
    assert not rest.prefetch_pgs
    assert not rest.backup_pgs
    assert {name: storage.stats()[name] for name in ("saved", "loaded", "missing")} == {
        "saved": 2, "loaded": 1, "missing": 1}


def test_pages_of_others_are_misses(make, others):
    """Another page's frames, and another layer's of the same page, all of them whole."""
    pool, (options, counter) = Pool("page_first"), others
    storage = make(pool, codec="", profile=PROFILE, **options)
    assert storage.batch_set_v1(["a", "b", "c", "d"], tokens(0, 1, 2, 3)) == [True] * 4
    keys = [storage._pool().keys(key)[0] for key in "abcd"]
    payload = bytes(storage._store.get(keys[0], 1 << 20))
    storage._store.put(keys[1], payload)
    storage._store.put(keys[2], swapped(bytes(storage._store.get(keys[2], 1 << 20))))
    before = pool.kv_buffer.clone()
    assert storage.batch_get_v1(["a", "b", "c", "d"], tokens(0, 1, 2, 3)) == [True, False, False, True]
    assert torch.equal(pool.kv_buffer, before)
    assert storage.stats()[counter] == 2
    assert storage.batch_exists(["b"]) == storage.batch_exists(["c"]) == 0  # they can be stored anew


def swapped(payload):
    """The first two keys' frames in each other's place, which have the same shape."""
    count = 2 * LAYERS
    sizes = [int.from_bytes(payload[12 + 8 * number : 20 + 8 * number], "little") for number in range(count)]
    at = 12 + 8 * count
    frames = [payload[at + sum(sizes[:number]) : at + sum(sizes[: number + 1])] for number in range(count)]
    order = [2, 1, 0, *range(3, count)]
    return (payload[:12] + b"".join(sizes[number].to_bytes(8, "little") for number in order)
            + b"".join(frames[number] for number in order))
