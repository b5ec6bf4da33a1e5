"""Tensors that are decoded into memory of the caller's, by every client and every way."""

import itertools
import warnings
from collections import deque

import kvcompress
import numpy as np
import pytest

MIB = 1 << 20
# In one message, in a batch, and by shared memory.
SIZES = [0, 10, 300_000, 3 * MIB]


def values(size, seed=1):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float16)


@pytest.fixture
def arrays():
    return [values(size, seed=size) for size in SIZES]


def test_each_tensor_goes_to_its_own(anyone, arrays):
    frames = [anyone.compress(array, "raw", name=str(len(array))) for array in arrays]
    for given in (frames, (frame.data for frame in frames), [("", frame, None, None) for frame in frames]):
        out = [None if array.size == 10 else np.empty_like(array) for array in arrays]
        found = list(anyone.decompress_many(given, out=out))
        assert len(found) == len(arrays)
        for (_, tensor), array, target in zip(found, arrays, out, strict=True):
            assert (tensor == array).all()
            assert tensor is target or target is None


def test_rows_of_one_array(anyone):
    rows = values((5, 2, 3000))
    frames = [anyone.compress(row, "raw") for row in rows]
    out = np.zeros_like(rows)
    assert len(list(anyone.decompress_many(iter(frames), out=out))) == 5
    assert (out == rows).all()


def test_tensors_of_pytorch(anyone):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = [torch.from_numpy(values(size, seed=size)).to(torch.bfloat16) for size in SIZES]
    frames = [anyone.compress(tensor, "raw") for tensor in tensors]
    out = [torch.empty_like(tensor) for tensor in tensors]
    for (_, found), target in zip(anyone.decompress_many(frames, out=iter(out)), out, strict=True):
        assert found is target
    assert all(map(torch.equal, out, tensors))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("size", SIZES)
def test_a_matrix_of_numpy_which_has_two_axes_whatever_is_done_to_it(anyone, size):
    array = values((1, size))
    frame, out = anyone.compress(np.asmatrix(array), "raw"), np.asmatrix(np.zeros_like(array))
    assert anyone.decompress(frame, out=out) is out
    assert (out == array).all()
    ((_, found),) = anyone.decompress_many(iter([frame]), out=[np.asmatrix(np.zeros_like(array))])
    assert (found == array).all()


def with_gaps(shape, dtype, random):
    """Memory, and a view of that shape in it: axes in any order, forwards and backwards, with and without gaps."""
    extents, picks = [], []
    for count in shape:
        step, before, after = (int(random.choice([1, 1, 2, 3])), *map(int, random.choice([0, 0, 1, 5], 2)))
        extents.append(before + max(count, 1) * step + after)
        picks.append(slice(before, before + count * step, step))
    order = random.permutation(len(shape))
    memory = random.integers(0, 256, (*(extents[axis] for axis in order), np.dtype(dtype).itemsize), np.uint8)
    view = memory.view(dtype)[..., 0].transpose(np.argsort(order))[(..., *picks)]
    return memory, view[(..., *(slice(None, None, random.choice([1, 1, -1])) for _ in shape))]


@pytest.mark.parametrize("codec", ["raw", "int4", "planes|lz4"])
def test_any_strides_hold_what_a_copy_would(anyone, codec):
    random = np.random.default_rng(7)
    shapes = [(5,), (0, 3), (1,), (), (3, 4, 5), (2, 3, 4, 5), (2, 1, 2, 3, 1, 2, 2, 2), (7, 300), (4, 8, 64, 128),
              (3, 150_001), (6, 5, 40_000)]
    for repeat, shape in itertools.product(range(3), shapes):
        dtype = [np.float16, np.float32, np.int64][repeat]
        array = random.standard_normal(shape).astype(dtype)
        frame = anyone.compress(array, codec)
        memory, out = with_gaps(shape, dtype, random)
        whole, expected = memory.copy(), anyone.decompress(frame)
        assert anyone.decompress(frame, out=out) is out
        after = memory.copy()
        assert out.tobytes() == expected.tobytes()
        memory[...] = whole
        out[...] = expected
        assert after.tobytes() == memory.tobytes(), "what is between the values stays"


def test_pages_of_many_layouts_together(anyone):
    random = np.random.default_rng(8)
    shapes = [(2, 3, 50, 16), (4, 8, 16, 128), (10,), (3, 700_001), (0,), (16, 300, 300)] * 2
    arrays = [random.standard_normal(shape).astype(np.float16) for shape in shapes]
    frames = [anyone.compress(array, "raw") for array in arrays]
    out = [with_gaps(shape, np.float16, random)[1] for shape in shapes]
    for (_, found), target, array in zip(anyone.decompress_many(frames, out=out), out, arrays, strict=True):
        assert found is target
        assert (target == array).all()


@pytest.mark.parametrize("tokens", [10, 5000])
def test_heads_of_pytorch_between_layers(anyone, tokens):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pool = torch.zeros(tokens, 3, 4, 64, dtype=torch.bfloat16)  # tokens, layers, heads, channels
    tensors = [torch.randn(2, tokens, 64).to(torch.bfloat16) for _ in range(3)]
    frames = [anyone.compress(tensor, "raw") for tensor in tensors]
    out = [pool[:, layer, 1:3].transpose(0, 1) for layer in range(3)]
    for (_, found), target in zip(anyone.decompress_many(frames, out=out), out, strict=True):
        assert found is target
    assert all(map(torch.equal, out, tensors))
    assert not pool[:, :, ::3].any()


def test_outputs_without_memory_of_their_own_are_refused(anyone):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    fakes = pytest.importorskip("torch._subclasses.fake_tensor")
    frame = anyone.compress(values((4, 6)), "raw")
    with fakes.FakeTensorMode():
        fake = torch.zeros(4, 6, dtype=torch.float16)
    for out in (torch.zeros(4, 6).to_sparse(), torch.zeros(4, 6, device="meta"), fake,
                torch.zeros(4, 6, dtype=torch.complex128)):
        with pytest.raises(kvcompress.InvalidArgument, match="out must be a writable array, or a dense tensor"):
            anyone.decompress(frame, out=out)


def test_outputs_whose_elements_share_memory_are_refused(anyone):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    frame = anyone.compress(values((4, 6)), "raw")
    memory = np.zeros(100, np.float16)
    strided = np.lib.stride_tricks.as_strided
    for out in (strided(memory, (4, 6), (0, 2)), strided(memory, (4, 6), (10, 2)), strided(memory, (4, 6), (12, 1)),
                strided(memory[50:], (4, 6), (-10, 2)), strided(memory, (4, 6), (2, 2)),
                torch.zeros(6, dtype=torch.float16).expand(4, 6), torch.zeros(9, dtype=torch.float16).unfold(0, 6, 1)):
        with pytest.raises(kvcompress.InvalidArgument, match="elements that lie over one another"):
            anyone.decompress(frame, out=out)
    assert not memory.any()
    for good in (strided(memory, (4, 6), (12, 2)), strided(memory, (4, 6), (2, 8)),
                 strided(memory[50:], (4, 6), (-14, 2))):
        assert (anyone.decompress(frame, out=good) == values((4, 6))).all()


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_results_before_a_damaged_frame_stand_between_others(anyone, size):
    rows = values((3, size))
    frames = [("n", anyone.compress(row, "raw").data) for row in rows]
    flipped = bytearray(frames[2][1])
    flipped[-100] ^= 1
    memory = np.zeros((size, 3), np.float16)
    with pytest.raises(kvcompress.DataLoss):
        list(anyone.decompress_many([*frames[:2], ("n", flipped)], out=memory.T))
    assert (memory.T[:2] == rows[:2]).all()


def test_native_ways_have_no_array_beside_the_one_with_gaps(daemon, connect, monkeypatch):
    array = values((4, 512, 1024))
    frame = kvcompress.LocalClient().compress(array, "raw")
    server = daemon("--shared-memory", "kvc-python-")
    clients = [kvcompress.LocalClient(), connect(server, native="require"),
               connect(server, native="require", shared_memory=False)]
    monkeypatch.setattr(np, "empty_like", None)
    for client in clients:
        out = np.zeros((512, 1024, 4), np.float16).transpose(2, 0, 1)
        ((_, found),) = client.decompress_many([frame], out=[out])
        assert found is out
        assert (out == array).all()


class Ended(BaseException):
    """What is no Exception, as SystemExit is."""


@pytest.mark.parametrize("error", [Ended, SystemExit, GeneratorExit, KeyboardInterrupt])
@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_an_input_that_ends_by_what_is_no_exception_ends_the_call(anyone, size, error):
    frame = anyone.compress(values(size), "raw")

    def given(first):
        yield first
        raise error("of the input")

    for arguments, options in (
        ((deque([frame] * 3),), {"out": given(None)}),
        (([frame] * 3,), {"out": given(None)}),
        ((given(frame),), {}),
    ):
        with pytest.raises(error, match="of the input"):
            list(anyone.decompress_many(*arguments, **options, timeout=10))
    assert len(list(anyone.decompress_many([frame]))) == 1


def test_a_number_of_outputs_that_is_not_that_of_the_frames(anyone, arrays):
    frames = [anyone.compress(array, "raw") for array in arrays]
    for out in ([], [np.empty_like(array) for array in arrays[1:]], [None] * 5):
        with pytest.raises(kvcompress.InvalidArgument, match=f"out has {len(out)} elements for 4 frames"):
            list(anyone.decompress_many(frames, out=out))
    with pytest.raises(kvcompress.InvalidArgument, match="out has fewer elements than there are frames"):
        list(anyone.decompress_many(iter(frames), out=[None] * 3))
    with pytest.raises(kvcompress.InvalidArgument, match="out cannot be iterated"):
        list(anyone.decompress_many(frames, out=5))


def test_outputs_that_are_more_than_the_frames_are_not_asked_for(anyone, arrays):
    frames, out = [anyone.compress(array, "raw") for array in arrays], iter([None] * 4 + ["rest"])
    assert len(list(anyone.decompress_many(frames, out=out))) == 4
    assert list(out) == ["rest"]


def test_outputs_that_do_not_fit_are_refused_as_of_one_tensor(anyone):
    good, frame = values(100), anyone.compress(values(100), "raw", name="n")
    read_only = np.empty(100, np.float16)
    read_only.flags.writeable = False
    wrong = [read_only, read_only[::-1], [0] * 100, np.empty(100, ">f2"), np.empty(99, np.float16),
             np.empty((10, 10), np.float16), np.empty(100, np.float32)]
    for out in wrong:
        with pytest.raises(kvcompress.InvalidArgument) as alone:
            anyone.decompress(frame, out=out)
        first = np.empty_like(good)
        with pytest.raises(kvcompress.InvalidArgument) as among:
            list(anyone.decompress_many([frame, frame], out=[first, out]))
        assert str(among.value) == str(alone.value)


def taken(stream):
    """The results, and the error that ended them."""
    results = []
    try:
        for result in stream:
            results.append(result)
    except kvcompress.KvCompressError as error:
        return results, error
    return results, None


@pytest.mark.parametrize("size", [100, 300_000, 3 * MIB])
def test_results_before_an_output_that_does_not_fit_come(anyone, size):
    array = values(size)
    frames = [anyone.compress(array, "raw", name=str(number)) for number in range(5)]
    out = [np.empty_like(array) for _ in frames]
    expected = [(str(number), frame.data, ("F16", (size + (number == 3),))) for number, frame in enumerate(frames)]
    for given, outputs, error in (
        (frames, [*out[:3], np.empty(size + 1, np.float16), out[4]], kvcompress.InvalidArgument),
        (expected, out, kvcompress.DataLoss),
    ):
        found, raised = taken(anyone.decompress_many(given, out=outputs))
        assert [name for name, _ in found] == ["0", "1", "2"]
        assert type(raised) is error
        for (_, tensor), target in zip(found, outputs, strict=False):
            assert tensor is target
            assert (tensor == array).all()


def test_no_tensor_lies_over_the_bytes_of_its_frame(anyone):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    frame = anyone.compress(values(1000), "raw")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch makes a tensor that can be written over bytes that cannot
        out = torch.frombuffer(frame.data, dtype=torch.float16, count=1000)
    with pytest.raises(kvcompress.InvalidArgument, match="out lies over the bytes of its own frame"):
        anyone.decompress(frame, out=out)


def test_frames_of_no_bytes_are_refused(anyone):
    for frame in (memoryview(np.zeros((0, 4), np.uint8)), memoryview(b"")):
        with pytest.raises(kvcompress.KvCompressError):
            anyone.decompress(frame)


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_no_output_lies_over_its_own_frame(anyone, size):
    array = values(size)
    data = anyone.compress(array, "raw").data
    memory = np.zeros(len(data) + 2 * array.nbytes, np.uint8)
    begin = array.nbytes
    memory[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
    frame = memory[begin : begin + len(data)].data
    for at in (2, begin, begin + 2 * (len(data) // 2) - 2):
        out = memory[at : at + array.nbytes].view(np.float16)
        with pytest.raises(kvcompress.InvalidArgument, match="out lies over the bytes of its own frame"):
            anyone.decompress(frame, out=out)
        with pytest.raises(kvcompress.InvalidArgument, match="out lies over the bytes of its own frame"):
            list(anyone.decompress_many([("n", frame)], out=[out]))
    around = memory[: begin + len(data) + array.nbytes - 1].view(np.uint8)
    step = len(around) // array.size // 2 * 2
    out = np.lib.stride_tricks.as_strided(around.view(np.uint8)[:2].view(np.float16), (array.size,), (step,))
    with pytest.raises(kvcompress.InvalidArgument, match="out lies over the bytes of its own frame"):
        anyone.decompress(frame, out=out)
    for at in (0, begin + len(data) + len(data) % 2):
        out = memory[at : at + array.nbytes].view(np.float16)
        assert anyone.decompress(frame, out=out) is out
        assert (out == array).all()


def test_a_damaged_frame_among_others(anyone, arrays):
    frames = [("n", anyone.compress(array, "raw").data) for array in arrays]
    flipped = bytearray(frames[2][1])
    flipped[-100] ^= 1
    frames[2] = ("n", flipped)
    out = [np.empty_like(array) for array in arrays]
    with pytest.raises(kvcompress.DataLoss):
        list(anyone.decompress_many(frames, out=out))
    assert (out[1] == arrays[1]).all()
