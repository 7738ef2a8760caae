"""Worker processes as the coordinator sees them: start one, send it orders, read its reports, learn of its death."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from tunetrial.core.evidence import TaskData, example_row

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
CLOSE_S = 10


class Worker:
    """A worker process. Its reports arrive in `inbox` as (worker, message), and (worker, None) when it has ended.

    The number of threads is set in its environment, before any library can start its own. It has a process group of
    its own, so that a Ctrl-C reaches the coordinator alone; it ends by itself as soon as the coordinator is gone.
    """

    def __init__(self, inbox: SimpleQueue, *, threads: int, log: Path) -> None:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "PYTHONPATH": path}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tunetrial.trial.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                process_group=0,
            )
        self._sent: set[tuple[str, str]] = set()
        self.base: Path | None = None
        self._oom_kills = oom_kills()
        self._reader = Thread(target=self._read, args=(inbox,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, order: dict) -> None:
        """Send an order. A worker that has just died takes it silently: its end is in the inbox."""
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def open(self, base: Path, *, engine: str, precision: str) -> bool:
        """Let it hold this base, in place of the one that it may hold; False if it does already.

        It answers when the base is there.
        """
        if self.base == base:
            return False
        self.base = base
        self.send({"do": "open", "engine": engine, "base": str(base), "precision": precision})
        return True

    def send_data(self, data: TaskData, splits: tuple[str, ...]) -> None:
        """Hand over the named splits of a task, those that it does not have yet."""
        news = {name: data.splits[name] for name in splits if (data.name, name) not in self._sent}
        if not news:
            return
        self._sent |= {(data.name, name) for name in news}
        rows = {name: [example_row(example) for example in examples] for name, examples in news.items()}
        self.send({"do": "data", "task": data.name, "kind": data.kind, "labels": data.labels, "splits": rows})

    def close(self) -> None:
        """End an idle worker, and free what it holds."""
        self._end()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it now, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._end()

    def died_of_memory(self) -> bool:
        """Did the kernel kill it for memory? Known from SIGKILL and the kernel's own count of such kills."""
        return self._process.wait() == -signal.SIGKILL and oom_kills() > self._oom_kills

    def exit_in_words(self) -> str:
        """How the process ended."""
        code = self._process.wait()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _end(self) -> None:
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass

    def _read(self, inbox: SimpleQueue) -> None:
        with self._process.stdout as reports:
            for line in reports:
                if line.endswith(b"\n"):
                    inbox.put((self, json.loads(line)))
        inbox.put((self, None))


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def cores() -> int:
    """CPU cores that this process may use, by affinity and by the container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))
