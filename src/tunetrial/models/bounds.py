"""A bound on the weights of a model whose family is not known, from the sizes in its `config.json`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from tunetrial.core.errors import ModelError
from tunetrial.core.records import Record
from tunetrial.models.families import FAMILIES, Family
from tunetrial.models.sizes import ModelShape, refuse_quantised, shape_as, short, size

# What configurations in transformers call the same size; the first is what most call it.
NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
    "num_key_value_heads": ("num_key_value_heads", "n_kv_heads", "num_kv_heads"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff", "dff", "n_inner", "hidden_dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "embedding_size": ("embedding_size", "word_embed_proj_dim"),
}
EVERY_FAMILY_HAS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERT_WIDTHS = ("moe_intermediate_size", "expert_intermediate_size")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
SHARED_WIDTH = "shared_expert_intermediate_size"
# Keys that begin so tell of layers that keep a state, or convolve, instead of attention; or of embeddings a layer.
OF_MIXERS = ("mamba", "ssm", "linear_", "conv_", "lru_", "rwkv", "recurrent")
# A Mamba block that doubles the hidden size has six squares of it, and its state's (Gu and Dao, arXiv:2312.00752).
MIXER_SQUARES = 8
# Layers that share weights, as ALBERT's do: groups of layers, and layers within one that are their own.
OF_SHARED_LAYERS = ("num_hidden_groups", "inner_group_num")
OF_LAYERED_EMBEDDINGS = "hidden_size_per_layer_input"


class Bound(Record):
    """How many weights a model of an unknown family has if its blocks are made of what those of known families are.

    It says nothing about a model with blocks of another kind.
    """

    low: int
    high: int
    why: str


def bound(config: Mapping[str, Any], where: object = "config.json") -> Bound:
    """Bound the weights that these sizes imply.

    `low` is the embedding and the projections of the known family whose blocks have the fewest weights at these sizes,
    without norms and biases; `high` all of the one whose blocks have the most, with a bias on each projection and a
    layer before the head. What the configuration does not say is taken at its least for `low` and at its most for
    `high`: heads of keys and values (one, or as many as of queries), the width of the MLP (two or four hidden sizes), a
    head of its own. Layers that share weights count once for `low`. Experts count as one MLP, for `low` as wide as one
    of them, for `high` as all with one that is shared, a router and their biases. Where keys tell of layers with a
    state or a convolution instead of attention (Mamba, linear attention), blocks count for `low` without attention, for
    `high` with it and `MIXER_SQUARES` besides.

    Raises:
        ModelError: It lacks a size that every family has or has one that no model has, is already quantised, is of an
            encoder and a decoder, or has embeddings a layer.
    """
    _check(config, where)
    known = {name: found for name in NAMES if (found := _stated(config, name, where)) is not None}
    for name in EVERY_FAMILY_HAS:
        if name not in known:
            named = ", ".join(NAMES[name])
            raise ModelError(f"{where}: {name} is missing, got none of {named}; name a config.json with sizes")
    experts = _first(config, EXPERTS, "experts", where) or 0
    low, leanest = min(_counts(config, known, where, fat=False, experts=experts))
    high, fattest = max(_counts(config, known, where, fat=True, experts=experts))
    why = f"if its blocks are made as in known families: leanest as in {leanest}, fattest as in {fattest}"
    why += f"; its {experts} experts as one and as all" if experts else ""
    if _has_mixers(config):
        why += f"; layers without attention as nothing and as {MIXER_SQUARES} hidden sizes squared"
    return Bound(low=low, high=high, why=why)


def _check(config: Mapping[str, Any], where: object) -> None:
    refuse_quantised(config, where)
    family = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise ModelError(f"{where}: encoder-decoders are not supported, got {family!r}; use a model of one stack")
    if config.get(OF_LAYERED_EMBEDDINGS):
        got = f"got {short(config[OF_LAYERED_EMBEDDINGS])} in a {family}"
        raise ModelError(f"{where}: {OF_LAYERED_EMBEDDINGS}: no known family has it, {got}; use a model without it")


def _stated(config: Mapping[str, Any], name: str, where: object) -> int | None:
    return _first(config, NAMES[name], "hidden_size" if name == "embedding_size" else name, where)


def _first(config: Mapping[str, Any], keys: tuple[str, ...], name: str, where: object) -> int | None:
    """The size under the first of these keys that is set; None where none is."""
    key = next((key for key in keys if config.get(key) is not None), None)
    return None if key is None else size(config, key, name, where, least=0 if name == "experts" else 1)


def _counts(
    config: Mapping[str, Any], known: Mapping[str, int], where: object, *, fat: bool, experts: int
) -> Iterator[tuple[int, str]]:
    """The weights that these sizes imply in every known family that can have them."""
    if not fat:
        known = dict(known) | {"num_hidden_layers": min(known["num_hidden_layers"], _own_layers(config, known, where))}
    layers, hidden = known["num_hidden_layers"], known["hidden_size"]
    width = _width(config, known, where, fat=fat, experts=experts)
    routers = layers * experts * (2 * hidden + width) if fat and experts else 0
    for name, family in FAMILIES.items():
        if _can_have(family, config):
            # The count grows evenly with the width, which for many experts is beyond that of any one MLP.
            shapes = [_shape(config, known, family, w, where, fat=fat) for w in (1, 2)]
            one, two = (_weights(shape, known.get("embedding_size"), fat=fat) for shape in shapes)
            mixers = MIXER_SQUARES * hidden * hidden if fat else -_attention(shapes[0], family)
            other = layers * mixers if _has_mixers(config) else 0
            yield one + (width - 1) * (two - one) + routers + other, name


def _shape(
    config: Mapping[str, Any], known: Mapping[str, int], family: Family, width: int, where: object, *, fat: bool
) -> ModelShape:
    """The shape of a model of this family with these sizes and an MLP of this width."""
    heads = known["num_attention_heads"]
    sizes = {"num_key_value_heads": heads if fat else 1, "max_position_embeddings": 2048 if fat else 2, **known}
    if not fat and (config.get("multi_query") or config.get("kv_lora_rank")):
        sizes["num_key_value_heads"] = 1
    sizes["head_dim"] = known.get("head_dim") or max(known["hidden_size"] // heads, 1)
    if fat:
        parts = [config.get(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")]
        latent = sum(part for part in parts if isinstance(part, int))
        sizes["head_dim"] = max(sizes["head_dim"], latent)
    tied = config.get("tie_word_embeddings")
    switches = {"tie_word_embeddings": (not fat) if tied is None else bool(tied), "pad_token_id": 0}
    switches |= {"type_vocab_size": 2 if fat else 1}
    renamed = {family.keys.get(key, key): value for key, value in (sizes | {"intermediate_size": width}).items()}
    return shape_as(renamed | switches, family, where)


def _own_layers(config: Mapping[str, Any], known: Mapping[str, int], where: object) -> int:
    """Layers that have weights of their own."""
    groups, within = (_first(config, (key,), "num_hidden_layers", where) for key in OF_SHARED_LAYERS)
    return known["num_hidden_layers"] if groups is None else groups * (within or 1)


def _has_mixers(config: Mapping[str, Any]) -> bool:
    return any(value for key, value in config.items() if key.startswith(OF_MIXERS))


def _attention(shape: ModelShape, family: Family) -> int:
    """Weights of the projections of a block's attention."""
    parts = {name: (layer.inputs, *layer.outputs) for name, layer in family.projections.items()}
    return sum(math.prod(shape.projections[name]) for name in parts if "intermediate" not in parts[name])


def _weights(shape: ModelShape, embedding: int | None, *, fat: bool) -> int:
    """For the lean those of embedding, projections and head; for the fat all, with a bias on every projection and what
    encoders with a language-model head have before it: a square layer and its norm."""
    tables = 1 if shape.tied or not shape.decoder else 2
    narrow, wide = min(shape.hidden, embedding or shape.hidden), max(shape.hidden, embedding or 0)
    if not fat:
        blocks = sum(math.prod(sizes) for sizes in shape.projections.values())
        return tables * shape.vocabulary * narrow + shape.layers * blocks
    biases = sum(outputs for name, (_, outputs) in shape.projections.items() if name not in shape.biased)
    wider = tables * (shape.vocabulary + shape.hidden) * (wide - shape.hidden)
    before_head = shape.hidden * (shape.hidden + 3) + shape.vocabulary
    return shape.parameters + shape.layers * biases + wider + before_head


def _can_have(family: Family, config: Mapping[str, Any]) -> bool:
    """Whether a family is not ruled out: learned positions by rotary ones, an encoder by a language model's name."""
    learned = any("positions" in product for product in family.outside)
    rotary = any(key.startswith(("rope", "rotary")) for key in config)
    names = config.get("architectures")
    writes = any(str(name).endswith("ForCausalLM") for name in names) if isinstance(names, list) else False
    return not (learned and rotary) and not (writes and family.encoding is not None)


def _width(config: Mapping[str, Any], known: Mapping[str, int], where: object, *, fat: bool, experts: int) -> int:
    """The width of a block's MLP, of experts for the lean that of one, for the fat that of all with those shared."""
    dense = known.get("intermediate_size") or (4 if fat else 2) * known["hidden_size"]
    if not experts:
        return dense
    one = _first(config, EXPERT_WIDTHS, "intermediate_size", where) or dense
    if not fat:
        return min(dense, one)
    shared = _first(config, (SHARED_WIDTH,), "intermediate_size", where)
    if shared is None:
        stated = _first(config, SHARED_EXPERTS, "experts", where)
        shared = (1 if stated is None else stated) * one
    return max(dense, experts * one + shared)
