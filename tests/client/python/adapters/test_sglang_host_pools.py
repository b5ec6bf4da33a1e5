"""The HiCache backend with the methods of SGLang's own host pools, over buffers of the CPU, where SGLang is installed.
Modules of its kernels, and of what it has for images, are stand-ins: no call of these pools for storage needs them."""

import importlib
import importlib.machinery
import importlib.metadata
import sys
import types

import pytest

torch = pytest.importorskip("torch")
if "sglang" not in importlib.metadata.packages_distributions():
    pytest.skip("SGLang is not installed", allow_module_level=True)
from test_sglang_pools import make, moved, tokens  # noqa: E402, F401 - a fixture

STAND_INS = ("torchvision", "tvm_ffi", "sgl_kernel", "flashinfer", "torchao", "torchcodec", "compressed_tensors")
LAYERS, HEADS, SIZE, PAGE, PAGES, LORA, ROPE = 3, 2, 32, 16, 4, 48, 16


class Anything(type):
    """Of a class whose attributes are numbers."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 0


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Finder:
    """Of modules that no other finder has."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in STAND_INS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        module.__path__ = []


@pytest.fixture(scope="module")
def pools():
    """Makes SGLang's pools without what allocates pinned memory and asks devices."""
    importlib.import_module("transformers.image_utils")  # asks for torchvision, and must not find a stand-in
    finder = Finder()
    sys.meta_path.append(finder)
    try:
        folder = "sglang.srt.mem_cache.pool_host"
        found = {name: importlib.import_module(f"{folder}.{name}") for name in ("mha", "mla", "mamba", "dsa")}
    except ImportError as error:
        pytest.skip(f"SGLang's host pools cannot be imported here: {error}")
    finally:
        sys.meta_path.remove(finder)

    def pool(module, kind, **fields):
        made = object.__new__(getattr(found[module], kind))
        vars(made).update({"page_size": PAGE, "size": PAGE * PAGES, "page_num": PAGES, "layer_num": LAYERS,
                           "device": "cpu", "pin_memory": False, **fields})
        return made

    return pool


def filled(shape, dtype):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(dtype) if dtype.is_floating_point else (
        torch.randint(256, shape, generator=generator).to(dtype))


def mha(pools, layout, dtype=torch.bfloat16):
    shape = {"layer_first": (2, LAYERS, PAGE * PAGES, HEADS, SIZE),
             "page_first": (2, PAGE * PAGES, LAYERS, HEADS, SIZE),
             "page_first_direct": (2, PAGES, LAYERS, PAGE, HEADS, SIZE),
             "page_head": (2, PAGES, HEADS, PAGE, LAYERS, SIZE)}[layout]
    return pools("mha", "MHATokenToKVPoolHost", layout=layout, dtype=dtype, head_num=HEADS, head_dim=SIZE,
                 v_head_dim=SIZE, kv_buffer=filled(shape, dtype))


def mla(pools, layout):
    width = LORA + ROPE
    shape = {"layer_first": (LAYERS, PAGE * PAGES, 1, width), "page_first": (PAGE * PAGES, LAYERS, 1, width),
             "page_first_direct": (PAGES, LAYERS, PAGE, 1, width)}[layout]
    return pools("mla", "MLATokenToKVPoolHost", layout=layout, dtype=torch.bfloat16, kv_lora_rank=LORA,
                 qk_rope_head_dim=ROPE, kv_cache_dim=width, kv_buffer=filled(shape, torch.bfloat16))


def mamba(pools):
    return pools("mamba", "MambaPoolHost", layout="page_first", page_size=1, num_mamba_layers=LAYERS,
                 temporal_dtype=torch.float32, conv_dtype=torch.bfloat16, dtype=torch.bfloat16,
                 temporal_state_elem_size=48, conv_state_shapes=[(3, 5)], conv_state_elem_sizes=[15],
                 slot_state_buffers=(),
                 temporal_buffer=filled((PAGES, LAYERS, 1, 6, 8), torch.float32),
                 conv_buffer=[filled((PAGES, LAYERS, 1, 3, 5), torch.bfloat16)])


def indexer(pools, layout):
    shape = {"layer_first": (LAYERS, PAGES, 40), "page_first": (PAGES, LAYERS, 1, 40)}[layout]
    return pools("dsa", "DSAIndexerPoolHost", layout=layout, dtype=torch.uint8, indexer_dtype=torch.uint8,
                 indexer_page_stride_size=40, index_k_with_scale_buffer=filled(shape, torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct", "page_head"])
def test_keys_and_values(make, pools, layout, dtype):  # noqa: F811
    check(make, mha(pools, layout, dtype), count=2 if dtype == torch.bfloat16 else None)


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct"])
def test_latents(make, pools, layout):  # noqa: F811
    check(make, mla(pools, layout), count=1)


def check(make, pool, count):  # noqa: F811
    """Pages 0 and 2 go into 3 and 1, by pointers and by SGLang's own copies."""
    storage = make(pool)
    if count:
        (chunk,) = storage._pool().chunks("a", storage._pool().pages(tokens(0), to_write=False)[0])
        assert [part.exact for part in chunk.parts] == [False] * count
    before = [pool.get_data_page(number * PAGE).clone() for number in range(PAGES)]
    assert storage.batch_set_v1(["a", "c"], tokens(0, 2)) == [True, True]
    assert storage.batch_get_v1(["a", "c"], tokens(3, 1)) == [True, True]
    for number, wanted in enumerate((0, 2, 2, 0)):
        assert torch.equal(pool.get_data_page(number * PAGE), before[wanted]), number
    flat = make(pool, interface_v1=0)
    assert flat.batch_set(["x"], [before[1]])
    (found,) = flat.batch_get(["x"], [pool.get_dummy_flat_data_page()])
    assert torch.equal(found, before[1])


@pytest.mark.parametrize("name", ["mamba", "indexer of layers", "indexer of pages"])
def test_sidecars(make, pools, name):  # noqa: F811
    pool = mamba(pools) if name == "mamba" else indexer(pools, "layer_first" if "layers" in name else "page_first")
    known = name.split()[0]
    storage = make(mha(pools, "page_first"), [(known, pool)], codec="int4(group=32)")
    step = pool.page_size
    before = [pool.get_data_page(number * step).clone() for number in range(PAGES)]
    source, target = (torch.arange(number * step, (number + 1) * step) for number in (1, 3))
    assert storage.batch_set_v2([moved(known, ["a"], source)]) == {known: [True]}
    assert storage.batch_get_v2([moved(known, ["a"], target)]) == {known: [True]}
    for number, wanted in enumerate((0, 1, 2, 1)):
        assert torch.equal(pool.get_data_page(number * step), before[wanted]), number
