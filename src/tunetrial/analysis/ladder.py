"""Ladders of a study: one arm at parts of its rows and at several ranks, and what a further spend would gain.

A rung is a task of its own by name (`mail@rows=0.25`, `mail@rank=8`), so that nothing else of the study takes its runs
for the arm's. Its runs have the arm's rate and the finals' seeds: a rung that would do better at a rate of its own lies
too low, and what the ladder says of going up is then rather too much. All is read off validation rows; the test split
stays shut. Intervals are each at the study's level, for planning: they are not adjusted for looks or for one another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from tunetrial.analysis import arms, metrics, stats
from tunetrial.analysis.contrasts import Means, means
from tunetrial.analysis.prospects import FEWEST_RUNGS, Gain, Prospect, doubled, measured, prospect
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Scores
from tunetrial.core.records import Record
from tunetrial.core.study import Arm, Lock


class Ladder(Record):
    """What a study asks about more rows, more rank and full fine-tuning, on the task that decides.

    `rows` are shares of the training rows, nested; `ranks` those of `arm`, its own among them. `label_usd` is the price
    of a labelled row, `margin_usd` what a gain of one margin is worth to the user: both are the user's to say, and
    without them nothing is priced or advised.
    """

    arm: str
    rows: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    label_usd: float | None = Field(default=None, ge=0)
    margin_usd: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _rungs_rise(self) -> Self:
        for name, rungs in (("rows", self.rows), ("ranks", self.ranks)):
            if rungs and not all(a < b for a, b in pairwise((0, *rungs))):
                raise ValueError(f"{name}: must rise from above 0, got {list(rungs)}; write the smallest first")
            if rungs and len(rungs) < FEWEST_RUNGS:
                raise ValueError(f"{name}: needs {FEWEST_RUNGS} or more rungs, got {list(rungs)}; add one below")
        if self.rows and self.rows[-1] != 1:
            raise ValueError(f"rows: must end with 1, all rows, got {list(self.rows)}; the finals are that rung")
        return self


@dataclass(frozen=True)
class Rung:
    """One rung: the arm as it is run there, and its size in rows or rank. The `own` one is the arm's finals."""

    task: str
    arm: Arm
    size: float
    own: bool


def row_rungs(ladder: Ladder, lock: Lock) -> tuple[Rung, ...]:
    """The rungs of rows, the last of them the arm as it is.

    Raises:
        EvidenceError: The rows of a rung are not pinned.
    """
    task, arm = lock.study.rule.primary, _arm(ladder, lock)
    names = {share: task if share == 1 else f"{task}@rows={share:g}" for share in ladder.rows}
    for name in names.values():
        if name not in lock.data:
            raise EvidenceError(f"ladder.rows: rows of {name} are not pinned; lock the study with its ladder")
    return tuple(Rung(name, arm, lock.data[name].counts["train"], share == 1) for share, name in names.items())


def rank_rungs(ladder: Ladder, lock: Lock) -> tuple[Rung, ...]:
    """The rungs of ranks; alpha goes with the rank so that the scale of the update, and hence the rate, stays.

    Raises:
        EvidenceError: The arm has no rank, or its own is not among them.
    """
    task, arm = lock.study.rule.primary, _arm(ladder, lock)
    own, alpha = arm.settings.get("rank"), arm.settings.get("alpha")
    if ladder.ranks and own not in ladder.ranks:
        raise EvidenceError(f"ladder.ranks: must hold the rank of {arm.name}, {own}, got {list(ladder.ranks)}; add it")
    power = 0.5 if arm.settings.get("rslora") else 1.0
    found = []
    for rank in ladder.ranks:
        settings = {**arm.settings, "rank": rank, "alpha": alpha * (rank / own) ** power}
        there = arm if rank == own else arm.model_copy(update={"settings": settings})
        found.append(Rung(task if rank == own else f"{task}@rank={rank}", there, rank, rank == own))
    return tuple(found)


def _arm(ladder: Ladder, lock: Lock) -> Arm:
    names = [arm.name for arm in lock.study.arms]
    if ladder.arm not in names:
        raise EvidenceError(f"ladder.arm: no such arm, got {ladder.arm!r}; use {' or '.join(names)}")
    return lock.study.arm(ladder.arm)


def read(evidence: Evidence, rungs: tuple[Rung, ...]) -> Means | str:
    """The validation scores of rungs on the seeds of the first look; or, in words, why there are none.

    A run that diverged has no score, and leaving its seed out would choose runs by their outcome: then there is no
    reading.
    """
    seeds = evidence.lock.final_seeds(evidence.lock.study.looks[0])
    found: list[list[Scores]] = []
    for rung in rungs:
        records = {
            r.trial.seed: r
            for r in evidence.of(purpose="final" if rung.own else "confirm", arm=rung.arm.name)
            if r.trial.task == rung.task
        }
        lost = [seed for seed in seeds if seed in records and records[seed].status != "ok"]
        if lost:
            return f"{rung.task}, {rung.arm.name}: {records[lost[0]].status} with seed {lost[0]}"
        scores = [evidence.scores.get((records[s].trial.id, "validation")) for s in seeds if s in records]
        if len(scores) < len(seeds) or not all(map(arms.sound, scores)):
            return f"{rung.task}, {rung.arm.name}: {len(scores)} of {len(seeds)} runs"
        found.append(scores)
    first = found[0][0]
    if not all(arms.same_rows(first, scores) for own in found for scores in own):
        return "rungs are not scored on the same rows"
    metric = metrics.find(evidence.lock.study.task(evidence.lock.study.rule.primary).metric)
    score_KRE = [[metrics.contributions(metric, scores) for scores in own] for own in found]
    return means(np.stack([stats.cluster_values(np.stack(own), first.cluster_E) for own in score_KRE]))


@dataclass(frozen=True)
class Ascent:
    """A ladder as measured: what each rung gains over the arm as it is (None for that one), and what the last one
    doubled would; `beyond` is None where the rungs refute diminishing returns."""

    rungs: tuple[Rung, ...]
    gains: tuple[Gain | None, ...]
    beyond: Gain | None


def ascent(evidence: Evidence, rungs: tuple[Rung, ...]) -> Ascent | str:
    """Gather a whole ladder, each interval at the study's level; or say why it cannot be read."""
    found, level = read(evidence, rungs), evidence.lock.study.rule.level
    if isinstance(found, str):
        return found
    unit_KK, own = np.eye(len(rungs)), next(k for k, rung in enumerate(rungs) if rung.own)
    gains = tuple(
        None if k == own else measured(found.contrast(unit_KK[k] - unit_KK[own]), level=level)
        for k in range(len(rungs))
    )
    return Ascent(rungs, gains, doubled(found, [rung.size for rung in rungs], over=own, level=level))


def outlook(evidence: Evidence, ladder: Ladder, *, run_usd: Mapping[str, float]) -> tuple[Prospect, ...]:
    """What more labels, more rank and full fine-tuning are expected to gain over the ladder's arm as it is.

    More labels is twice the rows, at the price of as many labels again and a run over all of them. More rank is twice
    the rank: as measured, if the ladder has that rung, else the forecast; its price is a run. Full fine-tuning is as
    measured, where the study has such an arm on the same base. What serving costs is in none of them.

    Args:
        run_usd: By arm, the price of one training run, where it is known.
    """
    lock, study = evidence.lock, evidence.lock.study
    rule, arm = study.rule, _arm(ladder, lock)
    margin, found = study.task(rule.primary).margin, []
    worth = ladder.margin_usd / margin if ladder.margin_usd and not isinstance(margin, str) else None
    run = run_usd.get(arm.name)

    def add(what: str, gain: Gain | None | str, usd: float | None) -> None:
        why = gain if isinstance(gain, str) else None
        found.append(prospect(what, None if why else gain, usd=usd, usd_per_unit=worth, why=why))

    if ladder.rows:
        rungs = row_rungs(ladder, lock)
        price = None if None in (run, ladder.label_usd) else rungs[-1].size * ladder.label_usd + 2 * run
        add("more labels", _beyond(evidence, rungs, rule.level), price)
    if ladder.ranks:
        add("more rank", _more_rank(evidence, rank_rungs(ladder, lock), rule.level), run)
    full = next((a for a in study.arms if a.method == "full" and study.base_of(a.name) == study.base_of(arm.name)), arm)
    if full != arm:
        both = read(evidence, tuple(Rung(rule.primary, one, 0, True) for one in (arm, full)))
        gain = both if isinstance(both, str) else measured(both.contrast(np.array([-1.0, 1.0])), level=rule.level)
        add("full fine-tuning", gain, run_usd.get(full.name))
    return tuple(found)


def _beyond(evidence: Evidence, rungs: tuple[Rung, ...], level: float) -> Gain | None | str:
    found = read(evidence, rungs)
    return found if isinstance(found, str) else doubled(found, [rung.size for rung in rungs], level=level)


def _more_rank(evidence: Evidence, rungs: tuple[Rung, ...], level: float) -> Gain | None | str:
    own = next(rung for rung in rungs if rung.own)
    twice = next((rung for rung in rungs if rung.size == 2 * own.size), None)
    if twice is None and own is rungs[-1]:
        return _beyond(evidence, rungs, level)
    if twice is None:
        return f"no rung at twice the rank, {2 * own.size:g}"
    found = read(evidence, (own, twice))
    return found if isinstance(found, str) else measured(found.contrast(np.array([-1.0, 1.0])), level=level)
