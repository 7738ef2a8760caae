"""The sizes of a model from its `config.json`: enough to count weights without loading any. No torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tunetrial.core.errors import ModelError
from tunetrial.core.records import Record
from tunetrial.models.families import FAMILIES, Encoding, Family

BYTES_PER_WEIGHT = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Beyond any model there is by a factor of five at least (Llama 3.1 405B has 126 layers and a hidden size of 16384,
# Gemma 3 a vocabulary of 262208, Llama 4 Scout a context of 10485760): a size above is taken for a mistake.
LARGEST = {
    "num_hidden_layers": 1024,
    "hidden_size": 2**17,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
    "intermediate_size": 2**20,
    "vocab_size": 2**23,
    "max_position_embeddings": 2**27,
    "type_vocab_size": 2**16,
    "experts": 2**16,
}
LARGEST_FILE_BYTES = 2**22


class ModelShape(Record):
    """The sizes of a base model.

    `projections` are the linear layers of one block: name -> (inputs, outputs); those in `biased` have a bias besides.
    A layer belongs to the longest name that its path ends with (`projection`). `norms` and `outside` count weights:
    of one block's norms, and of the backbone beside blocks and token embedding. `first_position` numbers a row's first
    position; `transposed` weights are stored as (inputs, outputs). An encoder has an `encoding` and no language-model
    head; `prefix` is the backbone's name in Hugging Face's classifier.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    tied: bool
    bytes_per_weight: int
    projections: dict[str, tuple[int, int]]
    biased: tuple[str, ...] = ()
    norms: int
    outside: int
    prefix: str = "model"
    head_bias: bool = False
    first_position: int = 0
    transposed: bool = False
    encoding: Encoding | None = None

    @property
    def decoder(self) -> bool:
        """Whether it writes text: an encoder reads only."""
        return self.encoding is None

    @property
    def pooling(self) -> Literal["last", "first"]:
        """The token whose state stands for the row."""
        return "last" if self.decoder else "first"

    @property
    def block_parameters(self) -> int:
        """Weights of one block: its projections, their biases, and its norms."""
        weights = sum(inputs * outputs for inputs, outputs in self.projections.values())
        return weights + sum(self.projections[name][1] for name in self.biased) + self.norms

    @property
    def backbone_parameters(self) -> int:
        """Embeddings, blocks and what is around them; without the language-model head."""
        return self.vocabulary * self.hidden + self.layers * self.block_parameters + self.outside

    @property
    def parameters(self) -> int:
        """All weights, a tied head counted once; an encoder has no head."""
        if not self.decoder:
            return self.backbone_parameters
        head = 0 if self.tied else self.vocabulary * self.hidden
        return self.backbone_parameters + head + (self.vocabulary if self.head_bias else 0)

    def readout_parameters(self, outputs: int) -> int:
        """Weights of a classifier's head: one bias-free layer after a decoder; after an encoder one with a bias, and a
        square one before it unless that is the backbone's own."""
        if self.encoding is None:
            return self.hidden * outputs
        dense = 0 if self.encoding.pooled else self.hidden * self.hidden + self.hidden
        return dense + self.hidden * outputs + outputs

    def projection(self, path: str) -> str | None:
        """The projection that the linear layer at this path of the backbone is; None for a layer outside the blocks."""
        fitting = [name for name in self.projections if f".{path}".endswith(f".{name}")]
        return max(fitting, key=len, default=None)


def shape(folder: Path) -> ModelShape:
    """Read the shape of the model in `folder`.

    Raises:
        ModelError: See `read_config` and `shape_of`.
    """
    where = folder / "config.json"
    return shape_of(read_config(where), where)


def read_config(path: Path) -> dict[str, Any]:
    """Read a `config.json` as it is.

    Raises:
        ModelError: There is no such file, or it is not a JSON object.
    """
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            got = f"got {path.stat().st_size} bytes"
            raise ModelError(f"{path}: not a model configuration, {got}; name a config.json or the folder that has one")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        got = f"got {error.strerror or type(error).__name__}"
        raise ModelError(f"{path}: no config.json, {got}; name a model in the Hugging Face layout") from None
    except (ValueError, RecursionError) as error:
        got = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ModelError(f"{path}: not JSON, got {got}; restore the file") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: not a JSON object, got {type(config).__name__}; restore the file")
    return config


def shape_of(config: Mapping[str, Any], where: object = "config.json") -> ModelShape:
    """The shape of a model with this configuration; `where` begins the message of an error.

    Raises:
        ModelError: It lacks a size or has one that no model has, brings code of its own, is already quantised, or is
            of a family, or sets a switch, that is not supported.
    """
    check(config, where)
    return shape_as(config, FAMILIES[config["model_type"]], where)


def check(config: Mapping[str, Any], where: object) -> None:
    """Refuse what cannot be loaded or would not be computed as its makers meant.

    Code that a repository brings along (`auto_map`) is never run: a known family is computed by transformers' own.

    Raises:
        ModelError: See `shape_of`.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(FAMILIES)
        own = " (its repository's own code is never run)" if config.get("auto_map") else ""
        raise ModelError(f"{where}: model_type: family not supported{own}, got {family!r}; use one of {known}")
    refuse_quantised(config, where)
    for switch, harmless in FAMILIES[family].refused.items():
        if config.get(switch) not in harmless:
            got = f"got {config[switch]!r} in a {family}"
            raise ModelError(f"{where}: {switch}: not supported, {got}; use a model without it")


def refuse_quantised(config: Mapping[str, Any], where: object) -> None:
    """Refuse a model whose weights are stored quantised: their sizes are not those of its layers.

    Raises:
        ModelError: It is.
    """
    if quantised := config.get("quantization_config"):
        kind = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise ModelError(f"{where}: the weights are quantised, got {kind!r}; name the model that they were made from")


def size(config: Mapping[str, Any], key: str, name: str, where: object, *, least: int = 1) -> int:
    """The size that a configuration has under `key`; `name` is what `LARGEST` calls it.

    Raises:
        ModelError: It is missing, no whole number, or beyond `LARGEST`.
    """
    if key not in config:
        raise ModelError(f"{where}: {key} is missing, got no such key; restore the file")
    value, most = config[key], LARGEST[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ModelError(f"{where}: {key}: must be a whole number from {least} to {most}, got {short(value)}; mend it")
    return value


def shape_as(config: Mapping[str, Any], family: Family, where: object) -> ModelShape:
    """The shape of a model of this family, whatever its configuration calls itself.

    Raises:
        ModelError: It lacks a size, or has one that no model has.
    """
    config = family.defaults | dict(config)
    sizes = _sizes(config, family, where)
    first_position = size(config, "pad_token_id", "vocab_size", where, least=0) + 1 if family.offset_positions else 0
    if sizes["positions"] <= first_position:
        key = family.keys.get("max_position_embeddings", "max_position_embeddings")
        raise ModelError(f"{where}: {key}: must be above {first_position}, got {sizes['positions']}; mend it")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return ModelShape(
        model_type=str(config.get("model_type")),
        layers=sizes["layers"],
        hidden=sizes["hidden"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        intermediate=sizes["intermediate"],
        vocabulary=size(config, "vocab_size", "vocab_size", where),
        context=sizes["positions"] - first_position,
        tied=bool(config["tie_word_embeddings"]),
        bytes_per_weight=BYTES_PER_WEIGHT.get(str(dtype), 2),
        projections={
            name: (sizes[layer.inputs], sum(sizes[part] for part in layer.outputs))
            for name, layer in family.projections.items()
        },
        biased=tuple(name for name, layer in family.projections.items() if _is_on(layer.bias, config)),
        norms=_count(family.norms, sizes),
        outside=_count(family.outside, sizes),
        prefix=family.prefix,
        head_bias=family.head_bias,
        first_position=first_position,
        transposed=family.transposed,
        encoding=family.encoding,
    )


def _sizes(config: Mapping[str, Any], family: Family, where: object) -> dict[str, int]:
    """Sizes under the names that families' tables use."""

    def read(name: str, least: int = 1) -> int:
        return size(config, family.keys.get(name, name), name, where, least=least)

    def stated(name: str) -> bool:
        return config.get(family.keys.get(name, name)) is not None

    hidden, heads = read("hidden_size"), read("num_attention_heads")
    kv_heads = read("num_key_value_heads") if stated("num_key_value_heads") else heads
    if heads % kv_heads:
        got = f"got {kv_heads} and {heads}"
        raise ModelError(f"{where}: num_key_value_heads: must divide the number of heads, {got}; mend it")
    if not stated("head_dim") and hidden % heads:
        key, got = family.keys.get("hidden_size", "hidden_size"), f"got {hidden} and {heads}"
        raise ModelError(f"{where}: {key}: must be a multiple of the number of heads, {got}; mend it or give head_dim")
    head_dim = read("head_dim") if stated("head_dim") else hidden // heads
    return {
        "layers": read("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "queries": heads * head_dim,
        "keys": kv_heads * head_dim,
        "intermediate": 4 * hidden
        if family.own_width and not stated("intermediate_size")
        else read("intermediate_size"),
        "positions": read("max_position_embeddings"),
        "types": read("type_vocab_size") if stated("type_vocab_size") else 0,
    }


def _is_on(switch: bool | str, config: Mapping) -> bool:
    return switch if isinstance(switch, bool) else bool(config.get(switch))


def _count(products: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """Sum products such as "2 hidden" or "positions hidden"."""
    factors = lambda product: (int(f) if f.isdigit() else sizes[f] for f in product.split())  # noqa: E731
    return sum(math.prod(factors(product)) for product in products)


def short(value: object) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
