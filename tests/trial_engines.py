"""Engines for tests of trial/, made by name in worker processes: the simulator, slowed, watched or hurt."""

import gc
import os
import signal
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tunetrial.core.engine import Step, Together
from tunetrial.core.errors import DoesNotFitError, IntegrityError
from tunetrial.engine.sim import SimEngine, SimRun, SimSession, Truth, World

WORLD = World(
    arms={
        "full": Truth(quality=0.8, best_rate=1e-3),
        "lora": Truth(quality=0.8, best_rate=3e-3),
        "divergent": Truth(failure=1.0),
        "huge": Truth(fits=False),
        "vast": Truth(fits=False),
    }
)


@dataclass
class Hook:
    """A simulator that calls `before_step` before each step it yields; one thing that goes wrong a test."""

    synthetic: bool = True
    device_type: str = "cpu"

    def free_bytes(self) -> int:
        return SimEngine(WORLD).free_bytes()

    def precision(self) -> str:
        return "fp32"

    def open(self, base: Path, precision: str) -> "HookSession":
        return HookSession(SimEngine(WORLD).open(base, precision), self)

    def before_step(self, run: SimRun, step: Step) -> None:
        pass

    def before_probe(self) -> None:
        pass


@dataclass
class HookSession:
    inner: SimSession
    hook: Hook

    @property
    def template_digest(self):
        return self.inner.template_digest

    def lengths(self, examples, *, readout="head"):
        return self.inner.lengths(examples, readout=readout)

    def start(self, trial, data, *, micro_batch=None):
        run = self.inner.start(trial, data, micro_batch=micro_batch)
        steps = run.steps

        def hooked(checkpoint: Path | None, *, most: int | None = None) -> Iterator[Step]:
            for step in steps(checkpoint, most=most):
                self.hook.before_step(run, step)
                yield step

        run.steps = hooked
        return run

    def start_pack(self, trials, data, *, micro_batch=None, at_once=None):
        return Together([self.start(trial, data, micro_batch=micro_batch) for trial in trials])

    def probe(self, trial, data, folder):
        self.hook.before_probe()
        return self.inner.probe(trial, data, folder)


def plain() -> SimEngine:
    return SimEngine(WORLD)


def torch_often():
    """The engine of real weights, with a checkpoint every few steps."""
    from tunetrial.engine.torch_engine import TorchEngine

    return TorchEngine(device="cpu", checkpoint_every_s=0.1)


class Slow(Hook):
    """Takes its time over each step, so that a signal finds it at work."""

    def before_step(self, run: SimRun, step: Step) -> None:
        time.sleep(float(os.environ.get("TEST_STEP_S", "0.005")))


class Troubled(Hook):
    """What can go wrong in one arm: a bug, a worker that dies once, one that always dies, predictions gone wild."""

    def before_step(self, run: SimRun, step: Step) -> None:
        arm = run.trial.arm.name
        if arm == "wild":
            run.predict = lambda examples: [float("nan")] * len(examples)
        if run.trial.purpose != "tune" or step.step != 3:
            return
        if arm == "buggy":
            raise ZeroDivisionError("a bug in one arm")
        if arm in ("unlucky", "mortal") and self._struck(run, arm):
            os.kill(os.getpid(), signal.SIGKILL)

    def _struck(self, run: SimRun, arm: str) -> bool:
        """Is it the first trial of its arm, and, if merely unlucky, for the first time?"""
        marks = Path(os.environ["TEST_MARKS"])
        first = marks / arm
        if not first.exists():
            first.write_text(run.trial.id)
            return True
        return arm == "mortal" and first.read_text() == run.trial.id


class Sealed(Hook):
    """Fails as soon as a trial that is not a final is handed the test split, or a final is not."""

    def before_step(self, run: SimRun, step: Step) -> None:
        assert ("test" in run.data.splits) == (run.trial.purpose == "final"), run.data.splits.keys()


class Signed(Hook):
    """Notes which process does what, and with how many threads; the two steps of the preflight are left out."""

    def before_step(self, run: SimRun, step: Step) -> None:
        if step.step > 2:
            self._note("trial")

    def before_probe(self) -> None:
        self._note("probe")

    def _note(self, what: str) -> None:
        with open(Path(os.environ["TEST_MARKS"]) / what, "a") as marks:
            marks.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")


class Unsaved(Hook):
    """Saves nothing of one arm that it could read again."""

    def before_step(self, run: SimRun, step: Step) -> None:
        if run.trial.arm.name == "lora":
            run.verify = self._refuse

    def _refuse(self, folder: Path) -> None:
        raise IntegrityError(f"{folder}: the artifact is not what was trained")


class Bulky(Hook):
    """Saves artifacts of 200 kB."""

    def before_step(self, run: SimRun, step: Step) -> None:
        run.save = lambda folder: (type(run).save(run, folder), (folder / "weights").write_bytes(bytes(200_000)))


class Hungry(Hook):
    """Takes memory with its micro-batch inside a small cgroup, so that the kernel itself kills it."""

    def open(self, base: Path, precision: str) -> HookSession:
        (Path(os.environ["TEST_CGROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
        return super().open(base, precision)

    def before_step(self, run: SimRun, step: Step) -> None:
        if run.trial.purpose == "tune" and step.step == 3:
            examples = {"lora": run.micro_batch, "glutton": 1000}.get(run.trial.arm.name, 0)
            self.taken = [os.urandom(2**20) * 40 for _ in range(examples)]


class OneBase(Hook):
    """Fails when a base is opened while the process still holds another."""

    sessions: ClassVar[list[weakref.ref]] = []

    def open(self, base: Path, precision: str) -> HookSession:
        gc.collect()
        assert all(session() is None for session in self.sessions), "two bases in one worker"
        made = super().open(base, precision)
        self.sessions.append(weakref.ref(made))
        return made


class Observing(Hook):
    """Sees its held-out texts, finds no room for states, and no weights to look at."""

    def before_step(self, run: SimRun, step: Step) -> None:
        def observe(data, what):
            if what == "states":
                raise DoesNotFitError("states: does not fit, got 1 example; use a smaller model")
            return _told(data.splits["text~notes"]) if what == "forgetting" else None

        run.observe = observe


def _told(texts):
    """What every model forgot: half a nat of each token's three, and ten tokens a text."""
    names = {"text": ["notes"] * len(texts), "id": [t.id for t in texts], "cluster": [t.cluster for t in texts]}
    numbers = {"tokens": 10, "bytes": 40, "base_nats": 30.0, "tuned_nats": 35.0, "kl": 0.5, "reverse_kl": 0.5}
    return names | {name: [value] * len(texts) for name, value in (numbers | {"agreed": 8}).items()}
