"""What one person is asked on the page, in which order, and what comes of the answers.

Two kinds of question: which of two answers is better, and how good one answer is, 1 to 10. What is shown alike is asked
once, whichever arms and training seeds wrote it, and what is said goes for all of them; two answers of one text are a
tie that nobody is asked about. Each rater has an order of their own, drawn by the study's seed and the name. Pairs come
in blocks: all pairs of a block, then the same the other way round, so that whoever stops early leaves few halves.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from tunetrial.analysis.preferences import Vote
from tunetrial.analysis.ratings import Rating
from tunetrial.analysis.rounds import Round
from tunetrial.core.records import canonical, digest
from tunetrial.rating.items import Item, singles

Kind = Literal["pairs", "points"]
Place = tuple[str, int | None, str, str] | tuple[str, int | None, str]  # item, seed, and the arms in order, or the arm
BLOCK = 10
SAYS: dict[Kind, range] = {"pairs": range(3), "points": range(1, 11)}
WINNERS = ("tie", "first", "second")


@dataclass(frozen=True)
class Question:
    """A request with one or two answers, and all the places in the study that read so.

    `alike` are pairs of one text, which count as answered once this question is.
    """

    kind: Kind
    request: str
    texts: tuple[str, ...]
    of: tuple[Place, ...]
    alike: tuple[Place, ...] = ()

    @property
    def key(self) -> str:
        return canonical([self.kind, self.of])

    def turned(self) -> "Question":
        """The same pair the other way round."""
        of = tuple(sorted((item, seed, second, first) for item, seed, first, second in self.of))
        return Question(self.kind, self.request, self.texts[::-1], of)


@dataclass(frozen=True)
class Answer:
    """What a rater said to a question: 0 to 2 of a pair (0: neither is better), 1 to 10 of one answer."""

    kind: Literal["pairs", "points", "alike"]
    of: tuple[Place, ...]
    said: int | None = None

    @property
    def key(self) -> str:
        return canonical([self.kind, self.of])

    def line(self) -> dict:
        return {"kind": self.kind, "of": [list(place) for place in self.of], "said": self.said}


def answer_of(line: dict) -> Answer:
    return Answer(line["kind"], tuple(tuple(place) for place in line["of"]), line["said"])


def questions(items: Sequence[Item], kind: Kind, *, seed: int, rater: str) -> tuple[Question, ...]:
    """All questions of a kind to a rater, in order. Raises DataError as `items.pairs`."""
    rng = random.Random(digest([seed, rater, kind]))
    return _points(items, rng) if kind == "points" else _pairs(items, rng)


def _points(items: Sequence[Item], rng: random.Random) -> tuple[Question, ...]:
    shown: dict[tuple[str, str], list[Place]] = {}
    requests, texts = {}, {}
    for item, arm in singles(items, seed=0):
        key = item.id, item.answers[arm].strip()
        shown.setdefault(key, []).append((item.id, item.seed, arm))
        requests[key], texts[key] = item.prompt, item.answers[arm]
    found = [Question("points", requests[key], (texts[key],), _sorted(shown[key])) for key in sorted(shown)]
    rng.shuffle(found)
    return tuple(found)


def _pairs(items: Sequence[Item], rng: random.Random) -> tuple[Question, ...]:
    """Blocks of pairs, each pair turned by chance, then the block again the other way round.

    Pairs of one text go with the first question of the block that they fall in, the last of them with the last.
    """
    pairs = _told_apart(items)
    rng.shuffle(pairs)
    asked: list[Question] = []
    block: list[Question] = []
    alike: tuple[Place, ...] = ()
    for pair in pairs:
        if _same(pair):
            alike += (*pair.of, *pair.turned().of)
            continue
        block.append(pair.turned() if rng.random() < 0.5 else pair)
        if len(block) == BLOCK:
            asked, block, alike = [*asked, *_both_ways(block, alike)], [], ()
    asked += _both_ways(block, alike if block else ())
    if alike and asked and not block:
        asked[-1] = replace(asked[-1], alike=(*asked[-1].alike, *alike))
    return tuple(asked)


def _both_ways(block: Sequence[Question], alike: tuple[Place, ...]) -> list[Question]:
    return [replace(pair, alike=() if n else alike) for n, pair in enumerate(block)] + [p.turned() for p in block]


def _told_apart(items: Sequence[Item]) -> list[Question]:
    """Every two answers to a request once, with all places where these two are held against each other."""
    singles(items, seed=0)  # which refuses items that occur twice
    shown: dict[tuple[str, str, str], list[Place]] = {}
    first_seen: dict[tuple[str, str, str], tuple[str, tuple[str, str]]] = {}
    for item in items:
        for one, other in combinations(sorted(item.answers), 2):
            texts = item.answers[one], item.answers[other]
            if texts[1].strip() < texts[0].strip():
                one, other, texts = other, one, texts[::-1]
            key = item.id, texts[0].strip(), texts[1].strip()
            shown.setdefault(key, []).append((item.id, item.seed, one, other))
            first_seen.setdefault(key, (item.prompt, texts))
    return [Question("pairs", *first_seen[key], _sorted(shown[key])) for key in sorted(shown)]


def _sorted(places: Iterable[Place]) -> tuple[Place, ...]:
    return tuple(sorted(places, key=canonical))


def _same(pair: Question) -> bool:
    return pair.texts[0].strip() == pair.texts[1].strip()


def round_of(about: dict, answers: Iterable[Answer]) -> Round:
    """All that a rater said so far; the last answer to a question counts, and a pair once both its orders are answered.

    `blank` counts answers that wait for the other order of their pair.
    """
    last = {answer.key: answer for answer in answers}.values()
    alike = dict.fromkeys(place for answer in last if answer.kind == "alike" for place in answer.of)
    said = {place: answer.said for answer in last if answer.kind == "pairs" for place in answer.of}
    whole = {place: points for place, points in said.items() if (*place[:2], place[3], place[2]) in said}
    torn = sum(answer.kind == "pairs" and answer.of[0] not in whole for answer in last)
    rater = about["rater"]
    votes = [
        Vote(item=item, seed=seed, first=first, second=second, winner=WINNERS[points], rater=rater, blind=True)
        for (item, seed, first, second), points in {**whole, **dict.fromkeys(alike, 0)}.items()
    ]
    ratings = [
        Rating(item=item, seed=seed, arm=arm, points=answer.said, rater=rater, blind=True)
        for answer in last
        if answer.kind == "points"
        for item, seed, arm in answer.of
    ]
    told = {"votes": tuple(votes), "ratings": tuple(ratings), "alike": tuple(alike), "blank": torn}
    return Round(**about, judge=False, **told)
