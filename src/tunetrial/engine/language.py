"""Answers as text: the loss of a language model on them, their likelihood, and completions."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from tunetrial.core.evidence import Example, TaskData
from tunetrial.engine import generation
from tunetrial.engine.attention import lay_out, logits
from tunetrial.engine.blocks import states
from tunetrial.engine.readout import EVALUATION_BATCH
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

    def losses(self, rows: Sequence[Row], *, last_alone: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihood in nats, fp32, of each answered token, and the row that each belongs to.

        With `last_alone` the answers before the last one are not asked for.
        """
        layout = lay_out([row.tokens for row in rows], self.device)
        at, targets, owners, offset = [], [], [], 0
        for number, row in enumerate(rows):
            first = row.prompt if last_alone else 1
            for place in range(max(first, 1), len(row.tokens)):
                if row.answers_T[place]:
                    at.append(offset + place - 1)
                    targets.append(row.tokens[place])
                    owners.append(number)
            offset += len(row.tokens)
        raw = logits(self.causal, states(self.causal, layout)[torch.tensor(at, device=self.device)])
        wide = raw if raw.dtype == torch.float64 else raw.float()
        nats = nn.functional.cross_entropy(wide, torch.tensor(targets, device=self.device), reduction="none")
        return nats, torch.tensor(owners, device=self.device)

    def complete(self, prompts: Sequence[list[int]], *, longest: int, stops: set[int], context: int) -> list[list[int]]:
        """Continue each prompt greedily; see `generation.complete`."""
        return generation.complete(self.causal, prompts, longest=longest, stops=stops, context=context)


class TextObjective:
    """The loss of a language model on the answers of rows; every answered token weighs the same."""

    def __init__(self, model: LanguageModel, rows: list[Row]):
        self.model, self.rows = model, rows
        self.tokens = [row.tokens for row in rows]
        self.answered = [sum(row.answers_T[1:]) for row in rows]

    def weight(self, rows: Sequence[int]) -> int:
        return sum(self.answered[row] for row in rows)

    def loss(self, rows: Sequence[int]) -> torch.Tensor:
        return self.model.losses([self.rows[row] for row in rows])[0].sum()


class TextReader:
    """Reads what the model writes."""

    task_type = "CAUSAL_LM"

    def __init__(self, causal: PreTrainedModel, texts: Texts, data: TaskData, *, longest: int, context: int):
        self.model, self.texts, self.longest, self.context = LanguageModel(causal), texts, longest, context

    def objective(self, examples: Sequence[Example]) -> TextObjective:
        return TextObjective(self.model, self.texts.rows(examples))

    def predict(self, examples: Sequence[Example]) -> list[str]:
        """Complete each prompt, greedily."""
        rows = self.texts.rows(examples)
        prompts = [row.tokens[: row.prompt] for row in rows]
        stops = self.texts.stops(rows)
        made = self.model.complete(prompts, longest=self.longest, stops=stops, context=self.context)
        return [self.texts.decode(tokens) for tokens in made]

    def likelihoods(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        return self._likelihoods(self.texts.rows(examples))

    @torch.no_grad()
    def _likelihoods(self, rows: Sequence[Row]) -> list[tuple[float, int]]:
        """Nats and tokens of the last answer of each row."""
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row].tokens))
        made: dict[int, tuple[float, int]] = {}
        for first in range(0, len(by_length), EVALUATION_BATCH):
            batch = by_length[first : first + EVALUATION_BATCH]
            nats, owners = self.model.losses([rows[row] for row in batch], last_alone=True)
            nats, owners = nats.double().tolist(), owners.tolist()
            for number, row in enumerate(batch):
                own = [value for value, owner in zip(nats, owners, strict=True) if owner == number]
                made[row] = math.fsum(own), len(own)
        return [made[row] for row in range(len(rows))]

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

    def __init__(self, causal: PreTrainedModel, texts: Texts, data: TaskData, *, context: int):
        super().__init__(causal, texts, data, longest=1, context=context)
        self.labels = data.labels

    def predict(self, examples: Sequence[Example]) -> list[str]:
        rows = [self.texts.row(example, label) for example in examples for label in self.labels]
        nats = iter(self._likelihoods(rows))
        best = [min((next(nats)[0], place) for place in range(len(self.labels)))[1] for _ in examples]
        return [self.labels[place] for place in best]
