"""What the adapters share: the tensors of a cache as frames and back, several frames as one payload."""

import math
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .. import (
    Client,
    DataLoss,
    FailedPrecondition,
    FingerprintMismatch,
    Frame,
    InvalidArgument,
    KvCompressError,
    LocalClient,
    OnNonfinite,
    RotaryEmbedding,
    Unimplemented,
    profile_json,
    tls,
)
from .._payload import Piece, SelfChecked
from .._tensors import TensorView, torch_dtypes
from ..v1 import kvcompress_pb2 as pb

if TYPE_CHECKING:
    from ..seal import Sealer

AnyClient = Client | LocalClient
DTYPES = torch_dtypes()
# A frame that was kept elsewhere, as Client.decompress_many takes it: name, bytes, dtype and shape.
Stored = tuple[str, memoryview, tuple[str, tuple[int, ...]]]

_MAGIC, _VERSION = b"KVCB", 1
_HEADER = struct.Struct("<4sHHI")  # magic, version, zero, number of frames
_BARE, _SEALED = b"KVCF", b"KVCS"  # how a frame begins
_SIZE = struct.Struct("<Q")  # of each frame, in bytes


@dataclass(frozen=True)
class Kind:
    """What a tensor is, without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @staticmethod
    def of(tensor: torch.Tensor) -> "Kind":
        return Kind(tensor.dtype, tuple(tensor.shape))

    @property
    def size(self) -> int:
        """In bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Codec:
    """A daemon, or the codec in this process, and what it is asked for. `profile` is JSON text, and excludes `spec`;
    `timeout` is in seconds, for all tensors of one call together."""

    client: AnyClient
    spec: str = ""
    profile: str = ""
    timeout: float | None = None
    on_nonfinite: OnNonfinite = "lossless"
    rotary: RotaryEmbedding | None = None  # of the keys' model
    sealer: "Sealer | None" = None  # of frames that others can read

    @staticmethod
    def of(client: AnyClient, spec: str, profile: Any, timeout: float | None) -> "Codec":
        """`profile` as Client.compress takes it. InvalidArgument where both are given."""
        return Codec(client, spec, profile_json(profile, spec), timeout)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Codec":
        """Of the keys that all adapters' configurations have: `target` (a daemon's, or "in-process": the codec in this
        process), `codec` or `profile` (a path or an object), `rotary` (an object with the fields of RotaryEmbedding but
        `start`), `on_nonfinite`, `timeout`; `keys_dir`, `seal_key` and perhaps `tenant`, for frames that are sealed
        (kvcompress.seal). For a daemon also `ca`, `certificate`, `key`, the paths of PEM files, for
        TLS, and `token_file`, whose first line is the daemon's token; in the process `threads` and `artifacts`, a
        directory."""
        client = _client_of(config)
        codec = Codec.of(
            client, str(config.get("codec", "")), config.get("profile"), float(config.get("timeout", DEFAULT_TIMEOUT))
        )
        return replace(
            codec,
            on_nonfinite=config.get("on_nonfinite", "lossless"),
            rotary=_rotary_of(config.get("rotary")),
            sealer=_sealer_of(config),
        )

    def of_model(self, config: Any) -> "Codec":
        """With the rotary embedding of a model's configuration, unless there is one; what that does not tell is not
        guessed."""
        return self if self.rotary is not None else replace(self, rotary=RotaryEmbedding.of_config(config))

    def check_without_positions(self) -> None:
        """InvalidArgument for what an engine cannot use that does not tell where in a sequence its tokens stand: keys
        turned back from positions that are not theirs are turned by one angle more, which is as good for their own
        statistics, and no good for those of an artifact."""
        if "artifact=" in self.spec:
            raise InvalidArgument(
                "an artifact needs the positions of keys, which are not told here: use a profile that has it for values"
            )

    @property
    def text(self) -> str:
        """The same for codecs that make the same frames of the same tensors, and can open each other's."""
        chain = self.spec or self.profile
        return chain if self.sealer is None else f"{chain} sealed for {self.sealer.tenant_digest}"

    @property
    def tells_layers_apart(self) -> bool:
        """Whether layers must be tensors of their own; else several are better one, for what each tensor costs."""
        return bool(self.profile) or "artifact=" in self.spec

    def compress(
        self,
        tensors: Sequence[tuple[str, torch.Tensor | TensorView]],
        starts: Sequence[int] | None = None,
        specs: Sequence[str | None] | None = None,
        fingerprints: Sequence[bytes] | None = None,
    ) -> list[Frame]:
        """Frames of named tensors of any device, or of views in pieces, in order, by one stream; made again as a whole
        where the daemon is busy or gone for a while. `starts`: of each tensor the position of its first token, which is
        taken to be 0 where it is not known. `specs`: of each tensor a codec chain in place of this codec's.
        `fingerprints`: what each frame carries, and is sealed under."""
        count = len(tensors)
        starts, specs = starts or [0] * count, specs or [None] * count
        values = [tensor if isinstance(tensor, TensorView) else tensor.detach().cpu() for _, tensor in tensors]
        items = [
            (name, value, spec, self._rotary_at(start), fingerprint)
            for (name, _), value, start, spec, fingerprint in zip(
                tensors, values, starts, specs, _one_each(fingerprints, count), strict=True
            )
        ]

        def work(seconds: float) -> list[Frame]:
            profile = self.profile or None
            return list(
                self.client.compress_many(
                    items, self.spec, profile=profile, on_nonfinite=self.on_nonfinite, timeout=seconds
                )
            )

        return [self._sealed(frame) for frame in self.client.with_retries(work, timeout=self.timeout)]

    def _rotary_at(self, start: int) -> RotaryEmbedding | None:
        """Tokens in the middle of a sequence have no sinks among them, whatever the model."""
        return replace(self.rotary or RotaryEmbedding(), start=start) if start else self.rotary

    @property
    def errors_of_one(self) -> tuple[type[KvCompressError], ...]:
        """What decompress raises because of a single one of its frames: the others can be had without it."""
        of_seals = () if self.sealer is None else (FailedPrecondition, Unimplemented)  # its key, its version
        return (DataLoss, FingerprintMismatch, *of_seals)

    def decompress(
        self,
        frames: Sequence[Frame | Stored],
        fingerprints: Sequence[bytes] | None = None,
        out: Sequence[torch.Tensor | None] | None = None,
    ) -> list[torch.Tensor]:
        """Tensors of the CPU, in order, by one stream that is made again like that of `compress`. DataLoss for a frame
        that is damaged or holds something else, FingerprintMismatch for one that has not its own of `fingerprints`,
        before memory is taken for it; such a one that is sealed is DataLoss, too. `out`: of each frame the tensor that
        it is written into, or None; what they hold after an error is undefined."""
        items = [
            (*self._opened(frame, fingerprint), fingerprint)
            for frame, fingerprint in zip(frames, _one_each(fingerprints, len(frames)), strict=True)
        ]

        def work(seconds: float) -> list[torch.Tensor]:
            decoded = self.client.decompress_many(items, out=out, as_="torch", timeout=seconds)
            return [tensor for _, tensor in decoded]

        return self.client.with_retries(work, timeout=self.timeout)

    def decompress_into(
        self,
        targets: Sequence[torch.Tensor],
        frames: Sequence[Frame | Stored],
        fingerprints: Sequence[bytes] | None = None,
    ) -> None:
        """As `decompress`, into memory of an engine's, with or without gaps: straight into that of the CPU, else by a
        copy when all are there. What it holds after an error is undefined."""
        out = [target if target.device.type == "cpu" else None for target in targets]
        for target, tensor in zip(targets, self.decompress(frames, fingerprints, out), strict=True):
            if tensor is not target:
                target.copy_(tensor)

    def _sealed(self, frame: Frame) -> Frame:
        if self.sealer is None:
            return frame
        return _with_data(frame, self.sealer.seal(frame.data, fingerprint=frame.fingerprint))

    def _opened(
        self, frame: Frame | Stored, fingerprint: bytes
    ) -> tuple[str, Frame | memoryview, tuple[str, tuple[int, ...]] | None]:
        """A sealed Frame of which no `fingerprint` is expected is opened under its own."""
        if isinstance(frame, Frame):
            if self.sealer is not None:
                data = self.sealer.open(frame.data, fingerprint=fingerprint or frame.fingerprint)
                frame = _with_data(frame, data)
            return "", frame, None
        if self.sealer is None:
            return frame
        name, sealed, kind = frame
        return name, memoryview(self.sealer.open(sealed, fingerprint=fingerprint)), kind

    def most_bytes(
        self, named: Sequence[tuple[str, Kind]], specs: Sequence[str | None] | None = None, fingerprint_bytes: int = 0
    ) -> list[int]:
        """What the daemon says that no frame of these tensors is larger than, each with a fingerprint of that size.
        `specs` as for `compress`."""
        headers = []
        for (name, kind), spec in zip(named, specs or [None] * len(named), strict=True):
            tensor = pb.Tensor(
                name=name,
                dtype=f"DTYPE_{DTYPES[kind.dtype]}",
                shape=kind.shape,
                fingerprint=bytes(fingerprint_bytes),
            )
            choice = f"ON_NONFINITE_{self.on_nonfinite.upper()}"
            rotary = None if self.rotary is None else self.rotary.message()
            headers.append(
                pb.CompressHeader(
                    tensor=tensor,
                    codec=self.spec if spec is None else spec,
                    profile=self.profile if spec is None else "",
                    on_nonfinite=choice,
                    rotary=rotary,
                )
            )
        said = self.client.capabilities(headers, timeout=self.timeout)
        if len(said.max_frame_bytes) != len(headers):
            raise KvCompressError("the daemon does not say how large frames can become")
        sizes = list(said.max_frame_bytes)
        return sizes if self.sealer is None else [size + self.sealer.overhead(size) for size in sizes]


def _with_data(frame: Frame, data: bytes) -> Frame:
    return replace(frame, data=data, frame_bytes=len(data))


def _one_each(fingerprints: Sequence[bytes] | None, count: int) -> Sequence[bytes]:
    """None of them where there are no fingerprints at all."""
    return [b""] * count if fingerprints is None else fingerprints


# An engine's request waits meanwhile, and is served without the cache afterwards.
DEFAULT_TIMEOUT = 30.0
IN_PROCESS = "in-process"
_OF_DAEMONS = frozenset({"ca", "certificate", "key", "token_file"})
_OF_PROCESS = frozenset({"threads", "artifacts"})
_OF_SEALS = frozenset({"keys_dir", "seal_key", "tenant"})
_OF_ALL = frozenset({"target", "codec", "profile", "rotary", "on_nonfinite", "timeout"})
CONFIG_KEYS = _OF_DAEMONS | _OF_PROCESS | _OF_SEALS | _OF_ALL


def client_at(target: str) -> AnyClient:
    """Of a daemon's address, or of the codec in this process."""
    return LocalClient() if target == IN_PROCESS else Client(target)


def _client_of(config: Mapping[str, Any]) -> AnyClient:
    """InvalidArgument for options of the other kind of client."""
    target = str(config.get("target", "127.0.0.1:50051"))
    foreign = sorted((_OF_DAEMONS if target == IN_PROCESS else _OF_PROCESS).intersection(config))
    if foreign:
        where = "a daemon" if target == IN_PROCESS else f'the target "{IN_PROCESS}"'
        raise InvalidArgument(f"the option {foreign[0]} is for {where}")
    if target == IN_PROCESS:
        return LocalClient(threads=config.get("threads", 0), artifacts=config.get("artifacts"))
    pem = [config.get(name) for name in ("ca", "certificate", "key")]
    path = config.get("token_file")
    token = pathlib.Path(path).read_text(encoding="utf-8").partition("\n")[0].strip() if path else None
    return Client(target, credentials=tls(*pem) if any(pem) else None, token=token)


def _sealer_of(config: Mapping[str, Any]) -> "Sealer | None":
    """None where nothing is said of keys; InvalidArgument where not all is said that there must be."""
    said = [config.get(name) for name in ("keys_dir", "seal_key", "tenant")]
    if not any(said):
        return None
    if not said[0] or not said[1]:
        raise InvalidArgument("keys_dir and seal_key go together, and tenant with both")
    from ..seal import Sealer

    return Sealer(str(said[0]), str(said[1]), tenant=str(said[2] or "").encode())


def _rotary_of(option: Any) -> RotaryEmbedding | None:
    """InvalidArgument for what is none, or does not say its base."""
    if option is None:
        return None
    try:
        rotary = RotaryEmbedding.of_fields(option)
    except TypeError as error:
        raise InvalidArgument(
            f"rotary is an object with theta, and perhaps pairs, dims, offset, scaling: {error}"
        ) from error
    if not rotary.message().theta or rotary.start:
        raise InvalidArgument("rotary has a theta, and no start, which is each tensor's own")
    return rotary


def check_keys(config: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()) -> None:
    """InvalidArgument for a key that no one reads, which is a typing error, and for one that is missing."""
    names = CONFIG_KEYS.union(known, required)
    unknown = sorted(str(key) for key in config if key not in names)
    if unknown:
        raise InvalidArgument(f"unknown option {unknown[0]!r}: there are {', '.join(sorted(names))}")
    for missing in set(required).difference(config):
        raise InvalidArgument(f"the option {missing} is missing")


def check_dtype(dtype: torch.dtype, what: str) -> None:
    if dtype not in DTYPES:
        raise InvalidArgument(f"{what} is {dtype}, which is none of {', '.join(map(str, DTYPES))}")


def pack(frames: Sequence[Frame]) -> tuple[Piece, ...]:
    """Frames as one payload that tells its own size, in pieces, so that no frame is copied. Its table of sizes has to
    come to the payload's own, and each frame has checksums. In one that is sealed a fault may look like another key."""
    sizes = b"".join(_SIZE.pack(len(frame)) for frame in frames)
    header = _HEADER.pack(_MAGIC, _VERSION, 0, len(frames))
    pieces = (header, sizes, *(frame.data for frame in frames))
    return SelfChecked(pieces) if all(frame.data[:4] == _BARE for frame in frames) else pieces


def packed_size(frame_sizes: Sequence[int]) -> int:
    """Bytes of the payload of frames of these sizes."""
    return _HEADER.size + _SIZE.size * len(frame_sizes) + sum(frame_sizes)


def most_packed(kinds: Sequence[Kind]) -> int:
    """More bytes than any codec makes of these tensors; a payload that claims more is not read."""
    return packed_size([2 * kind.size + (64 << 10) for kind in kinds])


def unpack(payload: bytes | memoryview, kinds: Sequence[Kind], *, padded: bool = False) -> list[Stored]:
    """The frames of a payload, which must hold tensors of `kinds`; DataLoss for one of another number of frames, and
    for bytes that are missing, or, unless it is `padded`, left over."""
    view, count = memoryview(payload).cast("B"), len(kinds)
    if len(view) < _HEADER.size or _HEADER.unpack_from(view) != (_MAGIC, _VERSION, 0, count):
        raise DataLoss(f"the payload does not begin like one of {count} frames")
    at = _HEADER.size + _SIZE.size * count
    if len(view) < at:
        raise DataLoss("the payload is cut off in its table of frames")
    frames = []
    for index, kind in enumerate(kinds):
        (size,) = _SIZE.unpack_from(view, _HEADER.size + _SIZE.size * index)
        if size > len(view) - at:
            raise DataLoss(f"the payload is cut off in frame {index} of {count}")
        # A table of which two sizes are wrong, but not their sum, is found here.
        if view[at : at + 4] not in (_BARE, _SEALED):
            raise DataLoss(f"frame {index} of {count} does not begin where the table says")
        frames.append((str(index), view[at : at + size], (DTYPES[kind.dtype], kind.shape)))
        at += size
    if at != len(view) and not padded:
        raise DataLoss(f"{len(view) - at} bytes follow the payload's last frame")
    return frames
