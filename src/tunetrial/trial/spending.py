"""What a study has spent of the machine's time, over all of its runs (`spent.json`), and what is left of its budget."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunetrial import models, plan
from tunetrial.core import files
from tunetrial.core.errors import IntegrityError
from tunetrial.core.evidence import Measurement, TrialRecord
from tunetrial.core.ladder import scouted
from tunetrial.core.study import Study, Trial, whole
from tunetrial.plan.ladder import step_shares
from tunetrial.plan.timing import part_of
from tunetrial.trial.pinning import Pinned

NAME = "spent.json"
EVERY_S = 30.0


@dataclass
class Spending:
    """The time of earlier runs, and of this one as it goes. A process that is killed loses at most 30 s of it."""

    folder: Path
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._earlier = earlier_s(self.folder)
        self._noted_s = self.began_s

    @property
    def seconds(self) -> float:
        """Wall time of all runs of the study so far."""
        return sum(self._earlier) + time.monotonic() - self.began_s

    def note(self, *, at_once: bool = False) -> None:
        """Keep it, if it was not kept within the last 30 s."""
        now = time.monotonic()
        if at_once or now - self._noted_s >= EVERY_S:
            runs = [*self._earlier, round(now - self.began_s, 3)]
            files.write(self.folder / NAME, (json.dumps({"run_s": runs}) + "\n").encode())
            self._noted_s = now


def earlier_s(folder: Path) -> list[float]:
    """Seconds of each run of a study so far; none where none ran.

    Raises:
        IntegrityError: The file does not hold what was written.
    """
    path = folder / NAME
    if not path.exists():
        return []
    try:
        runs = [float(run) for run in json.loads(path.read_text())["run_s"]]
    except (ValueError, TypeError, KeyError) as error:
        raise IntegrityError(f"{path}: not the times of runs, got {error}; restore it, or remove it") from None
    return runs


def spent(study: Study, folder: Path) -> dict[str, Measurement]:
    """What a study with a budget has spent, in the budget's own units; empty without a budget."""
    hours, price = sum(earlier_s(folder)) / 3600, study.hardware.usd_per_hour
    found = {}
    if study.budget.gpu_hours is not None:
        found["gpu_hours"] = Measurement(value=hours, unit="h")
    if study.budget.usd is not None and price is not None:
        found["usd"] = Measurement(value=hours * price, unit="USD")
    return found


class Purse:
    """What is left of a study's budget, and whether a trial may begin.

    A trial is estimated by the longest of its arm on its task so far, else by the low end of the plan's range: a trial
    that surely takes more than is left is not begun. One under way is stopped at its next step once nothing is left;
    what it has is kept, and goes on with a larger budget.
    """

    def __init__(self, pinned: Pinned, spending: Spending) -> None:
        lock = pinned.lock
        self._spending, self._allowed_s = spending, plan.allowed_s(lock.study)
        planned = plan.timed(lock, models.shape(pinned.base), pinned.known) or {}
        self._planned_s = {key: each.tune.seconds.low for key, each in planned.items()}
        for rung, share in step_shares(lock).items():
            arm = lock.study.ladder.arm
            if each := planned.get((lock.study.rule.primary, arm)):
                self._planned_s[rung, arm] = part_of(each.tune, share).seconds.low
        for task, arm in planned:
            if lock.study.waits(arm):
                self._planned_s[scouted(task), arm] = planned[task, arm].tune.seconds.low
        self._longest_s: dict[tuple[str, str, bool], float] = {}
        self._begun_s: dict[str, tuple[float, int]] = {}
        self.empty = False

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Take in how long trials took."""
        for record in records:
            self._took(record.trial, sum(record.legs_s), packed=record.resolved.get("pack", 1) > 1)

    def allows(self, pack: Sequence[Trial]) -> bool:
        """Whether the estimate of trials that train together is within what is left; if not, the budget counts as
        spent."""
        if self._allowed_s is None:
            return True
        keys = [(whole(trial.task), trial.arm.name) for trial in pack]
        shares_s = [self._longest_s.get((*key, len(pack) > 1)) for key in keys]
        if None in shares_s:  # at least as long as one of them alone
            estimate_s = max(self._planned_s.get(key, 0.0) for key in keys)
        else:
            estimate_s = sum(shares_s)
        self._begun_s.update({trial.id: (time.monotonic(), len(pack)) for trial in pack})
        self.empty = self.empty or self._spending.seconds + estimate_s > self._allowed_s
        return not self.empty

    def ended(self, trial: Trial) -> None:
        """Take in how long a trial took that has just ended."""
        if trial.id in self._begun_s:
            begun_s, members = self._begun_s[trial.id]
            self._took(trial, (time.monotonic() - begun_s) / members, packed=members > 1)

    def overdrawn(self) -> bool:
        """Whether nothing is left; keeps what was spent now and then."""
        self._spending.note()
        over = self._allowed_s is not None and self._spending.seconds >= self._allowed_s
        self.empty = self.empty or over
        return over

    def _took(self, trial: Trial, seconds: float, *, packed: bool) -> None:
        key = (whole(trial.task), trial.arm.name, packed)
        if trial.purpose != "probe":
            self._longest_s[key] = max(self._longest_s.get(key, 0.0), seconds)
