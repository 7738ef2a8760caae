"""Progress of a run, shown to whoever watches it: on stderr, which holds no results."""

import sys
import time
from typing import TYPE_CHECKING

from tunetrial.core.spans import span

if TYPE_CHECKING:
    from tunetrial.trial.progress import Progress

LINE_EVERY_S, REFRESH_S = 60.0, 0.25


class Display:
    """Progress on stderr: a live table on a terminal; elsewhere a line when a trial ends, and one a minute."""

    def __init__(self) -> None:
        self._live = None
        self._shown: tuple[str, int, int] | None = None
        self._next_s = 0.0

    def __enter__(self) -> "Display":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: "Progress") -> None:
        """Show this moment, unless the last one was shown only just now."""
        ended = (progress.why, progress.done, progress.failed)
        if self._live is None:
            if ended != self._shown or time.monotonic() >= self._next_s:
                print(_headline(progress), *_doing(progress), sep="; ", file=sys.stderr, flush=True)
                self._shown, self._next_s = ended, time.monotonic() + LINE_EVERY_S
        elif time.monotonic() >= self._next_s:
            self._live.update("\n".join([progress.why, _headline(progress), *_doing(progress)]), refresh=True)
            self._next_s = time.monotonic() + REFRESH_S


def _headline(progress: "Progress") -> str:
    """How many trials are done, and what time and money it took; at most 60 columns."""
    parts = [f"{progress.done}/{progress.planned} trials", span(progress.seconds)]
    if progress.failed:
        parts.insert(1, f"{progress.failed} failed")
    if progress.left_s is not None:
        parts.append(f"this wave {span(progress.left_s)} more")
    if progress.usd is not None:
        parts.append(f"${progress.usd:.2f}")
    return ", ".join(parts)


def _doing(progress: "Progress") -> list[str]:
    """One line for each trial under way."""
    return [
        f"{trial.label}: " + (f"{trial.step}/{trial.steps} loss {trial.loss:.3f}" if trial.steps else "starting")
        for trial in progress.running
    ]
