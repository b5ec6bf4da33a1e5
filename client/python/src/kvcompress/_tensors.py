"""Arrays and tensors as bytes, and back, without a copy where their layout allows it."""

import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.ma import MaskedArray  # np.ma is imported by its first use, which a fork may happen in the middle of

from . import _recycled
from ._errors import InvalidArgument, KvCompressError, ResourceExhausted, refusal

if TYPE_CHECKING:
    import torch

    from ._foreign_memory import Pieces

Framework = Literal["numpy", "torch"]
Array = npt.NDArray[Any]
Kind = tuple[str, tuple[int, ...]]  # dtype, as safetensors names it, and shape

# Of PyTorch and, some of them with ml_dtypes alone, of NumPy; and bytes of an element.
_NAMES = {
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
    "U8": ("uint8", 1), "I8": ("int8", 1), "U16": ("uint16", 2), "I16": ("int16", 2), "U32": ("uint32", 4),
    "I32": ("int32", 4), "U64": ("uint64", 8), "I64": ("int64", 8), "BOOL": ("bool", 1), "F64": ("float64", 8),
    "C64": ("complex64", 8), "F8_E8M0": ("float8_e8m0fnu", 1), "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1), "F4": ("float4_e2m1fn_x2", 1),
}  # fmt: skip
# Of PyTorch alone: values in one of its elements, which lie side by side along the last axis.
_PACKED = {"F4": 2}
_DTYPES = {name: dtype for dtype, (name, _) in _NAMES.items()}
_OF_ML_DTYPES = {dtype for dtype, (name, _) in _NAMES.items() if name == "bfloat16" or name.startswith("float8")}
_MAX_RANK = 8
# Of NumPy and of PyTorch, by the bytes of an element. NumPy has not all types, and PyTorch copies not all of them, so
# integers of their size stand in.
_INTEGERS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64"}
_NUMPY_INTEGERS = {size: np.dtype(name) for size, name in _INTEGERS.items()}


@dataclass(slots=True)
class TensorView:
    """A tensor's values, little-endian, where they stand: perhaps with gaps, or axes in another order in memory."""

    dtype: str  # as safetensors names it: F16, BF16, F32, F8_E4M3, I64, ...
    shape: tuple[int, ...]  # of values, of which PyTorch packs two of F4 into an element
    data: memoryview  # elements, as integers or bytes, with their strides
    framework: Framework
    # In place of `data`, which is empty then; for a daemon alone.
    pieces: "Pieces | None" = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.data.nbytes if self.pieces is None else self.pieces.size

    @staticmethod
    def of(tensor: Any) -> "TensorView":
        """InvalidArgument for what is no dense array of numbers in this process' memory."""
        if isinstance(tensor, TensorView):
            return tensor
        return _of_torch(tensor) if is_torch(tensor) else _of_numpy(tensor)


def is_torch(value: Any) -> bool:
    """Without importing torch: who has a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _refuse_dtype(dtype: object) -> InvalidArgument:
    return InvalidArgument(f"dtype {dtype} is none that safetensors has: there are {', '.join(sorted(_DTYPES))}")


def kind_of(tensor: Any) -> Kind:
    """As of its TensorView; InvalidArgument as of that."""
    if is_torch(tensor):
        return _kind_of_torch(tensor)
    return _array(tensor)[0], tensor.shape


def _array(value: Any) -> "tuple[str, np.dtype[Any]]":
    """Of a NumPy array, as _of_numpy_dtype; InvalidArgument for what is none."""
    if not isinstance(value, np.ndarray) or isinstance(value, MaskedArray):
        raise InvalidArgument(f"expected a NumPy array or a PyTorch tensor, not {type(value).__name__}")
    return _of_numpy_dtype(value.dtype)


def _of_numpy(array: Array) -> TensorView:
    dtype, written = _array(array)
    shape = array.shape
    if array.dtype != written or array.ndim > _MAX_RANK:
        array = np.ascontiguousarray(array, dtype=written).reshape(-1)
    return TensorView(dtype, shape, _memory_of(array).data, "numpy")


@functools.lru_cache(maxsize=64)
def _of_numpy_dtype(dtype: "np.dtype[Any]") -> "tuple[str, np.dtype[Any]]":
    """As safetensors names it, and how it is written."""
    found = _DTYPES.get(dtype.name)
    if found is None:
        raise _refuse_dtype(dtype)
    return found, dtype if found in _OF_ML_DTYPES else dtype.newbyteorder("<")


def _kind_of_torch(tensor: "torch.Tensor") -> Kind:
    import torch

    dtype = _of_torch_dtype(tensor.dtype)
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise InvalidArgument(f"the tensor is {tensor.layout} on {tensor.device}: use tensor.cpu(), and a dense layout")
    shape = tuple(tensor.shape)
    if dtype in _PACKED:
        if not shape:
            raise InvalidArgument(f"a tensor of {tensor.dtype} needs an axis, along which its values lie")
        shape = (*shape[:-1], shape[-1] * _PACKED[dtype])
    return dtype, shape


@functools.lru_cache(maxsize=64)
def _of_torch_dtype(dtype: "torch.dtype") -> str:
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise _refuse_dtype(dtype)
    return found


def _of_torch(tensor: "torch.Tensor") -> TensorView:
    dtype, shape = _kind_of_torch(tensor)
    plain = _integers_of(tensor.detach().resolve_conj().resolve_neg())
    if plain.dim() > _MAX_RANK:
        plain = plain.reshape(-1)
    return TensorView(dtype, shape, plain.numpy().data, "torch")


def _integers_of(tensor: "torch.Tensor") -> "torch.Tensor":
    """The same memory."""
    import torch

    return tensor.view(getattr(torch, _INTEGERS[tensor.dtype.itemsize]))


def dense(elements: memoryview) -> memoryview:
    """The bytes of them all, one after another: a copy, where they are not."""
    is_dense = elements.format == "B" and elements.ndim == 1 and elements.c_contiguous
    return elements if is_dense else _bytes_of(np.ascontiguousarray(elements))


def _bytes_of(array: Array) -> memoryview:
    # np.matrix keeps two axes whatever is done to it.
    return np.asarray(array).reshape(-1).view(np.uint8).data


@functools.lru_cache(maxsize=256)
def checked_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor that a daemon describes. InvalidArgument for a dtype that Python does not have."""
    if dtype not in _NAMES:
        text = f"the tensor is {dtype}, which neither NumPy nor PyTorch has: kv-compress restores its file"
        raise InvalidArgument(text)
    size, rest = divmod(_NAMES[dtype][1] * math.prod(shape), _PACKED.get(dtype, 1))
    if len(shape) > _MAX_RANK or size >= 1 << 63 or rest:
        raise KvCompressError(f"the daemon describes a tensor that cannot be: {dtype} {list(shape)}")
    return size


def torch_dtypes() -> "dict[torch.dtype, str]":
    """The types of this PyTorch that can be compressed, and whose elements are values."""
    import torch

    found = {getattr(torch, name): dtype for name, dtype in _DTYPES.items() if hasattr(torch, name)}
    return {kind: dtype for kind, dtype in found.items() if dtype not in _PACKED}


class Output:
    """Where the values of one tensor go: `tensor`, and the memory of it, which may have gaps."""

    def __init__(self, tensor: Any, kind: Kind, memory: Array):
        """`memory`: as integers of the size of its elements."""
        self.tensor = tensor
        self._kind = kind
        self._memory = memory

    @staticmethod
    def over(out: Any, data: memoryview) -> "Output":
        """InvalidArgument unless values that are decoded from `data` can be written straight into `out`."""
        try:
            memory = _dense_memory_of(out) if is_torch(out) else _writable_memory_of(out)
            if memory is None:
                raise InvalidArgument("out must be a writable array, or a dense tensor of the CPU")
            kind = kind_of(out)
            if not (memory.flags.c_contiguous or _are_apart(memory)):
                raise InvalidArgument("out has elements that lie over one another, or whose axes are interwoven")
            # Where it lies over or around the bytes, these would be read and written at once. No array of NumPy that
            # can be written lies over an object of bytes.
            is_apart = type(data.obj) is bytes and not is_torch(out)
            if not is_apart and data.nbytes and _shares_memory(memory, data):
                raise InvalidArgument("out lies over the bytes of its own frame")
        except KvCompressError:
            raise
        except Exception as error:
            raise refusal("out cannot be written into", error) from error
        return Output(out, kind, memory)

    @staticmethod
    def new(dtype: str, shape: tuple[int, ...], framework: Framework) -> "Output":
        made = empty(dtype, shape, framework)
        memory = _integers_of(made).numpy() if framework == "torch" else _memory_of(made)
        return Output(made, (dtype, shape), memory)

    def check_holds(self, dtype: str, shape: tuple[int, ...]) -> None:
        """InvalidArgument unless it is for a tensor like that."""
        if self._kind != (dtype, shape):
            found, extents = self._kind
            raise InvalidArgument(f"out is {found} {list(extents)}, and the tensor {dtype} {list(shape)}")

    @property
    def elements(self) -> memoryview:
        """As they lie in memory, with strides."""
        return self._memory.data

    @functools.cached_property
    def _row_major(self) -> Array:
        return self._memory if self._memory.flags.c_contiguous else np.empty_like(self._memory, order="C")

    @property
    def data(self) -> memoryview:
        """The bytes one after another, for who cannot write into memory with gaps: `filled` tells that they are
        there."""
        return _bytes_of(self._row_major)

    def filled(self) -> None:
        if self._row_major is not self._memory:
            np.copyto(self._memory, self._row_major)


def _memory_of(array: Array) -> Array:
    return np.asarray(array).view(_NUMPY_INTEGERS[array.itemsize])


def _writable_memory_of(out: Any) -> Array | None:
    """None where there is none."""
    if not isinstance(out, np.ndarray) or not out.flags.writeable or not out.dtype.isnative:
        return None
    _of_numpy_dtype(out.dtype)
    return _memory_of(out)


def _dense_memory_of(out: "torch.Tensor") -> Array | None:
    """Of the CPU; None where there is none, or it holds other values than the tensor."""
    if out.device.type != "cpu" or out.is_neg() or out.is_conj():
        return None
    try:
        array: Array = _integers_of(out.detach()).numpy()
    except (RuntimeError, TypeError, LookupError):  # of other layouts, and without values
        return None
    return array


def empty(dtype: str, shape: tuple[int, ...], framework: Framework) -> Any:
    """A tensor whose values are undefined. ResourceExhausted where there is no memory for it."""
    size = checked_size(dtype, shape)
    if framework == "torch":
        try:
            import torch
        except ImportError:
            raise InvalidArgument('as_="torch" needs torch, which is not installed') from None
        make: Any = torch.empty
        over: Any = torch.from_numpy
        kind = getattr(torch, _NAMES[dtype][0], None)
        if kind is None:
            raise InvalidArgument(f"the tensor is {dtype}, which PyTorch {torch.__version__} does not have")
        if packed := _PACKED.get(dtype):
            if not shape or shape[-1] % packed:
                raise InvalidArgument(f"the tensor is {dtype} {list(shape)}, whose last axis PyTorch cannot pack")
            shape = (*shape[:-1], shape[-1] // packed)
    else:
        make, over, kind = np.empty, np.asarray, _numpy_dtype(dtype)
    try:
        memory = _recycled.memory(size)
        if memory is None:
            return make(shape, dtype=kind)
        made = over(memory).view(kind).reshape(shape)
        return made.detach() if framework == "torch" else made  # no view, which autograd treats otherwise
    # Of PyTorch, of memory that is mapped, and of NumPy for what no machine has.
    except (MemoryError, RuntimeError, OSError, OverflowError, ValueError):
        raise ResourceExhausted(f"there is no memory for a tensor {dtype} {list(shape)}") from None


def _shares_memory(array: Array, data: memoryview) -> bool:
    return np.may_share_memory(array, np.frombuffer(data, np.uint8))


def _are_apart(array: Array) -> bool:
    """Whether each axis steps over all that have smaller steps, so that no two elements share a byte."""
    end = array.itemsize
    for stride, count in sorted((abs(stride), count) for count, stride in zip(array.shape, array.strides, strict=True)):
        if count > 1 and stride < end:
            return False
        end += stride * (count - 1)
    return True


@functools.lru_cache(maxsize=64)
def _numpy_dtype(dtype: str) -> "np.dtype[Any]":
    name, _ = _NAMES[dtype]
    if dtype in _PACKED:
        raise InvalidArgument(f'the tensor is {dtype}, which NumPy does not have: as_="torch"')
    if dtype not in _OF_ML_DTYPES:
        return np.dtype(name).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError:
        raise InvalidArgument(
            f'the tensor is {dtype}, which NumPy has only with ml_dtypes: pip install ml_dtypes, or as_="torch"'
        ) from None
    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found
