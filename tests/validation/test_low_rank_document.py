"""What docs/low-rank.md has people type, typed: with a small model, a made text and a tokenizer of letters."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, VALIDATION, make_model
from kvcompress.calibration import CompressionConfig
from test_calibration_document import save_model

DOCUMENT = REPOSITORY / "docs" / "low-rank.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


SENSITIVITY = next(block for block in blocks("bash") if "--sensitivity" in block)


@pytest.fixture
def typed(tmp_path):
    """Types blocks of commands, in a folder with a small model and a text."""
    (tmp_path / "scripts").symlink_to(VALIDATION / "scripts")
    save_model(tmp_path / "model")
    # Wild enough that heads look at few tokens: what looks at all of them is not compressed.
    make_model(max_position_embeddings=512, initializer_range=0.5).save_pretrained(tmp_path / "model")
    (tmp_path / "words.txt").write_text("".join(chr(32 + (7 * i * i + i // 3) % 64) for i in range(12_000)))

    def run(commands):
        script = "".join(commands)
        for typed, here in (("../build/models/SmolLM2-135M-Instruct", "model"), ("documents.txt", "words.txt"),
                            ("python ", f"{sys.executable} ")):
            assert typed in script
            script = script.replace(typed, here)
        done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True,
                              timeout=115, env={**os.environ, "PYTHONPATH": str(VALIDATION)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_three_steps_do_what_they_say(typed, tmp_path):
    (used,) = (block for block in blocks("python") if "from gpt2.compression import" in block)
    (tmp_path / "use.py").write_text(used)
    told = typed(block for block in blocks("bash") if block != SENSITIVITY)
    config = json.loads((tmp_path / "compression_config.json").read_text())
    heads = CompressionConfig.of_json(config).heads
    assert sorted(heads) == [(layer, head) for layer in range(2) for head in range(2)]
    for name in ("kvsplice", "pca"):
        results = json.loads((tmp_path / "compression_results" / f"calibration_results_{name}.json").read_text())
        assert results["calibration_samples"] == 11
        assert (tmp_path / "compression_results" / f"compressor_{name}.pt").stat().st_size > 0
    assert told.count("Perplexity degradation: ") == 2
    assert "KVSpliceCompressor" in used


def test_sensitivity_is_measured_beside_the_metrics_of_the_first_step(typed, tmp_path):
    assert "../bin/kv-compress" in SENSITIVITY
    program = os.environ.get("KV_COMPRESS_PATH", str(REPOSITORY / "bin" / "kv-compress"))
    told = typed([*blocks("bash")[:2], SENSITIVITY.replace("../bin/kv-compress", program)])
    verdict = told.splitlines()[-1]
    assert "tier" in verdict
    assert (tmp_path / "sensitivity.txt").read_text().endswith(f"\n{verdict}\n")
    assert len((tmp_path / "sensitivity.csv").read_text().splitlines()) == 1 + 2 * 2


def test_the_config_by_hand_is_one():
    (document,) = blocks("json")
    config = CompressionConfig.of_json(json.loads(document))
    assert config.head(0, 1).rank == 32
    assert not config.head(0, 2).enabled


@pytest.mark.parametrize("mark", ["<!-- table: begin -->", "<!-- table: end -->"])
def test_the_table_has_its_marks(mark):
    assert DOCUMENT.read_text(encoding="utf-8").count(mark) == 1
