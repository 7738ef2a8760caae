"""A bound on the weights of a model whose family is not known, from the sizes in its `config.json`."""

from collections.abc import Iterator, Mapping
from typing import Any

from tunetrial.core.errors import ModelError
from tunetrial.core.records import Record
from tunetrial.models.families import FAMILIES, Family
from tunetrial.models.sizes import refuse_quantised, shape_as, size

# What configurations in transformers call the same size; the first is what most call it.
NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_key_value_heads", "n_kv_heads", "num_kv_heads"),
    "intermediate_size": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
EXPERT_WIDTHS = ("moe_intermediate_size", "expert_intermediate_size")
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts")
SHARED_WIDTH = "shared_expert_intermediate_size"


class Bound(Record):
    """How many weights a model of an unknown family has if each of its blocks is made like one of a known family:
    from the leanest of those to the fattest. It says nothing about a model with blocks of another kind."""

    low: int
    high: int
    why: str


def bound(config: Mapping[str, Any], where: object = "config.json") -> Bound:
    """Bound the weights that these sizes imply.

    Every known family's blocks, embeddings and head are counted with the sizes given (`ModelShape.parameters`). What
    the configuration does not say is taken at its least for `low` and at its most for `high`: heads of keys and values
    (one, or as many as of queries), the width of the MLP (two to four hidden sizes), a head of its own, biases,
    learned positions. Experts count as one MLP: as wide as one of them for `low`, as wide as all for `high`.

    Raises:
        ModelError: It lacks a size that every family has or has one that no model has, is already quantised, or is of
            an encoder and a decoder.
    """
    refuse_quantised(config, where)
    if config.get("is_encoder_decoder"):
        family = config.get("model_type")
        raise ModelError(f"{where}: encoder-decoders are not supported, got {family!r}; use a model of one stack")
    known = {name: found for name in NAMES if (found := _stated(config, name, where)) is not None}
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if name not in known:
            named = f"{', '.join(NAMES[name])}" if len(NAMES[name]) > 1 else "no such key"
            raise ModelError(f"{where}: {name} is missing, got none of {named}; name a config.json with sizes")
    experts = _count(config, EXPERTS, where)
    counts = {fat: sorted(_counts(config, known, where, fat=fat, experts=experts)) for fat in (False, True)}
    (low, leanest), (high, fattest) = counts[False][0], counts[True][-1]
    together = f"; its {experts} experts as one and as all" if experts else ""
    why = f"if its blocks are like those of a known family: leanest as in {leanest}, fattest as in {fattest}{together}"
    return Bound(low=low, high=high, why=why)


def _stated(config: Mapping[str, Any], name: str, where: object) -> int | None:
    key = next((key for key in NAMES[name] if config.get(key) is not None), None)
    return None if key is None else size(config, key, name, where)


def _count(config: Mapping[str, Any], keys: tuple[str, ...], where: object) -> int:
    """How many experts a block has by one of these keys; none in a dense model."""
    key = next((key for key in keys if config.get(key) is not None), None)
    return 0 if key is None else size(config, key, "experts", where, least=0)


def _counts(
    config: Mapping[str, Any], known: Mapping[str, int], where: object, *, fat: bool, experts: int
) -> Iterator[tuple[int, str]]:
    """The weights that these sizes imply in every known family that can have them."""
    hidden, heads = known["hidden_size"], known["num_attention_heads"]
    sizes = {
        "num_key_value_heads": heads if fat else 1,
        "head_dim": max(hidden // heads, 1),
        "max_position_embeddings": 2048 if fat else 2,
        **known,
    }
    tied = config.get("tie_word_embeddings")
    switches = {"tie_word_embeddings": (not fat) if tied is None else bool(tied), "pad_token_id": 0}
    switches |= {"attention_bias": fat, "mlp_bias": fat, "type_vocab_size": 2 if fat else 1}
    width = _width(config, known, where, fat=fat, experts=experts)
    routers = known["num_hidden_layers"] * experts * hidden if fat else 0
    for name, family in FAMILIES.items():
        if _can_have(family, config):
            # The count grows evenly with the width, which for many experts is beyond that of any one MLP.
            one, two = (
                shape_as(_renamed(sizes | {"intermediate_size": w}, family) | switches, family, where).parameters
                for w in (1, 2)
            )
            yield one + (width - 1) * (two - one) + routers, name


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
    key = next((key for key in EXPERT_WIDTHS if config.get(key) is not None), None)
    one = size(config, key, "intermediate_size", where) if key else dense
    if not fat:
        return min(dense, one)
    shared = _count(config, SHARED_EXPERTS, where) * one
    if config.get(SHARED_WIDTH) is not None:
        shared = size(config, SHARED_WIDTH, "intermediate_size", where)
    return max(dense, experts * one + shared)


def _renamed(sizes: Mapping[str, int], family: Family) -> dict[str, Any]:
    return {family.keys.get(name, name): value for name, value in sizes.items()}
