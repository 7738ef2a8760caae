"""Ladders of a study: one arm at parts of its rows and at several ranks, and what a further spend would gain.

A rung is a task of its own by name (`mail@rows=0.25`, `mail@rank=8`), so that nothing else of the study takes its runs
for the arm's. Its runs have the arm's rate and the finals' seeds: a rung that would do better at a rate of its own lies
too low, and what the ladder says of going up is then rather too much. All is read off validation rows; the test split
stays shut. Intervals are each at the study's level, for planning: they are not adjusted for looks or for one another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tunetrial.analysis import arms, metrics, stats
from tunetrial.analysis.contrasts import Means, means
from tunetrial.analysis.prospects import Gain, best, doubled, measured, prospect
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Scores
from tunetrial.core.findings import Ascent, Gained, Outlook, Prospect
from tunetrial.core.ladder import Ladder, on_rung, rank_rung, rows_rung
from tunetrial.core.study import Arm, Lock

Found = TypeVar("Found")


@dataclass(frozen=True)
class Rung:
    """One rung: the arm as it is run there, and its size in rows or rank. The `own` one is the arm's finals."""

    task: str
    arm: Arm
    size: int
    own: bool


def row_rungs(lock: Lock) -> tuple[Rung, ...]:
    """The rungs of rows of a study with a ladder, the last of them the arm as it is.

    Raises:
        EvidenceError: There is no such arm, or the rows of a rung are not pinned.
    """
    (task, arm), found = _climber(lock), []
    for share in lock.study.ladder.rows:
        name = rows_rung(task, share)
        if name not in lock.data:
            raise EvidenceError(f"ladder.rows: rows of {name} are not pinned; lock the study with its ladder")
        found.append(Rung(name, arm, lock.data[name].counts["train"], share == 1))
    return tuple(found)


def rank_rungs(lock: Lock) -> tuple[Rung, ...]:
    """The rungs of ranks of a study with a ladder.

    Raises:
        EvidenceError: There is no such arm, or its own rank, if it has one, is not among them.
    """
    (task, arm), ranks = _climber(lock), lock.study.ladder.ranks
    own = arm.settings.get("rank")
    if ranks and own not in ranks:
        raise EvidenceError(f"ladder.ranks: must hold the rank of {arm.name}, {own}, got {list(ranks)}; add it")
    names = {rank: rank_rung(task, rank, own) for rank in ranks}
    there = {name: arm.model_copy(update={"settings": on_rung(arm.settings, name)}) for name in names.values()}
    return tuple(Rung(name, there[name], rank, rank == own) for rank, name in names.items())


def _climber(lock: Lock) -> tuple[str, Arm]:
    """The task and the arm that a ladder is of."""
    names, ladder = [arm.name for arm in lock.study.arms], lock.study.ladder
    if ladder.arm not in names:
        raise EvidenceError(f"ladder.arm: no such arm, got {ladder.arm!r}; use {' or '.join(names)}")
    return lock.study.rule.primary, lock.study.arm(ladder.arm)


def read(evidence: Evidence, rungs: tuple[Rung, ...], seeds: tuple[int, ...] = ()) -> Means | str:
    """The validation scores of rungs on these seeds, or if none are given on those of the first look; or, in words, why
    there are none.

    A run that diverged has no score, and leaving its seed out would choose runs by their outcome: then there is no
    reading.
    """
    seeds = seeds or evidence.lock.final_seeds(evidence.lock.study.looks[0])
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


def outlook(
    evidence: Evidence, *, run_usd: Mapping[str, float], excluded: Mapping[str, str] | None = None
) -> Outlook | None:
    """What the study's ladder found, and what there is to spend on next; None without a ladder.

    More labels is twice the rows, at the price of as many labels again and a run over all of them. More rank is twice
    the rank: as measured, if the ladder has that rung, else the forecast; its price is a run. Full fine-tuning is as
    measured, where the study has such an arm on the same base. What serving costs is in none of them.

    Args:
        run_usd: By arm, the price of one training run, where it is known.
        excluded: Arms that are ruled out, with the reason: there is nothing to spend on them.
    """
    lock, ladder = evidence.lock, evidence.lock.study.ladder
    if ladder is None:
        return None
    rungs = {"rows": row_rungs(lock), "ranks": rank_rungs(lock)}
    ascents = {of: _sure(lambda own=own, of=of: ascent(evidence, of, own)) for of, own in rungs.items() if own}
    prospects = tuple(_prospects(evidence, ladder, rungs, run_usd, excluded or {}))
    chosen = best(prospects)
    return Outlook(
        task=lock.study.rule.primary,
        arm=ladder.arm,
        level=lock.study.rule.level,
        ascents=tuple(found for found in ascents.values() if not isinstance(found, str)),
        unread={of: why for of, why in ascents.items() if isinstance(why, str)},
        prospects=prospects,
        best=chosen and chosen.what,
    )


def ascent(evidence: Evidence, of: str, rungs: tuple[Rung, ...]) -> Ascent | str:
    """Gather a whole ladder, each interval at the study's level; or say why it cannot be read.

    Raises:
        EvidenceError: Seeds and examples do not differ in a gain at all.
    """
    found, level = read(evidence, rungs), evidence.lock.study.rule.level
    if isinstance(found, str):
        return found
    unit_KK, own = np.eye(len(rungs)), next(k for k, rung in enumerate(rungs) if rung.own)
    gains = [
        None if k == own else measured(found.contrast(unit_KK[k] - unit_KK[own]), level=level)
        for k in range(len(rungs))
    ]
    beyond = doubled(found, [rung.size for rung in rungs], over=own, level=level)
    sizes = tuple(rung.size for rung in rungs)
    return Ascent(of=of, sizes=sizes, gains=tuple(map(_gained, gains)), beyond=_gained(beyond))


def _gained(gain: Gain | None) -> Gained | None:
    return None if gain is None else Gained(expected=gain.expected, low=gain.low, high=gain.high)


def _sure(function: Callable[[], Found]) -> Found | str:
    """What a function finds, or in words why nothing can be estimated."""
    try:
        return function()
    except EvidenceError as error:
        return str(error)


def _prospects(
    evidence: Evidence,
    ladder: Ladder,
    rungs: Mapping[str, tuple[Rung, ...]],
    run_usd: Mapping[str, float],
    excluded: Mapping[str, str],
) -> list[Prospect]:
    study, found = evidence.lock.study, []
    rule, arm = study.rule, study.arm(ladder.arm)
    margin, run = study.task(rule.primary).margin, run_usd.get(arm.name)
    worth = ladder.margin_usd / margin if ladder.margin_usd and not isinstance(margin, str) else None

    def add(what: str, gained: Callable[[], Gain | None | str], usd: float | None) -> None:
        gain = _sure(gained)
        why = gain if isinstance(gain, str) else None
        found.append(prospect(what, None if why else gain, usd=usd, usd_per_unit=worth, why=why))

    if rungs["rows"]:
        price = None if None in (run, ladder.label_usd) else rungs["rows"][-1].size * ladder.label_usd + 2 * run
        add("more labels", lambda: _beyond(evidence, rungs["rows"], rule.level), price)
    if rungs["ranks"]:
        add("more rank", lambda: _more_rank(evidence, rungs["ranks"], rule.level), run)
    full = next((a for a in study.arms if a.method == "full" and study.base_of(a.name) == study.base_of(arm.name)), arm)
    if full.name in excluded and full != arm:
        add("full fine-tuning", lambda: f"{full.name} is out: {excluded[full.name]}", None)
    elif full != arm:
        two = tuple(Rung(rule.primary, one, 0, True) for one in (arm, full))
        add("full fine-tuning", lambda: _between(evidence, two, rule.level), run_usd.get(full.name))
    return found


def _beyond(evidence: Evidence, rungs: tuple[Rung, ...], level: float) -> Gain | None | str:
    found = read(evidence, rungs)
    return found if isinstance(found, str) else doubled(found, [rung.size for rung in rungs], level=level)


def _more_rank(evidence: Evidence, rungs: tuple[Rung, ...], level: float) -> Gain | None | str:
    own = next(rung for rung in rungs if rung.own)
    twice = next((rung for rung in rungs if rung.size == 2 * own.size), None)
    if twice is None and own is rungs[-1]:
        return _beyond(evidence, rungs, level)
    return _between(evidence, (own, twice), level) if twice else f"no rung at twice the rank, {2 * own.size}"


def _between(evidence: Evidence, two: tuple[Rung, ...], level: float) -> Gain | str:
    """What the second of two rungs gains over the first."""
    found = read(evidence, two)
    return found if isinstance(found, str) else measured(found.contrast(np.array([-1.0, 1.0])), level=level)
