"""Sizes written inline, where there is neither a model nor its `config.json`.

    text  = family ":" entry { "," entry }
    entry = size "=" digits | "dtype=" dtype | "tied"
    size  = "layers" | "hidden" | "heads" | "kv_heads" | "head_dim" | "intermediate" | "vocabulary" | "context"

Every entry is written once, in any order; spaces around one do not count. A family is one of `FAMILIES`. Heads of keys
and values are as many as of queries and a head is hidden / heads wide unless written; the embedding is not tied to the
head, and weights are bfloat16 in their files, unless written. Nothing else has a default.
"""

import re
from difflib import get_close_matches
from typing import Any

from tunetrial.core.errors import ModelError
from tunetrial.models.families import FAMILIES, Family
from tunetrial.models.sizes import BYTES_PER_WEIGHT, short

KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
}
MAY_BE_LEFT_OUT = {"kv_heads", "head_dim"}
EXAMPLE = "llama:layers=16,hidden=2048,heads=32,kv_heads=8,intermediate=8192,vocabulary=128256,context=131072,tied"
IS_WRITTEN = re.compile(r"\s*\w+\s*:(?![\\/])", re.ASCII)
DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)


def read_written(text: str) -> dict[str, Any]:
    """Turn inline sizes into what a `config.json` of that family says.

    Whether the sizes can be those of a model is for `shape_of` to say.

    Raises:
        ModelError: The text does not follow the grammar above.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in FAMILIES:
        raise ModelError(f"model: unknown family, got {name!r}; use {_nearest(name, tuple(FAMILIES))}")
    family = FAMILIES[name]
    found: dict[str, str] = {}
    for entry in rest.split(","):
        key, equals, value = (part.strip() for part in entry.partition("="))
        if not key:
            raise ModelError(f"model: an entry is empty, got {short(text)}; write as in {EXAMPLE}")
        _check_key(key, bool(equals), family, name)
        if key in found:
            raise ModelError(f"model: {key}: written twice, got {found[key]} and {short(value)}; write it once")
        found[key] = value
    missing = [key for key in KEYS if key not in found and key not in MAY_BE_LEFT_OUT]
    if missing:
        got = ", ".join(found)
        raise ModelError(f"model: {', '.join(missing)} missing, got {got}; write as in {EXAMPLE}")
    sizes = {key: _digits(key, found[key]) for key in KEYS if key in found}
    if "kv_heads" in _own(family):
        sizes.setdefault("kv_heads", sizes["heads"])
    if "head_dim" in _own(family) and "head_dim" not in sizes:
        sizes["head_dim"] = _head_dim(sizes)
    config = {family.keys.get(KEYS[key], KEYS[key]): value for key, value in sizes.items()}
    config |= {"model_type": name, "dtype": _dtype(found.get("dtype", "bfloat16"))}
    return config | ({"tie_word_embeddings": "tied" in found} if family.encoding is None else {})


def _own(family: Family) -> set[str]:
    """Sizes that some families alone have."""
    outputs = {part for layer in family.projections.values() for part in layer.outputs}
    return ({"kv_heads"} if "keys" in outputs else set()) | ({"head_dim"} if "queries" in outputs else set())


def _check_key(key: str, has_value: bool, family: Family, name: str) -> None:
    own = _own(family)
    sizes = [size for size in KEYS if size not in MAY_BE_LEFT_OUT or size in own]
    known = (*sizes, "dtype", *(("tied",) if family.encoding is None else ()))
    if key not in known:
        raise ModelError(f"model: {name} has no such size, got {short(key)}; use {_nearest(key, known)}")
    if has_value == (key == "tied"):
        what = "has no value" if key == "tied" else "has a value"
        do = "write tied alone" if key == "tied" else f"write {key}=..."
        raise ModelError(f"model: {key}: {what}, got {'=' if has_value else 'none'}; {do}")


def _digits(key: str, value: str) -> int:
    if DIGITS.fullmatch(value) is None:
        raise ModelError(f"model: {key}: must be digits alone, got {short(value)}; write as in {key}=2048")
    return int(value)


def _head_dim(sizes: dict[str, int]) -> int:
    hidden, heads = sizes["hidden"], sizes["heads"]
    if not heads or hidden % heads:
        got = f"got hidden {hidden} and {heads} heads"
        raise ModelError(f"model: head_dim: hidden is no multiple of heads, {got}; write head_dim=...")
    return hidden // heads


def _dtype(value: str) -> str:
    if value not in BYTES_PER_WEIGHT:
        raise ModelError(f"model: dtype: unknown, got {short(value)}; use {_nearest(value, tuple(BYTES_PER_WEIGHT))}")
    return value


def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    return " or ".join(close) if close else f"one of {', '.join(known)}"
