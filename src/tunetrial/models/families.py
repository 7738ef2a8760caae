"""The families of models: what their `config.json` calls each size, and what one block is made of.

A projection's name is the end of its path within the block, as short as it may be and still be the only one:
`q_proj`, but `attn.c_proj` and `mlp.c_proj`. Sizes, biases and norms are those of the modules in transformers 5.
"""

from typing import Literal

from tunetrial.core.records import Record

Bias = bool | str


class Projection(Record):
    """A linear layer of a block: names of sizes (the sum of several where it is fused), and its bias.

    `bias` may be the name of the switch in `config.json` that decides.
    """

    inputs: str
    outputs: tuple[str, ...]
    bias: Bias = False


class Encoding(Record):
    """How an encoder is read: by its first token's state, through what Hugging Face's classifier has between.

    `dense` and `output` are the layers' names in that classifier; `pooled` says that `dense` is pretrained, a part of
    the backbone.
    """

    dense: str
    pooled: bool
    activation: Literal["tanh", "relu"]
    output: str


class Family(Record):
    """One family. `norms` are the weights of a block's norms, `outside` those of the backbone beside blocks and token
    embedding, both as products of sizes.

    `keys` are the family's own names of sizes and `defaults` the values of keys that `config.json` may leave out.
    `refused` are switches that change what the model computes and are not supported, with their harmless values.
    `own_width` says that an absent intermediate size is four hidden sizes.
    `prefix` is the backbone's name in Hugging Face's classifier. `offset_positions` says that positions begin after
    the padding token's number, `transposed` that weights are stored as (inputs, outputs).
    """

    projections: dict[str, Projection]
    norms: tuple[str, ...]
    outside: tuple[str, ...]
    keys: dict[str, str] = {}
    defaults: dict[str, object] = {}
    refused: dict[str, tuple] = {}
    prefix: str = "model"
    encoding: Encoding | None = None
    head_bias: bool = False
    offset_positions: bool = False
    own_width: bool = False
    transposed: bool = False


def _attention(bias: Bias, output_bias: Bias, output: str = "o_proj") -> dict[str, Projection]:
    return {
        "q_proj": Projection(inputs="hidden", outputs=("queries",), bias=bias),
        "k_proj": Projection(inputs="hidden", outputs=("keys",), bias=bias),
        "v_proj": Projection(inputs="hidden", outputs=("keys",), bias=bias),
        output: Projection(inputs="queries", outputs=("hidden",), bias=output_bias),
    }


def _gated(bias: Bias = False) -> dict[str, Projection]:
    return {
        "gate_proj": Projection(inputs="hidden", outputs=("intermediate",), bias=bias),
        "up_proj": Projection(inputs="hidden", outputs=("intermediate",), bias=bias),
        "down_proj": Projection(inputs="intermediate", outputs=("hidden",), bias=bias),
    }


def _plain(up: str, down: str) -> dict[str, Projection]:
    return {
        up: Projection(inputs="hidden", outputs=("intermediate",), bias=True),
        down: Projection(inputs="intermediate", outputs=("hidden",), bias=True),
    }


def _square(*names: str, bias: Bias = True) -> dict[str, Projection]:
    return {name: Projection(inputs="hidden", outputs=("hidden",), bias=bias) for name in names}


def _decoder(projections: dict[str, Projection], **other) -> Family:
    """A decoder with root-mean-square norms and rotary positions."""
    return Family(**{"projections": projections, "norms": ("2 hidden",), "outside": ("hidden",)} | other)


_SWITCHED = _attention("attention_bias", "attention_bias") | _gated("mlp_bias")
_UNBIASED = _attention(False, False) | _gated()
_BERT = {
    **_square("query", "key", "value", "attention.output.dense"),
    **_plain("intermediate.dense", "output.dense"),
}
_EMBEDDINGS = ("positions hidden", "types hidden", "2 hidden")
_ONE_WAY = {"use_bidirectional_attention": (None, False)}
_ENCODER = {
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "position_embedding_type": (None, "absolute"),
}


def _defaults(context: int, *, tied: bool = False, **other: object) -> dict[str, object]:
    return {"max_position_embeddings": context, "tie_word_embeddings": tied} | other


FAMILIES: dict[str, Family] = {
    "llama": _decoder(_SWITCHED, defaults=_defaults(2048)),
    "mistral": _decoder(_UNBIASED, defaults=_defaults(131072, num_key_value_heads=8)),
    "qwen2": _decoder(_attention(True, False) | _gated(), defaults=_defaults(32768, num_key_value_heads=32)),
    "qwen3": _decoder(
        _attention("attention_bias", "attention_bias") | _gated(),
        norms=("2 hidden", "2 head_dim"),
        defaults=_defaults(32768, num_key_value_heads=32, head_dim=128),
    ),
    "gemma": _decoder(
        _attention("attention_bias", "attention_bias") | _gated(),
        defaults=_defaults(8192, tied=True, num_key_value_heads=16, head_dim=256),
        refused=_ONE_WAY,
    ),
    "gemma2": _decoder(
        _attention("attention_bias", "attention_bias") | _gated(),
        norms=("4 hidden",),
        defaults=_defaults(8192, tied=True, num_key_value_heads=4, head_dim=256),
        refused=_ONE_WAY,
    ),
    "gemma3_text": _decoder(
        _attention("attention_bias", "attention_bias") | _gated(),
        norms=("4 hidden", "2 head_dim"),
        defaults=_defaults(
            131072, tied=True, num_attention_heads=8, num_key_value_heads=4, head_dim=256, vocab_size=262208
        ),
        refused=_ONE_WAY,
    ),
    "phi": _decoder(
        _attention(True, True, "dense") | _plain("fc1", "fc2"),
        outside=("2 hidden",),
        defaults=_defaults(2048),
        refused={"qk_layernorm": (None, False)},
        head_bias=True,
    ),
    "phi3": _decoder(
        {
            "qkv_proj": Projection(inputs="hidden", outputs=("queries", "keys", "keys")),
            "o_proj": Projection(inputs="queries", outputs=("hidden",)),
            "gate_up_proj": Projection(inputs="hidden", outputs=("intermediate", "intermediate")),
            "down_proj": Projection(inputs="intermediate", outputs=("hidden",)),
        },
        defaults=_defaults(4096),
    ),
    "gpt2": _decoder(
        {
            "c_attn": Projection(inputs="hidden", outputs=("hidden", "hidden", "hidden"), bias=True),
            **_square("attn.c_proj"),
            **_plain("c_fc", "mlp.c_proj"),
        },
        norms=("4 hidden",),
        outside=("positions hidden", "2 hidden"),
        keys={
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
        },
        defaults={"tie_word_embeddings": True, "n_positions": 1024, "n_inner": None},
        own_width=True,
        refused={"add_cross_attention": (None, False)},
        prefix="transformer",
        transposed=True,
    ),
    "gpt_neox": _decoder(
        {
            "query_key_value": Projection(
                inputs="hidden", outputs=("hidden", "hidden", "hidden"), bias="attention_bias"
            ),
            **_square("dense", bias="attention_bias"),
            **_plain("dense_h_to_4h", "dense_4h_to_h"),
        },
        norms=("4 hidden",),
        outside=("2 hidden",),
        defaults=_defaults(2048, attention_bias=True),
        prefix="gpt_neox",
    ),
    "bert": Family(
        projections=_BERT,
        norms=("4 hidden",),
        outside=(*_EMBEDDINGS, "hidden hidden", "hidden"),
        defaults=_defaults(512, tied=True, type_vocab_size=2),
        refused=_ENCODER,
        prefix="bert",
        encoding=Encoding(dense="bert.pooler.dense", pooled=True, activation="tanh", output="classifier"),
    ),
    "roberta": Family(
        projections=_BERT,
        norms=("4 hidden",),
        outside=_EMBEDDINGS,
        defaults=_defaults(512, tied=True, type_vocab_size=2, pad_token_id=1),
        refused=_ENCODER,
        prefix="roberta",
        encoding=Encoding(dense="classifier.dense", pooled=False, activation="tanh", output="classifier.out_proj"),
        offset_positions=True,
    ),
    "distilbert": Family(
        projections=_square("q_lin", "k_lin", "v_lin", "out_lin") | _plain("lin1", "lin2"),
        norms=("4 hidden",),
        outside=("positions hidden", "2 hidden"),
        keys={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
            "intermediate_size": "hidden_dim",
        },
        defaults=_defaults(512, tied=True),
        prefix="distilbert",
        encoding=Encoding(dense="pre_classifier", pooled=False, activation="relu", output="classifier"),
    ),
}
