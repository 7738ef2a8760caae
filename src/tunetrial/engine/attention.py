"""Batches without padding: all rows of a batch laid end to end, so that linear layers and norms see real tokens alone.

Attention is the one place where rows must not meet. On newer GPUs a kernel is told where they begin and end
(`varlen`). Elsewhere queries, keys and values are laid out in a padded grid, attended, and gathered back: what stands
to the right of a row's end cannot reach its tokens, by causality or by a mask, and the grid's empty cells are never
gathered: the result is that of the padded batch.

The number of tokens is rounded up to a bucket, with idle tokens that nothing reads: kernels are prepared once a shape,
and on a CPU preparing one costs more than running it. On CUDA buckets widen with the number, so that few shapes occur;
the grid's columns are rounded up too: cuDNN plans its attention anew for each number of them, which took over 0.1 s
each on an H200, three times the rest of a step.

    model = load(folder, AutoModelForCausalLM, torch.float32, torch.device("cpu"))
    layout = lay_out([[5, 6, 7], [8, 9]], model.device)
    last = states(model, layout)[layout.last]                 # (rows, hidden)
    logits(model, states(model, layout)[layout.last])         # (rows, vocabulary)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AutoModel, PreTrainedModel
from transformers.utils import logging

from tunetrial import models
from tunetrial.core.errors import ModelError
from tunetrial.engine import place, varlen
from tunetrial.engine.segments import Segments, over

UNPADDED = "tunetrial_unpadded"
TOKEN_BUCKET = 64
WIDE_BUCKET, IDLE_SHARE = {"cuda": 256}, 16
COLUMN_BUCKET = {"cuda": 32}
SHORTEST_MOST = 1024
PROOF_LENGTHS = (24, 1, 9, 17)
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
WITHOUT_EFFECT = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict"}


@dataclass(frozen=True)
class Layout:
    """Rows end to end: ids and positions (1, tokens), each real token's cell in the grid, the rows' first and last
    tokens. Positions count from 0 in each row; idle tokens have id and position 0. `longest` are the grid's columns.

    `bounds` are where rows begin, int32, idle tokens being rows of their own, and where the last one ends: there are
    ceil(rows / 16) of those, empty or not, and no row is longer than `most`, so that shapes follow from the numbers of
    tokens and rows and from `most` alone. `segments` say which rows and tokens are of which member of a pack.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    cells: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    rows: int
    longest: int
    bounds: torch.Tensor
    most: int
    segments: Segments
    _hidden: dict[tuple[bool, int | None], torch.Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What a pass reads of it where rows are attended as they lie; their shapes, `most` and members are `shape`."""
        return self.ids, self.positions, self.first, self.last, self.bounds, self.segments.ends

    @property
    def shape(self) -> tuple[int, ...]:
        members = self.segments.members
        return self.ids.shape[1], self.rows, self.most, members.start, members.stop

    def hidden(self, *, causal: bool, window: int | None) -> torch.Tensor:
        """The keys that a query does not see, as (longest, longest) or (rows, 1, 1, longest); made once a batch."""
        if (causal, window) not in self._hidden:
            self._hidden[causal, window] = self._make_hidden(window) if causal else self.empty()[:, None, None]
        return self._hidden[causal, window]

    def _make_hidden(self, window: int | None) -> torch.Tensor:
        ones = torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.ids.device)
        return ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)

    def empty(self) -> torch.Tensor:
        """The grid's empty cells (rows, longest)."""
        ones = torch.ones(self.rows * self.longest, dtype=torch.bool, device=self.ids.device)
        return ones.index_fill(0, self.cells, False).unflatten(0, (self.rows, self.longest))

    def grid(self, flat: torch.Tensor) -> torch.Tensor:
        """(tokens, ...) -> (rows, longest, ...), empty cells 0."""
        real = flat[: len(self.cells)]
        grid = real.new_zeros(self.rows * self.longest, *real.shape[1:]).index_copy(0, self.cells, real)
        return grid.unflatten(0, (self.rows, self.longest))

    def flat(self, grid: torch.Tensor) -> torch.Tensor:
        """(rows, longest, ...) -> (tokens, ...), idle tokens 0."""
        gathered = grid.flatten(0, 1).index_select(0, self.cells)
        idle = self.ids.shape[1] - len(self.cells)
        return nn.functional.pad(gathered, (*(0, 0) * (gathered.ndim - 1), 0, idle))


def lay_out(
    tokens: Sequence[Sequence[int]],
    device: torch.device,
    *,
    members: range = range(1),
    longest: int = 1,
    bucket: int | None = None,
) -> Layout:
    """Lay rows of tokens end to end, and idle tokens after them up to the next bucket.

    Args:
        members: Those of a pack that the rows are of, equally many of each, the first those of the first member.
        longest: How long rows of other batches are, so that batches have their `most` in common.
        bucket: Instead of the device's own: idle tokens, one at least, up to its next multiple.
    """
    reach = max(longest, max(len(row) for row in tokens))
    lengths = np.array([len(row) for row in tokens])
    longest = int(lengths.max())
    longest += -longest % COLUMN_BUCKET.get(place.kind(device), 1)
    ends = lengths.cumsum()
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    cells = positions + np.repeat(np.arange(len(lengths)) * longest, lengths)
    many = len(cells) + bucket - len(cells) % bucket if bucket else _rounded(len(cells), place.kind(device))
    idle = np.zeros(many - len(cells), dtype=np.int64)
    ids = np.concatenate([*(np.asarray(row, dtype=np.int64) for row in tokens), idle])
    positions = np.concatenate([positions, idle])
    most = max(SHORTEST_MOST, 1 << (reach - 1).bit_length())
    idle_ends = ends[-1] + np.minimum(np.arange(1, -(-len(lengths) // 16) + 1) * most, len(idle))
    owned = lengths.reshape(len(members), -1).sum(1)
    stops = owned.cumsum().astype(np.int32)
    stops[-1] = len(ids)
    move = lambda array: on_device(torch.from_numpy(array), device)  # noqa: E731
    return Layout(
        ids=move(ids)[None],
        positions=move(positions)[None],
        cells=move(cells),
        first=move(ends - lengths),
        last=move(ends - 1),
        rows=len(lengths),
        longest=longest,
        bounds=move(np.concatenate([[0], ends, idle_ends]).astype(np.int32)),
        most=most,
        segments=Segments(
            members, (len(lengths) // len(members),) * len(members), tuple(owned.tolist()), ends=move(stops)
        ),
    )


def on_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers of the host on the device: to CUDA from memory that is pinned, since copies of other memory wait for all
    kernels before them."""
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


def _rounded(tokens: int, device_type: str) -> int:
    """The bucket of so many tokens: the next multiple of 64; on a GPU, which fewer do not fill, of 256; from 4,096 up
    of a sixteenth of the largest power of two within them, so that less than a sixteenth is idle."""
    bucket = TOKEN_BUCKET
    if device_type in WIDE_BUCKET:
        bucket = max(WIDE_BUCKET[device_type], (1 << tokens.bit_length() - 1) // IDLE_SHARE)
    return tokens + -tokens % bucket


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; query (1, heads, tokens, head_dim), result (1, tokens, heads, head_dim).

    A module that is causal sees what is before, the last `sliding_window` tokens alone if there is a window; another
    sees its whole row. `softcap` bounds scores by tanh (Gemma 2).

    Raises:
        ModelError: The model asks for what is not computed here.
    """
    causal = getattr(module, "is_causal", None)
    strange = {name for name, value in other.items() if value is not None and name not in WITHOUT_EFFECT}
    strange |= {"dropout"} if dropout else set()
    strange |= {"attention_mask"} if attention_mask is not None else set()
    strange |= {"sliding_window"} if sliding_window is not None and not causal else set()
    if strange or causal is None or layout is None or key.shape[2] != query.shape[2]:
        got = ", ".join(sorted(strange)) or "a call without layout, with cached keys, or of unknown direction"
        raise ModelError(f"{type(module).__name__}: attention without padding: not supported, got {got}; use another")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if causal and softcap is None and varlen.takes(query, query.shape[-1]):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        window = sliding_window if sliding_window is not None and sliding_window < layout.most else None
        return varlen.attend(q, k, v, layout.bounds, layout.most, scaling=scaling, window=window)[None], None
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest else None
    q, k, v = (layout.grid(x[0].transpose(0, 1)).transpose(1, 2) for x in (query, key, value))
    if not place.is_cuda(query) or softcap is not None:
        mixed = _plain(q, k, v, scaling, hidden=layout.hidden(causal=causal, window=window), softcap=softcap)
    elif causal and window is None:
        mixed = _fused(q, k, v, scaling, hidden=None)
    else:
        mixed = _fused(q, k, v, scaling, hidden=layout.hidden(causal=causal, window=window))
    return layout.flat(mixed.transpose(1, 2))[None], None


def _plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, *, hidden: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    """Softmax in fp32, as transformers' own; on a CPU its backward is faster than the fused kernel's."""
    k, v = _repeated(q, k, v)
    scores = q @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return scores.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _fused(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, *, hidden: torch.Tensor | None
) -> torch.Tensor:
    """The kernel of torch; without a mask it is causal.

    Keys are copied for every query head: of kernels that keep no scores flash attention alone shares them, and what
    comes here is what that does not take (fp32, or a GPU older than compute capability 8.0).
    """
    k, v = _repeated(q, k, v)
    if q.is_meta:
        return _counted(q, k, v, scaling, hidden=hidden)
    fused, mask = nn.functional.scaled_dot_product_attention, None if hidden is None else ~hidden
    return fused(q, k, v, attn_mask=mask, is_causal=hidden is None, scale=scaling)


def _counted(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float, *, hidden: torch.Tensor | None
) -> torch.Tensor:
    """The kernel that torch would choose on CUDA, which it is not asked for by tensors without storage."""
    bias = None if hidden is None else q.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    bias = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(q, k, v, bias, True, 0.0, hidden is None, scale=scaling)[0]


def _repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values once a query head."""
    groups = q.shape[1] // k.shape[1]
    return (k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)) if groups > 1 else (k, v)


def states(model: PreTrainedModel, layout: Layout) -> torch.Tensor:
    """The last hidden states (tokens, hidden) of a backbone, or of a language model's backbone; those of idle tokens
    mean nothing. Token types are all 0."""
    backbone = model.base_model
    positions = layout.positions + first_position(backbone)
    if backbone.config._attn_implementation == UNPADDED:
        with over(layout.segments):
            return _call(backbone, layout.ids, positions, layout=layout)[0]
    mask = (~layout.empty()).long()
    with over(layout.segments.by_rows()):
        padded = _call(backbone, layout.grid(layout.ids[0]), layout.grid(positions[0]), attention_mask=mask)
    return layout.flat(padded)


def _call(backbone: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor, **other: object) -> torch.Tensor:
    cache = {} if backbone.config.model_type in ("bert", "roberta", "distilbert") else {"use_cache": False}
    return backbone(input_ids=ids, position_ids=positions, **cache, **other).last_hidden_state


def way(model: PreTrainedModel) -> str:
    """How attention is computed: "varlen" over rows as they lie, "grid" over rows laid out in one, or transformers'
    "sdpa" or "eager" over padded rows."""
    backbone = model.base_model
    if backbone.config._attn_implementation != UNPADDED:
        return backbone.config._attn_implementation
    heads = backbone.config.num_attention_heads
    size = getattr(backbone.config, "head_dim", None) or backbone.config.hidden_size // heads
    causal = any(getattr(module, "is_causal", False) for module in backbone.modules())
    capped = getattr(backbone.config, "attn_logit_softcapping", None) is not None
    weight = backbone.get_input_embeddings().weight
    return "varlen" if causal and not capped and varlen.takes(weight, size) else "grid"


def first_position(backbone: PreTrainedModel) -> int:
    """The number of a row's first position: RoBERTa counts from after its padding token."""
    return backbone.config.pad_token_id + 1 if backbone.config.model_type == "roberta" else 0


def logits(causal: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The language model's logits (..., vocabulary) of last hidden states (..., hidden)."""
    raw = causal.get_output_embeddings()(states)
    cap = getattr(causal.config, "final_logit_softcapping", None)
    return raw if cap is None else torch.tanh(raw / cap) * cap


def load(
    base: Path, auto_class: type, dtype: torch.dtype, device: torch.device, *, attention: str | None = None
) -> PreTrainedModel:
    """Read a base from disk, frozen and without dropout, with the best attention that is right for it.

    `config._attn_implementation` of the result says which one that is: "tunetrial_unpadded", else "sdpa" or "eager",
    for which `states` pads. It is proven on drawn rows (`prove`) unless `attention` names one proven before.

    Args:
        auto_class: `AutoModelForCausalLM`, or `AutoModel` for a backbone alone.
    Raises:
        ModelError: The files lack weights of the model, which would be drawn at random otherwise.
    """
    logging.set_verbosity_error()
    roberta = (
        {"add_pooling_layer": False} if models.shape(base).model_type == "roberta" and auto_class is AutoModel else {}
    )
    model, found = auto_class.from_pretrained(
        base,
        dtype=dtype,
        attn_implementation=attention or UNPADDED,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **roberta,
    )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        got = f"{len(missing)} are missing, such as {missing[0]}"
        raise ModelError(f"{base}: weights of the model are not in its files, got {got}; use a complete model")
    model = model.to(device).eval().requires_grad_(False)
    if attention is None:
        prove(model)
    return model


@torch.no_grad()
def prove(model: PreTrainedModel) -> None:
    """Set the first attention, of unpadded, sdpa and eager, whose states of drawn rows are those of each row alone with
    transformers' own eager attention, within a relative tolerance by dtype, through the first layers (`shallow`).

    The rows are short: a window longer than they are is not tried.
    """
    with shallow(model.base_model):
        _prove(model)


def _prove(model: PreTrainedModel) -> None:
    drawn = np.random.default_rng(0)
    longest = getattr(model.config, "max_position_embeddings", None) or max(PROOF_LENGTHS)
    lengths = [min(length, longest - first_position(model)) for length in PROOF_LENGTHS]
    rows = [drawn.integers(model.config.vocab_size, size=length) for length in lengths]
    layout = lay_out(rows, model.device)
    model.set_attn_implementation("eager")
    alone = [states(model, lay_out([row], model.device))[: len(row)] for row in rows]
    expected = torch.cat(alone).double()
    for attention in (UNPADDED, *(("sdpa",) if model._supports_sdpa else ())):
        model.set_attn_implementation(attention)
        try:
            error = (states(model, layout)[: len(expected)].double() - expected).norm() / expected.norm()
        except ModelError:
            continue
        if error <= TOLERANCE[model.dtype]:
            return
    model.set_attn_implementation("eager")


@contextmanager
def shallow(backbone: PreTrainedModel) -> Iterator[None]:
    """Leave a backbone its first layers alone: two, or as many as hold every kind that its configuration tells apart.

    What layers compute is proven on these. Deeper ones are the same, and carry rounding on until, in tens of layers,
    it cannot be told from a fault.
    """
    kinds = getattr(backbone.config, "layer_types", None) or [None]
    few = max(2, 1 + max(kinds.index(kind) for kind in kinds))
    parent, name, every = layers(backbone)
    setattr(parent, name, every[:few])
    try:
        yield
    finally:
        setattr(parent, name, every)


def layers(backbone: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The blocks of a backbone in order, and where they are: a module and the name in it."""
    depth = backbone.config.num_hidden_layers
    named = ((parent, name, child) for parent in backbone.modules() for name, child in parent.named_children())
    return next(found for found in named if isinstance(found[2], nn.ModuleList) and len(found[2]) == depth)


AttentionInterface.register(UNPADDED, attend)  # and no mask for it: transformers would look for rows in the positions
