"""The command line: verbs without logic. stdout is the result, stderr is progress.

Exit status: 0 done, 1 error, 2 usage, 3 some trials failed, 4 does not fit, 130 interrupted. Nothing heavy is imported
before a verb needs it, so that `--help` answers at once.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunetrial import Study, __version__

if TYPE_CHECKING:
    from tunetrial.trial.progress import Progress

LINE_EVERY_S, REFRESH_S = 60.0, 0.25
FAILED, DOES_NOT_FIT, INTERRUPTED = 3, 4, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find out by trial whether to fine-tune fully or with an adapter: plan, run, decide.",
)

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)]
Folder = Annotated[Path | None, typer.Option(help="Folder of results [STUDY-results].", show_default=False)]
Engine = Annotated[str, typer.Option(help="torch, sim (synthetic), or package.module:attribute.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to put study and results.")] = Path("tunetrial-demo"),
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Full × LoRA on the built-in tasks, on the embedded base."""
    with _exit_status():
        from tunetrial.core import files

        path = folder / "demo.yaml"
        with files.writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes((Path(__file__).parent / "embedded" / "demo.yaml").read_bytes())
        _run(Study.load(path, engine=engine), wait_s=0.0, json=json)


@app.command()
def plan(study: StudyFile, folder: Folder = None, json: Json = False, engine: Engine = "torch") -> None:
    """Say what a study will take, before anything is spent."""
    with _exit_status():
        made = Study.load(study, folder=folder, engine=engine).plan()
        print(made.model_dump_json(indent=1) if json else made)
        if made.refused:
            raise typer.Exit(DOES_NOT_FIT)


@app.command()
def run(
    study: StudyFile,
    folder: Folder = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another run of it.", min=0)] = 0.0,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Carry a study out, or go on with it, and decide."""
    with _exit_status():
        _run(Study.load(study, folder=folder, engine=engine), wait_s=wait, json=json)


@app.command()
def report(study: StudyFile, folder: Folder = None, json: Json = False) -> None:
    """Write the report again from the results there are."""
    with _exit_status():
        loaded = Study.load(study, folder=folder)
        page = loaded.report()
        print(loaded.to_json() if json else page)


@app.command()
def decide(study: StudyFile, folder: Folder = None, json: Json = False) -> None:
    """Decide again by the margins and weights in the file; no training."""
    with _exit_status():
        loaded = Study.load(study, folder=folder)
        print(loaded.to_json() if json else loaded.summary())


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `tunetrial` command."""
    app()


def _run(study: Study, *, wait_s: float, json: bool) -> None:
    """Run, report, and print the summary and where the page is; complain of trials that failed."""
    with _Display() as display:
        study.run(wait_s=wait_s, tell=display.show)
    for label, error in study.outcome.failed.items():
        print(f"failed: {label}: {error}", file=sys.stderr)
    decision = study.decide()
    page = study.report()
    print(study.to_json() if json else f"{study.summary()}\nReport: {page}")
    if study.outcome.status == "out of budget":
        advice = f"raise the budget in {study.path} and run again to go on"
        print(f"tunetrial: the budget is spent; what was done is kept: {advice}", file=sys.stderr)
        raise typer.Exit(DOES_NOT_FIT)
    if study.outcome.failed:
        raise typer.Exit(FAILED)
    if all(arm.state == "does not fit" for arm in decision.arms):
        raise typer.Exit(DOES_NOT_FIT)


class _Display:
    """Progress on stderr: a live table on a terminal; elsewhere a line when a trial ends, and one a minute."""

    def __init__(self) -> None:
        self._live = None
        self._shown: tuple[str, int, int] | None = None
        self._next_s = 0.0

    def __enter__(self) -> "_Display":
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
    parts = [f"{progress.done}/{progress.planned} trials", _duration(progress.seconds)]
    if progress.failed:
        parts.insert(1, f"{progress.failed} failed")
    if progress.left_s is not None:
        parts.append(f"this wave {_duration(progress.left_s)} more")
    if progress.usd is not None:
        parts.append(f"${progress.usd:.2f}")
    return ", ".join(parts)


def _doing(progress: "Progress") -> list[str]:
    """One line for each trial under way."""
    return [
        f"{trial.label}: " + (f"{trial.step}/{trial.steps} loss {trial.loss:.3f}" if trial.steps else "starting")
        for trial in progress.running
    ]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def _exit_status() -> Iterator[None]:
    """Turn the errors that users can mend into one line, and a stop into status 130."""
    from tunetrial.core.errors import DoesNotFitError, TunetrialError

    try:
        yield
    except TunetrialError as error:
        print(f"tunetrial: {error}", file=sys.stderr)
        raise typer.Exit(DOES_NOT_FIT if isinstance(error, DoesNotFitError) else 1) from None
    except KeyboardInterrupt:
        print("tunetrial: interrupted; what was done is kept, run again to go on", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
