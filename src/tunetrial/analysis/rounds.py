"""What raters found of a study's answers: each rater's preferences beside the reference, and how far raters agree.

A round is what one rater said by one criterion of one task's answers. It decides nothing: a judge is an instrument with
faults of its own, and people see a few rows. Votes on answers that the study no longer has belong to no round of it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tunetrial.analysis import intervals, preferences, ratings
from tunetrial.analysis.intervals import Interval
from tunetrial.analysis.preferences import Vote
from tunetrial.analysis.ratings import Rating
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Measurement
from tunetrial.core.findings import Ends
from tunetrial.core.rated import Concord, Graded, Rated
from tunetrial.core.records import Record, added

SEED = 0  # of the bootstrap: the same votes give the same ends


class Round(Record):
    """Votes of one rater, and of which completions: digests of the records of the trials that wrote them, by id.

    `alike` are pairs of one text (item, seed, first, second), both orders: ties that nobody was asked about. They count
    in what is preferred, and neither in how consistent raters are nor in how far they agree. `ratings` are of 1 to 10.
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
    ratings: tuple[Rating, ...] = added(())

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


def graded(rounds: Sequence[Round], references: Mapping[str, str], *, level: float = 0.95) -> tuple[Graded, ...]:
    """For each task and criterion what ratings of 1 to 10 say of its arms, over all raters; none without ratings."""
    together: dict[tuple[str, str], list[Rating]] = {}
    for one in rounds:
        together.setdefault((one.task, one.criterion), []).extend(one.ratings)
    return tuple(
        _graded(task, criterion, points, references[task], level)
        for (task, criterion), points in together.items()
        if points
    )


def _graded(task: str, criterion: str, points: Sequence[Rating], reference: str, level: float) -> Graded:
    arms = sorted({one.arm for one in points}, key=lambda arm: (arm != reference, arm))
    raters, items, tables = (), (), {}
    for arm in arms:
        raters, items, tables[arm] = ratings.tabled(points, arm)
    # Answers are the units: every item of every arm, those alone that were rated.
    answer_JA = np.concatenate([tables[arm] for arm in arms], axis=1)
    several = len(raters) > 1 and ((~np.isnan(answer_JA)).sum(axis=0) >= 2).any()
    alpha = ratings.alpha(answer_JA, "ordinal", level=level) if several else None
    whole_JA = answer_JA[:, ~np.isnan(answer_JA).any(axis=0)]
    icc = ratings.icc(whole_JA.T, level=level) if min(whole_JA.shape) > 1 else None
    return Graded(
        task=task,
        criterion=criterion,
        reference=reference,
        raters=raters,
        rows=len(items),
        seeds=len({one.seed for one in points}),
        mean={arm: float(np.nanmean(tables[arm])) for arm in arms},
        higher=_higher(tables, reference, level),
        alpha=alpha and _ends(alpha),
        icc=icc and _ends(icc.single),
        icc_of_mean=icc and _ends(icc.average),
        level=level,
    )


def _higher(tables: Mapping[str, np.ndarray], reference: str, level: float) -> dict[str, Ends]:
    """How often each arm is rated higher than the reference, on items where every rater rated both."""
    found = {}
    for arm in tables.keys() - {reference} if reference in tables else ():
        both_E = ~(np.isnan(tables[arm]) | np.isnan(tables[reference])).any(axis=0)
        if both_E.any():
            parts_JE = ratings.preferred_parts(tables[arm][:, both_E], tables[reference][:, both_E])
            found[arm] = _ends(intervals.of_share(parts_JE, level=level))
    return dict(sorted(found.items()))


def preferred(rounds: Sequence[Round], task: str, reference: str) -> dict[str, Measurement]:
    """By arm, in what share of pairs with the reference's people find its answer better, ties half; the reference 1/2.

    Votes of all people together; only where nobody compared pairs, by who is rated higher of 1 to 10. A judge model's
    word is not in it. Empty where no person rated answers of this task.
    """
    people = [one for one in rounds if one.task == task and not one.judge]
    votes = [vote for one in people for vote in one.votes]
    arms = {arm for vote in votes for arm in (vote.first, vote.second)} - {reference}
    shares = {arm: _defined(lambda a=arm: preferences.win_rate(votes, a, reference)) for arm in sorted(arms)}
    if not votes:
        shares = {arm: ends for one in graded(people, {task: reference}) for arm, ends in one.higher.items()}
    found = {arm: ends[0] for arm, ends in shares.items() if ends is not None}
    rows = len({one.item for each in people for one in (each.votes or each.ratings)})
    return {
        arm: Measurement(value=value, unit="share", n=rows)
        for arm, value in ({reference: 0.5, **found} if found else {}).items()
    }


def pooled_alpha(rounds: Sequence[Round], *, level: float = 0.95) -> Ends | None:
    """How far raters of one task and criterion agree over all pairs of arms at once, which names no arm: Krippendorff's
    alpha, ordinal; items of each pair are the units. None where no two judged the same, or all say one thing."""
    votes = [vote for one in rounds for vote in one.said]
    raters = tuple(dict.fromkeys(vote.rater for vote in votes))
    tables = []
    for one, other in sorted({tuple(sorted((vote.first, vote.second))) for vote in votes}):
        names, opinion_JI = preferences.opinions(votes, one, other)
        table_JI = np.full((len(raters), opinion_JI.shape[1]), np.nan)
        table_JI[[raters.index(name) for name in names]] = opinion_JI
        tables.append(table_JI)
    if not tables or not ((~np.isnan(together := np.concatenate(tables, axis=1))).sum(axis=0) >= 2).any():
        return None
    found = ratings.alpha(together, "ordinal", level=level)
    return found and _ends(found)


class Standing(Record):
    """How far raters of one task and criterion agree, and one of them with the other order of a pair: in numbers that
    name no arm, so that a rater may see them. None where it is not known."""

    raters: int
    consistent: Ends | None
    of_pairs: Ends | None
    of_points: Ends | None
    icc: Ends | None
    icc_of_mean: Ends | None


def standing(rounds: Sequence[Round], rater: str, *, level: float = 0.95) -> Standing:
    """Say where one rater stands among these rounds, which are of one task and criterion."""
    own = [vote for one in rounds for vote in one.said if vote.rater == rater]
    points = next(iter(graded(rounds, dict.fromkeys((one.task for one in rounds), ""), level=level)), None)
    return Standing(
        raters=len({one.rater for one in rounds}),
        consistent=_ends(preferences.position_bias(own, level=level).consistent) if own else None,
        of_pairs=pooled_alpha(rounds, level=level),
        of_points=points and points.alpha,
        icc=points and points.icc,
        icc_of_mean=points and points.icc_of_mean,
    )


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
