"""Stand-ins for the engines that are adapted to, with the interfaces of engine_interfaces.py.

An engine that is installed is used itself. `KVC_ENGINE_SOURCES`, a folder into which the engines' wheels were unpacked,
makes test_interfaces.py compare the interfaces with their sources.
"""

import abc
import dataclasses
import enum
import importlib
import os
import sys
import types

from engine_interfaces import FIELDS, HIT_POLICIES, INTERFACES


def fields_of(name, **defaults):
    """A dataclass with the fields of FIELDS; None where they are not given, or one of `defaults`."""
    (fields,) = [fields for _, _, found, fields in FIELDS if found == name]
    return dataclasses.make_dataclass(
        name, [(field, object, dataclasses.field(default=defaults.get(field))) for field in fields])


def interface(name):
    """A class with the methods of INTERFACES, which raise NotImplementedError."""
    (methods,) = [methods for _, _, found, methods in INTERFACES if found == name]
    members = {}
    for method, arguments in methods.items():
        space = {}
        exec(f"def {method.lstrip('*@')}(self, {arguments}): raise NotImplementedError", space)
        function = space[method.lstrip("*@")]
        mark = {"*": abc.abstractmethod, "@": classmethod}.get(method[0], lambda plain: plain)
        members[function.__name__] = mark(function)
    return abc.ABCMeta(name, (), members)


def _provide(name, **members):
    """The module, where the engine is installed; else one with these members."""
    try:
        importlib.import_module(name)
    except ImportError:
        parts = name.split(".")
        for package in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            if package not in sys.modules:
                sys.modules[package] = types.ModuleType(package)
                sys.modules[package].__path__ = []
        vars(sys.modules[name]).update(members)


def provide_vllm():
    class Base(interface("KVConnectorBase_V1")):
        def __init__(self, vllm_config, role, kv_cache_config):
            self._connector_metadata = None
            self._role = role

        role = property(lambda self: self._role)

        def bind_connector_metadata(self, connector_metadata):
            self._connector_metadata = connector_metadata

        def clear_connector_metadata(self):
            self._connector_metadata = None

        def _get_connector_metadata(self):
            assert self._connector_metadata is not None
            return self._connector_metadata

    class Stats(interface("KVConnectorStats")):
        def __init__(self, data=None):
            self.data = data or {}

    class Metrics(interface("KVConnectorPromMetrics")):
        def __init__(self, vllm_config, metric_types, labelnames, per_engine_labelvalues):
            self._counter_cls = next(kind for name, kind in metric_types.items() if name.__name__ == "Counter")
            self.per_engine_labelvalues = per_engine_labelvalues

    _provide("vllm.distributed.kv_transfer.kv_connector.v1.base", KVConnectorBase_V1=Base,
             KVConnectorMetadata=abc.ABCMeta("KVConnectorMetadata", (), {}),
             KVConnectorWorkerMetadata=interface("KVConnectorWorkerMetadata"), SupportsHMA=interface("SupportsHMA"),
             KVConnectorTransferResults=fields_of("KVConnectorTransferResults", finished_sending=frozenset()),
             KVConnectorRole=enum.Enum("KVConnectorRole", [("SCHEDULER", 0), ("WORKER", 1)]))
    _provide("vllm.distributed.kv_transfer.kv_connector.v1.metrics", KVConnectorStats=Stats,
             KVConnectorPromMetrics=Metrics)
    _provide("vllm.v1.outputs", KVConnectorOutput=fields_of("KVConnectorOutput"))
    _provide("vllm.v1.core.sched.output", KVConnectorBlockState=fields_of("KVConnectorBlockState"))
    _provide("vllm.v1.kv_cache_interface", **{spec.__name__: spec for spec in _cache_specs()})


def _cache_specs():
    """As vLLM describes caches, as far as adapters ask them."""
    class Spec(types.SimpleNamespace):
        prefix_cacheable = True

    class Attention(Spec):
        def __init__(self, **fields):
            super().__init__(**{"head_size_v": fields["head_size"], **fields})

    class FullAttentionSpec(Attention):
        pass

    class ChunkedLocalAttentionSpec(Attention):
        pass

    class SlidingWindowSpec(Attention):
        pass

    class MambaSpec(Spec):
        pass

    class UniformTypeKVCacheSpecs(Spec):
        pass

    return FullAttentionSpec, ChunkedLocalAttentionSpec, SlidingWindowSpec, MambaSpec, UniformTypeKVCacheSpecs


def provide_vllm_tiering():
    class Tier(interface("SecondaryTierManager")):
        def __init__(self, offloading_spec, primary_kv_view, tier_type, backpressure_detector=None):
            self.block_size_bytes = primary_kv_view.strides[0]
            self.tier_type, self.locality, self.bp_detector = tier_type, None, backpressure_detector

    class Context:
        def __init__(self, req_id):
            self.req_id, self._ends = req_id, {}

        def set_offload_key_position(self, key, end_token):
            self._ends[key] = end_token

        def get_offload_key_position(self, key):
            return self._ends.get(key)

    class Stats:
        def __init__(self):
            self.data = {}

        def increase_counter(self, counter_name, counter_increase_value=1, labelvalues=()):
            values = self.data.setdefault("data", {}).setdefault(counter_name, {})
            values[labelvalues] = values.get(labelvalues, 0) + counter_increase_value

    _provide("vllm.v1.kv_offload.config", **{name: fields_of(name) for name in (
        "OffloadingConfig", "OffloadingGroupConfig", "OffloadingModelConfig", "OffloadingCacheConfig",
        "OffloadingParallelConfig")})
    _provide("vllm.v1.kv_offload.base", ReqContext=Context, OffloadingEvent=fields_of("OffloadingEvent"),
             OffloadingCounterMetadata=fields_of("OffloadingMetricMetadata"),
             RequestOffloadingContext=fields_of("RequestOffloadingContext"),
             LookupResult=enum.Enum("LookupResult", "MISS HIT HIT_PENDING RETRY"),
             Medium=enum.Enum("Medium", {"CPU": "CPU", "STORAGE": "STORAGE"}),
             Locality=enum.Enum("Locality", {"LOCAL": "LOCAL", "REMOTE": "REMOTE"}))
    _provide("vllm.v1.kv_offload.tiering.base", SecondaryTierManager=Tier, TransferJob=fields_of("TransferJob"),
             JobResult=fields_of("JobResult"))
    _provide("vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics", OffloadingConnectorStats=Stats)


def provide_sglang():
    class Storage(interface("HiCacheStorage")):
        def register_mem_pool_host(self, mem_pool_host):
            self.mem_pool_host = mem_pool_host

        def register_mem_host_pool_v2(self, host_pool, host_pool_name):
            self.registered_pools = {**getattr(self, "registered_pools", {}), host_pool_name: host_pool}

        def on_host_pools_registered(self):
            pass

    class PoolName(str, enum.Enum):
        KV, MAMBA, SWA, INDEXER, DRAFT = "kv", "mamba", "swa", "indexer", "draft"

        __str__ = str.__str__

    policy = enum.Enum("PoolHitPolicy", {name: name.lower() for name in HIT_POLICIES}, type=str)
    _provide("sglang.srt.mem_cache.hicache_storage", HiCacheStorage=Storage, PoolName=PoolName, PoolHitPolicy=policy,
             PoolTransfer=fields_of("PoolTransfer", hit_policy=policy.ALL_PAGES),
             PoolTransferResult=fields_of("PoolTransferResult"))
    _provide("sglang.srt.observability.metrics_collector", StorageMetrics=fields_of("StorageMetrics"))


class Notifier:
    """LMCache's EventNotifier, as an eventfd."""

    def __init__(self):
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def fileno(self):
        return self._fd

    def notify(self):
        os.eventfd_write(self._fd, 1)

    def close(self):
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Bitmap:
    """LMCache's, as far as adapters fill it."""

    def __init__(self, size):
        self._bits = [False] * size

    def set(self, index):
        self._bits[index] = True

    def test(self, index):
        return self._bits[index]

    def size(self):
        return len(self._bits)


class StoreResult(int):
    """LMCache's L2StoreResult."""

    def __new__(cls, success, bytes_transferred):
        return super().__new__(cls, bytes_transferred if success else -1)

    def is_successful(self):
        return self >= 0

    def bytes_transferred(self):
        return max(0, self)


def provide_lmcache():
    registry = {}

    class Processor(interface("AsyncSerdeProcessor")):
        def __init__(self, serializer, deserializer, max_workers=1):
            self._serializer, self._deserializer = serializer, deserializer

    class Adapter(interface("L2AdapterInterface")):
        def __init__(self, max_capacity_bytes=0):
            self._max_capacity_bytes = max_capacity_bytes
            self.told = []

        def _notify_keys_stored(self, keys, sizes):
            self.told.append(("stored", keys, sizes))

        def _notify_keys_accessed(self, keys):
            self.told.append(("accessed", keys))

        def _notify_keys_deleted(self, keys, sizes):
            self.told.append(("deleted", keys, sizes))

    def register(name, factory):
        if name in registry:
            raise ValueError(f"Serde type already registered: {name!r}")
        registry[name] = factory

    _provide("lmcache.v1.distributed.serde", AsyncSerdeProcessor=Processor, Serializer=interface("Serializer"),
             Deserializer=interface("Deserializer"), register_serde_factory=register,
             get_registered_serde_types=lambda: list(registry))
    _provide("lmcache.lmcache_native", Bitmap=Bitmap)
    _provide("lmcache.v1.distributed.internal_api", L2StoreResult=StoreResult)
    _provide("lmcache.v1.distributed.l2_adapters.base", L2AdapterInterface=Adapter,
             AdapterUsage=fields_of("AdapterUsage"))
    _provide("lmcache.v1.distributed.api", ObjectKey=fields_of("ObjectKey", object_group_id=0, cache_salt=""))
    _provide("lmcache.v1.platform", create_event_notifier=Notifier)
