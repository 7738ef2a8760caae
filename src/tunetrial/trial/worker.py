"""A worker process: one session over one base at a time, carrying out the trials that it is sent, one after the other.

`python -m tunetrial.trial.worker`: started by `pool.Worker`, never by hand. Orders come in on stdin, reports go out on
what was stdout, a JSON object a line; stdout itself is joined to stderr, so that no library's print breaks the talk.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

from tunetrial.core.deployment import Asked, Offer
from tunetrial.core.engine import Engine, Session, Step
from tunetrial.core.errors import DoesNotFitError, SpecError, TunetrialError
from tunetrial.core.evidence import Example, Fact, TaskData
from tunetrial.core.loading import load
from tunetrial.core.study import Arm, Controls, Trial
from tunetrial.models import PinnedModel
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import Interrupted, Terms, carry_out
from tunetrial.trial.preflight import attempt

ENGINES = {"torch": "tunetrial.engine.torch_engine:TorchEngine", "sim": "tunetrial.engine.sim:SimEngine"}
REPORT_EVERY_S = 0.2


def find_engine(name: str) -> Engine:
    """Make the engine of this name: a known one, or "package.module:attribute" to be called without arguments.

    Raises:
        SpecError: There is none of this name.
    """
    module, _, attribute = ENGINES.get(name, name).partition(":")
    try:
        return getattr(load(module), attribute)()
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(ENGINES)
        raise SpecError(f"engine: not found, got {name!r} ({error}); use {known} or package.module:attribute") from None


class Service:
    """What a worker has in hand: its session, and the rows of the tasks that it was sent."""

    def __init__(self, report: Callable[[dict], None], stop: Event) -> None:
        self._report, self._stop = report, stop
        self._session: Session | None = None
        self._data: dict[str, TaskData] = {}

    def load(self, order: dict) -> None:
        """Load the engine's libraries, and touch no device yet."""
        load(ENGINES.get(order["engine"], order["engine"]).partition(":")[0])
        self._report({"event": "loaded"})

    def open(self, order: dict) -> None:
        """Open a base, in place of the one before; say what the machine is like."""
        self._session = None
        engine = find_engine(order["engine"])
        precision = engine.precision() if order["precision"] == "auto" else order["precision"]
        self._session = engine.open(Path(order["base"]), precision)
        machine = {"device": engine.device_type, "free_bytes": engine.free_bytes(), "synthetic": engine.synthetic}
        machine["template_digest"] = self._session.template_digest
        self._report({"event": "ready", "precision": precision, **machine})

    def lengths(self, order: dict) -> None:
        """Count the tokens of rows."""
        examples = [Example(*row) for row in order["rows"]]
        self._report({"event": "lengths", "tokens": self._session.lengths(examples, readout=order["readout"])})

    def count(self, order: dict) -> None:
        """Count the memory and the work of a training, if the engine can."""
        arm, controls = Arm.model_validate(order["arm"]), Controls.model_validate(order["controls"])
        asked = {name: order[name] for name in ("kind", "outputs", "seed", "members")}
        count = getattr(self._session, "count", None)
        found = None if count is None else count(arm, controls, order["lengths"], **asked)
        self._report({"event": "counted", "found": found and found.model_dump(mode="json")})

    def offers(self, order: dict) -> None:
        """Make weights ready to be deployed: artifacts by arm, or adapters drawn with these settings."""
        load("tunetrial.engine.bench")
        from tunetrial.engine import offers

        base, scratch = PinnedModel.model_validate(order["base"]), Path(order["scratch"])
        artifacts = {arm: [Path(folder) for folder in folders] for arm, folders in order["artifacts"].items()}
        if not artifacts:
            artifacts["lora"] = offers.drawn(base, order["settings"], order["count"], scratch, seed=order["seed"])
        made = [offers.offer(base, arm, folders, scratch / arm) for arm, folders in artifacts.items()]
        found = {"offers": [offer.model_dump(mode="json") for offer in made]}
        self._report({"event": "offers", "precision": find_engine("torch").precision(), **found})

    def bench(self, order: dict) -> None:
        """Time one session of a deployment benchmark."""
        load("tunetrial.engine.bench")
        from tunetrial.engine import bench

        asked, base = Asked.model_validate(order["asked"]), PinnedModel.model_validate(order["base"])
        offers = [Offer.model_validate(offer) for offer in order["offers"]]
        found = bench.session(asked, base, offers, number=order["number"])
        self._report({"event": "timed", "session": found.model_dump(mode="json")})

    def describe(self, order: dict) -> None:
        """Say how the base reads rows."""
        examples = [Example(*row) for row in order["rows"]]
        self._report({"event": "described", **asdict(self._session.describe(examples, readout=order["readout"]))})

    def preflight(self, order: dict) -> None:
        """Try an arm."""
        trial = Trial.model_validate(order["trial"])
        attempt(self._session, trial, self._data[order["task"]], Path(order["folder"]))
        self._report({"event": "attempted"})

    def data(self, order: dict) -> None:
        """Take in the rows of a task; the test split comes with the first final trial, not before."""
        splits = {name: tuple(Example(*row) for row in rows) for name, rows in order["splits"].items()}
        held = self._data.get(order["task"])
        splits = {**(held.splits if held else {}), **splits}
        self._data[order["task"]] = TaskData(order["task"], order["kind"], tuple(order["labels"]), splits)

    def trials(self, order: dict) -> None:
        """Carry out trials that train together and report how each ended."""
        pack, study = [Trial.model_validate(trial) for trial in order["trials"]], StudyFolder(Path(order["study"]))
        folders = [study.trial(trial) for trial in pack]
        terms, watch = Terms(**order["terms"]), Watch(self._report, self._stop)
        records = carry_out(pack, self._data[pack[0].task], self._session, folders, terms=terms, watch=watch)
        self._report({"event": "recorded", "statuses": [record.status for record in records]})


class Watch:
    """What `carry_out` tells as it goes; raises Interrupted at the first step after a stop was asked for."""

    def __init__(self, report: Callable[[dict], None], stop: Event) -> None:
        self._report, self._stop, self._next_s = report, stop, 0.0

    def started(self, facts: dict[str, Fact]) -> None:
        self._report({"event": "started", **{name: facts.get(name) for name in ("micro_batch", "pack_at_once")}})

    def stepped(self, step: Step) -> None:
        if self._stop.is_set():
            raise Interrupted
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + REPORT_EVERY_S
            self._report({"event": "step", "step": step.step, "steps": step.steps, "loss": step.loss})


def main() -> None:
    """Serve orders until stdin closes."""
    talk = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    orders: SimpleQueue[dict] = SimpleQueue()
    stop = Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator hears it and sends "stop"
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Thread(target=_listen, args=(orders, stop), daemon=True).start()

    def report(message: dict) -> None:
        talk.write(json.dumps(message) + "\n")
        talk.flush()

    service = Service(report, stop)
    while True:
        _serve(service, orders.get(), report)


def _serve(service: Service, order: dict, report: Callable[[dict], None]) -> None:
    """Carry out one order. What goes wrong in a trial is reported and harms no other; without a base there is none."""
    try:
        getattr(service, order["do"])(order)
    except Interrupted:
        report({"event": "interrupted"})
    except DoesNotFitError as error:
        report({"event": "unfit", "reason": str(error)})
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk of the log may be what is full
            traceback.print_exc()
        ours = isinstance(error, TunetrialError)
        text = str(error) if ours else " ".join(f"{type(error).__name__}: {error}".split())
        if order["do"] == "open":
            text = text if ours else f"{order['base']}: cannot be opened as a base, got {text}; restore its files"
            report({"event": "broken", "error": text})
            os._exit(1)
        report({"event": "failed", "error": text})


def _listen(orders: SimpleQueue, stop: Event) -> None:
    """Take in orders as they come. When the coordinator is gone, end at once: a successor may hold the study."""
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if order["do"] == "stop":
            stop.set()
        else:
            orders.put(order)
    os._exit(0)


if __name__ == "__main__":
    main()
