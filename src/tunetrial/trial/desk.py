"""What the rating page asks and keeps: people's answers, each on the disk before it is acknowledged.

Nothing is held in memory but the order of questions, which the study's seed and the rater's name give: a page that was
killed goes on where it was, and what was said is in the decision without it (`raters.rounds`).
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunetrial.analysis import rounds
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.rating.sitting import SAYS, Answer, Kind, Question, answer_of, questions
from tunetrial.report.raters import standing
from tunetrial.store.ratings import Journal, RatingFolder
from tunetrial.trial import raters
from tunetrial.trial.openings import note_use
from tunetrial.trial.raters import Asked

LONGEST_NAME = 40


class Desk:
    """One study's page: several raters, each with an order and a journal of their own."""

    def __init__(self, asked: Asked, folder: Path) -> None:
        self._asked, self._folder = asked, folder
        self._kept = RatingFolder(folder / "ratings")
        self._orders: dict[tuple[str, Kind], tuple[Question, ...]] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only page of the study while it is shown; raises StoreError, which names the other."""
        with self._kept.hold_page():
            yield

    def begin(self, rater: str, kind: Kind) -> dict:
        """Seat a rater, new or known: what is asked, how many questions there are, and which are answered.

        Raises:
            ConfigError: No name, or one that a judge or a sheet has.
            DataError: There is nothing to ask.
            StoreError: Nothing can be written.
        """
        asked, rater = self._asked, _name(rater)
        if raters.has_spoken(self._folder, asked.task, asked.criterion, rater):
            raise ConfigError(f"rate: a judge or a sheet goes by this name, got {rater!r}; take another")
        order = self._order(rater, kind)
        note_use(asked.lock, asked.task, f"shown to {rater}")
        self._journal(rater).begin({**asked.about(), "rater": rater})
        said = self._said(rater)
        answered = [said.get(question.key) for question in order]
        return {"rater": rater, "criterion": asked.criterion, "answered": answered}

    def show(self, rater: str, kind: Kind, number: int) -> dict:
        """One question as it is read: its texts and nothing of where they came from."""
        question = self._question(_name(rater), kind, number)
        return {"request": question.request, "texts": list(question.texts)}

    def answer(self, rater: str, kind: Kind, number: int, said: int) -> None:
        """Keep an answer; on the disk when this returns.

        Raises:
            ConfigError: The rater has not begun, or there is no such question or answer.
            StoreError: It cannot be written: it was not kept.
        """
        rater = _name(rater)
        question = self._question(rater, kind, number)
        if type(said) is not int or said not in SAYS[kind]:
            raise ConfigError(f"rate: no such answer, got {said!r:.40}; say {SAYS[kind][0]} to {SAYS[kind][-1]}")
        journal, known = self._journal(rater), self._said(rater)
        alike = Answer("alike", question.alike)
        if question.alike and alike.key not in known:
            journal.add(alike.line())
        journal.add(Answer(kind, question.of, said).line())

    def end(self, rater: str, kind: Kind) -> dict:
        """How far the raters agree, in sentences that name no arm."""
        rater = _name(rater)
        self._question(rater, kind, 0)
        about = self._asked.task, self._asked.criterion
        held = rounds.belonging(raters.rounds(self._folder), self._asked.trials)
        return {"agreement": standing(rounds.standing([o for o in held if (o.task, o.criterion) == about], rater))}

    def _journal(self, rater: str) -> Journal:
        asked = self._asked
        return self._kept.journal((asked.task, asked.criterion, rater, asked.trials_digest))

    def _said(self, rater: str) -> dict[str, int | None]:
        answers = map(answer_of, self._journal(rater).read()[1])
        return {answer.key: answer.said for answer in answers}

    def _order(self, rater: str, kind: Kind) -> tuple[Question, ...]:
        if kind not in SAYS:
            raise ConfigError(f"rate: no such kind of question, got {kind!r:.40}; use pairs or points")
        if (rater, kind) not in self._orders:
            order = questions(self._asked.items, kind, seed=self._asked.lock.study.seed, rater=rater)
            if not order:
                raise EvidenceError("rate: nothing to compare, got answers that are all alike; rate them 1 to 10")
            self._orders[rater, kind] = order
        return self._orders[rater, kind]

    def _question(self, rater: str, kind: Kind, number: int) -> Question:
        if not self._journal(rater).begun:
            raise ConfigError(f"rate: nobody of this name has begun, got {rater!r}; begin first")
        order = self._order(rater, kind)
        if type(number) is not int or not 0 <= number < len(order):
            raise ConfigError(f"rate: no such question, got {number!r:.40}; there are {len(order)}")
        return order[number]


def _name(text: object) -> str:
    """A rater's name as it is kept, one composition and no white space around it."""
    name = unicodedata.normalize("NFC", text).strip() if isinstance(text, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"rate: no name, got {ascii(text)[:60]}; give 1 to {LONGEST_NAME} printable characters")
    return name
