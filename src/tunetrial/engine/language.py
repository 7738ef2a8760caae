"""Answers as text: the loss of a language model on them, their likelihood, and completions."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from tunetrial.core.evidence import Example, TaskData
from tunetrial.engine import generation
from tunetrial.engine.attention import TOKEN_BUCKET, Layout, lay_out, logits, on_device
from tunetrial.engine.blocks import states
from tunetrial.engine.graphs import recordable
from tunetrial.engine.loss import token_losses, tokens_at_once
from tunetrial.engine.readout import batches_of, in_parts
from tunetrial.engine.texts import Row, Texts


class LanguageModel(nn.Module):
    """A causal language model whose logits are asked for at the tokens before answered ones, and nowhere else."""

    def __init__(self, causal: PreTrainedModel):
        super().__init__()
        self.causal = causal
        self.causal.generation_config = GenerationConfig()

    @property
    def device(self) -> torch.device:
        return self.causal.device

    def batch(
        self, rows: Sequence[Sequence[Row]], members: range, *, last_alone: bool = False, longest: int = 1
    ) -> "AnswerBatch":
        """Lay out the rows of each member; with `last_alone` the answers before the last one are not asked for.

        `longest` is how long rows of other batches are (`lay_out`).
        """
        every = [row for own in rows for row in own]
        layout = lay_out([row.tokens_T for row in every], self.device, members=members, longest=longest)
        at, targets, owners, offset = [], [], [], 0
        for number, row in enumerate(every):
            places = row.places[row.places >= row.prompt] if last_alone else row.places
            at.append(offset + places - 1)
            targets.append(row.tokens_T[places])
            owners.append(np.full(len(places), number))
            offset += len(row.tokens)
        move = lambda numbers: on_device(torch.from_numpy(np.concatenate(numbers)), self.device)  # noqa: E731
        return AnswerBatch(layout, move(at), move(targets), move(owners))

    def losses(self, batch: "AnswerBatch") -> torch.Tensor:
        """Negative log-likelihood in nats, fp32, of each answered token."""
        asked, head = states(self.causal, batch.layout)[batch.at], self.causal.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None:
            cap = getattr(self.causal.config, "final_logit_softcapping", None)
            return token_losses(asked, head.weight, batch.targets, chunk=tokens_at_once(head.weight), cap=cap)
        raw = logits(self.causal, asked)
        wide = raw if raw.dtype == torch.float64 else raw.float()
        return nn.functional.cross_entropy(wide, batch.targets, reduction="none")

    def complete(
        self, prompts: Sequence[list[int]], *, members: range, longest: int, stops: set[int], context: int
    ) -> list[list[list[int]]]:
        """Continue each prompt greedily, once for each member; see `generation.complete`."""
        rows, owners = [*prompts] * len(members), [member for member in members for _ in prompts]
        within = {"longest": longest, "stops": stops, "context": context}
        made = generation.complete(self.causal, rows, owners=owners, **within)
        return [made[len(prompts) * number :][: len(prompts)] for number in range(len(members))]


@dataclass(frozen=True)
class AnswerBatch:
    """Rows laid out; of each answered token the place of the one before it, itself, and its row's number."""

    layout: Layout
    at: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    key: Hashable | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return *self.layout.tensors, self.at, self.targets, self.owners

    def recordable(self) -> "AnswerBatch":
        """The same with a key, and idle answers, which are of no row, up to the next quarter of the tokens: a finer
        bucket would make every batch a shape of its own."""
        layout, answers = self.layout, len(self.at)
        answers += -answers % max(TOKEN_BUCKET, layout.ids.shape[1] // 4)
        fill = lambda numbers, value: nn.functional.pad(numbers, (0, answers - len(numbers)), value=value)  # noqa: E731
        owners = fill(self.owners, layout.rows)
        return AnswerBatch(layout, fill(self.at, 0), fill(self.targets, 0), owners, key=(*layout.shape, answers))


class TextObjective:
    """The loss of a language model on the answers of rows; every answered token weighs the same."""

    def __init__(self, model: LanguageModel, rows: list[Row]):
        self.model, self.rows = model, rows
        self.tokens = [row.tokens for row in rows]
        self.answered = [sum(row.answers_T[1:]) for row in rows]
        self.backbone, self.recordable = model.causal.base_model, recordable(model.causal)
        self.longest = max(map(len, self.tokens), default=1)

    def weight(self, rows: Sequence[int]) -> int:
        return sum(self.answered[row] for row in rows)

    def batch(self, rows: Sequence[Sequence[int]], members: range) -> AnswerBatch:
        every = [[self.rows[row] for row in own] for own in rows]
        batch = self.model.batch(every, members, longest=self.longest)
        return batch.recordable() if self.recordable else batch

    def losses(self, batch: AnswerBatch) -> torch.Tensor:
        nats, segments = self.model.losses(batch), batch.layout.segments
        member = batch.owners // segments.rows[0]
        numbers = torch.arange(len(segments.members), device=member.device)[:, None]
        return torch.where(member == numbers, nats, 0.0).sum(1)


class TextReader:
    """Reads what the model writes, of all members of a pack at once."""

    task_type = "CAUSAL_LM"

    def __init__(
        self, causal: PreTrainedModel, texts: Texts, data: TaskData, *, members: int, longest: int, context: int
    ):
        self.model, self.texts, self.longest, self.context = LanguageModel(causal), texts, longest, context
        self.members = range(members)

    def objective(self, examples: Sequence[Example]) -> TextObjective:
        return TextObjective(self.model, self.texts.rows(examples))

    def predict(self, examples: Sequence[Example]) -> list[list[str]]:
        """Complete each prompt, greedily."""
        rows = self.texts.rows(examples)
        prompts = [row.tokens[: row.prompt] for row in rows]
        within = {"longest": self.longest, "stops": self.texts.stops(rows), "context": self.context}
        made = self.model.complete(prompts, members=self.members, **within)
        return [[self.texts.decode(tokens) for tokens in own] for own in made]

    def likelihoods(self, examples: Sequence[Example]) -> list[list[tuple[float, int]]]:
        return self._likelihoods(self.texts.rows(examples))

    @torch.no_grad()
    def _likelihoods(self, rows: Sequence[Row]) -> list[list[tuple[float, int]]]:
        """Nats and tokens of the last answer of each row, for each member."""
        made: list[dict[int, tuple[float, int]]] = [{} for _ in self.members]

        def read(chosen: list[int]) -> tuple[list[float], list[int]]:
            batch = self.model.batch(
                [[rows[row] for row in chosen] for _ in self.members], self.members, last_alone=True
            )
            return self.model.losses(batch).double().tolist(), batch.owners.tolist()

        for batch in batches_of([row.tokens for row in rows], len(self.members), self.model.device):
            for chosen, (nats, owners) in in_parts(batch, read):
                own: list[list[float]] = [[] for _ in range(len(chosen) * len(self.members))]
                for value, owner in zip(nats, owners, strict=True):
                    own[owner].append(value)
                for number, values in enumerate(own):
                    made[number // len(chosen)][chosen[number % len(chosen)]] = math.fsum(values), len(values)
        return [[one[row] for row in range(len(rows))] for one in made]

    def exported(self, name: str) -> str:
        """The name of a weight in the artifact."""
        return name.removeprefix("causal.")

    def write(self, folder: Path) -> None:
        """Nothing beside the weights says how to read text."""

    def config(self, base: dict) -> dict:
        return base


class LabelReader(TextReader):
    """Reads the label whose text, end included, is the most likely answer: log p(label | prompt), summed over tokens.

    What is trained is the likelihood of the right label's text.
    """

    def __init__(self, causal: PreTrainedModel, texts: Texts, data: TaskData, *, members: int, context: int):
        super().__init__(causal, texts, data, members=members, longest=1, context=context)
        self.labels = data.labels

    def predict(self, examples: Sequence[Example]) -> list[list[str]]:
        rows = [self.texts.row(example, label) for example in examples for label in self.labels]
        return [self._best([nats for nats, _ in own]) for own in self._likelihoods(rows)]

    def _best(self, nats: Sequence[float]) -> list[str]:
        """The likeliest label of each example, of equals the first; nan where likelihoods are not finite."""
        nats_EL = np.reshape(nats, (-1, len(self.labels)))
        sound_E = np.isfinite(nats_EL).all(axis=1)
        best = zip(nats_EL.argmin(axis=1), sound_E, strict=True)
        return [self.labels[index] if is_sound else math.nan for index, is_sound in best]
