"""Every public method with arguments that are none: what it raises is of KvCompressError's tree."""

import asyncio
import inspect
import pathlib

import grpc
import kvcompress
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("way")

ARRAY = np.ones(100, np.float16)
NOTHING = object()  # a type that nothing takes
SURROGATE = "a\udc80"


class Rude:
    """Answers every question with an error of its own."""

    def __getattribute__(self, name):
        if name == "__class__":
            return object.__getattribute__(self, name)
        raise RuntimeError("rude")

    def __iter__(self):
        raise RuntimeError("rude")

    def __eq__(self, other):
        raise RuntimeError("rude")

    __hash__ = None


def tensors():
    def frozen(array):
        array.flags.writeable = False
        return array

    return [None, 5, "text", b"bytes", NOTHING, Rude(), [1.0], np.array("a"), np.array([None]), np.float16(1),
            np.ones(3, np.complex64), np.ones(3, [("a", "f2")]), np.datetime64("now"), np.ones((1,) * 20, np.float16),
            frozen(np.ones(3, np.int8)), *torch_tensors()]


def torch_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    complex_ones = torch.ones(8, dtype=torch.complex64)
    return [complex_ones, complex_ones.conj(), torch.ones(4, dtype=torch.float16).to_sparse(),
            torch.ones(4, device="meta"), torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8),
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), torch.ones((1,) * 9)]


TEXTS = [None, 5, b"bytes", NOTHING, Rude(), SURROGATE, ["a"], np.array(["a"])]
FRAMES = [None, 5, "text", NOTHING, Rude(), b"", bytes(100), np.ones(3), (), ("a",), (5, b"x"), (SURROGATE, b"x"),
          ("a", 5), ("a", b"x", ("F16", (1,)), 1), ("a", b"x", None), ("a", b"x", 5), ("a", b"x", ("F16",)),
          ("a", b"x", ("F16", 5)), ("a", b"x", ("F16", ("b",))), ("a", b"x", ("F16", (-1,))),
          ("a", b"x", (["F16"], (1,))), ("a", b"x", ("F16", (1 << 62, 1 << 62))), ("a", b"x", ("F16", (1,) * 9)),
          ("a", b"x", Rude()), ("a", b"x", ("F16", (1,)), "text"), ("a", b"x", ("F16", (1,)), bytes(65)),
          ("a", b"x", None, Rude()), ("a", b"x", None, b"f", 1), memoryview(b"abcd")[::2], memoryview(np.ones((2, 2)))]
ROTARIES = [kvcompress.RotaryEmbedding(**fields) for fields in (
    {"theta": "9"}, {"theta": NOTHING}, {"theta": Rude()}, {"theta": 9, "pairs": []}, {"theta": 9, "pairs": SURROGATE},
    {"theta": 9, "dims": -2}, {"theta": 9, "dims": 1 << 40}, {"theta": 9, "offset": 1.5}, {"theta": 9, "start": "0"})]
HOSTILE = {
    "tensor": tensors,
    "spec": lambda: [*TEXTS, "int9", "int4|", "\0", "x" * 100_000],
    "name": lambda: [*TEXTS, "", "x" * 100_000, "\0"],
    "axes": lambda: [5, "heads", NOTHING, Rude(), [5], [[]], [None], ["heads"] * 2, {"heads": 1}, [SURROGATE]],
    "profile": lambda: [5, b"{", NOTHING, Rude(), "{", "/no/such/file", "/", SURROGATE, "{" + SURROGATE, {"a": NOTHING},
                        {1: 2}, {"a": float("nan")}, pathlib.Path("/no"), "\0", [1]],
    "on_nonfinite": lambda: [None, 5, NOTHING, Rude(), "clamp", ["error"], SURROGATE],
    "rotary": lambda: [5, 1e4, NOTHING, Rude(), "10000", {"theta": 9}, *ROTARIES],
    "fingerprint": lambda: [5, "text", NOTHING, Rude(), [1], bytes(65), np.ones(2), 1j],
    "timeout": lambda: ["5s", -1, float("nan"), NOTHING, Rude(), [], 1j, b"1", np.ones(2)],
    "frame": lambda: FRAMES,
    "out": lambda: [5, "text", NOTHING, Rude(), [1], np.ones(3), np.ones(100, np.float16)[::-1], *torch_tensors()],
    "as_": lambda: [5, "jax", NOTHING, Rude(), [], np.ones(2), SURROGATE],
    "headers": lambda: [5, "ab", NOTHING, Rude(), [5], [None], [b"x"], {1: 2}, [Rude()]],
    # What an iterable raises by itself comes out of the calls as it is.
    "tensors": lambda: [None, 5, "ab", NOTHING, ARRAY, [5], [()], [("a",)], [("a", ARRAY, 5)],
                        [("a", ARRAY, SURROGATE)], [("a", ARRAY, None, None, "text")],
                        [("a", ARRAY, None, None, Rude())], [("a", ARRAY, None, None, bytes(65))],
                        [("a", ARRAY, None, None, b"f", 1)], *([(text, ARRAY)] for text in TEXTS),
                        *([("a", one)] for one in tensors())],
    "frames": lambda: [None, 5, NOTHING, *([frame] for frame in FRAMES)],
    "work": lambda: [None, 5, "text", NOTHING, Rude()],
}
VALID = {"tensor": ARRAY, "tensors": [("a", ARRAY)], "work": lambda seconds: 1}


def calls(kind, frame):
    """(method's name, arguments, whether they are refused for sure) for one parameter after the other."""
    for name, method in inspect.getmembers(kind, callable):
        if name.startswith("_") or name == "close":
            continue
        parameters = list(inspect.signature(method).parameters)[1:]
        given = {"frame": frame, "frames": [frame], **VALID}
        for parameter in parameters:
            for value in HOSTILE[parameter]():
                yield name, {**{key: given[key] for key in given if key in parameters}, parameter: value}


def unexpected(error, name, arguments):
    """What a call raised that it may not, in words; None for an error of the tree."""
    if isinstance(error, kvcompress.KvCompressError) and str(error):
        return None
    shown = {key: type(value).__name__ if isinstance(value, Rude) else value for key, value in arguments.items()}
    return f"{name} {shown!r:.300}: {error!r}"


@pytest.fixture
def server(daemon):
    return daemon("--threads", "1")


@pytest.mark.parametrize("where", ["daemon", "in_process"])
def test_the_blocking_client(request, connect, where):
    if where == "daemon":
        client = connect(request.getfixturevalue("server"), retry=kvcompress.NO_RETRY)
    else:
        client = kvcompress.LocalClient()
    wrong, made = [], 0
    for name, arguments in calls(type(client), client.compress(ARRAY, "raw")):
        made += 1
        try:
            result = getattr(client, name)(**arguments)
            if name.endswith("many"):
                list(result)
        except Exception as error:
            wrong.append(unexpected(error, name, arguments))
    assert made > 300
    assert "\n".join(filter(None, wrong)) == ""


def test_the_asyncio_client(server):
    async def quick(seconds):
        return seconds

    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=30, retry=kvcompress.NO_RETRY) as client:
            wrong = []
            for name, arguments in calls(kvcompress.AsyncClient, await client.compress(ARRAY, "raw")):
                if arguments.get("work") is VALID["work"]:
                    arguments = {**arguments, "work": quick}
                try:
                    result = getattr(client, name)(**arguments)
                    if name.endswith("many"):
                        [item async for item in result]
                    else:
                        await result
                except Exception as error:
                    wrong.append(unexpected(error, name, arguments))
            assert "\n".join(filter(None, wrong)) == ""

    asyncio.run(work())


@pytest.mark.parametrize("kind", [kvcompress.Client, kvcompress.AsyncClient])
def test_clients_that_cannot_be(kind):
    wrong = {
        "target": [None, 5, b"localhost:1", NOTHING, Rude(), SURROGATE, "", "unix:/a\0b"],
        "timeout": HOSTILE["timeout"](),
        "token": [5, b"x", NOTHING, SURROGATE],
        "retry": [None, 5, NOTHING],
        "credentials": [5, "ca.pem", NOTHING, grpc.access_token_call_credentials("x")],
    }
    for option, values in wrong.items():
        for value in values:
            with pytest.raises(kvcompress.InvalidArgument):
                kind(**{"target": "localhost:1", option: value})


def test_the_rest_of_the_package():
    for fields in ({"max_attempts": 0}, {"max_attempts": "3"}, {"initial_backoff": -1}, {"jitter": None},
                   {"multiplier": float("nan")}, {"max_backoff": "1"}):
        with pytest.raises(kvcompress.InvalidArgument):
            kvcompress.RetryPolicy(**fields)
    for path in ("/no/such/file", "/", 5, b"\xff", SURROGATE, "\0", Rude()):
        with pytest.raises(kvcompress.InvalidArgument):
            kvcompress.tls(path)
    for profile in (5, b"{", NOTHING, Rude(), "/no/such/file", "/", SURROGATE, "{" + SURROGATE, {"a": NOTHING}, "\0"):
        with pytest.raises(kvcompress.InvalidArgument):
            kvcompress.profile_json(profile)


def test_a_tensor_with_the_negative_bit_has_the_values_that_it_shows(server, connect):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    client = connect(server)
    for size in (1, 100, 100_000):
        negative = torch.complex(torch.ones(size), torch.arange(float(size))).conj().imag
        assert negative.is_neg()
        assert torch.equal(client.decompress(client.compress(negative, "raw")), -torch.arange(float(size)))
    with pytest.raises(kvcompress.InvalidArgument, match="out must be"):
        client.decompress(client.compress(torch.ones(1), "raw"), out=torch._neg_view(torch.ones(1)))


def test_a_tensor_for_which_there_is_no_memory(server, connect, monkeypatch):
    client = connect(server)
    frame = client.compress(ARRAY, "raw")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(kvcompress.ResourceExhausted, match=r"no memory for a tensor F16 \[100\]"):
        client.decompress(frame)
