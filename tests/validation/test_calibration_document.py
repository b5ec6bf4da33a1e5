"""What docs/calibration.md has people type, typed: with a small model, a made text and a tokenizer of bytes."""

import os
import pathlib
import re
import subprocess
import sys

import compression_bridge
import pytest
from conftest import REPOSITORY, VALIDATION, make_model

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("kvcompress")

DOCUMENT = REPOSITORY / "docs" / "calibration.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def save_model(folder):
    from transformers import PreTrainedTokenizerFast

    letters = {chr(code): code - 32 for code in range(32, 96)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    make_model(max_position_embeddings=512).save_pretrained(folder)


def test_every_command_does_what_it_says(tmp_path):
    (tmp_path / "bin").symlink_to(pathlib.Path(compression_bridge.find_cli_binary()).resolve().parent)
    (tmp_path / "validation").symlink_to(VALIDATION)
    save_model(tmp_path / "model")
    (tmp_path / "words.txt").write_text("".join(chr(32 + (7 * i * i + i // 3) % 64) for i in range(30_000)))
    for name, text in zip(("caches.py", "client.py"), blocks("python"), strict=True):
        assert f"`{name}`:" in DOCUMENT.read_text(encoding="utf-8")
        (tmp_path / name).write_text(text)
    script = "".join(blocks("bash")).replace("build/models/SmolLM2-135M-Instruct", "model")
    script = script.replace("documents.txt", "words.txt")
    # A person waits for the daemon, and ends it.
    waiting = "until [ -S kv-compressd.sock ]; do kill -0 %1; sleep 0.05; done"
    script = script.replace("python ", f"{sys.executable} ")
    script = script.replace(" &\n", f" &\ntrap 'kill %1; wait %1' EXIT\n{waiting}\n")
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          timeout=110, env={**os.environ, "KV_COMPRESSD_METRICS_LISTEN": "127.0.0.1:0"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back.safetensors").stat().st_size == (tmp_path / "caches" / "24.safetensors").stat().st_size
    bits = [float(found) for found in re.findall(r'"bits_per_value": ([\d.]+)', done.stdout)]
    assert bits[1:5] == [pytest.approx(expected, abs=0.1) for expected in (3, 2, 3, 2)], done.stdout
    assert '"theta": 10000.0' in done.stdout
    assert "torch.Size([1, 2, 512, 64])" in done.stdout
