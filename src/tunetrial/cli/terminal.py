"""What all verbs share: their options, how they ask, and how they end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

USAGE, FAILED, DOES_NOT_FIT, INTERRUPTED = 2, 3, 4, 130

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)]
Folder = Annotated[Path | None, typer.Option(help="Folder of results [STUDY-results].", show_default=False)]
Engine = Annotated[str, typer.Option(help="torch, sim (synthetic), or package.module:attribute.")]
Margin = Annotated[float | None, typer.Option(help="Smallest difference that matters.", min=0, show_default=False)]
Exhaustive = Annotated[
    bool, typer.Option("--exhaustive", help="Run every arm, and search rates by whole runs.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def exit_status() -> Iterator[None]:
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


def misused(verb: str, what: str) -> NoReturn:
    """End with status 2: the options do not go together."""
    print(f"tunetrial: {verb}: {what}", file=sys.stderr)
    raise typer.Exit(USAGE)


def on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def agreed(question: str, otherwise: str) -> bool:
    """Ask on a terminal; without one nothing is spent that was not agreed to by --yes."""
    if not on_terminal():
        print(f"tunetrial: no terminal to ask on; add --yes, or: {otherwise}", file=sys.stderr)
        raise typer.Exit(USAGE)
    return typer.confirm(question, err=True)


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, or has this very text; another is never overwritten."""
    from tunetrial.core import files
    from tunetrial.core.errors import StoreError

    with files.writing(path):
        if path.exists() and path.read_bytes() != text.encode("utf-8"):
            raise StoreError(f"{path}: there is another file of this name; remove it, or write to another")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
