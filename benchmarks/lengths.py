"""Rows of stated lengths: no data set is needed, and every contender is given the very same tokens.

Lengths are drawn from log-normal distributions fitted to public data sets as this tokenizer cuts them (8,192 tokens):
MRPC, 3,668 pairs: 67 tokens, sd of logs 0.28; SST-2, 67,349 phrases: 14, 0.79; STS-B, 5,749 pairs: 44, 0.45; Alpaca,
a published excerpt of 2,711 rows in Alpaca's own prompt: prompts of 69 tokens, 0.19, and answers with sd of logs 0.67,
whose mean is set so that a row of all of Alpaca has the 196 tokens that a Llama tokenizer makes of it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import Kind


@dataclass(frozen=True)
class Lengths:
    """Tokens, log-normal by their mean and the sd of their logarithms, rounded and clipped."""

    mean: float
    log_sd: float
    least: int = 2
    most: int = 1024

    def draw(self, rng: random.Random) -> int:
        centre = math.log(self.mean) - self.log_sd**2 / 2
        return min(max(round(rng.lognormvariate(centre, self.log_sd)), self.least), self.most)


PROMPTS = {
    "mrpc": Lengths(67, 0.28),
    "sst2": Lengths(14, 0.79),
    "stsb": Lengths(44, 0.45),
    "alpaca": Lengths(69, 0.19),
}
ANSWERS = {"alpaca": Lengths(127, 0.67)}


def drawn(name: str, rows: int, seed: int = 0) -> list[tuple[int, int]]:
    """Tokens of prompt and answer of each row; an answer of none where only a head is trained."""
    rng = random.Random(seed)
    answers = ANSWERS.get(name)
    return [(PROMPTS[name].draw(rng), answers.draw(rng) if answers else 0) for _ in range(rows)]


def words(tokenizer) -> list[str]:
    """Words, a space before each, that are one token each wherever they stand."""
    found = sorted(token for token in tokenizer.get_vocab() if token.startswith("Ġ") and token[1:].isascii())
    plain = [" " + token[1:] for token in found if token[1:].isalpha() and token[1:].islower() and len(token) > 3]
    return [word for word in plain if len(tokenizer(word, add_special_tokens=False).input_ids) == 1]


def examples(
    tokenizer, sizes: Sequence[tuple[int, int]], *, labels: Sequence[str] = (), seed: int = 0
) -> tuple[Example, ...]:
    """Rows of random words of these sizes. The end of text that closes an answer counts as its last token.

    The target is the answer; where there is none, a label, or without labels a number from 0 to 5.
    """
    rng, vocabulary, made = random.Random(seed), words(tokenizer), []
    for number, (prompt, answer) in enumerate(sizes):
        target = "".join(rng.choices(vocabulary, k=max(answer - 1, 1))) if answer else None
        if target is None:
            target = rng.choice(labels) if labels else rng.uniform(0, 5)
        text = "".join(rng.choices(vocabulary, k=prompt))
        made.append(Example(id=f"r{number}", cluster=f"r{number}", prompt=text, target=target))
    return tuple(made)


def task(
    name: str, train: Sequence[Example], validation: Sequence[Example] = (), *, kind: Kind, labels: Sequence[str] = ()
) -> TaskData:
    """Rows as a task; without rows to validate on, the first that is trained on."""
    splits = {"train": tuple(train), "validation": tuple(validation or train[:1])}
    return TaskData(name=name, kind=kind, labels=tuple(labels), splits=splits)
