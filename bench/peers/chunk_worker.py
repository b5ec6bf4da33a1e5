"""One contestant of chunk.py in a process of its own: reads a line for each turn, and answers each with a line of JSON.

usage: chunk_worker.py redis SOCKET SPEC | daemon ADDRESS SPEC | shared ADDRESS SPEC | local "" SPEC | flight ADDRESS
       chunk_worker.py serve-flight PORT_FILE SOCKET

store SECONDS    stores the chunk again and again for at least that long: bytes of tensors, seconds
load SECONDS     the same of loading, into memory that is there already
share            of the chunk's bytes, what is stored
"""

import json
import sys
import time

import numpy as np

TENSORS, SHAPE = 64, (1, 8, 256, 128)  # batch, heads, tokens, channels; as bits of BF16
TENSOR_BYTES = int(np.prod(SHAPE)) * 2


def chunk():
    """Values as those of a cache are for a codec's speed: channels of different deviations. Every fourth tensor is equal,
    which no contestant looks for."""
    random = np.random.default_rng(1)
    values = random.standard_normal((4, *SHAPE), np.float32) * random.uniform(0.1, 4, SHAPE[-1]).astype(np.float32)
    return np.tile((values.view(np.uint32) >> 16).astype(np.uint16), (TENSORS // 4, 1, 1, 1, 1))


def as_bf16(bits):
    import ml_dtypes

    return bits.view(ml_dtypes.bfloat16)


def coder(client, spec, data, out):
    """(what stores the chunk as a list of frames, what loads such a list into `out`)."""
    inputs = [(f"layer_{i // 2}_{'key' if i % 2 == 0 else 'value'}", as_bf16(data[i])) for i in range(TENSORS)]

    def load(frames):
        for at, (_, tensor) in enumerate(client.decompress_many(frames)):
            np.copyto(out[at], tensor.view(np.uint16))

    return lambda: [frame.data for frame in client.compress_many(inputs, spec)], load


def redis(address, spec, data, out):
    """One value for the chunk, as a store has it; the loaded bytes are used where the client's library put them."""
    import kvcompress
    import redis

    server, key = redis.Redis(unix_socket_path=address), f"chunk {spec}"
    if spec == "raw":

        def load_raw():
            np.copyto(out.reshape(-1), np.frombuffer(server.get(key), np.uint16))

        return lambda: server.set(key, data.tobytes()) and data.nbytes, load_raw
    encode, decode = coder(kvcompress.LocalClient(), spec, data, out)
    sizes = []

    def store():
        frames = encode()
        sizes[:] = [len(frame) for frame in frames]
        server.set(key, b"".join(frames))
        return sum(sizes)

    def load():
        value, at, frames = memoryview(server.get(key)), 0, []
        for size in sizes:
            frames.append(value[at : at + size])
            at += size
        decode(frames)

    return store, load


def remote(client, spec, data, out):
    encode, decode = coder(client, spec, data, out)
    frames = []

    def store():
        frames[:] = encode()
        return sum(map(len, frames))

    return store, lambda: decode(frames)


def flight(address, _, data, out):
    """DoExchange: the server answers each batch with as many bytes as it got."""
    import pyarrow
    import pyarrow.flight

    client = pyarrow.flight.connect(address)
    schema = pyarrow.schema([("values", pyarrow.binary())])
    batches = []
    for tensor in data:
        offsets = np.array([0, tensor.nbytes], np.int32)
        column = pyarrow.Array.from_buffers(pyarrow.binary(), 1, [None, *map(pyarrow.py_buffer, (offsets, tensor))])
        batches.append(pyarrow.record_batch([column], schema))
    writer, reader = client.do_exchange(pyarrow.flight.FlightDescriptor.for_command(b"echo"))
    writer.begin(schema)

    def exchange():
        for at, batch in enumerate(batches):
            writer.write_batch(batch)
            answer = np.frombuffer(reader.read_chunk().data.column(0)[0].as_buffer(), np.uint16)
            np.copyto(out[at].reshape(-1), answer)
        return data.nbytes

    return exchange, exchange


def serve_flight(port_file, socket):
    import pathlib
    import threading

    import pyarrow.flight

    class Echo(pyarrow.flight.FlightServerBase):
        def do_exchange(self, context, descriptor, reader, writer):
            writer.begin(reader.schema)
            for part in reader:
                writer.write_batch(part.data)

    tcp, unix = Echo("grpc://127.0.0.1:0"), Echo(f"grpc+unix://{socket}")
    pathlib.Path(port_file).write_text(
        json.dumps({"listen": [f"grpc://127.0.0.1:{tcp.port}", f"grpc+unix://{socket}"]})
    )
    threading.Thread(target=unix.serve, daemon=True).start()
    tcp.serve()


def make(kind, address, spec, data, out):
    if kind in ("daemon", "shared", "local"):
        import kvcompress

        client = (
            kvcompress.LocalClient() if kind == "local" else kvcompress.Client(address, shared_memory=kind == "shared")
        )
        return remote(client, spec, data, out)
    return {"redis": redis, "flight": flight}[kind](address, spec, data, out)


def main():
    kind, address, *spec = sys.argv[1:]
    if kind == "serve-flight":
        serve_flight(address, spec[0])
        return
    data = chunk()
    out = np.zeros_like(data)
    store, load = make(kind, address, *(spec or [None]), data, out)
    share = store() / data.nbytes
    load()
    errors = float(np.mean((out.astype(np.int64) - data) ** 2))
    assert out.any() and (share < 1 or errors == 0), "what was loaded is not what was stored"

    def turn(work, seconds):
        started, moved = time.perf_counter(), 0
        while (taken := time.perf_counter() - started) < seconds or moved == 0:
            work()
            moved += data.nbytes
        return {"bytes": moved, "seconds": taken}

    for line in sys.stdin:
        way, *seconds = line.split()
        answer = share if way == "share" else turn({"store": store, "load": load}[way], float(seconds[0]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
