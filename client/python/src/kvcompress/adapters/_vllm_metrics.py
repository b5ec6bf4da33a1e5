"""What the vLLM connector counts, as vLLM logs it and gives it to Prometheus."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

_LABELS = {"load_failures": ["reason"], "store_failures": ["reason"]}
COUNTERS = {
    "loaded_chunks": "Chunks that were loaded.",
    "loaded_value_bytes": "Bytes of KV cache that were loaded and restored.",
    "load_failures": "Chunks that were not loaded, and are computed.",
    "stored_chunks": "Chunks that were stored.",
    "stored_value_bytes": "Bytes of KV cache that were compressed and stored.",
    "stored_frame_bytes": "Bytes of the frames that they became.",
    "store_failures": "Chunks that were not stored.",
}


class ConnectorStats(KVConnectorStats):
    """`data`: numbers by the names of COUNTERS, of failures by the name and the reason, `load_failures:damaged`."""

    @classmethod
    def of(cls, counts: Mapping[tuple[str, str], int]) -> "ConnectorStats | None":
        """Of numbers by name and reason; None where there is nothing to tell."""
        data = {f"{name}:{reason}" if reason else name: number for (name, reason), number in counts.items() if number}
        return cls(data=data) if data else None

    def reset(self) -> None:
        self.data: dict[str, int] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        self.data = dict(Counter(self.data) + Counter(other.data))
        return self

    def reduce(self) -> dict[str, int | float]:
        return dict(sorted(self.data.items()))

    def is_empty(self) -> bool:
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):
    """Counters `vllm:kv_connector_kvcompress_...`, of failures by `reason`."""

    def __init__(
        self, config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]
    ):
        super().__init__(config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {
            name: self._counter_cls(
                name=f"vllm:kv_connector_kvcompress_{name}",
                documentation=text,
                labelnames=[*labelnames, *_LABELS.get(name, [])],
            )
            for name, text in COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for key, number in transfer_stats_data.items():
            name, _, reason = key.partition(":")
            labels = [*self.per_engine_labelvalues[engine_idx], *([reason] if reason else [])]
            self._counters[name].labels(*labels).inc(number)
