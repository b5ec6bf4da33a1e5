"""Frames of the codec `heads`, decoded by code that was written from docs/format.md alone."""

import grpc
import heads_decoder
import huffman_decoder
import numpy as np
import pytest
import rans_decoder
from daemon_helpers import failure
from frame_reader import read_frame, split_payload

CODEC = "heads(0-1:raw|rans,2-:raw|huffman)"
HEADS = 3  # of the axis roles


def through(decoder):
    def decode(payload, size):
        ((raw_size, _), data), = split_payload(payload, 1, byte_codecs=1)
        assert raw_size == size
        return decoder.decode(data, raw_size) if len(data) < raw_size else data
    return decode


PARTS = [(0, through(rans_decoder)), (2, through(huffman_decoder))]


def frame_of(client, array, axes):
    tensor = client.pb.Tensor(name="t", dtype=1, shape=array.shape, axes=axes)
    header = client.pb.CompressHeader(tensor=tensor, codec=CODEC)
    request = client.pb.CompressTensorRequest(header=header, data=array.tobytes())
    return client.stub.CompressTensor(request, timeout=60).frame


def array_of(shape):
    choices = np.array([0x3c00, 0x3c01, 0x4000, 0xbc00], np.uint16)
    return np.random.default_rng(5).choice(choices, shape, p=[.7, .1, .1, .1])


# Blocks that begin in the middle of a head, heads that lie side by side, heads of one value.
@pytest.mark.parametrize("shape, axes", [
    ((1, 5, 701, 64), (1, HEADS, 4, 5)), ((1, 301, 9, 64), (1, 4, HEADS, 5)), ((777,), (HEADS,)), ((3, 2, 1), (0, HEADS, 0))])
def test_a_second_decoder_reads_it(client, shape, axes):
    array = array_of(shape)
    decoded = b""
    for payload, count in read_frame(frame_of(client, array, axes)).blocks:
        (_, stream), = split_payload(payload, 1)
        decoded += heads_decoder.decode(stream, count, 2, PARTS)
    assert decoded == array.tobytes()


def test_the_second_decoder_refuses_what_no_encoder_writes(client):
    (payload, _), = read_frame(frame_of(client, array_of((4, 500)), (HEADS, 0))).blocks
    (_, stream), = split_payload(payload, 1)
    assert heads_decoder.decode(stream, 2000, 2, PARTS)
    for damaged in (stream[:-1], stream + b"x", stream[:20], bytes(8) + stream[8:], stream[:16] + b"\xff" * 8 + stream[24:]):
        with pytest.raises(rans_decoder.DataLoss):
            heads_decoder.decode(damaged, 2000, 2, PARTS)


def test_tensors_without_heads_are_refused(client):
    refused = failure(client.stub.Compress(iter([client.header("t", [8], CODEC)]), timeout=20))
    assert refused[:2] == (grpc.StatusCode.INVALID_ARGUMENT,
                           'tensor "t": heads takes tensors with one heads axis only (the axis roles tell which it is)')
