"""KV caches of transformers models: extract, save as safetensors, load (compressed files too), check, describe."""

import json
import os
import re
import tempfile
import weakref
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Tuple

import cache_view
import torch
from compression_bridge import decompress_kv_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from transformers import DynamicCache

TINYLLAMA_NUM_LAYERS = 22
TINYLLAMA_NUM_KV_HEADS = 4  # GQA: 4 KV heads, not 32
TINYLLAMA_NUM_QUERY_HEADS = 32
TINYLLAMA_HEAD_DIM = 64
TINYLLAMA_HIDDEN_SIZE = 2048
TINYLLAMA_VOCAB_SIZE = 32000

# Whose values kv-compress compresses, as far as this PyTorch has them; anything else is saved as float32.
SAVED_DTYPES = tuple(getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2")
                     if hasattr(torch, name))
METADATA_KEY = "kv_cache"
TENSOR_NAME = re.compile(r"layer_(\d+)_(key|value)")
# Models, by `model_type`, in whose rotary embedding neighbouring channels turn together.
WITHOUT_ROTATION = ("bloom", "gpt2", "gpt_bigcode", "gpt_neo", "mpt", "opt")
INTERLEAVED = ("cohere", "cohere2", "ernie4_5", "glm", "glm4")

# Name and configuration of the model, of the caches that extract_kv_cache gave, for as long as they live.
_models: "weakref.WeakKeyDictionary[Any, Tuple[str, Any]]" = weakref.WeakKeyDictionary()


@dataclass
class KVCacheMetadata:
    """Metadata for KV cache tensors."""

    num_layers: int  # 22 for TinyLlama
    num_kv_heads: int  # 4 for TinyLlama (GQA)
    seq_len: int  # tokens that went through the cache; sliding layers hold fewer
    head_dim: int  # of the keys; 64 for TinyLlama
    dtype: str  # "float16", "bfloat16", "float32", "float8_e4m3fn" or "float8_e5m2"
    model_name: str  # Model identifier

    def to_dict(self) -> dict:
        """The fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, d: dict) -> "KVCacheMetadata":
        """From a sidecar's JSON; further keys are ignored.

        Raises:
            KeyError: a field is missing.
        """
        return cls(**{field.name: d[field.name] for field in fields(cls)})


def extract_kv_cache(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_length: Optional[int] = None,
    device: Optional[str] = None,
) -> Tuple["DynamicCache", KVCacheMetadata]:
    """The KV cache of a model's forward pass over one prompt.

    Args:
        model: HuggingFace model (TinyLlama or similar)
        tokenizer: Corresponding tokenizer
        prompt: Input text to generate KV cache from
        max_length: Cut the prompt to so many tokens
        device: Device to run on (the model's own if None)

    Returns:
        Tuple of (DynamicCache, KVCacheMetadata); transformers 4.35 has no DynamicCache, and gives its tuple of pairs

    Raises:
        ValueError: If batch size != 1 or cache is empty
    """
    cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
    ids = tokenizer(prompt, return_tensors="pt", **cut)["input_ids"]
    if ids.shape[0] != 1:
        raise ValueError(f"one prompt at a time: the batch size is {ids.shape[0]}")
    if ids.shape[1] == 0:
        raise ValueError("the cache is empty: the prompt has no tokens")
    if device is None:
        device = next(model.parameters()).device
    else:
        model = model.to(device)
    with torch.no_grad():
        _, cache = cache_view.forward(model, ids.to(device))
    if cache is None:
        raise ValueError("the cache is empty: the model gave none")
    if isinstance(cache, tuple):
        cache = cache_view.build(cache_view.layers(cache))
    metadata = _describe(cache, _name_of(model))
    if not isinstance(cache, tuple):  # of which there are no weak references
        _models[cache] = metadata.model_name, getattr(model, "config", None)
    return cache, metadata


def create_kv_cache_from_tensors(
    keys: Iterable[torch.Tensor],
    values: Iterable[torch.Tensor],
    config: Any = None,
) -> "DynamicCache":
    """A cache of the keys and values of each layer, [batch, kv_heads, tokens, head_dim].

    Args:
        keys: Of layer 0, 1, ...
        values: Of the same layers
        config: The model's configuration; needed for a model with sliding layers to go on from this cache

    Returns:
        DynamicCache; a tuple of pairs for transformers 4.35

    Raises:
        ValueError: If there are no layers, a layer's keys or values are empty, or there are not as many of both
        TypeError: If a tensor is none, or has not four axes
    """
    keys, values = list(keys), list(values)
    if len(keys) != len(values):
        raise ValueError(f"there are keys of {len(keys)} layers, and values of {len(values)}")
    return cache_view.build(cache_view.layers(tuple(zip(keys, values))), config)


def save_kv_cache(
    cache: Any,
    path: str,
    metadata_path: Optional[str] = None,
    model_name: Optional[str] = None,
    config: Any = None,
) -> KVCacheMetadata:
    """Save KV cache to a safetensors file, with a JSON sidecar. Any batch size.

    The file itself holds the metadata too: kv-compress hands it on, so compressed files need no sidecar. It also holds
    what kv-compress needs to turn keys back, as far as the model's configuration and the cache tell.

    float16, bfloat16, float32, float8_e4m3fn and float8_e5m2 are kept as they are; other types become float32.

    Args:
        cache: DynamicCache from Transformers, or any style that cache_view reads
        path: Output path; its tensors are layer_{i}_key and layer_{i}_value, [batch, kv_heads, tokens, head_dim]
        metadata_path: Sidecar (NAME.metadata.json for NAME.safetensors if None)
        model_name: For the metadata (if None, that of extract_kv_cache for a cache that it gave; else "unknown")
        config: The model's configuration (if None, likewise; else the file says nothing of what turns keys)

    Returns:
        KVCacheMetadata describing the saved cache

    Raises:
        ValueError: If the cache is empty
        TypeError: If it is no cache
    """
    noted_name, noted_config = _noted(cache)
    metadata = _describe(cache, noted_name if model_name is None else model_name)
    pairs = cache_view.layers(cache)
    tensors = {}
    for index, pair in enumerate(pairs):
        for kind, tensor in zip(("key", "value"), pair):
            # A copy of its own for each: safetensors refuses tensors that share memory.
            tensors[f"layer_{index}_{kind}"] = tensor.detach().to(
                "cpu", _saved_dtype(tensor), copy=True, memory_format=torch.contiguous_format)
    save_file(tensors, path, metadata={
        "format": "pt", METADATA_KEY: json.dumps(metadata.to_dict()), **_start(pairs, metadata.seq_len),
        **rotary_metadata(noted_config if config is None else config)})
    with open(metadata_path or _sidecar(path), "w", encoding="utf-8") as file:
        json.dump(metadata.to_dict(), file, indent=2)
    return metadata


def load_kv_cache(
    path: str,
    metadata_path: Optional[str] = None,
    device: str = "cpu",
    config: Any = None,
) -> Tuple["DynamicCache", KVCacheMetadata]:
    """Load KV cache from a safetensors file, plain or compressed by kv-compress.

    Args:
        path: Path to safetensors file
        metadata_path: Sidecar (if None, what the file itself tells, or else NAME.metadata.json for NAME.safetensors)
        device: Device to load tensors to
        config: The model's configuration; needed for a model with sliding layers to go on from this cache

    Returns:
        Tuple of (DynamicCache, KVCacheMetadata), in the dtype of the file; a tuple of pairs for transformers 4.35

    Raises:
        FileNotFoundError: If there is no such file, no metadata_path, or no kv-compress for a compressed file
        ValueError: If it is no safetensors file, its tensors are no KV cache, or the metadata is damaged
        subprocess.CalledProcessError: If a compressed file is damaged; its text says where
    """
    tensors, embedded = _read(path, device)
    pairs = _pairs(tensors, path)
    source = metadata_path or _sidecar(path)
    if metadata_path is not None or (embedded is None and os.path.exists(source)):
        with open(source, encoding="utf-8") as file:
            embedded = file.read()
    try:
        metadata = KVCacheMetadata.from_dict(json.loads(embedded)) if embedded else _describe(pairs, "unknown")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the metadata of {path} is damaged: {error!r}") from error
    return cache_view.build(pairs, config, metadata.seq_len), metadata


def rotary_metadata(config: Any) -> Dict[str, str]:
    """What kv-compress reads from a file's metadata of the rotary embedding that its keys have: rope_theta, and where
    they are not the usual ones rope_pairs, rope_dims and rope_scaling; a rope_theta of 0 where they have none.

    Args:
        config: The model's configuration

    Returns:
        Nothing for a model whose layers differ, or whose configuration does not say (None), for a scaling
        that changes with the context, and for MLA, where transformers' caches keep apart what turns
    """
    config = getattr(config, "get_text_config", lambda: config)()
    if getattr(config, "model_type", None) in WITHOUT_ROTATION:
        return {"rope_theta": "0"}
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
    if not theta or any(isinstance(value, dict) for value in parameters.values()) or getattr(config, "kv_lora_rank", None):
        return {}
    scaling = _scaling(config, parameters)
    if scaling["rope_type"] not in ("default", "linear", "llama3", "yarn") or scaling.get("truncate") is False:
        return {}
    found = {"rope_theta": f"{theta:.17g}"}
    if scaling["rope_type"] != "default":
        found["rope_scaling"] = json.dumps(scaling)
    if getattr(config, "model_type", None) in INTERLEAVED:
        found["rope_pairs"] = "interleaved"
    factor = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if factor not in (None, 1):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        found["rope_dims"] = str(int(head_dim * factor))
    return found


def _scaling(config: Any, parameters: Dict[str, Any]) -> Dict[str, Any]:
    """rope_scaling of a configuration, with the context that the model was first trained on."""
    given = {**(getattr(config, "rope_scaling", None) or {}), **parameters}
    scaling = {key: value for key, value in given.items() if value is not None}
    scaling.setdefault("rope_type", scaling.pop("type", "default"))
    original = getattr(config, "original_max_position_embeddings", None) or scaling.get(
        "original_max_position_embeddings") or getattr(config, "max_position_embeddings", None)
    return {**scaling, "original_max_position_embeddings": original} if original else scaling


def validate_kv_cache_shape(
    cache: Any,
    expected_layers: int = 22,
    expected_kv_heads: int = 4,
    expected_head_dim: int = 64,
) -> Tuple[bool, List[str]]:
    """Whether every layer of a cache has the expected shape: by default TinyLlama's, 4 KV heads (GQA) and not 32.

    Returns:
        Tuple of (is_valid, list_of_errors)
    """
    try:
        pairs = cache_view.layers(cache)
    except (TypeError, ValueError) as error:
        return False, [str(error)]
    errors = []
    if len(pairs) != expected_layers:
        errors.append(f"Expected {expected_layers} layers, got {len(pairs)}")
    for index, (key, value) in enumerate(pairs):
        for where, tensor in ((f"Layer {index}", key), (f"Layer {index}, values", value)):
            if tensor is value and key.shape == value.shape:
                continue  # what is wrong with both is said once
            if tensor.shape[1] != expected_kv_heads:
                errors.append(f"{where}: expected {expected_kv_heads} KV heads, got {tensor.shape[1]}")
            if tensor.shape[3] != expected_head_dim:
                errors.append(f"{where}: expected head_dim {expected_head_dim}, got {tensor.shape[3]}")
        if key.shape[:3] != value.shape[:3]:
            errors.append(f"Layer {index}: keys are {list(key.shape)}, values {list(value.shape)}")
    return not errors, errors


def compute_kv_cache_stats(cache: Any) -> dict:
    """Statistics of a KV cache, over all its keys and values, computed in float64.

    Returns:
        Dictionary with num_layers, num_kv_heads, seq_len, head_dim, total_elements, total_bytes (in the cache's own
        dtype), total_mb (2^20 bytes), dtype, value_mean, value_std (of the population), value_min, value_max

    Raises:
        ValueError, TypeError: as cache_view.layers
    """
    tensors = [tensor for pair in cache_view.layers(cache) for tensor in pair]
    count = sum(tensor.numel() for tensor in tensors)
    mean = sum(tensor.double().sum().item() for tensor in tensors) / count
    variance = sum((tensor.double() - mean).square().sum().item() for tensor in tensors) / count
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    described: Dict[str, Any] = _describe(cache, "").to_dict()
    del described["model_name"]
    return {
        **described,
        "dtype": _dtype_name(tensors[0].dtype),
        "total_elements": count,
        "total_bytes": size,
        "total_mb": size / 2**20,
        "value_mean": mean,
        "value_std": variance**0.5,
        "value_min": min(tensor.double().min().item() for tensor in tensors),
        "value_max": max(tensor.double().max().item() for tensor in tensors),
    }


def _describe(cache: Any, model_name: str) -> KVCacheMetadata:
    pairs = cache_view.layers(cache)
    _, heads, _, head_dim = pairs[0][0].shape
    return KVCacheMetadata(num_layers=len(pairs), num_kv_heads=heads, seq_len=cache_view.tokens_seen(cache),
                           head_dim=head_dim, dtype=_dtype_name(_saved_dtype(pairs[0][0])), model_name=model_name)


def _read(path: str, device: str) -> Tuple[Dict[str, torch.Tensor], Optional[str]]:
    """The tensors of a file and its metadata's JSON, if any; of a compressed file, through a temporary one."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            embedded = file.metadata() or {}
        if "kvcompress.version" not in embedded:
            return load_file(path, device=device), embedded.get(METADATA_KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    with tempfile.TemporaryDirectory(prefix="kvcompress-") as folder:
        plain = os.path.join(folder, "cache.safetensors")
        decompress_kv_cache(path, plain)
        return load_file(plain, device=device), embedded.get(METADATA_KEY)


def _pairs(tensors: Dict[str, torch.Tensor], path: str) -> List[cache_view.Pair]:
    kinds = {(int(match[1]), match[2]): tensors[name] for name in tensors if (match := TENSOR_NAME.fullmatch(name))}
    count = len(kinds) // 2
    try:
        pairs = [(kinds[index, "key"], kinds[index, "value"]) for index in range(count)]
    except KeyError as error:
        raise ValueError(f"{path} has no tensor layer_{error.args[0][0]}_{error.args[0][1]}") from error
    if not pairs or len(kinds) != 2 * count:
        raise ValueError(f"{path} does not hold layer_0_key, layer_0_value, layer_1_key ... in pairs")
    return pairs


def _sidecar(path: str) -> str:
    return os.fspath(path).removesuffix(".safetensors") + ".metadata.json"


def _saved_dtype(tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in SAVED_DTYPES else torch.float32


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _noted(cache: Any) -> Tuple[str, Any]:
    try:
        return _models.get(cache, ("unknown", None))
    except TypeError:  # a cache of lists, say, has no weak references
        return "unknown", None


def _start(pairs: List[cache_view.Pair], seen: int) -> Dict[str, str]:
    """The position of the first token that is held, unless it is 0 or layers differ in it."""
    starts = {seen - key.shape[2] for key, _ in pairs}
    return {"seq_start": str(starts.pop())} if len(starts) == 1 and starts != {0} else {}


def _name_of(model: Any) -> str:
    return getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
