"""Requests of one shape answered again and again: so many rows, so many tokens of each, nothing ends early.

Where a model's step is that of `decoding`, keys, values and all that a step changes keep their places from request to
request, so that a step is recorded once for so many rows and replayed ever after; on a CPU it is computed each time.

    answers = Answers(causal, Decoder(causal.base_model))
    answers.made([[5, 6, 7], [8, 9, 4]], owners=[0, 0], tokens=16)
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from tunetrial.engine import generation
from tunetrial.engine.attention import logits
from tunetrial.engine.decoding import Decoder
from tunetrial.engine.graphs import CudaGraphs, Pass
from tunetrial.engine.segments import Segments, over

COLUMNS = 256  # of keys and values that room is made for at a time


class Answers:
    """Greedy answers of a language model that `decoding.takes`."""

    def __init__(self, causal: PreTrainedModel, decoder: Decoder):
        self.causal, self.decoder, self.device = causal, decoder, causal.device
        self.recorder = CudaGraphs() if self.device.type == "cuda" else None
        self.going: dict[int, _Rows] = {}

    @torch.no_grad()
    def made(self, prompts: Sequence[Sequence[int]], owners: Sequence[int], tokens: int) -> list[list[int]]:
        """So many tokens after each prompt, all of one length; rows of one adapter lie one after the other."""
        rows, read = self._rows(len(prompts), len(prompts[0]) + tokens), len(prompts[0])
        rows.begin(prompts, owners)
        for _ in range(tokens - 1):
            rows.advance()
        return rows.tokens[:, read : read + tokens].tolist()

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed."""
        return any(rows.again is not None for rows in self.going.values())

    def _rows(self, count: int, columns: int) -> "_Rows":
        if count not in self.going or self.going[count].columns < columns:
            self.going.pop(count, None)
            self.going[count] = _Rows(self.causal, self.decoder, self.recorder, count, columns + -columns % COLUMNS)
        return self.going[count]


class _Rows:
    """As many rows as a request has. `tokens` (rows, columns + 1) hold what was made where it stands in a row;
    `lengths` are how many tokens of a row the model has read."""

    def __init__(
        self, causal: PreTrainedModel, decoder: Decoder, recorder: CudaGraphs | None, count: int, columns: int
    ):
        self.causal, self.decoder, self.recorder, self.columns = causal, decoder, recorder, columns
        device, config = causal.device, causal.config
        size, few = decoder.layers[0].heads.head_dim, config.num_key_value_heads
        shape = count, few, columns, size
        self.grids = [
            (
                torch.zeros(shape, dtype=causal.dtype, device=device),
                torch.zeros(shape, dtype=causal.dtype, device=device),
            )
            for _ in decoder.layers
        ]
        self.tokens = torch.zeros(count, columns + 1, dtype=torch.long, device=device)
        self.lengths, self.owners, self.last = (torch.zeros(count, dtype=torch.long, device=device) for _ in range(3))
        self.again: Pass | None = None

    def begin(self, prompts: Sequence[Sequence[int]], owners: Sequence[int]) -> None:
        """Read the prompts and make the first token of each."""
        members, read = range(owners[0], owners[-1] + 1), len(prompts[0])
        rows = tuple(list(owners).count(member) for member in members)
        with generation.caching(self.causal):
            cache = generation.Grids(self.causal)
            with over(Segments(members, rows, tuple(count * read for count in rows))):
                states = cache.read(prompts)
        for layer, own in zip(self.decoder.layers, self.grids, strict=True):
            [found] = cache.kept[layer.heads]
            for grid, part in zip(own, found, strict=True):
                grid[:, :, :read].copy_(part[:, :, :read])
        self.lengths.fill_(read)
        self.owners.copy_(torch.tensor(owners))
        self._note(states)

    def advance(self) -> None:
        """One more token of each row."""
        if self.again is not None:
            self.again()
        elif self.recorder is None:
            self._step()
        else:
            self.recorder.run(self._step)
            self.again = self.recorder.record(self._step)

    def _step(self) -> torch.Tensor:
        states = self.decoder.step(self.last, self.lengths, self.grids, self.owners)
        self.lengths += 1
        return self._note(states)

    def _note(self, states: torch.Tensor) -> torch.Tensor:
        best = logits(self.causal, states).argmax(-1)
        self.last.copy_(best)
        self.tokens.scatter_(1, self.lengths[:, None], best[:, None])
        return best
