"""What a measurement reads: models and tokenizers, texts, windows of token ids. Imports torch and its kin only when used."""

import json
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

DEFAULT_MODEL = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
# Windows of a text are no longer than this, however long the model's context is.
LONGEST_WINDOW = 1024


class Window(NamedTuple):
    """Token ids whose first `prefix_len` make the cache; those after the next one are scored."""

    ids: Sequence[int]
    prefix_len: int


def load_model_and_tokenizer(model_name: str = DEFAULT_MODEL, device: Optional[str] = None,
                             dtype: str = "auto") -> Tuple[Any, Any]:
    """Load a causal language model and its tokenizer, as kvcompress.calibration.load_model does.

    Args:
        model_name: HuggingFace model name, a local directory, or a file "*.gguf"
        device: Target device (CUDA where there is one, else CPU, if None)
        dtype: what it computes in: "float32", "bfloat16" or "float16"; "auto": float32 on a CPU, else the weights' own

    Returns:
        Tuple of (model, tokenizer); the tokenizer of a directory without one is None

    Raises:
        OSError: there is no such model here, and none to be downloaded, or its weights are damaged
        ImportError: the package kvcompress is not installed, or others that a GGUF file needs
    """
    return _package().load_model(model_name, device=device, dtype=dtype)


def read_text(source: str, config: Optional[str] = None, split: str = "test") -> str:
    """A text file, or else a data set of that name, as kvcompress.calibration.read_text does.

    Raises:
        ImportError: the package kvcompress is not installed, or `datasets` for a data set
    """
    return _package().read_text(source, config, split)


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
            if not isinstance(length, int) or not all(isinstance(row, list) for row in rows):
                raise TypeError("prefix_len is no integer, or a window no list")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
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


def _package() -> Any:
    try:
        from kvcompress import calibration
    except ImportError as error:
        raise ImportError(f"models and texts are read by the package kvcompress: pip install ../client/python ({error})"
                          ) from error
    return calibration
