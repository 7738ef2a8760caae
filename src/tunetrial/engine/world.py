"""A world with planted truth, for the simulator: what is true of each arm, and where the luck of runs comes from.

Every random number is a deviate read off SHA-256 digests of the world's seed and of what it belongs to, so a
prediction depends on nothing but the trial and the example: not on order, batch or what was asked before.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import ndtri

from tunetrial.core.records import Record, added, canonical
from tunetrial.core.study import Trial

Floats = NDArray[np.float64]


class Costs(Record):
    """What a probe of the arm finds: seconds, bytes and counts."""

    load_s: float = 1.0
    step_s: float = 0.05
    evaluate_examples_per_s: float = 200.0
    latency_s: float = 0.01
    save_s: float = 0.1
    peak_bytes: float = 1e9
    artifact_bytes: float = 1e6
    trainable_parameters: int = 1_000_000


class Truth(Record):
    """What is true of one arm.

    `quality` is the expected accuracy (classify), share of completions that equal their target (generate) or mean
    absolute error (regress) of a run at `best_rate`; it worsens by `curvature` per squared decade away from there, and
    varies by `seed_sd` between runs, whatever the rate. A share `collapse` of runs, and every run at a rate above
    `collapses_above`, predicts one constant; a share `failure`, and every run at a rate above `diverges_above`,
    diverges. An arm that does not `fits` runs out of memory at its first step.

    Of a run that is paused at a share of its steps the quality lacks `early_gap` times the share that is missing, the
    best rate lies `early_shift` decades times it higher, its luck is another than at the end, and no collapse shows
    before `collapses_after` of the steps.
    """

    quality: float = Field(default=0.8, gt=0)
    best_rate: float = Field(default=1e-3, gt=0)
    curvature: float = Field(default=0.04, ge=0)
    seed_sd: float = Field(default=0.01, ge=0)
    collapse: float = Field(default=0.0, ge=0, le=1)
    failure: float = Field(default=0.0, ge=0, le=1)
    collapses_above: float | None = None
    diverges_above: float | None = None
    early_gap: float = added(0.1)
    early_shift: float = added(0.0)
    collapses_after: float = added(0.0)
    fits: bool = True
    costs: Costs = Costs()

    def regret(self, learning_rate: float | None, *, share: float | None = None) -> float:
        """What this rate costs in quality, at the end or at a share of the steps; nothing without one."""
        if learning_rate is None:
            return 0.0
        shift = 0.0 if share is None else self.early_shift * (1 - share)
        gap = 0.0 if share is None else self.early_gap * (1 - share)
        return gap + self.curvature * (math.log10(learning_rate / self.best_rate) - shift) ** 2


class World(Record):
    """What is true of all: one `Truth` an arm, and from where the luck of examples and seeds comes.

    The error of a prediction is a standard normal deviate, a sum of four: of the example alike in every arm
    (`item`), of arm and example (`interaction`), of arm and cluster (`cluster`), and of run and example (the rest).
    The three are shares of its variance. `pairing` is the correlation between arms of what a seed brings.
    """

    seed: int = 0
    arms: dict[str, Truth] = {}
    item: float = Field(default=0.6, ge=0)
    interaction: float = Field(default=0.1, ge=0)
    cluster: float = Field(default=0.0, ge=0)
    pairing: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _shares_leave_a_rest(self) -> "World":
        if self.item + self.interaction + self.cluster > 1:
            raise ValueError("item, interaction and cluster are shares of one variance; let them add up to at most 1")
        return self

    @property
    def rest(self) -> float:
        """The share of a prediction's error that is the run's and example's own."""
        return max(1 - self.item - self.interaction - self.cluster, 0.0)

    def run(self, trial: Trial) -> tuple[str, str, float, int]:
        """What tells one run from another: a tune and a final of the same rate and seed are the same run."""
        return trial.task, trial.arm.name, trial.learning_rate, trial.seed

    def moment(self, trial: Trial) -> tuple:
        """What tells one state of a run from another: its end, or the rung at which it is paused."""
        return self.run(trial) if trial.share is None else (*self.run(trial), trial.share)

    def truth(self, arm: str) -> Truth:
        """The planted truth of an arm; an arm that was not planted has the defaults."""
        return self.arms.get(arm, Truth())

    def deviates(self, *stream: object, keys: Sequence[str] = ("",)) -> Floats:
        """Standard normal deviates, one a key, of one stream of this world.

        Stream and key are hashed apart and mixed by the finaliser of SplitMix64 (Steele et al. 2014), which costs a
        study of thousands of predictions nothing.
        """
        mixed = np.array([_hash(key) for key in keys], dtype=np.uint64)
        mixed ^= np.uint64(_hash(canonical([self.seed, *stream])))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
        return ndtri(((mixed >> np.uint64(12)) + 0.5) / 2.0**52)

    def quality(self, trial: Trial, kind: str) -> float:
        """Expected share of right answers, or mean absolute error, of one run that neither collapsed nor failed."""
        truth = self.truth(trial.arm.name)
        shared = self.deviates("seed", trial.task, trial.seed)[0]
        own = self.deviates("run", *self.moment(trial))[0]
        luck = truth.seed_sd * (self.pairing**0.5 * shared + (1 - self.pairing) ** 0.5 * own)
        regret = truth.regret(trial.learning_rate, share=trial.share)
        if kind != "regress":
            return min(max(truth.quality - regret + luck, 1e-9), 1 - 1e-9)
        return max(truth.quality + regret + luck, 1e-9)


@lru_cache(maxsize=2**16)
def _hash(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8])
