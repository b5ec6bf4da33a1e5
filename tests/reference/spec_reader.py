"""Canonical codec specs, by the grammar of docs/format.md."""

import dataclasses
import re

TRANSFORMS = {"sparse", "clip", "clip_range", "clip_sigma", "truncate", "cast", "clamp", "fallback"}
BYTE_CODECS = {"huffman", "rans", "arithmetic", "cabac", "smallest", "stored", "lz4", "zstd"}


@dataclasses.dataclass
class Stage:
    name: str
    options: dict  # key: value, or label: chain


@dataclasses.dataclass
class Chain:
    transforms: list
    codec: Stage
    byte_codecs: list


def split_outside(text, separator):
    """The parts of a text between separators that stand in no parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def read_stage(text):
    name, _, rest = text.partition("(")
    options = {}
    for argument in split_outside(rest[:-1], ",") if rest else []:
        label, colon, chain = argument.partition(":")
        if colon and re.fullmatch(r"[0-9-]+", label):
            options[label] = read_spec(chain)
        else:
            key, _, value = argument.partition("=")
            options[key] = value
    return Stage(name, options)


def read_spec(text):
    stages = [read_stage(part) for part in split_outside(text, "|")]
    transforms = [stage for stage in stages if stage.name in TRANSFORMS]
    byte_codecs = [stage for stage in stages if stage.name in BYTE_CODECS]
    codec, = (stage for stage in stages if stage.name not in TRANSFORMS | BYTE_CODECS)
    assert stages == [*transforms, codec, *byte_codecs], text
    return Chain(transforms, codec, byte_codecs)
