"""Memory of other programs: read where it stands by those who may write it, and never written."""

import hashlib

import grpc
import numpy as np
import pytest
from daemon_helpers import MIB, Client
from shm_helpers import PREFIX, Object, Registration, SharedClient, failure_code, mappings, write_lock

FOREIGN = "kvc-engine-"
SIZE = 4 * MIB


@pytest.fixture
def server(daemon):
    return daemon("--shared-memory", PREFIX, "--foreign-memory", FOREIGN, "--threads", "2")


@pytest.fixture
def client(server, stubs):
    return Client(server, stubs)


@pytest.fixture
def engine():
    """What an engine has made, with values in it."""
    with Object("cache.mmap", SIZE, prefix=FOREIGN) as made:
        values = np.random.default_rng(0).standard_normal(SIZE // 4).astype(np.float32)
        np.frombuffer(made.memory, np.float32)[:] = values.cumsum() / 100
        made.digest = hashlib.sha256(made.memory).digest()
        yield made
        assert hashlib.sha256(made.memory).digest() == made.digest, "the engine's values have changed"


def test_values_are_read_where_they_stand(server, client, engine):
    stream = Registration(client)
    region = stream.register_foreign("cache", engine)
    assert mappings(server, engine.key) == 1
    with open(f"/proc/{server.pid}/maps") as maps:
        assert [line.split()[1] for line in maps if engine.key in line] == ["r--s"]
    values = np.frombuffer(engine.memory, np.float32, 300_000, offset=4096).reshape(10, 30_000).copy()

    def requests():
        yield client.header("t", values.shape, "lossless", 3)
        where = client.pb.SharedMemoryRange(region=region, offset=4096, byte_size=values.nbytes)
        yield client.pb.CompressRequest(shared_data=where)

    responses = list(client.stub.Compress(requests(), timeout=60))
    frame = b"".join(response.frame for response in responses)
    assert [response.input_released for response in responses if response.input_released][-1] == values.nbytes
    assert frame == client.compress({"t": values}, codec="lossless")[0]["t"]
    stream.unregister("cache")
    assert mappings(server, engine.key) == 0
    stream.close()


def test_keys_are_read_from_between_values(client, engine):
    """Pages [heads, tokens, key and value] of one layer after another, of which a tensor [layers, heads, tokens] is
    described at once."""
    stream = Registration(client)
    region = stream.register_foreign("cache", engine)
    layers, pages, heads, tokens, dim = 3, 4, 2, 16, 64
    cache = np.frombuffer(bytes(engine.memory), np.float32)
    cache = cache[:layers * pages * heads * tokens * 2 * dim].reshape(layers, pages, heads, tokens, 2, dim)
    of_layer, of_page, of_head, of_token, of_side = cache.strides[:5]
    for side in (0, 1):
        values = np.ascontiguousarray(cache[..., side, :].transpose(0, 2, 1, 3, 4))

        def requests(size=values.nbytes, side=side):
            yield client.header("layer_0_key", (layers, heads, pages * tokens, dim), "int4", 3)
            levels = [(layers, of_layer), (heads, of_head), (pages, of_page), (tokens, of_token)]
            yield client.pb.CompressRequest(shared_data=client.pb.SharedMemoryRange(
                region=region, offset=side * of_side, byte_size=size,
                levels=[client.pb.SharedMemoryLevel(count=count, stride=stride) for count, stride in levels]))

        frame = b"".join(response.frame for response in client.stub.Compress(requests(), timeout=60))
        values = values.reshape(layers, heads, pages * tokens, dim)
        assert frame == client.compress({"layer_0_key": values}, codec="int4")[0]["layer_0_key"]
        code, details = failure_code(client.stub.Compress(requests(values.nbytes * 2, side), timeout=60))
        assert code == grpc.StatusCode.INVALID_ARGUMENT and "more than" in details


def test_it_takes_no_output(client, engine):
    stream = Registration(client)
    shared = SharedClient(client, engine, stream.register_foreign("cache", engine))

    def requests():
        header = client.header("t", (1000,), "lossless", 3)
        header.header.frame_to_buffer = True
        yield header
        yield client.pb.CompressRequest(frame_buffer=shared.range(0, SIZE))

    code, details = failure_code(client.stub.Compress(requests(), timeout=60))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "another program's memory" in details


@pytest.mark.parametrize("lock", [None, (-1, 2), (0, 0), (1, 1)], ids=str)
def test_without_the_lock_of_its_byte_alone_it_is_refused(server, client, engine, lock):
    stream = Registration(client)
    offset = stream.begin_foreign("cache", engine)
    assert mappings(server, engine.key) == 0
    if lock is None:
        refused = failure_code_of(lambda: stream.confirm("cache"))
    else:
        with write_lock(engine.path, offset + lock[0], lock[1]):
            refused = failure_code_of(lambda: stream.confirm("cache"))
    assert refused == grpc.StatusCode.PERMISSION_DENIED
    assert mappings(server, engine.key) == 0


def test_off_unless_enabled(daemon, stubs, engine):
    stream = Registration(Client(daemon("--shared-memory", PREFIX), stubs))
    assert failure_code_of(lambda: stream.begin_foreign("cache", engine)) == grpc.StatusCode.FAILED_PRECONDITION


def failure_code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()
