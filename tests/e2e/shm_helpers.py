"""A client's side of shared memory, of stock Python alone: an object, its registration, ranges of it."""

import contextlib
import fcntl
import mmap
import os
import struct

import grpc
import numpy as np
from daemon_helpers import Feed

PREFIX = "kvc-e2e-"


class Object:
    """A shared-memory object of this process's own."""

    def __init__(self, name, size, prefix=PREFIX):
        self.key = f"/{prefix}{os.getpid()}-{name}"
        self.path = "/dev/shm" + self.key
        self.size = size
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.posix_fallocate(fd, 0, size)
        self.memory = mmap.mmap(fd, size)
        os.close(fd)

    def truncate(self, size):
        os.truncate(self.path, size)

    def close(self):
        self.memory.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@contextlib.contextmanager
def write_lock(path, offset, size=1):
    with open(path, "r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, size, 0))
        yield


class Registration:
    """A stream of registrations."""

    def __init__(self, client, timeout=60):
        self.pb = client.pb
        self._feed = Feed()
        self.call = client.stub.SharedMemory(self._feed, timeout=timeout)

    def ask(self, **action):
        self._feed.send(self.pb.SharedMemoryRequest(**action))
        return next(self.call)

    def begin(self, name, thing, offset=0, size=None):
        return self.ask(register=self.pb.SharedMemoryRegister(name=name, key=thing.key, offset=offset,
                                                              byte_size=thing.size if size is None else size))

    def confirm(self, name):
        return self.ask(confirm=self.pb.SharedMemoryConfirm(name=name)).regions[0]

    def register(self, name, thing, offset=0, size=None):
        """The id of a region that can be used."""
        challenge = self.begin(name, thing, offset, size).challenge
        assert len(challenge) == 16
        thing.memory[offset:offset + 16] = challenge
        region = self.confirm(name)
        assert region.region != 0
        return region.region

    def begin_foreign(self, name, thing, offset=0, size=None):
        """The offset of the byte to lock."""
        asked = self.pb.SharedMemoryRegister(name=name, key=thing.key, offset=offset,
                                             byte_size=thing.size if size is None else size)
        answer = self.ask(register_foreign=asked)
        assert not answer.challenge and answer.lock_offset > thing.size
        return answer.lock_offset

    def register_foreign(self, name, thing, offset=0, size=None):
        with write_lock(thing.path, self.begin_foreign(name, thing, offset, size)):
            return self.confirm(name).region

    def status(self, name=""):
        return self.ask(status=self.pb.SharedMemoryStatus(name=name)).regions

    def unregister(self, name=""):
        return self.ask(unregister=self.pb.SharedMemoryUnregister(name=name)).regions

    def close(self):
        """The end of a stream without a fault."""
        self._feed.close()
        assert list(self.call) == []

    def cancel(self):
        self.call.cancel()
        self._feed.close()


def mappings(daemon, key):
    """How often a daemon has an object mapped."""
    with open(f"/proc/{daemon.pid}/maps") as maps:
        return sum("/dev/shm" + key in line for line in maps)


class SharedClient:
    """Compress and decompress with tensors and frames in one region of one object."""

    def __init__(self, client, thing, region):
        self.client, self.pb, self.thing, self.region = client, client.pb, thing, region

    def range(self, offset, size):
        return self.pb.SharedMemoryRange(region=self.region, offset=offset, byte_size=size)

    def compress_requests(self, name, array, at, buffer_at, buffer, codec=""):
        self.thing.memory[at:at + array.nbytes] = array.tobytes()
        header = self.client.header(name, array.shape, codec, {"float16": 1, "float32": 3}[array.dtype.name])
        header.header.frame_to_buffer = True
        yield header
        yield self.pb.CompressRequest(frame_buffer=self.range(buffer_at, buffer))
        yield self.pb.CompressRequest(shared_data=self.range(at, array.nbytes))

    def gather(self, responses, field):
        """Bytes that were put into buffers, bytes of input that were released, reports of tensors, the stream's."""
        parts, released, reports, stream = [], 0, [], None
        for response in responses:
            kind = response.WhichOneof("payload")
            if kind == field:
                where = getattr(response, field)
                assert where.region == self.region
                parts.append(bytes(self.thing.memory[where.offset:where.offset + where.byte_size]))
            elif kind == "input_released":
                assert response.input_released >= released
                released = response.input_released
            elif kind == "tensor":
                reports.append(response.tensor)
            elif kind == "stream":
                stream = response.stream
            else:
                assert kind == "header", kind
        return b"".join(parts), released, reports, stream

    def compress(self, name, array, at, buffer_at, buffer, codec=""):
        call = self.client.stub.Compress(self.compress_requests(name, array, at, buffer_at, buffer, codec), timeout=60)
        return self.gather(call, "shared_frame")

    def decompress(self, name, frame, at, buffer_at, buffer):
        def requests():
            self.thing.memory[at:at + len(frame)] = frame
            yield self.pb.DecompressRequest(header=self.pb.DecompressHeader(name=name, data_to_buffer=True))
            yield self.pb.DecompressRequest(data_buffer=self.range(buffer_at, buffer))
            yield self.pb.DecompressRequest(shared_frame=self.range(at, len(frame)))
        return self.gather(self.client.stub.Decompress(requests(), timeout=60), "shared_data")


def failure_code(call):
    """The status of a call that has failed, or is about to."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("the call did not fail")


def values(data, like):
    return np.frombuffer(data, like.dtype).reshape(like.shape)
