"""What is measured on: models with their tokenizers, and texts. Imports torch and its kin only when they are used."""

import importlib.util
import json
import os
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

from .._errors import InvalidArgument

DTYPES = ("auto", "float32", "bfloat16", "float16")
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_LEAST_TOKENS = 8  # of a text
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def load_model(source: str | PathLike[str], *, device: str | None = None, dtype: Dtype = "auto") -> tuple[Any, Any]:
    """A causal language model of transformers, ready to be measured, and its tokenizer, None for a folder without one.

    `source` is a folder, a file "*.gguf", or a name on the hub. `device` None is CUDA where there is one, else the CPU.
    The arithmetic is done in `dtype`; "auto" is float32 on a CPU, because what 16 bits round away can be more than what
    a codec does, and elsewhere the type of the weights; model.config tells that in both cases. A folder that has only
    sentencepiece's tokenizer.model is read with sentencepiece itself: the conversion that transformers would make of it
    can split texts in other ways than the model was trained with.

    OSError, of which FileNotFoundError is one, where there is no such model here, and none to be downloaded, or its
    weights are damaged; ImportError where a GGUF file needs packages; InvalidArgument for a dtype of another name."""
    import torch

    if dtype not in DTYPES:
        raise InvalidArgument(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    name = fspath(source)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto" and torch.device(device).type == "cpu":
        dtype = "float32"
    model, tokenizer = _of_gguf(Path(name), dtype) if name.endswith(".gguf") else _of_name(name, dtype)
    return model.eval().to(device), tokenizer


def read_text(source: str, config: str | None = None, split: str = "test") -> str:
    """A text file, or else a data set of that name on the hub, its rows joined by empty lines.

    ImportError where a data set is asked for, and the package `datasets` is not installed."""
    if os.path.isfile(source):
        return Path(source).read_text(encoding="utf-8")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{source} is no file, and data sets need the package `datasets`: pip install datasets, or give a text file"
        ) from error
    return "\n\n".join(row["text"] for row in load_dataset(source, config, split=split))


def texts(
    source: str,
    tokenizer: Any,
    count: int,
    max_length: int,
    *,
    split: str = "train",
    part: tuple[float, float] = (0.0, 1.0),
) -> list[Any]:
    """At most `count` texts of `max_length` token ids, spread evenly over a `part` of a text file or of a data set's
    `split`, each with the tokenizer's own beginning; or windows of a file "*.json", {"windows": [[ids], ...]}.

    InvalidArgument for what has not one text of 8 tokens, ImportError as of read_text."""
    import torch

    if source.endswith(".json"):
        windows = _windows(source, max_length)
        return windows[int(part[0] * len(windows)) : int(part[1] * len(windows))][:count]
    if tokenizer is None:
        raise InvalidArgument(
            'the model has no tokenizer: give token ids in place of a text, {"windows": [[ids], ...]}'
        )
    begin = list(tokenizer("")["input_ids"])
    config = "wikitext-2-raw-v1" if source == "wikitext" else None
    ids = list(tokenizer(read_text(source, config, split))["input_ids"])[len(begin) :]
    ids = ids[int(part[0] * len(ids)) : int(part[1] * len(ids))]
    length = min(max_length - len(begin), len(ids))
    if length < _LEAST_TOKENS:
        raise InvalidArgument(f"{source}: a text of at least {_LEAST_TOKENS} tokens is needed")
    fitting = len(ids) // length
    taken = min(count, fitting)
    starts = [index * fitting // taken * length for index in range(taken)]
    return [torch.tensor(begin + ids[start : start + length]) for start in starts]


def check_tokens(model: Any, rows: Sequence[Any]) -> None:
    """InvalidArgument for token ids that the model does not have."""
    known = model.get_input_embeddings().num_embeddings
    for row in rows:
        for token in (int(row.min()), int(row.max())):
            if not 0 <= token < known:
                raise InvalidArgument(f"{token} is no token of the model, which has {known}")


def cache_dtype_of(model: Any) -> Any:
    """That of the weights, also where the model computes in another; 16 bits of 32."""
    import torch

    stored = getattr(model.config, "dtype" if hasattr(model.config, "dtype") else "torch_dtype", None) or model.dtype
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float16


class SentencePieceTokenizer:
    """The part of a transformers tokenizer that measuring needs, by sentencepiece itself."""

    def __init__(self, folder: str):
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
        config = Path(folder, "tokenizer_config.json")
        settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        # LlamaTokenizer's own default is to add it.
        self._bos = [self._pieces.bos_id()] if settings.get("add_bos_token", True) else []

    def __call__(
        self, text: Any, return_tensors: str | None = None, truncation: bool = False, max_length: int | None = None
    ) -> dict[str, Any]:
        """{"input_ids": ids} of a text, [[ids], ...] of a list; with return_tensors="pt" a tensor [batch, tokens].

        ValueError for texts of different lengths and a tensor."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._bos + self._pieces.encode(one) for one in texts]
        if truncation:
            rows = [row[:max_length] for row in rows]
        if return_tensors == "pt":
            import torch

            return {"input_ids": torch.tensor(rows, dtype=torch.long)}
        return {"input_ids": rows[0] if isinstance(text, str) else rows}


def _windows(path: str, max_length: int) -> list[Any]:
    import torch

    try:
        with open(path, encoding="utf-8") as file:
            rows = [torch.tensor(row[:max_length]) for row in json.load(file)["windows"]]
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # of torch, and of JSON that is too deep
        raise InvalidArgument(f'{path} is not {{"windows": [[ids], ...]}}: {error!r}') from error
    if any(row.dim() != 1 or row.dtype != torch.long or len(row) < _LEAST_TOKENS for row in rows):
        raise InvalidArgument(f"{path}: windows are rows of at least {_LEAST_TOKENS} token ids")
    return rows


def _of_name(name: str, dtype: str) -> tuple[Any, Any]:
    # A name on the hub has one slash; transformers would complain of how these are spelt.
    path = os.path.isabs(name) or name.startswith((".", "~")) or name.count("/") > 1
    if path and not os.path.isdir(name):
        raise FileNotFoundError(f"no such folder: {name}")
    from safetensors import SafetensorError

    try:
        # What is widened after it was read still has the stored type in its configuration.
        model = _pretrained(name, "auto" if dtype == "float32" else dtype)
    except SafetensorError as error:
        raise OSError(f"the weights of {name} are damaged: {error}") from error
    return model.float() if dtype == "float32" else model, _tokenizer(name)


def _of_gguf(path: Path, dtype: str) -> tuple[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if missing := [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]:
        raise ImportError(f"GGUF files need the packages gguf and accelerate: pip install {' '.join(missing)}")
    from transformers import AutoTokenizer

    place = {"gguf_file": path.name}
    try:
        # Of quantized weights there is no type to keep.
        model = _pretrained(str(path.parent), "float32" if dtype == "auto" else dtype, **place)
        return model, AutoTokenizer.from_pretrained(path.parent, **place)
    except (ValueError, KeyError, IndexError, NotImplementedError) as error:
        raise OSError(f"{path} is no GGUF file of a model that transformers know, or it is damaged: {error}") from error


def _pretrained(name: str, dtype: str, **options: Any) -> Any:
    import torch
    import transformers

    argument = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    options[argument] = "auto" if dtype == "auto" else getattr(torch, dtype)
    return transformers.AutoModelForCausalLM.from_pretrained(name, **options)


def _tokenizer(name: str) -> Any:
    if os.path.isdir(name):
        present = [file for file in TOKENIZER_FILES if os.path.exists(os.path.join(name, file))]
        if not present:
            return None
        if "tokenizer.model" in present and "tokenizer.json" not in present:
            return SentencePieceTokenizer(name)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)
