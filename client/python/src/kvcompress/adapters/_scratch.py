"""Memory for tensors that are on their way, used again and again."""

import itertools
import threading
from collections.abc import Sequence

import torch

from ._codec import Codec, Kind, Stored

_ALIGNMENT = 64  # of tensors, in bytes
_MOST_BYTES = 64 << 20  # that a thread keeps


class Scratch:
    """Each thread has its own: new memory costs its pages, which is more than a copy out of it."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def tensors(self, kinds: Sequence[Kind]) -> list[torch.Tensor]:
        """Of the CPU, with any values; valid until the thread asks again."""
        ends = list(itertools.accumulate(-(-kind.size // _ALIGNMENT) * _ALIGNMENT for kind in kinds))
        size = ends[-1] if ends else 0
        buffer: torch.Tensor | None = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < size:
            buffer = torch.empty(size, dtype=torch.uint8)
            self._of_thread.buffer = buffer if size <= _MOST_BYTES else None
        return [
            buffer[at : at + kind.size].view(kind.dtype).view(kind.shape)
            for at, kind in zip([0, *ends], kinds, strict=False)
        ]

    def decompress(
        self, codec: Codec, frames: Sequence[Stored], fingerprints: Sequence[bytes], targets: Sequence[torch.Tensor]
    ) -> None:
        """As Codec.decompress, into memory of an engine's: where that is contiguous, without a copy in between. What it
        holds after an error is undefined."""
        is_straight = [target.is_contiguous() and target.device.type == "cpu" for target in targets]
        others = [target for target, straight in zip(targets, is_straight, strict=True) if not straight]
        between = self.tensors([Kind.of(target) for target in others])
        rest = iter(between)
        out = [target if straight else next(rest) for target, straight in zip(targets, is_straight, strict=True)]
        codec.decompress(frames, fingerprints, out)
        for target, tensor in zip(others, between, strict=True):
            target.copy_(tensor)

    def drop(self) -> None:
        """What the thread was given may still be used."""
        self._of_thread.buffer = None
