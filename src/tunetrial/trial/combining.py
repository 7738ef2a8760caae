"""One adapter for all tasks of a study: made of an arm's adapters, or trained on all rows, by settings that are chosen
on validation rows; then scored on the test rows, beside the single adapters, the untuned base and the other arms.

The replicates are the finals' seeds: the combination of a seed is made of the adapters of that seed, by one setting for
all seeds. Test rows are opened once, for all that is asked for together, after every setting is chosen.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunetrial.analysis import arms, combined, costs, fairness, metrics
from tunetrial.analysis.compare import why_idle, why_lost
from tunetrial.core import files
from tunetrial.core.combination import Combination, How, Made, Recipe, Stored, Tried, called
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Comparison, Evidence
from tunetrial.models import PinnedModel
from tunetrial.store import StudyFolder
from tunetrial.trial.combinable import check, stored
from tunetrial.trial.combinations import Built, Tell, build
from tunetrial.trial.hand import Hand
from tunetrial.trial.openings import count_openings, note_use

if TYPE_CHECKING:
    from tunetrial.engine.combine import Adapter

UNTUNED = "untuned base"
ALIKE = 0.1
Parts = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Found:
    """What was found, and what is written of it: the adapter, one that it was made of, and the base of both."""

    combination: Combination
    adapter: "Adapter"
    like: Path
    base: PinnedModel


def combine(
    evidence: Evidence, root: Path, study: Path, *, arm: str, recipes: Sequence[Recipe], tell: Tell = lambda said: None
) -> Found:
    """Combine an arm's adapters in every way asked for.

    Args:
        root: The folder that relative paths of the study start from.
        study: The folder of results, whose files `evidence` was read from and checked.
    Raises:
        ConfigError, EvidenceError: The arm or the study has nothing that could be combined; it is said what.
        ModelError, IntegrityError: Adapters, base or rows are damaged, or others than in the study.
        DivergedError, DoesNotFitError: Training did not come through.
    """
    hand = Hand(evidence, root, check(evidence, StudyFolder(study), arm, recipes))
    hand.check_gains()
    made, built = {}, {}
    for recipe in recipes:
        tell(f"{recipe.how}: choosing on validation rows")
        made[recipe.how], built[recipe.how] = _choose(hand, recipe, tell)
    for spec in hand.tasks:
        note_use(evidence.lock, spec.name, f"{arm} combined: {', '.join(map(str, recipes))}")
    tell("answering test rows")
    scores, comparisons = _test(hand, built)
    best = max(made.values(), key=lambda one: one.chosen.mean)
    seed = built[best.recipe.how].median_seed
    combination = Combination(
        arm=arm,
        seeds=hand.seeds,
        metrics={spec.name: spec.metric for spec in hand.tasks},
        made=tuple(made.values()),
        scores=scores,
        comparisons=comparisons,
        stored=tuple(_stored(hand, made, built)),
        written=best.recipe.how,
        seed=seed,
        openings=count_openings(evidence.lock),
    )
    like = hand.finals.artifacts[hand.tasks[0].name, seed]
    return Found(combination, built[best.recipe.how].by_seed[seed], like, hand.base)


def _choose(hand: Hand, recipe: Recipe, tell: Tell) -> tuple[Made, Built]:
    """Try every setting of a recipe on the validation rows, and take the best; of equals the first."""
    built, made_s = build(hand, recipe, tell)
    values: dict[int, dict[int, dict[str, float | None]]] = {}
    live = [number for number, one in enumerate(built) if one.by_seed]
    started_s = time.monotonic()
    for seed in hand.seeds if live else ():
        found = hand.answers([built[number].by_seed[seed] for number in live], "validation")
        values[seed] = {
            number: {name: hand.value(name, found[name][place]) for name in hand.names}
            for place, number in enumerate(live)
        }
        tell(f"{recipe.how}: seed {seed} answered, {len(live)} settings")
    taken_s, tried = time.monotonic() - started_s, []
    for number, one in enumerate(built):
        kept = hand.kept(values[seed][number] for seed in hand.seeds) if number in live else None
        mean = kept and combined.mean_kept(kept)
        tried.append(Tried(setting=one.setting, kept=None if mean is None else kept, mean=mean))
    sound = [number for number, one in enumerate(tried) if one.mean is not None]
    if not sound:
        what = "no setting came through training with a metric on all tasks"
        raise EvidenceError(f"combine: {recipe.how}: {what}, got {len(built)} settings; use another --how")
    best = max(sound, key=lambda number: tried[number].mean)
    by_seed = {seed: combined.mean_kept(hand.kept([values[seed][best]])) for seed in hand.seeds}
    made = Made(
        recipe=recipe,
        chosen=tried[best],
        tried=tuple(tried),
        rank=max(len(one.a) for one in built[best].by_seed[hand.seeds[0]].values()),
        left_out=built[best].left_out,
        made_s=made_s,
        chosen_s=taken_s,
    )
    return made, replace(built[best], kept_by_seed=by_seed)


def _test(hand: Hand, built: Mapping[How, Built]) -> tuple[dict[str, dict[str, float]], tuple[Comparison, ...]]:
    """Score every combination, single adapter and the untuned base on all test rows, and hold combinations against each
    task's own adapter, the untuned base, the study's other arms, and joint training where that was asked for.
    """
    from tunetrial.engine import combine as engine  # torch

    made_names = {called(hand.arm, how) for how in built}
    parts: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in hand.names}
    values: dict[str, dict[str, list[float]]] = {name: {} for name in hand.names}
    for seed in hand.seeds:
        given = {called(hand.arm, how): one.by_seed[seed] for how, one in built.items()}
        given |= {f"{hand.arm} of {name}": hand.singles[name, seed] for name in hand.names}
        if seed == hand.seeds[0]:
            given[UNTUNED] = engine.zero(hand.singles[hand.names[0], seed])
        for task, answers in hand.answers(list(given.values()), "test").items():
            metric = metrics.find(hand.lock.study.task(task).metric)
            for name, one in zip(given, answers, strict=True):
                if one is None:
                    remedy = "use another --how" if name in made_names else "compute in a wider precision"
                    raise EvidenceError(f"{task}: answers of {name}, seed {seed}, are not finite, got nan; {remedy}")
                parts[task].setdefault(name, []).append(arms.parts_of(metric, one))
                value = metrics.value(metric, one)
                values[task].setdefault(name, []).extend([] if value is None else [value])
    scores = {task: {n: float(np.mean(v)) for n, v in own.items() if v} for task, own in values.items()}
    stacked = {task: {n: np.stack(v) for n, v in own.items()} for task, own in parts.items()}
    unlike = {task: _unlike(hand, task, values[task][f"{hand.arm} of {task}"]) for task in hand.names}
    pairs = [
        pair for task in hand.names for how in built for pair in _pairs(hand, task, how, stacked[task], unlike[task])
    ]
    compared = combined.compare(pairs, level=hand.lock.study.rule.level)
    return {task: own | _others(hand, task) for task, own in scores.items()}, compared


def _others(hand: Hand, task: str) -> dict[str, float]:
    """The test scores of the study's other arms on a task, at the last look that each has completed."""
    others = (arm.name for arm in hand.lock.study.arms if arm.name != hand.arm)
    found = {name: arms.outcome(hand.evidence, task, name).result.mean for name in others}
    return {name: mean for name, mean in found.items() if mean is not None}


def _unlike(hand: Hand, task: str, values: Sequence[float]) -> str:
    """Why scores of today are not to be held against those of the study; empty where the arm's own adapters score as
    they did then, within a tenth of the margin."""
    spec = hand.lock.study.task(task)
    measured = [hand.finals.record(task, seed).measurements.get(f"test.{spec.metric}") for seed in hand.seeds]
    if len(values) < len(measured) or None in measured:
        return f"{spec.metric} of {hand.arm}'s own adapters is not defined for every seed"
    apart = max(abs(a - b.value) for a, b in zip(values, measured, strict=True))
    if apart <= ALIKE * spec.margin:
        return ""
    return f"{hand.arm}'s own adapters score otherwise on this machine than in the study, by {apart:.3g}"


def _obstacle(hand: Hand, task: str, arm: str) -> str:
    """Why a combination is not to be held against the finals of an arm, as the study's own verdicts have it; else
    empty."""
    pair = [arms.outcome(hand.evidence, task, name).result for name in dict.fromkeys((hand.arm, arm))]
    lost = [why_lost(one, hand.evidence) for one in pair if one.state in ("does not fit", "diverged")]
    unfair = fairness.obstacles(hand.evidence, task, hand.arm, arm) if arm != hand.arm else ()
    idle = [why_idle(one, hand.evidence) for one in pair if one.state == "did not train"]
    return "; ".join(lost[:1] or unfair or idle[:1])


def _pairs(hand: Hand, task: str, how: How, own: Parts, unlike: str) -> list[combined.Pair]:
    """A combination and each of what it is held against on a task."""
    spec, study = hand.lock.study.task(task), hand.lock.study
    candidate, joint, single = called(hand.arm, how), called(hand.arm, "joint"), f"{hand.arm} of {task}"
    against = {single: own[single], UNTUNED: np.repeat(own[UNTUNED], len(hand.seeds), axis=0)}
    if joint in own and how != "joint":
        against[joint] = own[joint]
    obstacles = {single: _obstacle(hand, task, hand.arm)}
    for arm in (one.name for one in study.arms if one.name not in (hand.arm, study.untuned(hand.arm))):
        found = arms.outcome(hand.evidence, task, arm)
        shared = set(hand.seeds) & set(found.seeds)
        whole = len(shared) == len(hand.seeds)
        lacking = "" if whole else f"{arm} has {len(shared)} of the {len(hand.seeds)} finals with these seeds"
        obstacles[arm] = _obstacle(hand, task, arm) or lacking or unlike
        against[arm] = found.stack(hand.seeds) if whole else None
    clusters = tuple(example.cluster for example in hand.rows(task, "test"))
    about = {"task": task, "metric": spec.metric, "margin": spec.margin, "candidate": candidate, "cluster_E": clusters}
    return [
        combined.Pair(
            **about,
            reference=name,
            candidate_RE=own[candidate],
            reference_RE=other,
            obstacle=obstacles.get(name) or None,
        )
        for name, other in against.items()
    ]


def _stored(hand: Hand, made: Mapping[How, Made], built: Mapping[How, Built]) -> Iterator[Stored]:
    """What each way to serve all tasks takes."""
    apart = {one.name: one for one in stored(hand.evidence, hand.arm)}
    yield Stored(name=UNTUNED, artifacts=0, artifact_bytes=0, train_s=0.0)
    singles = apart[f"{hand.arm} of each task"].train_s
    first = costs.of_arm(hand.evidence, arms.outcome(hand.evidence, hand.names[0], hand.arm).result).get("train_s")
    for how, one in made.items():
        of_one_s = one.made_s / (len(hand.seeds) * len(one.tried))
        train_s = {"joint": of_one_s, "sequential": first and first.value + of_one_s}
        size_bytes, name = _size_bytes(hand, built[how].by_seed[hand.seeds[0]]), called(hand.arm, how)
        yield Stored(name=name, artifacts=1, artifact_bytes=size_bytes, train_s=train_s.get(how, singles))
    yield from apart.values()


def _size_bytes(hand: Hand, adapter: "Adapter") -> int:
    """The bytes of an adapter as it is written."""
    from tunetrial.engine import combine as engine  # torch

    place = Path(tempfile.gettempdir())
    with files.writing(place), tempfile.TemporaryDirectory(prefix="tunetrial-combine-", dir=place) as scratch:
        like = next(iter(hand.finals.artifacts.values()))
        engine.write(adapter, like, Path(scratch), base=hand.base, place=str(hand.base.folder))
        return sum(path.stat().st_size for path in Path(scratch).iterdir())
