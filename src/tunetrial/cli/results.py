"""Verbs on the results there are: nothing is trained."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from tunetrial import Study
from tunetrial.cli.terminal import Folder, Json, StudyFile, agreed, exit_status, misused, write_new


def report(study: StudyFile, folder: Folder = None, json: Json = False) -> None:
    """Write the report again from the results there are."""
    with exit_status():
        loaded = Study.load(study, folder=folder)
        page = loaded.report()
        print(loaded.to_json() if json else page)


def decide(
    study: StudyFile,
    scenario: Annotated[
        list[str] | None, typer.Option(help="A use: saas, startup, ... or a file.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Weigh all built-in scenarios.", show_default=False)] = False,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Decide again by the margins and weights in the file, or for other uses; no training."""
    if scenario and every:
        misused("decide", "--scenario and --all do not go together; give one of them")
    with exit_status():
        loaded = Study.load(study, folder=folder)
        if not scenario and not every:
            print(loaded.to_json() if json else loaded.summary())
            return
        from tunetrial.report.scenarios import text
        from tunetrial.spec.scenario import uses

        weighed = loaded.weigh(*(scenario or uses()))
        if json:
            import json as writer

            print(writer.dumps({"weighed": [one.model_dump(mode="json") for one in weighed]}, indent=1))
        else:
            print(text(weighed), end="")


def costs(
    study: StudyFile,
    requests: Annotated[float | None, typer.Option(help="A month, in all [costs].", min=0, show_default=False)] = None,
    variants: Annotated[int | None, typer.Option(help="Kept side by side [costs].", min=1, show_default=False)] = None,
    engineer_usd_per_hour: Annotated[float | None, typer.Option(help="[costs]", min=0, show_default=False)] = None,
    gpu: Annotated[str | None, typer.Option(help="At whose price [hardware].", show_default=False)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Say what each arm costs to own, from what was measured."""
    with exit_status():
        from tunetrial.report import owning

        loaded = Study.load(study, folder=folder)
        asked = {"requests_per_month": requests, "variants": variants, "gpu": gpu}
        found = loaded.costs(**asked, usd_per_engineer_hour=engineer_usd_per_hour)
        if json:
            print(found.model_dump_json(indent=1))
        else:
            print(owning.text(found, shutil.get_terminal_size().columns), end="")


def recipe(
    study: StudyFile,
    tool: Annotated[str, typer.Option("--for", help="axolotl, llamafactory, trl or peft.")],
    arm: Annotated[str | None, typer.Option(help="Arm [the recommended].", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write.", show_default=False)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Write an arm back as another tool's recipe."""
    with exit_status():
        text = Study.load(study, folder=folder).recipe(tool, arm=arm)
        if out is not None:
            write_new(out, text)
        elif not json:
            print(text, end="")
        if json:
            import json as writer

            print(writer.dumps({"tool": tool, "recipe": text}))


def rate(
    study: StudyFile,
    judge: Annotated[str | None, typer.Option(help="Address of a judge: http://host/v1", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="With --judge: its model.", show_default=False)] = None,
    key_from: Annotated[str | None, typer.Option(help="Variable that holds its key.", show_default=False)] = None,
    sheet: Annotated[Path | None, typer.Option(help="CSV or JSONL for people, blind.", show_default=False)] = None,
    read: Annotated[Path | None, typer.Option(help="Such a sheet, filled in.", show_default=False)] = None,
    rater: Annotated[str | None, typer.Option(help="With --read: by whom.", show_default=False)] = None,
    rows: Annotated[int, typer.Option(help="Test rows to compare on.", min=2)] = 40,
    port: Annotated[int | None, typer.Option(help="Of the page [free].", min=0, max=65535, show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask the judge without asking you.")] = False,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Have people (on a page) or a judge prefer texts, blind."""
    if [judge, sheet, read].count(None) < 2 or port is not None and (judge or sheet or read):
        misused("rate", "give one of --judge, --sheet and --read, or none for the page, which may have a --port")
    if (judge is None) != (model is None) or (read is None) != (rater is None):
        misused("rate", "--judge goes with --model, and --read with --rater; give both")
    with exit_status():
        from tunetrial.analysis.rounds import belonging
        from tunetrial.rating import Endpoint
        from tunetrial.report.raters import text
        from tunetrial.trial import raters

        loaded = Study.load(study, folder=folder)
        if read is not None:
            raters.take_in(loaded.folder, read, rater)
        else:
            asked = raters.gather(loaded.asked, loaded.path.parent, loaded.folder, rows=rows)
            print(f"{asked.task}: {asked.criterion}; {asked.questions} questions at most", file=sys.stderr)
            if judge is None and sheet is None:
                from tunetrial.rating import web
                from tunetrial.trial.desk import Desk

                said = "open {}\nanswers are saved as they come; Ctrl-C ends it, with the report"
                tell = lambda address: print(said.format(address), file=sys.stderr, flush=True)  # noqa: E731
                web.serve(Desk(asked, loaded.folder), port=port or 0, tell=tell)
            elif sheet is not None:
                raters.hand_out(asked, loaded.folder, sheet)
                print(sheet)
                return
            elif not yes and not agreed(
                f"Ask {model} {asked.questions} questions?", f"tunetrial rate {study} --sheet FILE"
            ):
                return
            else:
                raters.ask(asked, loaded.folder, Endpoint(url=judge, model=model, key_from=key_from))
        decision = loaded.decide()
        loaded.report()
        kept = raters.rounds(loaded.folder)
        if left := len(kept) - len(belonging(kept, decision.record_digests)):
            print(f"left out: {left} of answers that the study no longer has", file=sys.stderr)
        print(loaded.to_json() if json else text(decision), end="")
