"""The interfaces of the engines that are adapted to, as their releases publish them: test_interfaces.py compares them
with the releases' sources."""

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
