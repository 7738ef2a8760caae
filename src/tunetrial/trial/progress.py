"""How far a study has come: what the live table shows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunetrial.core.study import Trial


@dataclass(frozen=True)
class Running:
    """Trials that are being carried out together now, one by itself among them; without a loss until a first step."""

    label: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    members: int = 1

    @property
    def share(self) -> float:
        """How much of its training is done, from 0 to 1."""
        return self.step / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Progress:
    """A moment of a study. `planned` counts the trials known so far: later waves follow from what these find.

    `left_s` is an estimate for this wave alone, from its own pace; None until there is one. `usd` is the price of the
    machine's time since this `run` began; None when the study names no price.
    """

    why: str
    done: int
    planned: int
    failed: int
    running: tuple[Running, ...] = ()
    seconds: float = 0.0
    left_s: float | None = None
    usd: float | None = None


@dataclass
class Pace:
    """Counts a wave as it goes and says where it stands."""

    why: str
    before: int
    trials: int
    started_s: float
    usd_per_hour: float | None
    wave_s: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0

    def moment(self, running: tuple[Running, ...]) -> Progress:
        """Where the wave stands now."""
        now = time.monotonic()
        ended = self.done + self.failed
        behind = ended + sum(trial.share * trial.members for trial in running)
        ahead = self.trials - behind
        seconds = now - self.started_s
        return Progress(
            why=self.why,
            done=self.before + self.done,
            planned=self.before + self.trials,
            failed=self.failed,
            running=running,
            seconds=seconds,
            left_s=(now - self.wave_s) * ahead / behind if behind >= 0.05 else None,
            usd=None if self.usd_per_hour is None else seconds / 3600 * self.usd_per_hour,
        )


def label(pack: Sequence[Trial]) -> str:
    """Name trials for people: "lora on tickets, tune, rate 3e-04, seed 901", or "lora on tickets, 5 final trials"."""
    first = pack[0]
    if len(pack) > 1:
        arms = ", ".join(dict.fromkeys(trial.arm.name for trial in pack))
        return f"{arms} on {first.task}, {len(pack)} {first.purpose} trials in one pack"
    rate = "" if first.learning_rate is None else f", rate {first.learning_rate:.0e}"
    return f"{first.arm.name} on {first.task}, {first.purpose}{rate}, seed {first.seed}"
