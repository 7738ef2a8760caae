"""The sizes of a model from its `config.json`: enough to count weights without loading any. No torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tunetrial.core.errors import ModelError
from tunetrial.core.records import Record
from tunetrial.models.families import FAMILIES, Encoding, Family

BYTES_PER_WEIGHT = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


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
        ModelError: `config.json` is not JSON, lacks a size, brings code of its own, is already quantised, or is of a
            family, or sets a switch, that is not supported.
    """
    where = folder / "config.json"
    try:
        config = json.loads(where.read_text(encoding="utf-8"))
        check(config, where)
        return _shape(config, FAMILIES[config["model_type"]])
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        raise ModelError(f"{where}: not a model configuration, got {error}; restore the file") from None
    except KeyError as error:
        raise ModelError(f"{where}: {error.args[0]}: missing, got no such key; restore the file") from None
    except TypeError:
        raise ModelError(f"{where}: a size is not a number; restore the file") from None


def check(config: Mapping, where: object) -> None:
    """Refuse what cannot be loaded or would not be computed as its makers meant.

    Code that a repository brings along (`auto_map`) is never run: a known family is computed by transformers' own.

    Raises:
        ModelError: See `shape`.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        own = " (its repository's own code is never run)" if config.get("auto_map") else ""
        raise ModelError(f"{where}: model_type: family not supported{own}, got {family!r}; use one of {known}")
    if quantised := config.get("quantization_config"):
        kind = quantised.get("quant_method")
        raise ModelError(f"{where}: the weights are quantised, got {kind!r}; name the model that they were made from")
    for switch, harmless in FAMILIES[family].refused.items():
        if config.get(switch) not in harmless:
            got = f"got {config[switch]!r} in a {family}"
            raise ModelError(f"{where}: {switch}: not supported, {got}; use a model without it")


def _shape(config: dict, family: Family) -> ModelShape:
    config = family.defaults | config
    read = lambda key: config[family.keys.get(key, key)]  # noqa: E731
    hidden, heads = read("hidden_size"), read("num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    sizes = {
        "hidden": hidden,
        "head_dim": head_dim,
        "queries": heads * head_dim,
        "keys": kv_heads * head_dim,
        "intermediate": read("intermediate_size") or 4 * hidden,
        "positions": read("max_position_embeddings"),
        "types": config.get("type_vocab_size"),
    }
    first_position = config["pad_token_id"] + 1 if family.offset_positions else 0
    return ModelShape(
        model_type=config["model_type"],
        layers=read("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=sizes["intermediate"],
        vocabulary=config["vocab_size"],
        context=sizes["positions"] - first_position,
        tied=bool(config["tie_word_embeddings"]),
        bytes_per_weight=BYTES_PER_WEIGHT.get(config.get("dtype") or config.get("torch_dtype") or "float32", 2),
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


def _is_on(switch: bool | str, config: Mapping) -> bool:
    return switch if isinstance(switch, bool) else bool(config.get(switch))


def _count(products: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """Sum products such as "2 hidden" or "positions hidden"."""
    factors = lambda product: (int(f) if f.isdigit() else sizes[f] for f in product.split())  # noqa: E731
    return sum(math.prod(factors(product)) for product in products)
