"""The verb that lets CI pass or not."""

from pathlib import Path
from typing import Annotated

import typer

from tunetrial import Study
from tunetrial.cli.terminal import Folder, Json, Margin, StudyFile, exit_status, misused

CANNOT_TELL = 5


def gate(
    study: StudyFile,
    arm: Annotated[str | None, typer.Option(help="Arm [the recommended].", show_default=False)] = None,
    shipped: Annotated[Path | None, typer.Option(help="Folder whose chain must hold.", show_default=False)] = None,
    against: Annotated[str | None, typer.Option(help="NAME@champion: not worse.", show_default=False)] = None,
    scores: Annotated[Path | None, typer.Option(help="Its scores.parquet [within].", show_default=False)] = None,
    margin: Margin = None,
    where: Annotated[Path | None, typer.Option("--registry", help="Its folder.", show_default=False)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Pass, fail or can't tell, for CI: status 0, 1 or 5."""
    if against is None and (scores, margin, where) != (None, None, None):
        misused("gate", "--scores, --margin and --registry go with --against; give it too")
    if margin is not None and not 0 < margin < float("inf"):
        misused("gate", "--margin: the smallest difference that matters, above 0")
    with exit_status():
        from tunetrial.ship.gate import Asked

        asked = Asked(arm=arm, shipped=shipped, against=against, scores=scores, margin=margin, registry=where)
        made = Study.load(study, folder=folder).gate(asked)
        print(made.model_dump_json(indent=1) if json else made)
        if made.answer != "PASS":
            raise typer.Exit(1 if made.answer == "FAIL" else CANNOT_TELL)
