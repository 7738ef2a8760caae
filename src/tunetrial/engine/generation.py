"""Greedy completions of many prompts at once, each as if it were alone.

Rows without padding read their prompts as training reads rows (`attention`), and then hand the model one token each a
step, end to end again. Keys and values of what was read lie in a grid a layer, where every row has its own length. Rows
that have ended leave as soon as they are a quarter (on CUDA half), and prompts that wait take their places. A base
whose attention pads is fed padded rows with transformers' own cache, by the same loop.

On CUDA a step without padding is recorded as a graph when the rows in hand or their columns have changed, and replayed
until they change again: launching a step's kernels one by one takes longer than they do.

Rows of all members of a pack are completed at once; in hand they lie member after member (`segments`).

    made = complete(causal, [[5, 6, 7], [8, 9]], longest=64, stops={0}, context=512)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, takewhile

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from tunetrial.core.errors import DoesNotFitError
from tunetrial.engine import attention
from tunetrial.engine.attention import UNPADDED, lay_out, logits
from tunetrial.engine.graphs import CudaGraphs, Pass
from tunetrial.engine.loop import is_out_of_memory
from tunetrial.engine.segments import Segments, over

CACHED = "tunetrial_cached"
CACHE_BYTES = {"cpu": 2**29, "cuda": 2**33}
PROMPT_TOKENS = {"cpu": 2**11, "cuda": 2**14}
COLUMNS = {"cpu": 64, "cuda": 128}
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 8}
LEFT = {"cpu": 0.75, "cuda": 0.5}


@torch.no_grad()
def complete(
    causal: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    longest: int,
    stops: set[int],
    context: int,
    owners: Sequence[int] | None = None,
) -> list[list[int]]:
    """Continue each prompt by the likeliest token, up to a stop (not returned), `longest` tokens or the context's end.

    A prompt that fills the context gets one token. The tokens are those that transformers' `generate` makes of each
    prompt alone, but for positions where the two best logits are as close as rounding: there batches may differ.

    Args:
        owners: The member of a pack whose adapter completes each prompt; the first one's by default.
    Raises:
        DoesNotFitError: Not even one row's keys and values fit into memory.
    """
    owners = [0] * len(prompts) if owners is None else owners
    limits = [max(1, min(longest, context - len(prompt))) for prompt in prompts]
    widest = max((len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)), default=0)
    tokens = min(CACHE_BYTES[causal.device.type] // token_bytes(causal), len(prompts) * widest)
    with caching(causal):
        while True:
            try:
                return _Completions(causal, prompts, owners, limits, stops).made(tokens)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if tokens <= widest:
                got = f"got {widest} tokens of one row"
                raise DoesNotFitError(f"completions: out of memory, {got}; use a smaller base or shorter rows")
            tokens //= 2
            if causal.device.type == "cuda":
                torch.cuda.empty_cache()


def token_bytes(causal: PreTrainedModel) -> int:
    """Bytes of a token's keys and values in all layers."""
    config = causal.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * causal.dtype.itemsize


class _Completions:
    """The state of all completions, by prompt, and the rows in hand: tensors alone between two looks."""

    def __init__(
        self,
        causal: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        limits: list[int],
        stops: set[int],
    ):
        device = causal.device
        self.causal, self.prompts, self.owners, self.device = causal, prompts, owners, device
        self.members = range(min(owners, default=0), max(owners, default=0) + 1)
        self.sizes = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        self.waiting = sorted(range(len(prompts)), key=lambda row: self.sizes[row])
        self.limits, self.stops = torch.tensor(limits, device=device), torch.tensor(sorted(stops), device=device)
        self.tokens = torch.zeros(len(prompts), max(limits, default=0) + 1, dtype=torch.long, device=device)
        self.counts = torch.zeros(len(prompts), dtype=torch.long, device=device)
        self.last = torch.zeros_like(self.counts)
        self.ended = torch.zeros_like(self.counts, dtype=torch.bool)
        self.rows = self.counts[:0]
        known = causal.base_model.config._attn_implementation == CACHED
        self.cache = Grids(causal) if known else Padded(causal)
        self.recorder = _recorder(device) if known else None
        self.again: Pass | None = None

    def made(self, cache_tokens: int) -> list[list[int]]:
        """Complete all prompts, with keys and values of about so many tokens at a time."""
        while len(self.rows) or self.waiting:
            going = (~self.ended[self.rows]).nonzero()[:, 0]
            if len(going) <= LEFT[self.device.type] * len(self.rows):
                self._keep(going)
                self._admit(cache_tokens)
                self.segments = self._segments(self.rows.tolist())
                continue
            for _ in range(STEPS_BETWEEN_LOOKS[self.device.type]):
                self._advance()
        counts = self.counts.tolist()
        return [row[:count] for row, count in zip(self.tokens.tolist(), counts, strict=True)]

    def _keep(self, going: torch.Tensor) -> None:
        self.rows, self.again = self.rows[going], None
        self.cache.keep(going)

    def _admit(self, cache_tokens: int) -> None:
        """Read as many waiting prompts as there is room for, the longest first; at least one."""
        if not self.waiting or (len(self.rows) and not self.cache.joins):
            return
        room = max(cache_tokens // self.sizes[self.waiting[-1]] - len(self.rows), 0 if len(self.rows) else 1)
        new = [self.waiting.pop() for _ in range(min(room, len(self.waiting)))]
        for part in self._parts(new):
            prompts = [self.prompts[row] for row in part]
            with over(self._segments(part, prompts if self.cache.joins else None)):
                states = self.cache.read(prompts)
            part = torch.tensor(part, device=self.device)
            self._note(part, states)
            self.rows = torch.cat([self.rows, part])
        if len(self.members) == 1:
            self.cache.join()
        else:
            self._keep(
                torch.tensor([self.owners[row] for row in self.rows.tolist()], device=self.device).argsort(stable=True)
            )

    def _parts(self, rows: list[int]) -> Iterator[list[int]]:
        """As many rows at a time as their tokens allow, in order, and in each part member after member."""
        most = PROMPT_TOKENS[self.device.type] if self.cache.joins else math.inf
        first = 0
        while first < len(rows):
            tokens = accumulate(len(self.prompts[row]) for row in rows[first:])
            count = max(1, sum(1 for _ in takewhile(lambda total: total <= most, tokens)))
            yield sorted(rows[first : first + count], key=lambda row: self.owners[row])
            first += count

    def _segments(self, rows: list[int], prompts: list[Sequence[int]] | None = None) -> Segments:
        """Whose the rows are, with the tokens of their prompts, or equally many tokens each."""
        count, tokens = [0] * len(self.members), [0] * len(self.members)
        for place, row in enumerate(rows):
            member = self.owners[row] - self.members.start
            count[member] += 1
            tokens[member] += 0 if prompts is None else len(prompts[place])
        if prompts is not None:
            return Segments(self.members, tuple(count), tuple(tokens))
        ends = torch.tensor(list(accumulate(count)), dtype=torch.int32, device=self.device)
        return Segments(self.members, tuple(count), ends=ends)

    def _advance(self) -> None:
        """One more token of each row; where it can be, by a step that is recorded as soon as its shape is new."""
        if self.cache.widen():
            self.again = None
        if self.recorder is None:
            self._step()
        elif self.again is not None:
            self.again()
        else:
            self.recorder.run(self._step)
            try:
                self.again = self.recorder.record(self._step)
            except RuntimeError:  # such as angles that are chosen by the numbers of a batch
                self.recorder = None

    def _step(self) -> torch.Tensor:
        """The next token of each row; one that has ended repeats its last step. All state is changed in place."""
        going = ~self.ended[self.rows]
        with over(self.segments):
            states = self.cache.step(self.last[self.rows], going)
        return self._note(self.rows, states)

    def _note(self, rows: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Take the likeliest token after each row's last state (rows, hidden)."""
        best, count, ended = logits(self.causal, states).argmax(-1), self.counts[rows], self.ended[rows]
        self.tokens[rows, count] = best
        ended = ended | (best[:, None] == self.stops).any(1)
        self.counts[rows] = count + ~ended
        self.ended[rows] = ended | (self.counts[rows] >= self.limits[rows])
        self.last[rows] = best
        return best


class Grids:
    """Keys and values (rows, key heads, columns, size) of each attention module; a row fills `lengths` columns."""

    joins = True

    def __init__(self, causal: PreTrainedModel):
        self.backbone, self.device = causal.base_model, causal.device
        self.kept: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.longest, self.columns = 0, 0
        self.layout: attention.Layout | None = None
        self.hidden: dict[int | None, torch.Tensor] = {}

    def read(self, prompts: list[Sequence[int]]) -> torch.Tensor:
        """Add rows, to be joined to the others; return the state of each one's last token (rows, hidden)."""
        self.longest = max(self.longest, *map(len, prompts))
        self._fit()
        self.layout = layout = lay_out(prompts, self.device)
        states = attention._call(self.backbone, layout.ids, layout.positions, layout=self)[0, layout.last]
        self.lengths = torch.cat([self.lengths, layout.last - layout.first + 1])
        self.layout = None
        return states

    def join(self) -> None:
        """Lay all rows that were read into one grid."""
        self._replace(lambda grid: grid)

    def step(self, tokens: torch.Tensor, going: torch.Tensor) -> torch.Tensor:
        """Feed each row one token, after `widen`; return its states (rows, hidden). Rows that do not go on stay as long
        as they are."""
        states = attention._call(self.backbone, tokens[None], self.lengths[None], layout=self)[0]
        self.lengths += going
        self.hidden.clear()
        return states

    def keep(self, rows: torch.Tensor) -> None:
        """Join rows; keep these, in this order."""
        self.lengths = self.lengths[rows]
        self.longest = max(self.lengths.tolist(), default=0)
        self._replace(lambda grid: grid[rows])

    def widen(self) -> bool:
        """Make room for one more token of each row; whether grids had to grow."""
        self.longest += 1
        return self._fit()

    def _fit(self) -> bool:
        more = self.longest + -self.longest % COLUMNS[self.device.type] - self.columns
        if more > 0:
            self._replace(lambda grid: nn.functional.pad(grid, (0, 0, 0, more)))
            self.columns += more
        return more > 0

    def _replace(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change every grid, one layer after the other: both forms of all of them might not fit."""
        for module, parts in self.kept.items():
            self.kept[module] = [tuple(change(_joined(grids)) for grids in zip(*parts, strict=True))]

    def add_rows(self, module: nn.Module, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keys and values (1, key heads, tokens, size) of prompts."""
        room = self.columns - self.layout.longest
        new = (self.layout.grid(x[0].transpose(0, 1)).transpose(1, 2) for x in (key, value))
        self.kept.setdefault(module, []).append(tuple(nn.functional.pad(x, (0, 0, 0, room)) for x in new))

    def add_tokens(
        self, module: nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (1, key heads, rows, size) of one token each; returns the module's whole grids."""
        rows = torch.arange(len(self.lengths), device=self.device)
        [grids] = self.kept[module]
        for grid, new in zip(grids, (key, value), strict=True):
            grid[rows, :, self.lengths] = new[0].transpose(0, 1)
        return grids

    def unseen(self, window: int | None) -> torch.Tensor:
        """The columns that a row's new token does not see (rows, 1, 1, columns); made once a step."""
        if window not in self.hidden:
            column, own = torch.arange(self.columns, device=self.device), self.lengths[:, None, None, None]
            hidden = column > own
            self.hidden[window] = hidden if window is None else hidden | (column <= own - window)
        return self.hidden[window]


class Padded:
    """Rows padded on the left, with transformers' own cache. Rows in hand end before others are read."""

    joins = False

    def __init__(self, causal: PreTrainedModel):
        self.backbone, self.device = causal.base_model, causal.device
        self.cache: DynamicCache | None = None

    def read(self, prompts: list[Sequence[int]]) -> torch.Tensor:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + [*prompt] for prompt in prompts], device=self.device)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        places = torch.arange(width, device=self.device) - (width - self.lengths)[:, None]
        self.cache, self.mask = DynamicCache(config=self.backbone.config), (places >= 0).long()
        return self._call(ids, places.clamp(min=0))

    def join(self) -> None:
        """All rows were read at once."""

    def widen(self) -> bool:
        """Make room for one more token of each row."""
        self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        return True

    def step(self, tokens: torch.Tensor, going: torch.Tensor) -> torch.Tensor:
        states = self._call(tokens[:, None], self.lengths[:, None])
        self.lengths = self.lengths + going
        return states

    def _call(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        how = {"attention_mask": self.mask, "past_key_values": self.cache, "use_cache": True}
        return self.backbone(input_ids=ids, position_ids=positions, **how).last_hidden_state[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        if self.cache is not None:
            self.lengths, self.mask = self.lengths[rows], self.mask[rows]
            self.cache.batch_select_indices(rows)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    layout: Grids,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **other: object,
) -> tuple[torch.Tensor, None]:
    """Attend as `attention.attend` does, to what a row's grid holds; of prompts, fill the grid.

    What a module asks for beyond this was refused when its prompts were read.
    """
    if layout.layout is not None:
        layout.add_rows(module, key, value)
        asked = {"scaling": scaling, "sliding_window": sliding_window, "softcap": softcap, **other}
        return attention.attend(module, query, key, value, attention_mask, layout=layout.layout, **asked)
    keys, values = layout.add_tokens(module, key, value)
    q = query[0].transpose(0, 1).unflatten(1, (keys.shape[1], -1))  # the query heads of a key head are its queries
    hidden = layout.unseen(sliding_window)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None:
        mixed = attention._fused(q, keys, values, scaling, hidden=hidden)
    else:
        mixed = attention._plain(q, keys, values, scaling, hidden=hidden, softcap=softcap)
    return mixed.flatten(1, 2)[None], None


def _recorder(device: torch.device) -> CudaGraphs | None:
    return CudaGraphs() if device.type == "cuda" else None


def _joined(grids: Sequence[torch.Tensor]) -> torch.Tensor:
    return grids[0] if len(grids) == 1 else torch.cat(grids)


@contextmanager
def caching(model: PreTrainedModel) -> Iterator[None]:
    """Let attention without padding keep keys and values."""
    before = model.config._attn_implementation
    if before == UNPADDED:
        model.set_attn_implementation(CACHED)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(CACHED, attend)
