"""The interfaces of the engines that are adapted to, as their releases publish them, and stand-ins with these.

An engine that is installed is used itself. `KVC_ENGINE_SOURCES`, a folder into which the engines' wheels were unpacked,
makes test_interfaces.py compare what stands here with their sources.
"""

import abc
import dataclasses
import enum
import importlib
import os
import sys
import types

# Release, file, class, methods: "*" marks abstract ones, "@" those of the class. Arguments without
# self and cls.
INTERFACES = [
    ("vllm 0.33.0", "vllm/distributed/kv_transfer/kv_connector/v1/base.py", "KVConnectorBase_V1", {
        "__init__": "vllm_config, role, kv_cache_config",
        "register_kv_caches": "kv_caches",
        "*start_load_kv": "forward_context, **kwargs",
        "*wait_for_layer_load": "layer_name",
        "*save_kv_layer": "layer_name, kv_layer, attn_metadata, **kwargs",
        "*wait_for_save": "",
        "get_finished": "finished_req_ids",
        "get_transfer_results": "finished_req_ids",
        "get_block_ids_with_load_errors": "",
        "get_kv_connector_stats": "",
        "build_connector_worker_meta": "",
        "shutdown": "",
        "*get_num_new_matched_tokens": "request, num_computed_tokens",
        "*update_state_after_alloc": "request, blocks, num_external_tokens",
        "*build_connector_meta": "scheduler_output",
        "update_connector_output": "connector_output",
        "request_finished": "request, block_ids",
        "reset_cache": "",
        "@build_kv_connector_stats": "data=None",
        "@build_prom_metrics": "vllm_config, metric_types, labelnames, per_engine_labelvalues",
    }),
    ("vllm 0.33.0", "vllm/distributed/kv_transfer/kv_connector/v1/base.py", "SupportsHMA", {
        "*request_finished_all_groups": "request, block_ids",
    }),
    ("vllm 0.33.0", "vllm/distributed/kv_transfer/kv_connector/v1/base.py", "KVConnectorWorkerMetadata", {
        "*aggregate": "other",
    }),
    ("vllm 0.33.0", "vllm/distributed/kv_transfer/kv_connector/v1/metrics.py", "KVConnectorStats", {
        "reset": "",
        "aggregate": "other",
        "reduce": "",
        "is_empty": "",
    }),
    ("vllm 0.33.0", "vllm/distributed/kv_transfer/kv_connector/v1/metrics.py", "KVConnectorPromMetrics", {
        "__init__": "vllm_config, metric_types, labelnames, per_engine_labelvalues",
        "observe": "transfer_stats_data, engine_idx=0",
    }),
    ("vllm 0.33.0", "vllm/v1/kv_offload/tiering/base.py", "SecondaryTierManager", {
        "__init__": "offloading_spec, primary_kv_view, tier_type, backpressure_detector=None",
        "*lookup": "key, req_context",
        "*submit_store": "job_metadata",
        "*submit_load": "job_metadata",
        "*get_finished_jobs": "",
        "has_pending_work": "",
        "take_events": "",
        "touch": "keys, req_context",
        "*on_new_request": "req_context",
        "on_request_finished": "req_context",
        "on_schedule_end": "context",
        "*drain_jobs": "",
        "shutdown": "",
        "@build_metric_definitions": "extra_config",
        "get_stats": "",
    }),
    ("sglang 0.5.23", "sglang/srt/mem_cache/hicache_storage.py", "HiCacheStorage", {
        "register_mem_pool_host": "mem_pool_host",
        "batch_get_v1": "keys, host_indices, extra_info=None",
        "batch_set_v1": "keys, host_indices, extra_info=None",
        "*get": "key, target_location=None, target_sizes=None",
        "*batch_get": "keys, target_locations=None, target_sizes=None",
        "*set": "key, value=None, target_location=None, target_sizes=None",
        "*batch_set": "keys, values=None, target_locations=None, target_sizes=None",
        "*exists": "key",
        "batch_exists": "keys, extra_info=None",
        "register_mem_host_pool_v2": "host_pool, host_pool_name",
        "on_host_pools_registered": "",
        "batch_exists_v2": "keys, pool_transfers=None, extra_info=None",
        "batch_get_v2": "transfers, extra_info=None",
        "batch_set_v2": "transfers, extra_info=None",
        "clear": "",
        "get_stats": "",
    }),
    ("lmcache 0.5.6", "lmcache/v1/distributed/serde/base.py", "Serializer", {
        "*serialize": "src, dst, key",
        "*estimate_serialized_size": "layout_desc",
    }),
    ("lmcache 0.5.6", "lmcache/v1/distributed/serde/base.py", "Deserializer", {"*deserialize": "src, dst, key"}),
    ("lmcache 0.5.6", "lmcache/v1/distributed/serde/async_processor.py", "AsyncSerdeProcessor", {
        "__init__": "serializer, deserializer, max_workers=1",
    }),
    ("lmcache 0.5.6", "lmcache/v1/distributed/l2_adapters/base.py", "L2AdapterInterface", {
        "__init__": "max_capacity_bytes=0",
        "*get_store_event_fd": "",
        "*get_lookup_and_lock_event_fd": "",
        "*get_load_event_fd": "",
        "*submit_store_task": "keys, objects",
        "*pop_completed_store_tasks": "",
        "*submit_lookup_and_lock_task": "keys, group_layout_descs",
        "*query_lookup_and_lock_result": "task_id",
        "*submit_unlock": "keys",
        "*submit_load_task": "keys, objects",
        "*query_load_result": "task_id",
        "_notify_keys_stored": "keys, sizes",
        "_notify_keys_accessed": "keys",
        "_notify_keys_deleted": "keys, sizes",
        "delete": "keys",
        "get_usage": "",
        "report_status": "",
        "*close": "",
    }),
    ("lmcache 0.5.6", "lmcache/v1/distributed/l2_adapters/plugin_l2_adapter.py", "PluginL2AdapterConfig", {
        "__init__": "module_path, class_name, adapter_params=None, config_class_name=None",
    }),
]

# Of SGLang's host pools: what the adapter asks them.
HOST_POOLS = [
    ("sglang 0.5.23", "sglang/srt/mem_cache/pool_host/mha.py", "MHATokenToKVPoolHost"),
    ("sglang 0.5.23", "sglang/srt/mem_cache/pool_host/mla.py", "MLATokenToKVPoolHost"),
    ("sglang 0.5.23", "sglang/srt/mem_cache/pool_host/dsa.py", "DSAIndexerPoolHost"),
    ("sglang 0.5.23", "sglang/srt/mem_cache/pool_host/mamba.py", "MambaPoolHost"),
]

# Release, file, class, fields: of those that are made or read by an adapter.
FIELDS = [
    ("vllm 0.33.0", f"vllm/v1/kv_offload/{file}.py", name, fields.split())
    for file, name, fields in [
        ("config", "OffloadingConfig", "groups worker_kv_bytes_per_block enable_kv_cache_events extra_config engine_id "
                                       "model cache parallel replicated_layout canonical_layout kv_cache_layout"),
        ("config", "OffloadingGroupConfig", "tokens_per_block layer_names group_id sliding_window_size_in_chunks"),
        ("config", "OffloadingModelConfig", "name dtype max_model_len"),
        ("config", "OffloadingCacheConfig", "tokens_per_hash blocks_per_chunk"),
        ("config", "OffloadingParallelConfig", "rank world_size tp_size pp_size pcp_size dcp_size data_parallel_index "
                                               "data_parallel_size data_parallel_rank_local is_parallelism_agnostic"),
        ("base", "OffloadingEvent", "keys medium removed locality ownership removal_expected metadata_only"),
        ("base", "OffloadingMetricMetadata", "documentation labelnames"),
        ("base", "RequestOffloadingContext", "policy"),
        ("tiering/base", "TransferJob", "job_id keys chunk_ids is_promotion req_context submit_time"),
        ("tiering/base", "JobResult", "job_id success successful_keys transfer_time transfer_bytes"),
    ]
] + [
    ("vllm 0.33.0", f"vllm/{file}.py", name, fields.split())
    for file, name, fields in [
        ("distributed/kv_transfer/kv_connector/v1/base", "KVConnectorTransferResults",
         "finished_sending finished_recving failed_recving"),
        ("distributed/kv_transfer/kv_connector/v1/metrics", "KVConnectorStats", "data"),
        ("v1/core/sched/output", "KVConnectorBlockState", "req_ids resolve_block_ids boundary_state_offloads"),
        ("v1/outputs", "KVConnectorOutput",
         "finished_sending finished_recving kv_connector_stats kv_cache_events kv_connector_worker_meta "
         "invalid_block_ids failed_recving expected_finished_count"),
        ("v1/kv_cache_interface", "AttentionSpec",
         "dcp_sharded max_tp_shards num_kv_heads head_size dtype head_size_v kv_quant_mode page_size_padded "
         "num_head_slots state_content_bytes tokens_per_state"),
        ("v1/kv_cache_interface", "SlidingWindowSpec", "sliding_window extra_retained_tokens"),
        ("v1/kv_cache_interface", "MambaSpec",
         "shapes dtypes page_size_padded mamba_type mamba_cache_mode num_speculative_blocks "
         "num_prefill_checkpoint_blocks prefill_checkpoint_alignment num_heads tokens_per_state tp_replicated"),
        ("v1/kv_cache_interface", "UniformTypeKVCacheSpecs", "kv_cache_specs"),
        ("v1/kv_cache_interface", "KVCacheGroupSpec",
         "layer_names kv_cache_spec is_eagle_group host_resident enable_kv_transfer role"),
    ]
] + [
    ("sglang 0.5.23", f"sglang/srt/{file}.py", name, fields.split())
    for file, name, fields in [
        ("mem_cache/hicache_storage", "HiCacheStorageConfig",
         "tp_rank tp_size pp_rank pp_size attn_cp_rank attn_cp_size is_mla_model enable_storage_metrics "
         "is_page_first_layout model_name tp_lcm_size should_split_heads dp_rank extra_config dcp_size dcp_rank "
         "logical_page_size"),
        ("mem_cache/hicache_storage", "HiCacheStorageExtraInfo", "prefix_keys extra_info"),
        ("mem_cache/hicache_storage", "PoolTransfer", "name host_indices device_indices keys hit_policy nodes_to_load "
                                                      "indices_from_pool block_pages group_pages"),
        ("mem_cache/hicache_storage", "PoolTransferResult",
         "kv_hit_pages extra_pool_hit_pages restorable_prefix_pages"),
        ("observability/metrics_collector", "StorageMetrics",
         "prefetch_pgs backup_pgs prefetch_bandwidth backup_bandwidth"),
    ]
] + [
    ("lmcache 0.5.6", f"lmcache/v1/distributed/{file}.py", name, fields.split())
    for file, name, fields in [
        ("api", "ObjectKey", "chunk_hash model_name kv_rank object_group_id cache_salt"),
        ("api", "MemoryLayoutDesc", "shapes dtypes"),
        ("l2_adapters/base", "AdapterUsage", "total_bytes_used total_capacity_bytes bytes_by_cache_salt"),
    ]
]
# SGLang's PoolHitPolicy.
HIT_POLICIES = ["ALL_PAGES", "TRAILING_PAGES", "BLOCK_GROUPS"]


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
