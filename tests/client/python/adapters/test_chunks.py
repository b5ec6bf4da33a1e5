"""Chunks in a store: what is wrong with one is no matter of the others."""

import pathlib

import pytest

torch = pytest.importorskip("torch")
from kvcompress.adapters._chunks import Chunk, ChunkStore, Part  # noqa: E402
from kvcompress.adapters._codec import Codec  # noqa: E402


@pytest.fixture
def chunks(kv_values):
    return [Chunk(f"chunk {i}", [Part("layer_0_key", kv_values((1, 2, 40, 32), seed=i))]) for i in range(3)]


def test_one_whose_key_is_gone_is_missed_alone(store, chunks, sealing):
    def of_key(name):
        config = {"target": "in-process", "codec": "raw", **sealing, "seal_key": name}
        return ChunkStore(Codec.from_config(config), store, "n")

    assert all(of_key("one").save(chunks[:2]) + of_key("two").save(chunks[2:]))
    (pathlib.Path(sealing["keys_dir"]) / "two").unlink()
    reader = of_key("one")
    found = [Chunk(chunk.key, [Part(part.name, torch.zeros_like(part.tensor)) for part in chunk.parts])
             for chunk in chunks]
    assert reader.load(found) == [True, True, False]
    assert torch.equal(found[1].parts[0].tensor, chunks[1].parts[0].tensor)
    # It is not damaged, and its key may come back.
    counts = reader.counters.values()
    assert (counts["loaded"], counts["undecoded"], counts.get("damaged", 0)) == (2, 1, 0)
    assert reader.exists(["chunk 2"]) == [True]
