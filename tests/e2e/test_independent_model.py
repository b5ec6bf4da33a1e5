"""Tensors and chains drawn at random, through a daemon and through a model of codecs and figures that was written from
docs/format.md alone: both must give the same bits, the same refusals, and the same figures."""

import math
import os

import grpc
import numpy as np
import pytest
from chain_decoder import decode_frame
from element_types import OPAQUE
from encoder_model import AnyOf, Refused, require_taken, values_after
from figures_model import figures, has_tokens, same_bits
from frame_reader import DTYPES as NUMBERS
from random_tensors import draw
from spec_reader import read_spec

TENSORS = 20_000 if os.environ.get("KVC_TIER") == "long" else 3_000
PARTS = 10
DTYPE_NUMBERS = {name: number for number, name in NUMBERS.items()}


class Service:
    """Compression of one tensor and back, by a daemon."""

    def __init__(self, daemon, stubs):
        self.pb = stubs.pb
        self.stub = stubs.rpc.KvCompressionStub(daemon.channel(("grpc.max_receive_message_length", -1)))

    def compress(self, drawn):
        tensor = self.pb.Tensor(name=drawn.name, dtype=DTYPE_NUMBERS[drawn.dtype], shape=drawn.shape, axes=drawn.axes)
        header = self.pb.CompressHeader(tensor=tensor, codec=drawn.spec)
        return self.stub.CompressTensor(self.pb.CompressTensorRequest(header=header, data=drawn.values.tobytes()), timeout=60)

    def decompress(self, name, frame):
        request = self.pb.DecompressTensorRequest(header=self.pb.DecompressHeader(name=name), frame=frame)
        return self.stub.DecompressTensor(request, timeout=60).data


def close(ours, theirs, relative, absolute=0.0):
    return ours == theirs or math.isclose(ours, theirs, rel_tol=relative, abs_tol=absolute)


def require_figures(quality, drawn, decoded):
    """The daemon's sums are of binary32 lanes; core/simd/error_sums.h says how exact they are."""
    true = figures(drawn.values, decoded, drawn.shape, drawn.axes)
    assert close(quality.rmse, true.rmse, 1e-5), ("rmse", quality.rmse, true.rmse)
    assert close(quality.mean_abs_error, true.mean_abs_error, 1e-5), ("mean_abs_error", quality.mean_abs_error, true)
    assert close(quality.max_error, true.max_error, 1e-6), ("max_error", quality.max_error, true.max_error)
    assert close(quality.cosine_similarity, true.cosine, 0, 1e-5), ("cosine", quality.cosine_similarity, true.cosine)
    for name in ("snr_db", "token_snr_db"):
        ours = getattr(quality, name) if quality.HasField(name) else None
        theirs = getattr(true, name)
        assert (ours is None) == (theirs is None), (name, ours, theirs)
        assert ours is None or close(ours, theirs, 0, 0.01), (name, ours, theirs)


def require_bounds(chain, drawn, decoded):
    """What `bounded` promises, up to the rounding of these figures."""
    bounds = {key: float(value) for key, value in chain.codec.options.items()}
    true = figures(drawn.values, decoded, drawn.shape, drawn.axes)
    least, least_token = bounds.get("min_snr", 0), max(bounds.get("min_snr", 0), bounds.get("min_token_snr", 0))
    if true.token_snr_db is not None and least_token:
        assert true.token_snr_db >= least_token - 1e-6, ("token SNR", true)
    elif not has_tokens(drawn.shape, drawn.axes):
        least = least_token
    assert true.snr_db is None or not least or true.snr_db >= least - 1e-6, ("SNR", true)
    assert not bounds.get("max_error") or true.max_error <= bounds["max_error"] * (1 + 1e-9), ("max_error", true)
    assert true.rmse == 0 or true.cosine >= bounds.get("min_cosine", 0) - 1e-9, ("min_cosine", true)


def must_refuse(drawn):
    if drawn.dtype in OPAQUE:
        return False
    try:
        require_taken(read_spec(drawn.spec), drawn.values, drawn.shape, drawn.axes)
    except Refused:
        return True
    return False


def check(service, drawn):
    try:
        answer = service.compress(drawn)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert must_refuse(drawn), error.details()
        return
    assert not must_refuse(drawn), "taken, where the document refuses"
    data = service.decompress(drawn.name, answer.frame)
    assert decode_frame(answer.frame).tobytes() == data, "another decoder gives other bits"
    if drawn.dtype in OPAQUE:
        assert data == drawn.values.tobytes(), "opaque elements came back otherwise"
        assert answer.report.passed_through
        return
    decoded = np.frombuffer(data, drawn.values.dtype)
    try:
        predicted = values_after(answer.frame, drawn.values, drawn.shape, drawn.axes)
        assert same_bits(predicted, decoded).all(), "the document's encoder gives other values"
    except AnyOf:
        pass
    if np.isfinite(drawn.values.astype(np.float32)).all():
        require_figures(answer.report.quality, drawn, decoded)
        chain = read_spec(answer.report.codec)
        if chain.codec.name == "bounded" and not chain.transforms:
            require_bounds(chain, drawn, decoded)


@pytest.mark.parametrize("part", range(PARTS))
def test_the_model_written_from_the_document_agrees(daemon, stubs, part):
    service = Service(daemon("--threads", "2"), stubs)
    for number in range(part, TENSORS, PARTS):
        drawn = draw(number)
        try:
            check(service, drawn)
        except Exception as error:
            what = f"draw({number}): {drawn.name} {drawn.dtype} {drawn.shape} {drawn.axes} {drawn.spec}"
            raise AssertionError(f"{what}: {error!r}") from error
