"""Artifacts are made by the program kv-compress, without a daemon."""

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

from .._errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, KvCompressError
from .._rotary import RotaryEmbedding

_PROGRAM = "kv-compress"
_VARIABLE = "KV_COMPRESS_PATH"

Path = str | PathLike[str]


@dataclass(frozen=True)
class Calibration:
    """An artifact that was made."""

    id: str  # 32 hexadecimal digits, for kv(bits=3,artifact=ID)
    output: str  # its file
    artifact_bytes: int  # of that
    tokens: int  # that were looked at, in the tensor that had fewest
    layers: int
    heads: int
    head_dim: int  # channels of a head
    group_dim: int  # channels that are taken together, a multiple of head_dim
    rotary: RotaryEmbedding | None  # before which keys were taken; None where they were taken as they are
    is_weighted: bool
    warnings: tuple[str, ...]
    report: dict[str, Any]  # all that kv-compress tells (docs/cli.md), also of each tensor


def calibrate(
    inputs: Sequence[Path],
    output: Path,
    *,
    weights: Path | None = None,
    group_dim: int = 128,
    rotary: RotaryEmbedding | None = None,
    threads: int = 0,
    timeout: float | None = None,
    progress: Callable[[float], object] | None = None,
    program: Path | None = None,
) -> Calibration:
    """Makes the artifact `output`, "*.kvcal", of the caches `inputs`: safetensors files, plain or compressed, of
    tensors layer_{i}_key and layer_{i}_value, [batch, heads, tokens, head_dim], of 10,000 tokens or more. `weights` are
    those of collect_weights. As many heads as `group_dim` (64, 128 or 256) has room for are taken together. `rotary` is
    in place of what the files' metadata say; one without a base tells only the position of their first tokens.
    `threads` 0 is one for each CPU; `timeout` is in seconds, for all of it; `progress` is told which part is done, from
    0 to 1.

    The program is `program`, the one that the variable KV_COMPRESS_PATH names, or the one on PATH: FailedPrecondition
    where there is none. InvalidArgument, with its own sentence, for what it refuses, and for files that cannot be read
    or written; DeadlineExceeded after `timeout`; Cancelled where a signal ends it. Whatever fails leaves no output."""
    paths = [_path(path) for path in inputs]
    for path in paths:
        if "," in path:
            raise InvalidArgument(f"paths of caches have no commas: {path!r}")
    command = [find_program(program), "-calibrate", "-input", ",".join(paths), "-output", _path(output)]
    command += ["-group-dim", str(group_dim), "-threads", str(threads)]
    if weights is not None:
        command += ["-weights", _path(weights)]
    report = json.loads(_run([*command, *_rotary_flags(rotary)], timeout, progress))
    turned = report["rotary"]
    return Calibration(
        id=report["artifact"],
        output=report["output"],
        artifact_bytes=report["artifact_bytes"],
        tokens=report["tokens"],
        layers=report["layers"],
        heads=report["heads"],
        head_dim=report["head_dim"],
        group_dim=report["group_dim"],
        rotary=None if turned is None else RotaryEmbedding.of_fields(turned),
        is_weighted=report["weights"] == "given",
        warnings=tuple(report["warnings"]),
        report=report,
    )


def _path(path: Path) -> str:
    text = fspath(path)
    # The program would take it for something else.
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgument(f"not a path: {path!r}")
    return text


def find_program(program: Path | None = None) -> str:
    """The path of kv-compress, as `calibrate` finds it; FailedPrecondition without one."""
    if program is not None:
        return _path(program)
    found = os.environ.get(_VARIABLE) or shutil.which(_PROGRAM)
    if found is None:
        raise FailedPrecondition(f"no {_PROGRAM} on PATH: install it, or set {_VARIABLE} to it")
    return found


def _rotary_flags(rotary: RotaryEmbedding | None) -> list[str]:
    if rotary is None:
        return []
    flags = ["-rope-start", str(rotary.start)]
    if rotary.theta:
        flags += ["-rope-theta", repr(float(rotary.theta)), "-rope-pairs", rotary.pairs]
        flags += ["-rope-dims", str(rotary.dims), "-rope-offset", str(rotary.offset)]
    if rotary.scaling is not None:
        flags += ["-rope-scaling", json.dumps(rotary.scaling.parameters())]
    return flags


def _run(command: list[str], timeout: float | None, progress: Callable[[float], object] | None) -> str:
    """What the program writes to standard output."""
    end = None if timeout is None else time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as told, _terminal() as (ours, errors):
        try:
            running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=errors)
        except OSError as error:
            raise FailedPrecondition(f"{command[0]} does not run: {error}") from error
        finally:
            os.close(errors)
        try:
            said = b"".join(_said(ours, end, progress))
        finally:
            # Of a run that is given up, which removes what it has begun; what has closed its terminal ends by itself.
            if sys.exc_info()[0] is not None:
                running.terminate()
            running.wait()
        if running.returncode != 0:
            raise _failure(running.returncode, said.decode(errors="replace"))
        told.seek(0)
        return told.read()


@contextlib.contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    """Of two sides, the second to be closed by who uses it. The program draws its progress on terminals only."""
    ours, theirs = os.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def _said(terminal: int, end: float | None, progress: Callable[[float], object] | None) -> Iterator[bytes]:
    """What the program writes to standard error, until it ends. DeadlineExceeded at `end`."""
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([terminal], [], [], left)[0]:
            raise DeadlineExceeded(f"{_PROGRAM} has not ended in time")
        try:
            part = os.read(terminal, 4096)
        except OSError:  # its side is closed
            return
        if progress is not None and (shares := re.findall(rb"(\d+)% ", part)):
            progress(int(shares[-1]) / 100)
        yield part


def _failure(exit_code: int, said: str) -> KvCompressError:
    if exit_code < 0 or exit_code > 128:
        return Cancelled(f"a signal has ended {_PROGRAM}")
    reasons = re.findall(r"Error: (.*)", said) or [line for line in said.splitlines() if line] or ["it gave no reason"]
    return InvalidArgument(reasons[0].strip())
