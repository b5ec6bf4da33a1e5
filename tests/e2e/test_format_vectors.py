"""The vectors of docs/format-vectors.md, decoded by what was written from docs/format.md alone."""

import pathlib
import re

import artifact_reader
import pytest
import transform_decoder
from chain_decoder import decode_frame
from frame_reader import read_frame

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "format-vectors.md"


def vectors():
    """The fields of each vector, by their names."""
    for block in re.findall(r"^```vector\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S):
        yield dict(line.split(": ", 1) for line in re.sub(r"\n +", "", block).splitlines() if ": " in line)


VECTORS = list(vectors())


def test_no_vector_is_overlooked():
    assert len(VECTORS) == DOCUMENT.read_text().count("```vector")
    assert all({"title", "dtype", "codec", "frame"} <= vector.keys() for vector in VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["title"])
def test_another_decoder_gives_the_values(vector, tmp_path):
    frame = bytes.fromhex(vector["frame"])
    if "artifact" in vector:
        (tmp_path / "model.kvcal").write_bytes(bytes.fromhex(vector["artifact"]))
        artifact = re.search(r"artifact=(\w+)", vector["codec"])[1]
        transform_decoder.ARTIFACTS[artifact] = artifact_reader.read(tmp_path / "model.kvcal")
    read = read_frame(frame)
    assert (read.dtype, read.shape) == (vector["dtype"], tuple(map(int, vector.get("shape", "").split())))
    assert read.fingerprint.hex() == vector.get("fingerprint", "")
    assert decode_frame(frame).tobytes().hex() == vector.get("decoded", vector.get("values", ""))
