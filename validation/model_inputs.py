"""What a measurement reads: models and tokenizers, texts, windows of token ids. Imports torch and its kin only when used."""

import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

DEFAULT_MODEL = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
# Windows of a text are no longer than this, however long the model's context is.
LONGEST_WINDOW = 1024


class Window(NamedTuple):
    """Token ids whose first `prefix_len` make the cache; those after the next one are scored."""

    ids: Sequence[int]
    prefix_len: int


def load_model_and_tokenizer(model_name: str = DEFAULT_MODEL, device: Optional[str] = None) -> Tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    The model keeps the dtype of its weights, except float16 on a CPU, which becomes float32. A directory that has only
    sentencepiece's tokenizer.model is read with sentencepiece itself: the conversion that transformers would make of it can
    split texts in other ways than the model was trained with.

    Args:
        model_name: HuggingFace model name or a local directory
        device: Target device (CUDA where there is one, else CPU, if None)

    Returns:
        Tuple of (model, tokenizer); the tokenizer of a directory without one is None

    Raises:
        OSError: there is no such model here, and none to be downloaded, or its weights are damaged
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    # A name on the hub has one slash; transformers would complain of how these are spelt.
    path = os.path.isabs(model_name) or model_name.startswith((".", "~")) or model_name.count("/") > 1
    if path and not os.path.isdir(model_name):
        raise FileNotFoundError(f"no such folder: {model_name}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype_argument = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    arguments: Dict[str, Any] = {dtype_argument: "auto"}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(model_name, **arguments).eval()
    except SafetensorError as error:
        raise OSError(f"the weights of {model_name} are damaged: {error}") from error
    if torch.device(device).type == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return model.to(device), _tokenizer(model_name)


class SentencePieceTokenizer:
    """The part of a transformers tokenizer that this folder uses, by sentencepiece itself."""

    def __init__(self, folder: str):
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
        config = os.path.join(folder, "tokenizer_config.json")
        settings = {}
        if os.path.exists(config):
            with open(config, encoding="utf-8") as file:
                settings = json.load(file)
        # LlamaTokenizer's own default is to add it.
        self._bos = [self._pieces.bos_id()] if settings.get("add_bos_token", True) else []

    def __call__(self, text: Any, return_tensors: Optional[str] = None, truncation: bool = False,
                 max_length: Optional[int] = None) -> Dict[str, Any]:
        """{"input_ids": ids} of a text, [[ids], ...] of a list; with return_tensors="pt" a tensor [batch, tokens].

        Raises:
            ValueError: texts of different lengths for a tensor
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._bos + self._pieces.encode(one) for one in texts]
        if truncation:
            rows = [row[:max_length] for row in rows]
        if return_tensors == "pt":
            import torch

            return {"input_ids": torch.tensor(rows, dtype=torch.long)}
        return {"input_ids": rows[0] if isinstance(text, str) else rows}


def read_text(source: str, config: Optional[str] = None, split: str = "test") -> str:
    """A text file, or else a data set of that name, its rows joined by empty lines.

    Raises:
        ImportError: a data set is asked for, and the package `datasets` is not installed
    """
    if os.path.isfile(source):
        with open(source, encoding="utf-8") as file:
            return file.read()
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"{source} is no file, and data sets need the package `datasets`: pip install datasets, "
                          "or give a text file") from error
    return "\n\n".join(row["text"] for row in load_dataset(source, config, split=split))


def windows_from_text(text: str, tokenizer: Any, model: Any, count: int, prefix_len: Optional[int] = None,
                      continuation_len: int = 64) -> List[Window]:
    """At most `count` windows, spread evenly over the text, that do not overlap.

    Args:
        prefix_len: tokens of the cache; None: what the model's context, at most 1024 tokens, leaves beside the continuation
        continuation_len: tokens read after the prefix; all but the first are scored

    Raises:
        ValueError: no tokenizer, or the model's context or the text is too short
    """
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: give windows of token ids instead of a text (--token-windows FILE)")
    context = getattr(model.config, "max_position_embeddings", None) or LONGEST_WINDOW
    if prefix_len is None:
        prefix_len = min(context, LONGEST_WINDOW) - continuation_len
    length = prefix_len + continuation_len
    if prefix_len < 1 or length > context:
        raise ValueError(f"a prefix of {prefix_len} and a continuation of {continuation_len} tokens do not fit into the "
                         f"model's context of {context}")
    ids = tokenizer(text)["input_ids"]
    fitting = len(ids) // length
    if fitting == 0:
        raise ValueError(f"the text has {len(ids)} tokens, one window needs {length}")
    count = min(count, fitting)
    starts = [index * fitting // count * length for index in range(count)]
    return [Window(ids[start:start + length], prefix_len) for start in starts]


def windows_from_json(path: str, count: int, prefix_len: Optional[int] = None) -> List[Window]:
    """The first `count` windows of a JSON file {"prefix_len": P, "windows": [[token ids], ...]}.

    Raises:
        ValueError: the file is something else
    """
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
            rows, length = content["windows"][:count], content["prefix_len"] if prefix_len is None else prefix_len
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{path} is not {{"prefix_len": P, "windows": [[ids], ...]}}: {error!r}') from error
    return [Window(row, length) for row in rows]


def check_windows(windows: Sequence[Window], model: Any) -> None:
    """Raises:
        ValueError: a window is longer than the model's context, or holds what is none of its tokens
    """
    context, vocabulary = (getattr(model.config, name, None) for name in ("max_position_embeddings", "vocab_size"))
    for ids, _ in windows:
        if context is not None and len(ids) > context:
            raise ValueError(f"a window of {len(ids)} tokens does not fit into the model's context of {context}")
        for token in ids:
            if not isinstance(token, int) or token < 0 or (vocabulary is not None and token >= vocabulary):
                raise ValueError(f"{token!r} is no token of the model, which has {vocabulary}")


def check_not_training(model: Any) -> None:
    """Raises:
        ValueError: the model is in training mode
    """
    if model.training:
        raise ValueError("the model is in training mode, with dropout: call its eval() before it is measured")


def _tokenizer(model_name: str) -> Any:
    if os.path.isdir(model_name):
        present = [name for name in TOKENIZER_FILES if os.path.exists(os.path.join(model_name, name))]
        if not present:
            return None
        if "tokenizer.model" in present and "tokenizer.json" not in present:
            return SentencePieceTokenizer(model_name)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_name)
