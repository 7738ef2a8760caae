"""Every combination that there is to choose from, of each seed: an arm's adapters added, or one trained for all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tunetrial import tasks
from tunetrial.core.combination import Recipe, Setting, scales_to_try, shares_to_try
from tunetrial.core.errors import ConfigError, DivergedError, IntegrityError
from tunetrial.core.evidence import TaskData
from tunetrial.trial import rows
from tunetrial.trial.hand import Hand

if TYPE_CHECKING:
    from tunetrial.engine.combine import Adapter

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A combination of every seed by one setting, of none where training diverged; `left_out` is the most that any of
    them lost to its rank. Once it is chosen, `kept_by_seed` is the share of the tasks' gains that each keeps on
    validation rows."""

    setting: Setting
    by_seed: Mapping[int, "Adapter"]
    left_out: float = 0.0
    kept_by_seed: Mapping[int, float] = field(default_factory=dict)

    @property
    def median_seed(self) -> int:
        """The seed that keeps the median share on validation rows, the lower of two middle ones; ties by seed."""
        ranked = sorted(self.kept_by_seed, key=lambda seed: (self.kept_by_seed[seed], seed))
        return ranked[(len(ranked) - 1) // 2]


def build(hand: Hand, recipe: Recipe, tell: Tell) -> tuple[list[Built], float]:
    """Combine, or train, by each setting of a recipe; returns also the seconds that it took, of training its steps'.

    Raises:
        ModelError: Adapters do not go together.
        IntegrityError: Adapters or training rows are not those of the study.
        DivergedError, DoesNotFitError: Training did not come through.
    """
    if recipe.how == "sequential":
        return _sequential(hand, tell)
    if recipe.how == "joint":
        return _joint(hand, tell)
    return _combined(hand, recipe)


def _combined(hand: Hand, recipe: Recipe) -> tuple[list[Built], float]:
    from tunetrial.engine import combine as engine  # torch

    singles, found = hand.singles, []
    started_s = time.monotonic()
    for shares in shares_to_try(hand.names):
        own = {seed: {name: singles[name, seed] for name in hand.names} for seed in hand.seeds}
        made = {seed: engine.combine(one, shares, recipe, seed=seed) for seed, one in own.items()}
        left_out = max(lost for _, lost in made.values())
        for scale in scales_to_try(len(hand.names)):
            by_seed = {seed: engine.scaled(adapter, scale) for seed, (adapter, _) in made.items()}
            found.append(Built(Setting(shares=shares, scale=scale), by_seed, left_out))
    return found, time.monotonic() - started_s


def _sequential(hand: Hand, tell: Tell) -> tuple[list[Built], float]:
    """From the first task's adapter on, train on one task after the other, in the study's order, each at the rate that
    was found for it."""
    from tunetrial.engine import several  # torch

    data, by_seed, taken_s = training_rows(hand), {}, 0.0
    for seed in hand.seeds:
        adapter = hand.singles[hand.names[0], seed]
        for name in hand.names[1:]:
            tell(f"sequential: seed {seed}, training on {name}")
            try:
                adapter, seconds = several.train(hand.session, hand.finals.trial(name, seed), data[name], start=adapter)
            except DivergedError as error:
                what = f"training on from another task's adapter, {error}"
                raise DivergedError(f"combine: sequential: {name}, seed {seed}: {what}; use another --how") from None
            taken_s += seconds
        by_seed[seed] = adapter
    rates = {name: hand.finals.rate(name) for name in hand.names}
    return [Built(Setting(rates=rates), by_seed)], taken_s


def _joint(hand: Hand, tell: Tell) -> tuple[list[Built], float]:
    """Train one adapter on the rows of all tasks, as many epochs as each alone, at each of the tasks' rates; one at
    which a seed diverges is made of none."""
    from tunetrial.engine import several  # torch

    together, found, taken_s = mixed(hand), [], 0.0
    for rate in sorted({hand.finals.rate(name) for name in hand.names}):
        by_seed = {}
        for seed in hand.seeds:
            tell(f"joint: seed {seed}, training on all tasks at rate {rate:.3g}")
            trial = hand.finals.trial(hand.names[0], seed).model_copy(update={"learning_rate": rate})
            try:
                by_seed[seed], seconds = several.train(hand.session, trial, together)
            except DivergedError as error:
                tell(f"joint: seed {seed}, rate {rate:.3g}: {error}")
                by_seed = {}
                break
            taken_s += seconds
        found.append(Built(Setting(rates=dict.fromkeys(hand.names, rate)), by_seed))
    return found, taken_s


def mixed(hand: Hand) -> TaskData:
    """The rows of all tasks as those of one, ids by task."""
    data = training_rows(hand)
    labels = tuple(dict.fromkeys(label for one in data.values() for label in one.labels))
    splits = {
        split: tuple(replace(e, id=f"{name}:{e.id}") for name, one in data.items() for e in one.splits[split])
        for split in ("train", "validation")
    }
    return TaskData("joint", hand.tasks[0].kind, labels, splits)


def training_rows(hand: Hand) -> dict[str, TaskData]:
    """Every task's training and validation rows, as its finals were given them.

    Raises:
        IntegrityError: They are others now.
        ConfigError: The study has several bases, and another than the arm's cannot take all rows that this one can.
    """
    found, limit = {}, min(hand.lock.study.max_tokens, hand.session.shape.context)
    for spec in hand.tasks:
        data = tasks.load(spec, hand.root)
        asked = hand.lock.study.readout_of(spec.name)
        lengths = {split: hand.session.lengths(own, readout=asked) for split, own in data.splits.items()}
        kept, _ = rows.fitting(data, {"": lengths}, {"": limit}, hand.lock.study.max_tokens)
        if kept.digest("train") != hand.lock.data[spec.name].digests["train"]:
            if hand.lock.others:
                what = f"rows of {spec.name} were left out for another base of the study, or are others now"
                raise ConfigError(f"combine: {what}, got {kept.digest('train')[:12]}; use weighted, ties or dare")
            raise IntegrityError(f"{spec.name}: training rows are not those of the study; restore the rows")
        splits = {split: kept.splits[split] for split in ("train", "validation")}
        found[spec.name] = replace(kept, splits=splits)
    return found
