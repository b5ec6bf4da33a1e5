"""SGLang's backend and LMCache's adapter while their daemon is killed again and again: nothing wrong is ever read, and
each load is a hit or a miss that is counted."""

import select
import threading
import time
import types

import engines
import pytest

torch = pytest.importorskip("torch")
engines.provide_sglang()
engines.provide_lmcache()
from kvcompress.adapters import _chunks  # noqa: E402
from kvcompress.adapters.lmcache import KvCompressL2Adapter  # noqa: E402
from kvcompress.adapters.sglang import KvCompressStorage  # noqa: E402
from test_lmcache import Memory, object_key  # noqa: E402
from test_sglang import PAGE, Pool  # noqa: E402

LOADS, KILLS, CHUNKS, AT_ONCE = 2000, 20, 4, 2
MISSES = ("missing", "damaged", "foreign", "undecoded")


class Killer:
    """A daemon that is killed, a moment after each share of the loads was done, and started anew."""

    def __init__(self, daemon, address):
        self.kills = self._misses = 0
        self._start = lambda: daemon("--threads", "2", "--listen", address)
        self._server = self._start()
        self._thread = None

    def after(self, loads, found):
        """Some misses are enough for one kill: then the next load waits until the daemon stands."""
        self._misses += not found
        if self._misses >= 5:
            self.join()
        if self.kills < KILLS and loads >= (self.kills + 1) * LOADS // (KILLS + 1):
            self.join()
            self.kills, self._misses = self.kills + 1, 0
            self._thread = threading.Thread(target=self._kill, args=(self.kills % 5 * 0.0005,))
            self._thread.start()

    def join(self):
        if self._thread is not None:
            self._thread.join()

    def _kill(self, seconds):
        time.sleep(seconds)
        self._server.process.kill()
        self._server.wait()
        time.sleep(0.05)
        self._server = self._start()


@pytest.fixture
def options(socket_dir, tmp_path, monkeypatch):
    """Short waits: a daemon that is gone is given up before it comes again, and asked again soon."""
    monkeypatch.setattr(_chunks, "_PAUSE", 0.02)
    return {"target": f"unix:{socket_dir}/s", "path": str(tmp_path / "kept"), "codec": "lossless", "timeout": 0.1}


def test_sglang(daemon, options):
    pool, killer = Pool("page_first"), Killer(daemon, options["target"])
    config = types.SimpleNamespace(
        tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
        model_name="org/model", extra_config={**options, "interface_v1": 1})
    storage, hits = KvCompressStorage(config), 0
    storage.register_mem_pool_host(pool)
    before, keys = pool.kv_buffer.clone(), [f"page{number}" for number in range(CHUNKS)]
    while not all(storage.batch_set_v1(keys, torch.arange(CHUNKS * PAGE))):
        time.sleep(0.1)
    for done in range(0, LOADS, AT_ONCE):
        chosen = [(done // AT_ONCE + number) % CHUNKS for number in range(AT_ONCE)]
        indices = torch.cat([torch.arange(number * PAGE, (number + 1) * PAGE) for number in chosen])
        pool.kv_buffer[:, indices] = 0
        found = storage.batch_get_v1([keys[number] for number in chosen], indices)
        for number, hit in zip(chosen, found, strict=True):
            page = slice(number * PAGE, (number + 1) * PAGE)
            assert not hit or torch.equal(pool.kv_buffer[:, page], before[:, page])
        hits += sum(found)
        killer.after(done, all(found))
    check(storage.stats(), hits, killer)
    storage.close()


def test_lmcache(daemon, options, kv_values):
    killer, adapter, hits = Killer(daemon, options["target"]), KvCompressL2Adapter(options), 0
    shape = torch.Size([2, 2, 32, 64])
    sources = [Memory([shape], [torch.bfloat16]) for _ in range(CHUNKS)]
    for seed, source in enumerate(sources):
        source.tensor.copy_(kv_values(tuple(shape), torch.bfloat16, seed))
    keys = [object_key(number) for number in range(CHUNKS)]

    def wait(descriptor, take, task):
        assert select.select([descriptor], [], [], 20)[0]
        while (answer := take(task)) is None:
            time.sleep(0.0002)
        return answer

    stored = False
    while not stored:
        task = adapter.submit_store_task(keys, sources)
        stored = wait(adapter.get_store_event_fd(), lambda number: adapter.pop_completed_store_tasks().get(number),
                      task).is_successful()
    for done in range(0, LOADS, AT_ONCE):
        chosen = [(done // AT_ONCE + number) % CHUNKS for number in range(AT_ONCE)]
        targets = [Memory([shape], [torch.bfloat16]) for _ in chosen]
        task = adapter.submit_load_task([keys[number] for number in chosen], targets)
        bitmap = wait(adapter.get_load_event_fd(), adapter.query_load_result, task)
        found = [bitmap.test(place) for place in range(AT_ONCE)]
        for target, number, hit in zip(targets, chosen, found, strict=True):
            assert not hit or torch.equal(target.raw, sources[number].raw)
        hits += sum(found)
        killer.after(done, all(found))
    assert adapter.report_status()["is_healthy"]
    check(adapter.report_status(), hits, killer)
    adapter.close()


def check(counters, hits, killer):
    killer.join()
    missed = {name: counters.get(name, 0) for name in MISSES}
    assert killer.kills == KILLS
    assert hits == counters["loaded"]
    assert hits + sum(missed.values()) == LOADS
    assert missed["damaged"] == missed["foreign"] == missed["missing"] == 0
    assert hits > LOADS / 10  # how many there are is up to the time that a daemon takes to start
    assert missed["undecoded"] > 0  # the kills did hit something
