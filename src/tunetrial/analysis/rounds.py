"""What raters found of a study's answers: each rater's preferences beside the reference, and how far raters agree.

A round is what one rater said by one criterion of one task's answers. It decides nothing: a judge is an instrument with
faults of its own, and people see a few rows. Votes on answers that the study no longer has belong to no round of it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tunetrial.analysis import preferences, ratings
from tunetrial.analysis.intervals import Interval
from tunetrial.analysis.preferences import Vote
from tunetrial.core.errors import EvidenceError
from tunetrial.core.findings import Concord, Ends, Rated
from tunetrial.core.records import Record

SEED = 0  # of the bootstrap: the same votes give the same ends


class Round(Record):
    """Votes of one rater, and of which completions: digests of the records of the trials that wrote them, by id.

    `alike` are pairs of one text (item, seed, first, second), both orders: ties that nobody was asked about. They count
    in what is preferred, and neither in how consistent raters are nor in how far they agree.
    """

    task: str
    criterion: str
    rater: str
    judge: bool
    trials: dict[str, str]
    votes: tuple[Vote, ...]
    alike: tuple[tuple[str, int | None, str, str], ...] = ()
    refused: int = 0
    blank: int = 0

    @property
    def said(self) -> tuple[Vote, ...]:
        """The votes that were asked for."""
        alike = set(self.alike)
        return tuple(vote for vote in self.votes if (vote.item, vote.seed, vote.first, vote.second) not in alike)


def belonging(rounds: Sequence[Round], records: Mapping[str, str]) -> tuple[Round, ...]:
    """The rounds on completions of these records, digests by trial id."""
    return tuple(one for one in rounds if one.trials.items() <= records.items())


def rated(one: Round, reference: str, *, level: float = 0.95) -> Rated:
    """Sum one round up; raises EvidenceError as `preferences.check`, or where the reference has no votes."""
    arms = sorted({arm for vote in one.votes for arm in (vote.first, vote.second)} - {reference})
    bias = preferences.position_bias(one.said, level=level) if one.said else None
    strengths = preferences.bradley_terry(one.votes, reference=reference, seed=SEED, level=level)
    shares = {arm: _defined(lambda a=arm: preferences.win_rate(one.votes, a, reference, level=level)) for arm in arms}
    return Rated(
        **one.model_dump(include={"task", "criterion", "rater", "judge", "refused", "blank"}),
        reference=reference,
        preferred={arm: share for arm, share in shares.items() if share is not None},
        strengths={arm: _drawn(found) for arm, found in strengths.of.items()},
        position=strengths.position and _drawn(strengths.position),
        separated=strengths.separated,
        consistent=bias and _ends(bias.consistent),
        to_first=bias.to_first if bias else 0,
        to_second=bias.to_second if bias else 0,
        rows=len({vote.item for vote in one.votes}),
        seeds=len({vote.seed for vote in one.votes}),
        same=len(one.alike) // 2,
        level=level,
    )


def concord(rounds: Sequence[Round], references: Mapping[str, str], *, level: float = 0.95) -> tuple[Concord, ...]:
    """For each task, criterion and arm how far two or more raters agree on rows that they share; none without such."""
    together: dict[tuple[str, str], list[Vote]] = {}
    for one in rounds:
        together.setdefault((one.task, one.criterion), []).extend(one.said)
    found = []
    for (task, criterion), votes in together.items():
        reference = references[task]
        arms = sorted({vote.second for vote in votes if vote.first == reference})
        for arm in arms:
            raters, opinion_JI = preferences.opinions(votes, arm, reference)
            shared = int(((~np.isnan(opinion_JI)).sum(axis=0) >= 2).sum())
            if not shared:
                continue
            alpha = ratings.alpha(opinion_JI, "ordinal", level=level)
            about = {"task": task, "criterion": criterion, "arm": arm, "reference": reference, "raters": raters}
            found.append(Concord(**about, alpha=alpha and _ends(alpha), rows=shared, level=level))
    return tuple(found)


def _defined(estimate: Callable[[], Interval]) -> Ends | None:
    try:
        return _ends(estimate())
    except EvidenceError:  # the two were never compared
        return None


def _drawn(found: Interval) -> Ends:
    """Of a bootstrap: where no draw differs (all pairs are ties), the votes set no ends."""
    value, low, high = _ends(found)
    return (value, None, None) if low is not None and low == high else (value, low, high)


def _ends(found: Interval) -> Ends:
    return found.value, found.low, found.high
