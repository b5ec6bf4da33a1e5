"""Lets SGLang run a model on a CPU without what it imports of GPUs: Python runs this first in each of its processes.
The layers, the scheduler, the caches' tree, the host pools and the storage threads are SGLang's own; the kernels that
copy between its cache and the host pool are stood in for by copies of PyTorch."""

import importlib.abc
import importlib.machinery
import sys
import types

import torch
import transformers.utils
from transformers import AutoProcessor  # noqa: F401  which looks for torchvision before there is one

PACKAGES = (
    "cutlass", "decord", "deep_gemm", "deepseek_recipe", "flashinfer", "quack", "sgl_kernel", "smg_grpc_proto",
    "smg_grpc_servicer", "tilelang", "tml_renderers", "torch_memory_saver", "torchaudio", "torchcodec", "torchvision",
)


class _Nothing:
    def __init__(self, *arguments, **options):
        pass

    def __call__(self, *arguments, **options):
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else _Nothing()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()

    def __mro_entries__(self, bases):
        return ()


class _Module(types.ModuleType):
    __path__ = ()
    __version__ = "0.4.10"  # SGLang asks for its kernels' one
    __getattr__ = _Nothing.__getattr__


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in PACKAGES else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


class _Event:
    """Of work that is over when it has been called for."""

    def __init__(self, *arguments, **options):
        pass

    def record(self, stream=None):
        pass

    def wait(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 0.0


def _places(pool, tokens, layer):
    """Where a host pool has tokens of one layer."""
    if pool.layout == "page_first":
        return tokens, layer
    assert pool.layout == "page_first_direct", pool.layout
    return tokens // pool.page_size, layer, tokens % pool.page_size


def _load(pool, device_pool, host_indices, device_indices, layer_id, io_backend, *, is_draft=False):
    for kept, caches in zip(pool.kv_buffer, (pool.device_k_buffers, pool.device_v_buffers), strict=True):
        caches[layer_id][device_indices] = kept[_places(pool, host_indices, layer_id)]


def _backup(pool, device_pool, host_indices, device_indices, io_backend):
    for kept, caches in zip(pool.kv_buffer, (pool.device_k_buffers, pool.device_v_buffers), strict=True):
        for layer, cache in enumerate(caches):
            kept[_places(pool, host_indices, layer)] = cache[device_indices]


def _stand_in():
    transformers.utils.is_torchvision_available()
    sys.meta_path.append(_Finder())
    torch.cpu.Event = _Event
    stream = torch.cpu.Stream
    stream.synchronize, stream.query = lambda self: None, lambda self: True
    stream.record_event, stream.wait_event = lambda self, event=None: event or _Event(), lambda self, event: None
    from sglang.srt.mem_cache.pool_host import common, mha

    common._cuda_host_register = lambda *arguments, **options: None
    mha.MHATokenToKVPoolHost.load_to_device_per_layer = _load
    mha.MHATokenToKVPoolHost.backup_from_device_all_layer = _backup


_stand_in()
