"""LMCache's server, `lmcache server`, on the CPU, and an engine's worker with LMCache's own client."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import torch
import zmq
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
from lmcache.v1.multiprocess.group_view import EngineGroupInfo
from lmcache.v1.multiprocess.transfer_context import create_transfer_context
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

CHUNK, BLOCK = 64, 16  # tokens
LAYERS, HEADS, HEAD_DIM, BLOCKS = 3, 2, 64, 24


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`module` is run with `server` and LMCache's own options."""

    def __init__(self, l2, folder, module="lmcache.cli.main", mode="engine_driven"):
        self.port, self.log_path = _free_port(), folder / "lmcache.log"
        options = {"port": self.port, "http-port": _free_port(), "http-host": "127.0.0.1", "host": "127.0.0.1",
                   "chunk-size": CHUNK, "l1-size-gb": 0.0625, "eviction-policy": "LRU", "l2-adapter": json.dumps(l2),
                   "supported-transfer-mode": mode, "shm-name": f"kvc-{self.port}"}
        told = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        environment = {**os.environ, "LMCACHE_TRACK_USAGE": "false"}  # else it tells its makers
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", module, "server", *told, "--disable-metrics"],
                                            env=environment, stdout=log, stderr=log)

    def log(self):
        return self.log_path.read_text()

    def stop(self):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.process.wait()


class Worker:
    """Keys and values in blocks of tokens, as vLLM has them, and requests that store and load them."""

    def __init__(self, server, mode="engine_driven"):
        self._zmq = zmq.Context()
        self._client = RequestClientFactory.create(f"tcp://127.0.0.1:{server.port}", context=self._zmq)
        deadline = time.monotonic() + 90
        while True:  # until it serves
            assert server.process.poll() is None, server.log()
            with contextlib.suppress(TimeoutError):
                assert self._client.get_chunk_size().result(timeout=1) == CHUNK
                break
            assert time.monotonic() < deadline, server.log()
        self.layers = {f"model.layers.{layer}.self_attn.attn": torch.zeros(
            2, BLOCKS, BLOCK, HEADS, HEAD_DIM, dtype=torch.bfloat16) for layer in range(LAYERS)}
        self._context = create_transfer_context(self.layers, instance_id=1, req_client=self._client, mode=mode)
        groups = [EngineGroupInfo(0, tuple(range(LAYERS)), BLOCK)]
        self._context.register(self.layers, "org/model", 1, CHUNK // BLOCK, 30.0, layout_hints={"kv_layout": "NHD"},
                               engine_group_infos=groups)
        self._requests = 0

    def _key(self, tokens, worker):
        return IPCCacheServerKey(
            model_name="org/model", world_size=1, num_kv_readers=1, worker_id=worker, token_ids=tuple(tokens), start=0,
            end=len(tokens), request_id=f"request-{self._requests}")

    def store(self, tokens, first):
        """Of the blocks from `first` on."""
        self._requests += 1
        key, blocks = self._key(tokens, 0), [list(range(first, first + len(tokens) // BLOCK))]
        event = self._context.create_recorded_event()
        done = self._context.submit_store(key.request_id, key, self.layers, blocks, event, CHUNK // BLOCK)
        return done.result(timeout=30)

    def load(self, tokens, first):
        """How many chunks there are, which stand in the blocks from `first` on."""
        self._requests += 1
        asked = self._key(tokens, None)
        self._client.lookup(asked, 1).result(timeout=30)
        deadline = time.monotonic() + 30
        while (found := self._client.query_prefetch_status(asked.request_id).result(timeout=30)) is None:
            assert time.monotonic() < deadline, "the look-up does not end"
            time.sleep(0.01)
        if found:
            some = tokens[: found * CHUNK]
            blocks = [list(range(first, first + len(some) // BLOCK))]
            event = self._context.create_recorded_event()
            done = self._context.submit_retrieve(
                asked.request_id, self._key(some, 0), self.layers, blocks, event, CHUNK // BLOCK)
            assert done.result(timeout=30)
        self._client.end_session(asked.request_id).result(timeout=30)
        return found

    def close(self):
        self._context.unregister().result(timeout=30)
        self._context.close()
        self._client.close()
        self._zmq.term()
