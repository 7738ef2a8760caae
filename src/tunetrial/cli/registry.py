"""Verbs of the registry: versions of shipped artifacts, and which of them serves."""

import json as writer
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunetrial.cli.terminal import Json, exit_status, misused, write_new

if TYPE_CHECKING:
    from tunetrial.core.records import Record
    from tunetrial.ship.registry import Registry
    from tunetrial.ship.versions import Move

Name = Annotated[str, typer.Argument(help="Name, such as newsletter.", show_default=False)]
Which = Annotated[str, typer.Argument(help="NAME@VERSION or NAME@ALIAS.", show_default=False)]
Alias = Annotated[str, typer.Option(help="Alias to move.")]
Where = Annotated[Path | None, typer.Option("--registry", help="Its folder [in TUNETRIAL_HOME].", show_default=False)]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Versions of what was shipped.",
)


@app.command()
def add(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="Folder that ship wrote.", show_default=False)],
    where: Where = None,
    json: Json = False,
) -> None:
    """Keep a shipped folder as a version."""
    with exit_status():
        from tunetrial.ship import shown

        version, is_new = _registry(where).add(name, folder)
        _print(version, json, lambda one: shown.added(one, is_new), is_new=is_new)


@app.command("list")
def list_names(where: Where = None, json: Json = False) -> None:
    """All names, and the room they take."""
    with exit_status():
        from tunetrial.ship import shown

        _print(_registry(where).listing(), json, shown.listing)


@app.command()
def show(
    which: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Read all files, check digests.")] = False,
    where: Where = None,
    json: Json = False,
) -> None:
    """Versions of a name, or one in full."""
    with exit_status():
        from tunetrial.ship import shown
        from tunetrial.ship.versions import split_reference

        registry, (name, wanted) = _registry(where), split_reference(which)
        entry = registry.entry(name)
        if wanted is None:
            versions, found, text = entry.versions, entry, shown.entry
        else:
            found = registry.find(name, wanted)
            aliases = [alias for alias, number in entry.aliases.items() if number == found.version]
            versions, text = (found,), lambda one: shown.version(one, aliases)
        damages = {f"{name}@{one.version}": registry.damages(one) for one in versions} if verify else None
        _print(found, json, text, **({"damages": damages} if verify else {}))
        if verify:
            _tell_damages(damages)


@app.command()
def promote(which: Which, alias: Alias = "champion", where: Where = None, json: Json = False) -> None:
    """Point an alias to a version."""
    from tunetrial.ship.versions import split_reference

    name, wanted = split_reference(which)
    if wanted is None:
        misused("registry promote", f"give NAME@VERSION, such as {name[:64]}@2")
    with exit_status():
        from tunetrial.ship import shown

        _tell(_registry(where).promote(name, wanted, alias), json, shown.move)


@app.command()
def rollback(name: Name, alias: Alias = "champion", where: Where = None, json: Json = False) -> None:
    """Point an alias to the version before."""
    with exit_status():
        from tunetrial.ship import shown

        _tell(_registry(where).rollback(name, alias), json, shown.move)


@app.command()
def compare(
    name: Name,
    versions: Annotated[str, typer.Option(help="Reference,candidate.")] = "champion,challenger",
    scores: Annotated[str | None, typer.Option(help="Their tables: A.parquet,B.parquet.", show_default=False)] = None,
    outcomes: Annotated[Path | None, typer.Option(help="Log of outcomes (JSONL).", show_default=False)] = None,
    margin: Annotated[float | None, typer.Option(help="Smallest difference that matters.", show_default=False)] = None,
    bounds: Annotated[str, typer.Option(help="With --outcomes: LOW,HIGH of any.")] = "0,1",
    level: Annotated[float, typer.Option(help="Coverage of intervals.", show_default="0.95")] = 0.95,
    where: Where = None,
    json: Json = False,
) -> None:
    """Compare by items or logged outcomes."""
    if scores is not None and outcomes is not None:
        misused("registry compare", "--scores and --outcomes: two questions; give one of them")
    if margin is None or not 0 < margin < float("inf"):
        misused("registry compare", "give --margin, the smallest difference that matters, above 0")
    if not 0.5 <= level < 1:
        misused("registry compare", f"--level: a share from 0.5 to below 1, got {level:g}; 0.95 is usual")
    of, limits = versions.split(","), _numbers(bounds)
    tables = [] if scores is None else scores.split(",")
    if len(of) != 2 or len(tables) not in (0, 2):
        misused("registry compare", "--versions and --scores take two values each: A,B")
    if limits is None:
        misused("registry compare", f"--bounds: two numbers, low before high, got {bounds[:40]!r}; 0,1 is usual")
    with exit_status():
        from tunetrial.core.errors import ConfigError
        from tunetrial.ship import shown, versus

        registry = _registry(where)
        pair = [registry.find(name, one) for one in of]
        if pair[0].version == pair[1].version:
            got = f"got {name}@{pair[0].version} twice"
            raise ConfigError(f"--versions: needs two versions to compare, {got}; name another")
        if outcomes is not None:
            found = versus.online(*pair, outcomes, bounds=limits, margin=margin, level=level)
            _print(found, json, shown.online)
        else:
            paths = tuple(Path(one) for one in tables) or None
            _print(versus.offline(*pair, paths, margin=margin, level=level), json, shown.offline)


@app.command()
def split(
    name: Name,
    to: Annotated[Path, typer.Option(help="File to write (JSON).", show_default=False)],
    challenger_share: Annotated[float, typer.Option(help="Share of keys, 0 to 1.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Another deals anew.")] = 1,
    where: Where = None,
    json: Json = False,
) -> None:
    """Write a rule that deals traffic."""
    with exit_status():
        from tunetrial.ship.traffic import split as deal
        from tunetrial.ship.versions import CHALLENGER, CHAMPION

        registry = _registry(where)
        pair = [registry.find(name, alias) for alias in (CHAMPION, CHALLENGER)]
        rule = deal(*pair, share=challenger_share, seed=seed)
        text = rule.model_dump_json(indent=1)
        write_new(to, text + "\n")
        print(text if json else to)


@app.command()
def export(
    which: Which,
    mlflow: Annotated[str, typer.Option(help="URI of an MLflow registry.", show_default=False)],
    where: Where = None,
    json: Json = False,
) -> None:
    """Register a version with MLflow."""
    from tunetrial.ship.versions import split_reference

    name, wanted = split_reference(which)
    if wanted is None:
        misused("registry export", f"give NAME@VERSION, such as {name[:64]}@2")
    with exit_status():
        from tunetrial.ship.mlflow import export as to_mlflow

        registry = _registry(where)
        version = registry.intact(name, wanted)
        aliases = [alias for alias, number in registry.entry(name).aliases.items() if number == version.version]
        _print(to_mlflow(version, mlflow, aliases=aliases), json, str)


@app.command()
def gc(where: Where = None, json: Json = False) -> None:
    """Remove what interrupted adds left."""
    with exit_status():
        from tunetrial.ship import shown

        _print(_registry(where).sweep(), json, shown.swept)


def _registry(where: Path | None) -> "Registry":
    from tunetrial.ship.registry import Registry

    return Registry.at(where)


def _print(found: "Record", json: bool, text: Callable, **more: object) -> None:
    print(writer.dumps({**found.model_dump(mode="json"), **more}, indent=1) if json else text(found))


def _tell(moved: "Move", json: bool, text: Callable) -> None:
    for note in moved.notes:
        print(f"note: {note}", file=sys.stderr)
    _print(moved, json, text)


def _tell_damages(damages: dict[str, tuple[str, ...]]) -> None:
    """Say what is damaged and end with status 1, or that nothing is."""
    lines = [f"{name}: {line}" for name, found in damages.items() for line in found]
    for line in lines:
        print(f"tunetrial: {line}", file=sys.stderr)
    if lines:
        print("tunetrial: add the shipped folder again, which mends it", file=sys.stderr)
        raise typer.Exit(1)
    print("all files are intact", file=sys.stderr)


def _numbers(text: str) -> tuple[float, float] | None:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        return None
    return (low, high) if float("-inf") < low < high < float("inf") else None
