"""What a lock pins: rows and bases as they were, and what of the study was made smaller for its budget."""

from collections.abc import Iterable
from typing import Literal

from tunetrial.core.records import Record

VARIANT, TEXT = "test~", "text~"
# Rows of a source whose states are looked at: with 128 the debiased CKA of messages that do not belong together has an
# SD of 0.01, and what is kept of products is 8,128 numbers a layer; passes on a CPU take longer than an epoch of
# training from 256 on. Of held-out texts so many tokens: about as long as a message; the states of a mean over more
# would differ little.
OBSERVED_ROWS = OBSERVED_TEXT_TOKENS = 128


def for_finals_alone(split: str) -> bool:
    """Whether only final trials are given a split: the test rows, variants of them ("test~typos"), and held-out text
    of no task ("text~wiki"), which runs of a search are given too where the study asks for their frontier."""
    return split == "test" or split.startswith((VARIANT, TEXT))


def given(splits: Iterable[str], *, final: bool, texts: bool) -> tuple[str, ...]:
    """The splits that a trial is given; `texts` of one that is no final, but is asked what it forgot."""
    return tuple(s for s in splits if final or not for_finals_alone(s) or (texts and s.startswith(TEXT)))


class DataPin(Record):
    """The rows of a task as they were when the study was locked: SHA-256 and count of each split, labels, remarks."""

    digests: dict[str, str]
    counts: dict[str, int]
    labels: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class Reduction(Record):
    """A field of the study that was made smaller, so that the study fits its budget; of a ladder its further rungs."""

    field: Literal["ladder", "tuning.points", "tuning.max_points", "looks", "repeats"]
    asked: int | tuple[int, ...]
    now: int | tuple[int, ...]

    def __str__(self) -> str:
        asked, now = (value if isinstance(value, int) else list(value) for value in (self.asked, self.now))
        what = " rungs" if self.field == "ladder" else ""
        return f"{self.field}: {asked}{what} asked, {now} within the budget"


class BasePin(Record):
    """A base as it was when the study was locked: fingerprint and count of its weights, digest of its chat template,
    and the commit of a base from the Hub."""

    fingerprint: str
    parameters: int
    template_digest: str | None = None
    revision: str | None = None
