"""Hidden states of every layer under two models, base and tuned, compared as they are made.

    base, own = plain(pack), tuned(pack)
    found = compare([(base, own)], passages(tokens, special=tokenizer.all_special_ids), seed=1)[0]
    [one.similarity.cka for one in found if one.pooling == "mean"]        # by layer

Each batch goes through all models in turn, without padding and by the code that every model of transformers has; of its
states only sums over rows are kept (`analysis.similarity.Pairing`), and a sample of rows for what needs rows. Layer 0
is the embeddings, layer l the residual stream after block l; the norm after the last block is left out.
"""

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunetrial import methods
from tunetrial.analysis.similarity import Pairing, Similarity, rsa, shuffled
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import DataError
from tunetrial.core.records import Record
from tunetrial.engine import adapters, attention
from tunetrial.engine.attention import UNPADDED, Layout, lay_out, on_device
from tunetrial.engine.readout import batches_of, in_parts
from tunetrial.engine.streams import stream

if TYPE_CHECKING:
    from tunetrial.engine.torch_engine import TorchPack

Pooling = Literal["mean", "last", "tokens"]
POOLINGS: tuple[Pooling, ...] = ("mean", "last", "tokens")
TOKENS_A_ROW, SAMPLE_ROWS, SHUFFLES = 8, 256, 20


@dataclass(frozen=True)
class Passage:
    """A row of token ids, and the places of those that are content, rising: not the first, on which attention that has
    nowhere to go comes to rest, no special token, nothing of a template."""

    tokens: Sequence[int]
    content: NDArray[np.int64]


def passages(
    tokens: Sequence[Sequence[int]], *, special: Collection[int], template: tuple[int, int] = (0, 0)
) -> list[Passage]:
    """Say of each row what is content.

    Args:
        special: Ids of the tokenizer's special tokens.
        template: Tokens that a template puts before and after what differs between rows (`shared_ends`).
    Raises:
        DataError: A row has no content.
    """
    made = [Passage(row, content(row, special=special, template=template)) for row in tokens]
    for number, row in enumerate(made):
        if not len(row.content):
            got = f"got {len(row.tokens)} tokens"
            raise DataError(f"row {number}: no token but the first, special and template ones, {got}; leave it out")
    return made


def content(row: Sequence[int], *, special: Collection[int], template: tuple[int, int] = (0, 0)) -> NDArray[np.int64]:
    """The places of a row's content, as `passages` has it; there may be none."""
    before, after, special = max(template[0], 1), template[1], set(special)
    return np.array([at for at in range(before, len(row) - after) if row[at] not in special], dtype=np.int64)


def shared_ends(tokens: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many tokens all rows begin alike with, and end alike with: of rows of one task, its template's."""
    shortest = min(map(len, tokens))
    columns = [len({row[at] for row in tokens}) == 1 for at in range(shortest)]
    ends = [len({row[-1 - at] for row in tokens}) == 1 for at in range(shortest)]
    before = columns.index(False) if False in columns else shortest
    return before, min(ends.index(False) if False in ends else shortest, shortest - before)


@dataclass(frozen=True)
class View:
    """One of the models that are compared: a member of a pack in a model, entered by `within`; `rows_at_once` splits
    batches further. `recall` is given a key and how to make what belongs to it, and may have it already (`memo`)."""

    model: PreTrainedModel
    member: int = 0
    within: Callable[[], AbstractContextManager] = nullcontext
    rows_at_once: int | None = None
    recall: Callable[[Hashable, Callable[[], Any]], Any] = lambda key, make: make()


def tuned(pack: "TorchPack", member: int = 0) -> View:
    """A pack's model with the adapter of a member, or with the weights that were trained."""
    return View(pack.session.model, member)


def plain(pack: "TorchPack") -> View:
    """What the pack was trained from: the same model with its adapters switched off, or, where the base's own weights
    are trained, the base read from disk once more, which takes as much memory again."""
    if pack.peft is not None:
        return View(pack.session.model, within=pack.peft.peft.disable_adapter)
    if pack.adapter is not None:
        return View(pack.session.model, within=adapters.switched_off)
    return View(pack.session.load(pack.session.model.dtype, pack.session.device))


def floors(pack: "TorchPack", base: View) -> dict[str, View]:
    """A pack's plain base in ways that should not matter: "batch", one row at a time, and "dtype", in fp32, or in bf16
    where the study computes in fp32 or wider. What they differ by from it is no drift: it is the floor of each measure.

    The base is read from disk once more for the other dtype.
    """
    session = pack.session
    other = torch.float32 if session.model.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    model = session.load(other)
    storage = methods.find(pack.trials[0].arm).storage
    adapters.quantise(model, storage, tuple(session.shape.projections), device=session.device)
    return {"batch": replace(base, rows_at_once=1), "dtype": View(model.to(session.device))}


class Compared(Record):
    """A pair of views at one layer, by one pooling.

    "mean" pools a row's content, "last" is its last content token, "tokens" are some of its content tokens, which count
    as rows though those of one sequence are no independent ones. `rsa` and `shuffled`, mean and sd of the debiased CKA
    of pairs that do not belong together, are of a sample with one row a sequence; None where they have no value.
    """

    pooling: Pooling
    layer: int
    similarity: Similarity
    rsa: float | None
    shuffled: tuple[float, float] | None


@torch.no_grad()
def compare(
    pairs: Sequence[tuple[View, View]],
    rows: Sequence[Passage],
    *,
    seed: int,
    poolings: Sequence[Pooling] = POOLINGS,
    tokens_a_row: int = TOKENS_A_ROW,
    sample_rows: int = SAMPLE_ROWS,
) -> list[list[Compared]]:
    """Compare the states of each pair of views over the same rows, in one pass; of each pair by pooling and layer.

    A view that is in several pairs is computed once. Models are in evaluation mode, answers are not generated: rows go
    through as they are given. Which tokens and which rows of a sample are taken follows from `seed` and the rows alone,
    so it is the same for all arms.

    Args:
        tokens_a_row: At most so many content tokens of a row are taken by "tokens", drawn.
        sample_rows: At most so many rows are kept for RSA and the shuffled control.
    Raises:
        DoesNotFitError: Not even one row fits in memory.
    """
    rng = np.random.default_rng(stream(seed, "states"))
    drawn = [rng.permutation(row.content)[:tokens_a_row] for row in rows]
    sampled = set(rng.permutation(len(rows))[:sample_rows].tolist())
    views = list(dict.fromkeys(view for pair in pairs for view in pair))
    kept = [_Kept() for _ in pairs]
    device = views[0].model.device

    def read(chosen: list[int]) -> dict[View, _Pooled]:
        return {view: _pooled(view, [rows[n] for n in chosen], [drawn[n] for n in chosen], poolings) for view in views}

    for batch in batches_of([row.tokens for row in rows], 1, device):
        for chosen, made in in_parts(batch, read):
            places = np.flatnonzero([row in sampled for row in chosen])
            tokens = np.cumsum([0, *(len(drawn[row]) for row in chosen)])[:-1]
            at = {pooling: tokens[places] if pooling == "tokens" else places for pooling in poolings}
            for (one, other), own in zip(pairs, kept, strict=True):
                own.add(made[one], made[other], at)
    return [own.value(stream(seed, "shuffled")) for own in kept]


@torch.no_grad()
def mean_states(view: View, rows: Sequence[Passage]) -> dict[int, Floats]:
    """The mean of each row's content by layer, (rows, dimensions), fp64 on the host.

    Raises:
        DoesNotFitError: Not even one row fits in memory.
    """
    chosen, parts = [], []

    def read(part: list[int]) -> _Pooled:
        own = [rows[n] for n in part]
        return _pooled(view, own, [row.content for row in own], ["mean"])

    for batch in batches_of([row.tokens for row in rows], 1, view.model.device):
        for some, made in in_parts(batch, read):
            chosen += some
            parts.append(made)
    order = np.argsort(chosen)
    return {layer: np.concatenate([made[pooling, layer] for made in parts])[order] for pooling, layer in parts[0]}


_Pooled = Mapping[tuple[Pooling, int], np.ndarray]


class _Kept:
    """Of a pair of views, by pooling and layer: sums over all rows, and the sample."""

    def __init__(self) -> None:
        self.pairings: dict[tuple[Pooling, int], Pairing] = {}
        self.samples: dict[tuple[Pooling, int], list[tuple[Floats, Floats]]] = {}

    def add(self, one: _Pooled, other: _Pooled, at: dict[Pooling, NDArray[np.int64]]) -> None:
        for key, x_ND in one.items():
            y_ND, places = other[key], at[key[0]]
            self.pairings.setdefault(key, Pairing()).add(x_ND, y_ND)
            self.samples.setdefault(key, []).append((x_ND[places], y_ND[places]))

    def value(self, seed: int) -> list[Compared]:
        return [self._at(key, seed) for key in sorted(self.pairings, key=lambda key: (POOLINGS.index(key[0]), key[1]))]

    def _at(self, key: tuple[Pooling, int], seed: int) -> Compared:
        x_ND, y_ND = (np.concatenate(side) for side in zip(*self.samples[key], strict=True))
        chance = shuffled(x_ND, y_ND, draws=SHUFFLES, rng=np.random.default_rng(seed))
        return Compared(
            pooling=key[0],
            layer=key[1],
            similarity=self.pairings[key].value(),
            rsa=rsa(x_ND, y_ND),
            shuffled=None if chance is None else (float(chance.mean()), float(chance.std(ddof=1))),
        )


def _pooled(
    view: View, rows: Sequence[Passage], drawn: Sequence[NDArray[np.int64]], poolings: Sequence[Pooling]
) -> _Pooled:
    """States of rows by pooling and layer, fp64 on the host."""
    size, made = view.rows_at_once or len(rows), []
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        made.append(_of_batch(view, rows[part], drawn[part], poolings))
    return {key: np.concatenate([one[key] for one in made], dtype=np.float64) for key in made[0]}


def _of_batch(
    view: View, rows: Sequence[Passage], drawn: Sequence[NDArray[np.int64]], poolings: Sequence[Pooling]
) -> _Pooled:
    """The same of rows that go through together, in fp32 or wider, by pooling as it is recalled."""
    read = lru_cache(partial(_read, view, rows, drawn, poolings))
    found: dict[tuple[Pooling, int], np.ndarray] = {}
    for pooling in poolings:
        key = pooling, view.rows_at_once, _digest(rows, drawn if pooling == "tokens" else ())
        found |= view.recall(key, lambda: {at: x for at, x in read().items() if at[0] == pooling})  # noqa: B023
    return found


def _digest(rows: Sequence[Passage], drawn: Sequence[NDArray[np.int64]]) -> str:
    """Of rows, of what is content in them, and of what was drawn of that."""
    content = hashlib.sha256()
    for numbers in [*(part for row in rows for part in (np.asarray(row.tokens), row.content)), *drawn]:
        content.update(len(numbers).to_bytes(8, "little"))
        content.update(numbers.astype(np.int64).tobytes())
    return content.hexdigest()


def _read(
    view: View, rows: Sequence[Passage], drawn: Sequence[NDArray[np.int64]], poolings: Sequence[Pooling]
) -> _Pooled:
    device, member = view.model.device, range(view.member, view.member + 1)
    layout = lay_out([row.tokens for row in rows], device, members=member)
    starts = np.cumsum([0, *(len(row.tokens) for row in rows)])[:-1]
    flat = lambda places: np.concatenate([s + p for s, p in zip(starts, places, strict=True)])  # noqa: E731
    move = lambda numbers: on_device(torch.from_numpy(numbers), device)  # noqa: E731
    content = torch.zeros(layout.ids.shape[1], 1, dtype=torch.bool, device=device)
    content[move(flat([row.content for row in rows]))] = True
    counts = move(np.array([[len(row.content)] for row in rows], dtype=np.float64))
    last, several = move(flat([row.content[-1:] for row in rows])), move(flat(drawn))
    pools: dict[Pooling, Callable[[torch.Tensor], torch.Tensor]] = {
        "mean": lambda x: layout.grid(x.masked_fill(~content, 0)).sum(1, dtype=torch.float64) / counts,
        "last": lambda x: wide(x[last]),
        "tokens": lambda x: wide(x[several]),
    }
    wide = lambda x: x.to(torch.promote_types(x.dtype, torch.float32))  # noqa: E731
    made: dict[tuple[Pooling, int], np.ndarray] = {}

    def take(layer: int, x: torch.Tensor) -> None:
        made.update({(pooling, layer): pools[pooling](x).cpu().numpy() for pooling in poolings})

    with view.within(), _watched(view.model.base_model, layout, take):
        attention.states(view.model, layout)
    return made


@contextmanager
def _watched(backbone: PreTrainedModel, layout: Layout, take: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Hand over what goes into the first block and what comes out of every one, (tokens, hidden).

    (transformers' own `output_hidden_states` leaves hooks in the model for good, and blocks with hooks are not walked.)
    """

    def hand_over(layer: int, states: torch.Tensor) -> None:
        take(layer, states[0] if backbone.config._attn_implementation == UNPADDED else layout.flat(states))

    def before(module: torch.nn.Module, args: tuple, named: dict) -> None:
        hand_over(0, args[0] if args else named["hidden_states"])

    def after(layer: int) -> Callable[[torch.nn.Module, tuple, object], None]:
        return lambda module, args, out: hand_over(layer, out[0] if isinstance(out, tuple) else out)

    layers = attention.layers(backbone)[2]
    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after(number)) for number, layer in enumerate(layers, 1)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
