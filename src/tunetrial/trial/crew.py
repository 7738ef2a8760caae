"""A crew of workers that carries out trials, and what becomes of a trial whose worker dies."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from tunetrial.core.errors import TunetrialError
from tunetrial.core.pins import given
from tunetrial.core.study import Trial
from tunetrial.store import StudyFolder
from tunetrial.trial.execution import record_infeasible
from tunetrial.trial.pinning import Pinned
from tunetrial.trial.pool import Worker, cores
from tunetrial.trial.progress import Running, label

DEATHS = 3
WARM = 4
STOP_S = 60.0

Ended = Callable[[Trial, str, str | None], None]


@dataclass(frozen=True)
class Assignment:
    """Trials to carry out together, one by itself among them. What found too little memory beside others is tried once
    more as a `retry`, alone; if the kernel killed it, with fewer members at once, then in smaller micro-batches.

    `due` are those of which a record is wanted: the others, recorded before a kill, train along.
    """

    pack: tuple[Trial, ...]
    due: frozenset[str]
    at_once: int | None = None
    micro_batch: int | None = None
    retry: bool = False
    deaths: int = 0
    running: Running | None = None

    @property
    def alone(self) -> bool:
        """Must nothing else be at work? A probe measures cost, and a retry is to have all memory."""
        return self.retry or self.purpose == "probe"

    @property
    def purpose(self) -> str:
        return self.pack[0].purpose

    @property
    def wanted(self) -> list[Trial]:
        return [trial for trial in self.pack if trial.id in self.due]

    @property
    def label(self) -> str:
        return label(self.pack)

    def alone_each(self, **how: object) -> list["Assignment"]:
        """Its trials that are due, each by itself."""
        return [Assignment((trial,), frozenset([trial.id]), **how) for trial in self.wanted]


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
        self._may_begin: Callable[[Sequence[Trial]], bool] = lambda trials: True
        self._wishes = 0
        self._kill_at = float("inf")

    @property
    def stopping(self) -> bool:
        return self._wishes > 0

    @property
    def running(self) -> tuple[Running, ...]:
        return tuple(a.running or Running(a.label, members=len(a.wanted)) for a in self._busy.values())

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
        packs: Sequence[Sequence[Trial]],
        ended: Ended,
        moved: Callable[[], None],
        *,
        due: frozenset[str],
        may_begin: Callable[[Sequence[Trial]], bool] = lambda trials: True,
    ) -> None:
        """Carry out these packs as far as that goes; those that must be alone come last.

        Args:
            due: The trials of which a record is wanted.
            may_begin: Asked before trials begin; at the first no, none begins any more.
            ended: Told of each trial that came to an end: the status of its record, or "failed" and the error.
            moved: Called whenever something may have moved, once a second or more often.
        Raises:
            TunetrialError: A worker cannot load the base.
        """
        self._may_begin = may_begin
        self._queue.extend(sorted((Assignment(tuple(pack), due) for pack in packs), key=lambda a: a.alone))
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
            if not self._may_begin(self._queue[0].wanted):
                return self.finish()
            if alone:
                self._dismiss()
            if not self._ready():
                return
            assignment = self._queue.popleft()
            worker, trial = self._take(assignment), assignment.pack[0]
            pinned = self._pinned
            worker.open(pinned.folder(trial.arm.name), engine=pinned.engine, precision=pinned.lock.precision)
            self._busy[worker] = assignment
            data = self._pinned.rows(trial)
            terms = self._pinned.terms(trial, micro_batch=assignment.micro_batch, at_once=assignment.at_once)
            final = trial.purpose == "final"
            worker.send_data(data, given(data.splits, final=final, texts=bool(terms.observe)))
            trials = [trial.model_dump(mode="json") for trial in assignment.pack]
            worker.send({"do": "trials", "trials": trials, "study": str(self._folder), "terms": asdict(terms)})

    def _ready(self) -> bool:
        """Are there libraries in memory for what comes next?

        Workers of the next few probes load theirs side by side, and before the first of them measures: what is alone on
        the machine must not wait for that each time, nor share the machine with it.
        """
        if self._queue[0].purpose == "probe" and not self._warm:
            wanted = sum(assignment.purpose == "probe" for assignment in self._queue)
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
            base = self._pinned.folder(assignment.pack[0].arm.name)
            worker = next((other for other in reversed(self._idle) if other.base == base), self._idle[-1])
            self._idle.remove(worker)
            return worker
        return self._warm.pop() if assignment.purpose == "probe" else self._start(1)

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
            found = {"micro_batch": message["micro_batch"], "at_once": message["pack_at_once"]}
            self._busy[worker] = replace(assignment, **found)
        elif message["event"] == "step":
            moment = message["step"], message["steps"], message["loss"]
            running = Running(assignment.label, *moment, members=len(assignment.wanted))
            self._busy[worker] = replace(assignment, running=running)
        elif message["event"] in ("recorded", "failed", "unfit", "interrupted"):
            self._release(worker, sound=message["event"] in ("recorded", "interrupted"))
            self._conclude(assignment, message, ended)

    def _conclude(self, assignment: Assignment, message: dict, ended: Ended) -> None:
        """Say how trials ended, or take them up again: alone on the machine, and each by itself where one of a pack
        may have spoilt it for the others. A worker that was asked to stop stops all."""
        event, packed = message["event"], len(assignment.pack) > 1
        if event == "recorded":
            for trial, status in zip(assignment.pack, message["statuses"], strict=True):
                if trial.id in assignment.due:
                    ended(trial, status, None)
        elif event in ("failed", "unfit") and packed and not self.stopping:
            self._part(assignment, retry=event == "unfit")
        elif event == "failed":
            for trial in assignment.wanted:
                ended(trial, "failed", message["error"])
        elif event == "unfit" and not self.stopping:
            if assignment.alone or self._size == 1:
                self._give_up(assignment, message["reason"], ended)
            else:
                self._queue.append(Assignment(assignment.pack, assignment.due, retry=True, deaths=assignment.deaths))
        elif not self.stopping:
            self.stop()

    def _part(self, assignment: Assignment, *, retry: bool, micro_batch: int | None = None) -> None:
        """Carry out the trials of a pack each by itself, now and whenever they are taken up again."""
        StudyFolder(self._folder).dissolve([trial.id for trial in assignment.pack])
        self._queue.extend(assignment.alone_each(retry=retry, micro_batch=micro_batch))

    def _give_up(self, assignment: Assignment, reason: str, ended: Ended) -> None:
        """Record that a trial does not fit, although it was alone on the machine."""
        [trial] = assignment.pack
        folder = StudyFolder(self._folder).trial(trial)
        record_infeasible(trial, folder, synthetic=self._pinned.lock.engine == "sim", reason=reason)
        ended(trial, "infeasible", None)

    def _release(self, worker: Worker, *, sound: bool) -> None:
        """Let a worker wait for its next trial. One that worked alone, or met an error, has served: a device may be
        left in any state by it."""
        if self._busy.pop(worker).alone or not sound:
            worker.close()
        else:
            self._idle.append(worker)

    def _bury(self, worker: Worker, dead: Assignment, ended: Ended) -> None:
        """Decide what becomes of trials whose worker has died."""
        cause, of_memory, packed = worker.exit_in_words(), worker.died_of_memory(), len(dead.pack) > 1
        half = max(1, (dead.micro_batch or dead.pack[0].controls.batch_examples) // 2)
        if of_memory and dead.retry and packed:
            self._part(dead, retry=True, micro_batch=half)
        elif of_memory and dead.retry:
            reason = f"killed for memory by the kernel twice, at last alone at a micro-batch of {dead.micro_batch}"
            self._give_up(dead, reason, ended)
        elif of_memory:
            how = {"at_once": dead.at_once, "micro_batch": dead.micro_batch}
            if (dead.at_once or len(dead.pack)) > 1:
                how["at_once"] = (dead.at_once or len(dead.pack)) // 2
            else:
                how["micro_batch"] = half
            self._queue.appendleft(Assignment(dead.pack, dead.due, retry=True, deaths=dead.deaths, **how))
        elif dead.deaths + 1 < DEATHS:
            self._queue.appendleft(replace(dead, deaths=dead.deaths + 1, running=None))
        elif packed:
            self._part(dead, retry=False)
        else:
            log = self._folder / "worker.log"
            error = f"its worker process died {DEATHS} times, the last one {cause}; see {log}, then run again"
            ended(dead.pack[0], "failed", error)

    def _heed_stop(self) -> None:
        """Pass a wish to stop on to the workers; kill them when it was repeated or has gone unheard."""
        if self.stopping and self._kill_at == float("inf"):
            self._kill_at = time.monotonic() + STOP_S
            self._queue.clear()
            for worker in self._busy:
                worker.send({"do": "stop"})
        if self._wishes > 1 or time.monotonic() > self._kill_at:
            self.kill()
