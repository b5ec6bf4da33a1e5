"""Counters of this package among those of LMCache, which tell of its caches, and not of what a serde or plugin does."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Values = Callable[[], Mapping[str, float]]

_lock = threading.Lock()
_sources: list[tuple[str, "weakref.WeakMethod[Values]"]] = []
_published: set[str] = set()


def publish(source: str, values: Values, names: tuple[str, ...]) -> None:
    """OpenTelemetry, as LMCache sets it up, is told of the counters `names` from here on, as
    `lmcache_mp.kvcompress_NAME` with the attributes `source` and `number`, as long as the object lives whose method
    `values` is. Nothing without OpenTelemetry."""
    try:
        from opentelemetry import metrics
    except ImportError:
        return
    with _lock:
        _sources.append((source, weakref.WeakMethod(values)))
        meter = metrics.get_meter("kvcompress")
        for name in set(names) - _published:
            meter.create_observable_counter(f"lmcache_mp.kvcompress_{name}", [_observer(name)])
            _published.add(name)


def _observer(name: str) -> Callable[[Any], Iterator[Any]]:
    def observe(options: Any) -> Iterator[Any]:
        from opentelemetry.metrics import Observation

        with _lock:
            sources = list(_sources)
        for number, (source, values) in enumerate(sources):
            read = values()
            found = {} if read is None else read()
            if name in found:
                yield Observation(found[name], {"source": source, "number": number})

    return observe
