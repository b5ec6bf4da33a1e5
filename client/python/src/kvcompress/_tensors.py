"""Arrays and tensors as bytes, and back, without a copy where their layout allows it."""

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.ma import MaskedArray  # np.ma is imported by its first use, which a fork may happen in the middle of

from ._errors import InvalidArgument, KvCompressError, ResourceExhausted, refusing

if TYPE_CHECKING:
    import torch

Framework = Literal["numpy", "torch"]
Array = npt.NDArray[Any]

# Of both NumPy and PyTorch.
_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ITEM_SIZES = {"F16": 2, "BF16": 2, "F32": 4}
_MAX_RANK = 8


@dataclass(frozen=True)
class TensorView:
    """A tensor's values, row-major and little-endian, where they stand."""

    dtype: str  # F16, BF16 or F32
    shape: tuple[int, ...]
    data: memoryview
    framework: Framework

    @staticmethod
    def of(tensor: Any) -> "TensorView":
        """InvalidArgument for what is no dense floating-point array in this process' memory."""
        if is_torch(tensor):
            return _of_torch(tensor)
        if not isinstance(tensor, np.ndarray) or isinstance(tensor, MaskedArray):
            raise InvalidArgument(f"expected a NumPy array or a PyTorch tensor, not {type(tensor).__name__}")
        return _of_numpy(tensor)


def is_torch(value: Any) -> bool:
    """Without importing torch: who has a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _refuse_dtype(dtype: object) -> InvalidArgument:
    return InvalidArgument(f"dtype {dtype} cannot be compressed: use float16, bfloat16 or float32")


def _of_numpy(array: Array) -> TensorView:
    dtype = _DTYPES.get(array.dtype.name)
    if dtype is None:
        raise _refuse_dtype(array.dtype)
    little = array.dtype if dtype == "BF16" else array.dtype.newbyteorder("<")
    values = np.ascontiguousarray(array, dtype=little)
    return TensorView(dtype, array.shape, _bytes_of(values), "numpy")


def _of_torch(tensor: "torch.Tensor") -> TensorView:
    import torch

    dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise _refuse_dtype(tensor.dtype)
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise InvalidArgument(f"the tensor is {tensor.layout} on {tensor.device}: use tensor.cpu(), and a dense layout")
    values = tensor.detach().resolve_neg().contiguous()
    return TensorView(dtype, tuple(tensor.shape), _bytes_of(_numpy_of(values)), "torch")


def _numpy_of(tensor: "torch.Tensor") -> Array:
    """The memory of a contiguous tensor. NumPy has no BF16 of its own, so integers of its size stand in."""
    import torch

    array: Array = tensor.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32).numpy()
    return array


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def checked_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor that a daemon describes."""
    size = _ITEM_SIZES[dtype] * math.prod(shape)
    if len(shape) > _MAX_RANK or size >= 1 << 63:
        raise KvCompressError(f"the daemon describes a tensor that cannot be: {dtype} {list(shape)}")
    return size


class Output:
    """Where the values of one tensor go: `tensor`, and the bytes of it."""

    def __init__(self, dtype: str, shape: tuple[int, ...], framework: Framework, out: Any = None):
        if out is None:
            out = _empty(dtype, shape, framework)
        else:
            with refusing("out cannot be written into"):
                check_out(out)
                found = TensorView.of(out)
            if (found.dtype, found.shape) != (dtype, shape):
                raise InvalidArgument(f"out is {found.dtype} {list(found.shape)}, and the tensor {dtype} {list(shape)}")
        self.tensor = out
        self.data = _bytes_of(_numpy_of(out.detach()) if is_torch(out) else out)


def _empty(dtype: str, shape: tuple[int, ...], framework: Framework) -> Any:
    if framework == "torch":
        try:
            import torch
        except ImportError:
            raise InvalidArgument('as_="torch" needs torch, which is not installed') from None
        make: Any = torch.empty
        kind = getattr(torch, _NAMES[dtype])
    else:
        make, kind = np.empty, _numpy_dtype(dtype)
    try:
        return make(shape, dtype=kind)
    except (MemoryError, RuntimeError, ValueError):  # of PyTorch, and of NumPy for what no machine has
        raise ResourceExhausted(f"there is no memory for a tensor {dtype} {list(shape)}") from None


def check_out(out: Any) -> None:
    """InvalidArgument unless values can be written straight into `out`."""
    if is_torch(out):
        good = out.is_contiguous() and out.device.type == "cpu" and not out.is_neg() and not out.is_conj()
    else:
        good = isinstance(out, np.ndarray) and out.flags.c_contiguous and out.flags.writeable and out.dtype.isnative
    if not good:
        raise InvalidArgument("out must be a contiguous, writable array, or a contiguous tensor of the CPU")


def _numpy_dtype(dtype: str) -> "np.dtype[Any]":
    if dtype != "BF16":
        return np.dtype(_NAMES[dtype]).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError:
        raise InvalidArgument(
            "the tensor is BF16, which NumPy has only with ml_dtypes: pip install 'kvcompress[bf16]', or as_=\"torch\""
        ) from None
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
