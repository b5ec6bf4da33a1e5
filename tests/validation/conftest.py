"""Fixtures of the tests of validation/: its folder on the path, the built kv-compress, small models."""

import os
import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
VALIDATION = REPOSITORY / "validation"
sys.path.insert(0, str(VALIDATION))
sys.path.append(str(REPOSITORY / "tests" / "client" / "python" / "calibration"))  # gguf_model

# Here and in the programs that tests start: one thread, since the models are tiny; and no daemon of the user's.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("KV_COMPRESS_SERVER", None)
if "KVC_BIN_DIR" in os.environ:
    os.environ["KV_COMPRESS_PATH"] = os.path.join(os.environ["KVC_BIN_DIR"], "kv-compress")

import torch  # noqa: E402 - OMP_NUM_THREADS must be set before
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM  # noqa: E402


@pytest.fixture(scope="session")
def sample():
    """What a model that people use holds, SmolLM2-135M, BF16: layers 10 and 20, [1, 3, 256, 64]."""
    return REPOSITORY / "tests" / "data" / "smollm2.256.bf16.safetensors"


def shared(name):
    """A folder of models or caches beside the checkout, or where KVC_SHARED says; skips where it is absent."""
    path = pathlib.Path(os.environ.get("KVC_SHARED", REPOSITORY.parent / "shared")) / name
    if not path.is_dir():
        pytest.skip(f"no {path}: set KVC_SHARED to the folder that has {name}")
    return path


@pytest.fixture(scope="session")
def stories():
    return shared("model-stories")


@pytest.fixture(scope="session")
def documents():
    return shared("model")


def make_model(**changes):
    """A Llama with random weights, wild enough that its predictions depend on the context."""
    torch.manual_seed(0)
    settings = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 128,
                "initializer_range": 0.1, **changes}
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def sliding():
    """A model whose layers hold the last 7 tokens only."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8, initializer_range=0.3)).eval()


class LetterTokenizer:
    """One token a character, by its code modulo the vocabulary of make_model."""

    def __call__(self, text, return_tensors=None, truncation=False, max_length=None):
        texts = [text] if isinstance(text, str) else text
        rows = [[ord(letter) % 64 for letter in one][:max_length if truncation else None] for one in texts]
        if return_tensors == "pt":
            return {"input_ids": torch.tensor(rows, dtype=torch.long)}
        return {"input_ids": rows[0] if isinstance(text, str) else rows}


@pytest.fixture
def tokenizer():
    return LetterTokenizer()


def make_pairs(layers=2, shape=(1, 2, 16, 64), dtype=torch.float16, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(shape, generator=random).to(dtype) for _ in range(2)) for _ in range(layers)]


@pytest.fixture
def pairs():
    return make_pairs()
