"""The codec in this process beside a daemon: the same frames and errors, without one; threads, forks, deadlines."""

import concurrent.futures
import inspect
import os
import pickle
import subprocess
import sys
import threading
import time

import kvcompress
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

SPECS = ["int4(group=64)", "kv3", "lossless", "mixed", "rotated(bits=4)", "near-lossless"]


@pytest.fixture
def local():
    with kvcompress.LocalClient(threads=2, timeout=60) as client:
        yield client


@pytest.fixture
def cache(sample):
    return load_file(sample)


def frames_of(client, cache, spec, **options):
    return list(client.compress_many(cache.items(), spec, **options))


def values(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


@pytest.mark.parametrize("spec", SPECS)
def test_frames_and_reports_are_those_of_a_daemon(client, local, cache, spec):
    theirs, ours = frames_of(client, cache, spec), frames_of(local, cache, spec)
    assert len(ours) == len(cache)
    for one, other in zip(ours, theirs, strict=True):
        assert one.data == other.data
        assert (one.name, one.codec, one.shape, one.quality, one.violations, one.framework, one.rotary) == (
            other.name, other.codec, other.shape, other.quality, other.violations, other.framework, other.rotary)
    for name, tensor in local.decompress_many(theirs):
        assert (tensor == client.decompress(ours[list(cache).index(name)])).all()


def test_tensors_with_gaps_are_read_where_they_stand(client, local):
    whole = torch.randn(6, 40, 3, 16, generator=torch.Generator().manual_seed(1))
    tensors = {
        "turned": whole.permute(1, 2, 0, 3).bfloat16(),
        "sliced": whole.half()[1:5, ::2, :, 3:9],
        "repeated": whole[:1, :, :1].half().expand(4, 40, 3, 16),
        "of one value": whole[0, :, 0, 0],
        "bytes": whole.to(torch.float8_e4m3fn).transpose(0, 3),
        "of 8 bytes": whole.long().transpose(1, 2),
        "empty": whole[:0].transpose(1, 2),
        "of many axes": whole.reshape(6, 2, 2, 2, 5, 3, 2, 2, 4).transpose(0, 8)[0],
        "as it is": whole,
    }
    assert not any(tensor.is_contiguous() for name, tensor in tensors.items() if name not in ("empty", "as it is"))
    theirs, ours = frames_of(client, tensors, "lossless"), frames_of(local, tensors, "lossless")
    assert [frame.data for frame in ours] == [frame.data for frame in theirs]
    assert [local.compress(tensor, "lossless", name=name).data for name, tensor in tensors.items()] == [
        frame.data for frame in ours
    ]
    for tensor, (name, found) in zip(tensors.values(), local.decompress_many(ours), strict=True):
        assert torch.equal(found.float(), tensor.float()), name


def test_a_profile_and_what_stands_beside_it(client, local, cache):
    profile = {"version": 1, "default": "int8", "others": "raw", "rules": [{"layers": [20, 20], "codec": "int4"}]}
    options = {"profile": profile, "on_nonfinite": "lossless"}
    tensors = {**cache, "other": np.array([np.nan, 1], np.float16)}
    theirs, ours = frames_of(client, tensors, "", **options), frames_of(local, tensors, "", **options)
    assert [frame.data for frame in ours] == [frame.data for frame in theirs]
    assert [frame.policy for frame in ours] == [frame.policy for frame in theirs]
    rotary = kvcompress.RotaryEmbedding(10000.0)
    name, keys = next((name, tensor) for name, tensor in cache.items() if name.endswith("key"))
    one, other = (caller.compress(keys, "kv3", name=name, rotary=rotary) for caller in (local, client))
    assert (one.data, one.rotary) == (other.data, other.rotary)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.compress(np.array([1, np.nan], np.float16), "int4"),
        lambda client: client.compress(values(4), "int9"),
        lambda client: client.compress(values(4), "kv(bits=3,artifact=" + "0" * 32 + ")", name="layer_0_key"),
        lambda client: client.compress(values(4), profile="{}"),
        lambda client: client.compress(values(4), axes=["heads", "seq"]),
        lambda client: client.decompress(b"", as_="numpy"),
        lambda client: client.decompress(client.compress(values(400), "int8").data[:-1]),
        lambda client: client.decompress(client.compress(values(400), "int8").data + b"x"),
        lambda client: client.decompress(bytes(200)),
        lambda client: list(client.decompress_many([("n", client.compress(values(4)).data, ("F16", (5,)))])),
    ],
)
def test_errors_are_those_of_a_daemon(client, local, call):
    caught = []
    for caller in (local, client):
        with pytest.raises(kvcompress.KvCompressError) as found:
            call(caller)
        caught.append((type(found.value), str(found.value), found.value.code))
    assert caught[0] == caught[1]


def test_a_flipped_bit_is_found(local):
    frame = local.compress(values(1000), "int8")
    for at in range(0, len(frame), 7):
        damaged = bytearray(frame.data)
        damaged[at] ^= 4
        with pytest.raises(kvcompress.KvCompressError):
            local.decompress(bytes(damaged))


def test_results_before_a_fault_come(local):
    good = values(100)
    tensors = [("a", good), ("b", good), ("c", np.array([np.inf], np.float16)), ("d", good)]
    stream = local.compress_many(tensors, "int8")
    assert [next(stream).name, next(stream).name] == ["a", "b"]
    with pytest.raises(kvcompress.InvalidArgument, match='"c"'):
        next(stream)
    frames = [local.compress(good, "int8", name=name) for name in "ab"]
    stream = local.decompress_many([frames[0], ("b", frames[1].data[:-1]), frames[0]])
    assert next(stream)[0] == "a"
    with pytest.raises(kvcompress.DataLoss, match='"b"'):
        next(stream)

    def broken():
        yield "a", good
        raise ZeroDivisionError

    stream = local.compress_many(broken(), "int8")
    assert next(stream).name == "a"
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_an_input_without_an_end_is_read_as_its_frames_are_taken(local):
    read = []

    def endless():
        while True:
            read.append(1)
            yield "t", values(1000)

    stream = local.compress_many(endless(), "int8")
    assert [next(stream).name for _ in range(300)] == ["t"] * 300
    assert len(read) <= 2 * 256


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    tensors = [(str(number), values(1000 * number, number)) for number in range(40)]
    wanted = [kvcompress.LocalClient(threads=1).compress(tensor, "kv3").data for _, tensor in tensors]
    client = kvcompress.LocalClient(threads=threads)
    assert [frame.data for frame in client.compress_many(tensors, "kv3")] == wanted


def test_threads_share_a_client_and_python_goes_on_meanwhile(local):
    large, ticks, over = values(16 << 20), [], threading.Event()

    def tick():
        while not over.wait(0.001):
            ticks.append(1)

    ticker = threading.Thread(target=tick)
    ticker.start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(lambda _: local.compress(large, "lossless").data, range(4)))
    over.set()
    ticker.join()
    assert len(set(frames)) == 1
    assert len(ticks) > 20


def test_what_stays_where_it_is(local):
    array = values((64, 1000))
    frame = local.compress(array, "raw")
    out = np.empty((64, 1000), np.float16)
    assert local.decompress(frame, out=out) is out
    assert (out == array).all()
    assert (local.decompress(local.compress(array.T, "raw")) == array.T).all()
    assert (local.decompress(local.compress(array[:, ::3], "raw")) == array[:, ::3]).all()
    with pytest.raises(kvcompress.InvalidArgument):
        local.decompress(frame, out=np.empty((64, 999), np.float16))


def test_a_timeout_that_has_passed(local):
    with pytest.raises(kvcompress.DeadlineExceeded):
        list(local.compress_many([("t", values(2 << 20))] * 200, "kv3", timeout=0.01))
    stream = local.compress_many([("t", values(100))], "raw", timeout=0.01)
    time.sleep(0.02)
    with pytest.raises(kvcompress.DeadlineExceeded):
        next(stream)


def test_a_client_that_is_closed():
    client = kvcompress.LocalClient()
    frame = client.compress(values(10), "raw")
    client.close()
    client.close()
    for call in (lambda: client.compress(values(10)), lambda: client.decompress(frame), lambda: client.wait_ready()):
        with pytest.raises(kvcompress.Cancelled):
            call()


@pytest.mark.parametrize("threads", [-1, 1.0, True, "2", 1 << 20])
def test_threads_that_cannot_be(threads):
    with pytest.raises(kvcompress.InvalidArgument, match="threads"):
        kvcompress.LocalClient(threads=threads)


def test_the_most_bytes_of_frames_are_those_of_a_daemon(client, local):
    from kvcompress.v1 import kvcompress_pb2 as pb

    def header(spec, shape=(1, 2, 300, 64)):
        return pb.CompressHeader(tensor=pb.Tensor(name="t", dtype=pb.DTYPE_F16, shape=shape), codec=spec)

    headers = [header("int4(group=64)"), header("kv3"), header("")]
    assert list(local.capabilities(headers).max_frame_bytes) == list(client.capabilities(headers).max_frame_bytes)
    with pytest.raises(kvcompress.InvalidArgument):
        local.capabilities([header("int9")])


def test_a_child_of_a_fork_goes_on():
    program = """
import os
import kvcompress
import numpy as np

client = kvcompress.LocalClient(threads=3)
tensors = [(str(number), np.ones(5000, np.float16)) for number in range(9)]
wanted = [frame.data for frame in client.compress_many(tensors, "int8")]
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        same = [frame.data for frame in client.compress_many(tensors, "int8")] == wanted
        os._exit(0 if same else 3)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
print(codes, [frame.data for frame in client.compress_many(tensors, "int8")] == wanted)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 0, 0] True\n", "")


@pytest.mark.parametrize("ending", [
    "del client, stream",
    "client.compress(array, 'raw'); del client, stream",
    "client.compress(array, 'raw'); sys.exit(0)",
    "sys.exit(0)",
    "client.__exit__(); del client, stream",
    "frames = [frame.data for frame in stream]; sys.exit(0 if frames == 5 * [wanted] else 3)",
])
def test_a_child_of_a_fork_leaves_its_parent_s_codec_alone(ending):
    program = f"""
import os, signal, sys
import kvcompress
import numpy as np

client, array = kvcompress.LocalClient(threads=2), np.ones(5000, np.float16)
wanted = client.compress(array, "raw").data
stream = client.compress_many(5 * [("t", array)], "raw")
pids = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        signal.alarm(15)
        {ending}
        os._exit(0)
    pids.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
assert client.compress(array, "raw").data == wanted
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 0, 0, 0]\n", "")


@pytest.mark.parametrize("work", [
    "client.compress(small, 'kv3')",
    "client.decompress(frame)",
    "list(client.compress_many(20 * [('t', small)], 'kv3'))",
    "list(client.decompress_many(20 * [frame]))",
])
def test_a_process_ends_while_a_daemon_thread_is_in_a_call(work):
    program = f"""
import contextlib, sys, threading, time
import kvcompress
import numpy as np

client, small = kvcompress.LocalClient(threads=2), np.ones(1 << 18, np.float16)
frame = client.compress(small, "kv3")

def call():
    with contextlib.suppress(kvcompress.Cancelled):
        while True:
            {work}

for _ in range(2):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.2)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr


def test_a_process_ends_while_a_call_takes_longer_than_it_waits():
    program = """
import atexit, sys, threading, time
import kvcompress
import numpy as np
from kvcompress import _native

def until_the_call_is_over():
    before = -1
    while time.process_time() - before > 0.02:
        before = time.process_time()
        time.sleep(0.5)

atexit.unregister(_native.end)
atexit.register(until_the_call_is_over)
atexit.register(_native.end, 0.01)
client, large = kvcompress.LocalClient(threads=1), np.random.default_rng(1).standard_normal(4 << 20, np.float32)

def call():
    client.compress(large, "raw|zstd(level=19)")  # for seconds
    print("was not left alone", flush=True)

begin = time.process_time()
threading.Thread(target=call, daemon=True).start()
while time.process_time() - begin < 0.1:
    time.sleep(0.01)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_without_the_module_the_package_says_so():
    program = """
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name == "kvcompress._native":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Absent)
import kvcompress
try:
    kvcompress.LocalClient()
except kvcompress.FailedPrecondition as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "this installation of kvcompress has no codec of its own (it was built without): its README" in done.stdout
    assert done.stderr == ""


def test_memory_is_given_back(local):
    def resident():
        with open(f"/proc/{os.getpid()}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tensors = [(str(number), values(1 << 20, number)) for number in range(8)]

    def work():
        frames = list(local.compress_many(tensors, "int8"))
        list(local.decompress_many(frames))

    for _ in range(5):
        work()
    before = resident()
    for _ in range(20):
        work()
    assert resident() - before < 32 << 20


def test_calls_of_the_process_need_no_client(local):
    keys = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    frame = kvcompress.compress(keys, "kv3", name="layer_0_key", fingerprint=b"mine")
    assert frame.data == local.compress(keys, "kv3", name="layer_0_key", fingerprint=b"mine").data
    assert kvcompress.compress(keys).codec == "int4(group=64)"
    back = kvcompress.decompress(frame, fingerprint=b"mine")
    assert torch.equal(back, local.decompress(frame))
    with pytest.raises(kvcompress.FingerprintMismatch):
        kvcompress.decompress(frame, fingerprint=b"another's")


@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_calls_of_the_process_can_be_sent_to_others(name):
    call = getattr(kvcompress, name)
    assert pickle.loads(pickle.dumps(call)) is call


@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_calls_of_the_process_have_the_arguments_of_the_client(name):
    call, method = getattr(kvcompress, name), getattr(kvcompress.LocalClient, name)
    _, *wanted = inspect.signature(method).parameters.values()
    assert list(inspect.signature(call).parameters.values()) == wanted
    assert "process" in inspect.getdoc(call)
