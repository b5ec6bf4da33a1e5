"""The connector under vLLM's own Scheduler, whose model checks all that it reads: loads between steps, daemons that die
and stop, requests that end while they are loaded, models with several groups of caches. test_vllm.py runs this where
vLLM can be imported."""

import os
import signal
import threading
import time

import pytest

torch = pytest.importorskip("torch")
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorLogging  # noqa: E402
from vllm.v1.request import RequestStatus  # noqa: E402
from vllm_engine import BLOCK, Engine, full, mamba, window  # noqa: E402

CHUNK = 2 * BLOCK
GROUPS = {
    "full": [full()],
    "window": [window()],
    "wide window": [window(100)],
    "full and window": [full(), window()],
    "full and wide windows": [full(), window(100), window(70)],
    "full and states": [full(), mamba()],
    "full, window and states": [full(), window(), mamba()],
}
by_groups = pytest.mark.parametrize("specs", GROUPS.values(), ids=GROUPS)


def _name(specs):
    return next(name for name, known in GROUPS.items() if known is specs)


@pytest.fixture(params=["in-process", "daemon"])
def target(request):
    return request.param


@pytest.fixture
def engine(daemon, tmp_path):
    """Makes engines that share a folder: engine(specs, target="daemon", ...)."""
    made, servers = [], []

    def start(specs=None, *, target="daemon", **options):
        if target == "daemon":
            if not servers:
                servers.append(daemon("--threads", "2"))
            start.server, target = servers[0], servers[0].address
        made.append(Engine(tmp_path / "kv", specs, target=target, **options))
        return made[-1]

    start.folder = tmp_path / "kv"
    yield start
    for one in made:
        one.close()


def stop(server):
    os.kill(server.process.pid, signal.SIGSTOP)


def go_on(server):
    os.kill(server.process.pid, signal.SIGCONT)


@by_groups
@pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "ahead"])
def test_a_prompt_is_found_again_by_another_engine(engine, specs, target, ahead):
    one, tokens = engine(specs, target=target, ahead=ahead), list(range(100, 310))
    assert one.prompt("a", tokens, 40) == 249
    two = engine(specs, target=target, ahead=ahead)
    assert two.prompt("b", [*tokens[:208], 7, 8, 9], 5) == 211 - 208 // two.chunk * two.chunk + 4
    assert two.counts("load_failures") == {}
    assert two.stats["loaded_chunks"] > 0


@by_groups
@pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "ahead"])
def test_a_prompt_of_many_steps_and_what_follows_it(engine, specs, ahead):
    """Blocks that windows have left are others' by the time that a chunk is whole."""
    one, tokens = engine(specs, batched=48, blocks=96, ahead=ahead), list(range(500, 900))
    first = one.add("a", tokens, 60)
    second = one.add("b", tokens[:300], 30)
    one.run(first, second)
    one.forget_blocks()
    longer = list(first.all_token_ids)[:450]
    third = one.add("c", longer, 3)
    one.run(third)
    assert one.computed["c"] < 450
    assert one.stats["loaded_chunks"] > 0
    assert one.counts("load_failures") == {}


def test_windows_take_what_they_need(engine):
    one = engine([full(), window(24)], target="in-process")
    one.prompt("a", range(320), 1)
    two = engine([full(), window(24)], target="in-process")
    two.prompt("b", range(320), 1)
    assert two.stats["loaded_chunks"] == 9 + 1  # of the window the last chunk, of the others all


def test_states_are_kept_bit_for_bit(engine):
    """And keys and values are not: the codec that loses is for them alone."""
    one = engine([full(), mamba()], target="in-process", codec="int4")
    kinds = {number: codec.text for number, codec in one.worker._worker._transfer._codecs.items()}
    assert kinds == {0: "int4", 1: "lossless"}
    one.pages[0].check = lambda *_: None
    one.prompt("a", range(200), 1)
    two = engine([full(), mamba()], target="in-process", codec="int4")
    two.pages[0].check = lambda *_: None
    two.prompt("b", range(200), 1)
    assert two.computed["b"] == 200 - 192


def test_other_requests_go_on_while_one_is_loaded(engine):
    one, tokens = engine(timeout=5), list(range(100, 300))
    one.prompt("a", tokens)
    one.forget_blocks()
    other = one.add("other", range(1000, 1100), 200)
    one.step()
    stop(engine.server)
    try:
        waiting = one.add("b", tokens, 2)
        for _ in range(50):
            one.step()
        assert waiting.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        assert other.num_output_tokens > 45
    finally:
        go_on(engine.server)
    one.run(waiting)
    assert one.computed["b"] == 200 - 192 + 1
    assert not other.is_finished()


@by_groups
def test_a_daemon_that_does_not_answer_costs_a_miss(engine, specs):
    one, tokens = engine(specs, timeout=2), list(range(100, 300))
    one.prompt("a", tokens)
    one.forget_blocks()
    stop(engine.server)
    try:
        asked = one.stats["stored_chunks"]
        assert one.prompt("b", tokens) == 200
    finally:
        go_on(engine.server)
    failed = one.counts("load_failures")
    assert set(failed) <= {"daemon", "stuck"}
    assert 0 < sum(failed.values()) <= asked
    assert "loaded_chunks" not in one.stats or one.stats["loaded_chunks"] == 0
    one.forget_blocks()
    time.sleep(1.1)  # the daemon is left alone for a while
    assert one.prompt("c", tokens) < 200


@by_groups
def test_what_is_damaged_or_anothers_is_computed_and_stored_anew(engine, specs):
    one, tokens = engine(specs), list(range(100, 300))
    one.prompt("a", tokens)
    one.prompt("x", range(1000, 1200))
    one.forget_blocks()
    store, scheduler = one.worker._worker._store, one.connector._scheduler
    from kvcompress.adapters import _vllm_scheduler as side

    def names(tokens):
        known = side._Request(type("R", (), {"all_token_ids": list(tokens)})())
        scheduler._extend(known, len(tokens))
        return [[side.store_name(0, side._key(digest, group)) for digest in known.keys] for group in scheduler._groups]

    # Of each group the chunk that the longest match needs is another prompt's.
    swapped = 0
    for mine, others in zip(names(tokens), names(range(1000, 1200)), strict=True):
        other = store.get(others[-1], 1 << 30)
        if other is not None and store.exists(mine[-1]):
            store.put(mine[-1], bytes(other))
            swapped += 1
    assert swapped == len(specs)
    assert one.prompt("b", tokens) == (40 if _name(specs) == "full" else 200)
    assert one.counts("load_failures") == {"foreign": swapped}
    # It was computed and stored anew.
    one.forget_blocks()
    before = one.counts("load_failures")
    assert one.prompt("c", tokens) == 200 - 192
    assert one.counts("load_failures") == before


def test_a_load_that_fails_in_part_keeps_what_is_before(engine):
    one, tokens = engine(), list(range(100, 300))
    one.prompt("a", tokens)
    one.forget_blocks()
    path = sorted(engine.folder.glob("*/*.kvc"))
    assert len(path) == 6
    # The third chunk of the prompt, in the order in which they were stored.
    third = sorted(path, key=lambda one: one.stat().st_mtime_ns)[2]
    request = one.add("b", tokens)
    one.step()
    third.write_bytes(third.read_bytes()[:-1])
    one.run(request)
    assert one.computed["b"] in (200 - 64, 8)  # it may have been read before


def test_requests_that_fail_where_that_is_the_policy(engine):
    one, tokens = engine(policy="fail"), list(range(100, 300))
    one.prompt("a", tokens)
    one.forget_blocks()
    for path in engine.folder.glob("*/*.kvc"):
        path.write_bytes(path.read_bytes()[:-1])
    request = one.add("b", tokens)
    one.run(request)
    assert request.status == RequestStatus.FINISHED_ERROR
    assert one.prompt("c", tokens) == 200


@by_groups
@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_request_that_is_aborted_while_it_is_loaded(engine, specs, when):
    one, tokens = engine(specs, timeout=2), list(range(100, 300))
    one.prompt("a", tokens)
    one.forget_blocks()
    free = one.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    stop(engine.server)
    try:
        aborted = one.add("b", tokens)
        for _ in range(1 if when == "at once" else 20):
            one.step()
        assert aborted.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        one.abort(aborted)
        other = one.add("c", range(2000, 2150), 3)
        one.run(other)
    finally:
        go_on(engine.server)
    one.settle()
    assert not one.scheduler.requests
    assert one.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == free
    assert one.connector._scheduler._requests == {}
    assert one.connector._scheduler._loading == {}


@by_groups
@pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "ahead"])
def test_requests_that_are_preempted_and_loaded_again(engine, specs, ahead):
    """So many at once that there are not blocks enough for all."""
    blocks = {"window": 9, "full, window and states": 42}.get(_name(specs), 24 * len(specs))
    one = engine(specs, blocks=blocks, target="in-process", ahead=ahead)
    prompts = [[number, *range(100, 195)] for number in range(4)]
    for number, tokens in enumerate(prompts):
        one.prompt(f"first-{number}", tokens)
    one.forget_blocks()
    again = [one.add(f"again-{number}", tokens, 80) for number, tokens in enumerate(prompts)]
    one.run(*again)
    assert all(request.num_output_tokens == 80 for request in again)
    assert sum(request.num_preemptions for request in again) > 0
    assert one.counts("load_failures") == {}
    assert one.stats["loaded_chunks"] > 0


def test_running_requests_are_reset_with_the_cache(engine):
    one, tokens = engine(), list(range(100, 300))
    one.prompt("a", tokens)
    running = one.add("b", range(1000, 1200), 100)
    for _ in range(10):
        one.step()
    assert one.scheduler.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
    one.run(running)
    assert one.prompt("c", tokens) == 200
    one.forget_blocks()
    assert one.prompt("d", tokens) == 8


def test_a_store_that_is_full_of_work_drops_some(engine, monkeypatch):
    from kvcompress.adapters import _vllm_worker

    monkeypatch.setattr(_vllm_worker, "_MOST_SAVING", 40000)
    one = engine(target="in-process")
    one.prompt("a", range(300))
    stored, dropped = one.stats["stored_chunks"], one.counts("store_failures")
    assert stored > 0
    assert dropped == {"busy": 9 - stored}
    one.forget_blocks()
    assert one.prompt("b", range(300)) < 300


def test_counters_add_up_and_vllm_logs_them(engine):
    one, tokens = engine(target="in-process"), list(range(100, 300))
    one.prompt("a", tokens)
    one.forget_blocks()
    one.prompt("b", tokens)
    size = sum(pages.spec.page_size_bytes * len(pages.names) * 2 for pages in one.pages)
    assert one.stats["stored_chunks"] == one.stats["loaded_chunks"] == 6
    assert one.stats["stored_value_bytes"] == one.stats["loaded_value_bytes"] == 6 * size
    files = [path.stat().st_size for path in engine.folder.glob("*/*.kvc")]
    assert 0.9 < one.stats["stored_frame_bytes"] / sum(files) <= 1
    said, log = [], KVConnectorLogging(one.scheduler.vllm_config.kv_transfer_config)
    log.observe({"loaded_chunks": 2, "load_failures:absent": 1})
    log.observe({"loaded_chunks": 3, "load_failures:daemon": 1})
    log.log(lambda text, *values: said.append(text % values))
    assert said == ["KV Transfer metrics: load_failures:absent=1, load_failures:daemon=1, loaded_chunks=5"]


@pytest.mark.parametrize("specs", [GROUPS["full"], GROUPS["full, window and states"]], ids=["full", "hybrid"])
def test_a_daemon_that_is_killed_while_requests_are_loaded(daemon, socket_dir, tmp_path, specs, monkeypatch):
    """In each second round, after a while that differs, and in half of these it comes again only when all is over: what
    is loaded is right, and the rest is counted."""
    from kvcompress.adapters import _vllm_transfer

    monkeypatch.setattr(_vllm_transfer, "_REST", 0.02)
    address = f"unix:{socket_dir}/s"
    servers = [daemon("--threads", "2", "--listen", address)]
    one = Engine(tmp_path / "kv", specs, target=address, timeout=0.5, blocks=256, ahead=True)
    load, asked = one.worker._worker.load, []
    monkeypatch.setattr(one.worker._worker, "load", lambda *arguments: asked.extend(arguments[1]) or load(*arguments))
    prompts = [[number, *range(100, 200)] for number in range(4)]

    def kill(seconds, stays_dead):
        time.sleep(seconds)
        servers[-1].process.kill()
        servers[-1].wait()
        over.wait(stays_dead * 20)
        servers.append(daemon("--threads", "2", "--listen", address))

    for number in range(20):
        over = threading.Event()
        killer = threading.Thread(target=kill, args=(number % 10 * 0.001, number % 4 == 3))
        if number % 2:
            killer.start()
        requests = [one.add(f"{number}-{which}", tokens, 3) for which, tokens in enumerate(prompts)]
        one.run(*requests)
        assert all(request.num_output_tokens == 3 for request in requests)
        over.set()
        if number % 2:
            killer.join()
        one.forget_blocks()
    loaded, failed = one.stats["loaded_chunks"], one.counts("load_failures")
    assert len(servers) == 11
    assert loaded + sum(failed.values()) == len(asked)
    assert 0 < loaded < len(asked)  # the kills did hit something
    assert set(failed) <= {"daemon", "stuck", "refused"}
    one.close()
