"""A crew of workers that carries out trials, and what becomes of a trial whose worker dies."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from tunetrial.core.errors import TunetrialError
from tunetrial.core.study import Trial
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import SPLITS, record_infeasible
from tunetrial.trial.pinning import Pinned
from tunetrial.trial.pool import Worker, cores
from tunetrial.trial.progress import Running, label

DEATHS = 3
WARM = 4
STOP_S = 60.0

Ended = Callable[[Trial, str, str | None], None]


@dataclass(frozen=True)
class Assignment:
    """A trial to carry out. One that found too little memory beside others is tried once more as a `retry`, alone; in
    smaller micro-batches if the kernel killed it."""

    trial: Trial
    micro_batch: int | None = None
    retry: bool = False
    deaths: int = 0
    running: Running | None = None

    @property
    def alone(self) -> bool:
        """Must nothing else be at work? A probe measures cost, and a retry is to have all memory."""
        return self.retry or self.trial.purpose == "probe"


class Crew:
    """Workers that carry out trials, `size` at most side by side. Each has one thread, always: results are then
    the same however many cores there are.

    They live on from one call of `carry_out` to the next. A trial that must be alone gets a fresh worker, and a probe
    all threads.
    """

    def __init__(self, pinned: Pinned, folder: Path, *, size: int) -> None:
        self._pinned, self._folder, self._size = pinned, folder, size
        self._inbox: SimpleQueue = SimpleQueue()
        self._queue: deque[Assignment] = deque()
        self._busy: dict[Worker, Assignment] = {}
        self._idle: list[Worker] = []
        self._warm: list[Worker] = []
        self._warming: set[Worker] = set()
        self._may_begin: Callable[[Trial], bool] = lambda trial: True
        self._wishes = 0
        self._kill_at = float("inf")

    @property
    def stopping(self) -> bool:
        return self._wishes > 0

    @property
    def running(self) -> tuple[Running, ...]:
        return tuple(a.running or Running(label(a.trial)) for a in self._busy.values())

    def stop(self) -> None:
        """Begin no trial any more, and let those under way stop at their next step. Safe in a signal handler.

        Asked twice, or after a minute, the workers are killed: it costs the steps since their last checkpoints.
        """
        self._wishes += 1
        self._inbox.put((None, None))

    def finish(self) -> None:
        """Begin no further trial of those given to `carry_out`; those under way go on to their end."""
        self._queue.clear()

    def carry_out(
        self,
        trials: Sequence[Trial],
        ended: Ended,
        moved: Callable[[], None],
        *,
        may_begin: Callable[[Trial], bool] = lambda trial: True,
    ) -> None:
        """Carry out these trials as far as that goes; those that must be alone come last.

        Args:
            may_begin: Asked before a trial begins; at the first no, none begins any more.
            ended: Told of each trial that came to an end: the status of its record, or "failed" and the error.
            moved: Called whenever something may have moved, once a second or more often.
        Raises:
            TunetrialError: A worker cannot load the base.
        """
        self._may_begin = may_begin
        self._queue.extend(sorted((Assignment(trial) for trial in trials), key=lambda a: a.alone))
        self._hand_out()
        while self._busy or self._warming:
            try:
                worker, message = self._inbox.get(timeout=1.0)
            except Empty:
                worker, message = None, None
            if worker is not None:
                self._hear(worker, message, ended)
            self._heed_stop()
            self._hand_out()
            moved()

    def kill(self) -> None:
        """End all workers now."""
        for worker in (*self._busy, *self._idle, *self._warm):
            worker.kill()
        for workers in (self._busy, self._idle, self._warm, self._warming):
            workers.clear()

    def _hand_out(self) -> None:
        """Give waiting trials to workers; a trial that must be alone waits until all others have ended."""
        while self._queue and not self.stopping:
            alone = self._queue[0].alone or any(a.alone for a in self._busy.values())
            if len(self._busy) >= (1 if alone else self._size):
                return
            if not self._may_begin(self._queue[0].trial):
                return self.finish()
            if alone:
                self._dismiss()
            if not self._ready():
                return
            assignment = self._queue.popleft()
            worker, trial = self._take(assignment), assignment.trial
            pinned = self._pinned
            worker.open(pinned.folder(trial.arm.name), engine=pinned.engine, precision=pinned.lock.precision)
            self._busy[worker] = assignment
            worker.send_data(self._pinned.data[trial.task], ("train", *SPLITS[trial.purpose]))
            terms = self._pinned.terms(trial, micro_batch=assignment.micro_batch)
            order = {"do": "trial", "trial": trial.model_dump(mode="json"), "study": str(self._folder)}
            worker.send({**order, "terms": asdict(terms)})

    def _ready(self) -> bool:
        """Are there libraries in memory for what comes next?

        Workers of the next few probes load theirs side by side, and before the first of them measures: what is alone on
        the machine must not wait for that each time, nor share the machine with it.
        """
        if self._queue[0].trial.purpose == "probe" and not self._warm:
            wanted = sum(assignment.trial.purpose == "probe" for assignment in self._queue)
            self._warm = [self._start(cores()) for _ in range(min(wanted, WARM))]
            self._warming = set(self._warm)
            for worker in self._warm:
                worker.send({"do": "load", "engine": self._pinned.engine})
        return not self._warming

    def _start(self, threads: int) -> Worker:
        return Worker(self._inbox, threads=threads, log=self._folder / "worker.log")

    def _take(self, assignment: Assignment) -> Worker:
        """A worker for this trial: an idle one, if there is, that holds its base; any idle one; or a new one."""
        if self._idle:
            base = self._pinned.folder(assignment.trial.arm.name)
            worker = next((other for other in reversed(self._idle) if other.base == base), self._idle[-1])
            self._idle.remove(worker)
            return worker
        return self._warm.pop() if assignment.trial.purpose == "probe" else self._start(1)

    def _dismiss(self) -> None:
        """End the idle workers, and free what they hold."""
        while self._idle:
            self._idle.pop().close()
        while self._warm and self._queue[0].retry:
            self._warm.pop().close()

    def _hear(self, worker: Worker, message: dict | None, ended: Ended) -> None:
        """Take in a report, or the end, of a worker. One that was ended on purpose is no longer listened to."""
        assignment = self._busy.get(worker)
        self._warming.discard(worker)
        if message is None:
            worker.close()
            self._warm = [other for other in self._warm if other is not worker]
            self._busy.pop(worker, None)
            self._idle = [other for other in self._idle if other is not worker]
            if assignment is not None and not self.stopping:
                self._bury(worker, assignment, ended)
        elif assignment is None:
            return
        elif message["event"] == "broken":
            raise TunetrialError(message["error"])
        elif message["event"] == "started":
            self._busy[worker] = replace(assignment, micro_batch=message["micro_batch"])
        elif message["event"] == "step":
            running = Running(label(assignment.trial), message["step"], message["steps"], message["loss"])
            self._busy[worker] = replace(assignment, running=running)
        elif message["event"] in ("recorded", "failed", "unfit", "interrupted"):
            self._release(worker, sound=message["event"] in ("recorded", "interrupted"))
            self._conclude(assignment, message, ended)

    def _conclude(self, assignment: Assignment, message: dict, ended: Ended) -> None:
        """Say how a trial ended, or take it up again alone; a worker that was asked to stop stops all."""
        if message["event"] == "unfit" and not self.stopping:
            if assignment.alone or self._size == 1:
                self._give_up(assignment, message["reason"], ended)
            else:
                self._queue.append(Assignment(assignment.trial, retry=True, deaths=assignment.deaths))
        elif message["event"] in ("recorded", "failed"):
            ended(assignment.trial, message.get("status", "failed"), message.get("error"))
        elif not self.stopping:
            self.stop()

    def _give_up(self, assignment: Assignment, reason: str, ended: Ended) -> None:
        """Record that a trial does not fit, although it was alone on the machine."""
        folder = StudyFolder(self._folder).trial(assignment.trial)
        synthetic = self._pinned.lock.engine == "sim"
        record_infeasible(assignment.trial, folder, synthetic=synthetic, reason=reason)
        ended(assignment.trial, "infeasible", None)

    def _release(self, worker: Worker, *, sound: bool) -> None:
        """Let a worker wait for its next trial. One that worked alone, or met an error, has served: a device may be
        left in any state by it."""
        if self._busy.pop(worker).alone or not sound:
            worker.close()
        else:
            self._idle.append(worker)

    def _bury(self, worker: Worker, dead: Assignment, ended: Ended) -> None:
        """Decide what becomes of a trial whose worker has died."""
        trial, cause = dead.trial, worker.exit_in_words()
        if worker.died_of_memory() and dead.retry:
            reason = f"killed for memory by the kernel twice, at last alone at a micro-batch of {dead.micro_batch}"
            self._give_up(dead, reason, ended)
        elif worker.died_of_memory():
            half = max(1, (dead.micro_batch or trial.controls.batch_examples) // 2)
            self._queue.appendleft(Assignment(trial, micro_batch=half, retry=True, deaths=dead.deaths))
        elif dead.deaths + 1 < DEATHS:
            self._queue.appendleft(replace(dead, deaths=dead.deaths + 1, running=None))
        else:
            log = self._folder / "worker.log"
            error = f"its worker process died {DEATHS} times, the last one {cause}; see {log}, then run again"
            ended(trial, "failed", error)

    def _heed_stop(self) -> None:
        """Pass a wish to stop on to the workers; kill them when it was repeated or has gone unheard."""
        if self.stopping and self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + STOP_S
            self._queue.clear()
            for worker in self._busy:
                worker.send({"do": "stop"})
        if self._wishes > 1 or time.monotonic() > self._kill_at:
            self.kill()
