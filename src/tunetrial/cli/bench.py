"""The verb that times deployments."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunetrial.cli.terminal import Folder, Json, exit_status, misused


def bench(
    study: Annotated[Path | None, typer.Argument(help="Study file (YAML).", show_default=False)] = None,
    arms: Annotated[str | None, typer.Option(help="Arms of the study [all].", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="No study: folder, Hub id, embedded.", show_default=False)] = None,
    rank: Annotated[int | None, typer.Option(help="With --base: rank [16].", min=1, show_default=False)] = None,
    targets: Annotated[str | None, typer.Option(help="With --base [all-linear].", show_default=False)] = None,
    batches: Annotated[str, typer.Option(help="Rows of a request.")] = "1,8",
    prompt: Annotated[int | None, typer.Option(help="Tokens of prompts [a row's, 64].", show_default=False)] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of answers [32].", show_default=False)] = None,
    sessions: Annotated[int, typer.Option(help="Process starts, the replicates.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="About so long a session.", min=0)] = 60.0,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Time separate, merged and full models as they are deployed."""
    if (study is None) == (base is None):
        misused("bench", "give a study file or --base, and not both")
    of_base, of_study = {"--rank": rank, "--targets": targets}, {"--arms": arms, "--folder": folder}
    wrong, other = (of_base, "a study file") if study is not None else (of_study, "--base")
    if given := sorted(name for name, value in wrong.items() if value is not None):
        misused("bench", f"{', '.join(given)}: not with {other}; leave it out")
    with exit_status():
        from tunetrial.analysis.latency import summarise
        from tunetrial.report import deployment
        from tunetrial.trial import bench as lab

        many = lab.batches(batches)
        terms = lab.Terms(many, prompt_tokens=prompt, new_tokens=tokens, sessions=sessions, seconds=seconds)
        tell = lambda said: print(said, file=sys.stderr)  # noqa: E731
        if study is not None:
            from tunetrial import Study

            loaded = Study.load(study, folder=folder)
            named = tuple(name.strip() for name in arms.split(",")) if arms is not None else ()
            made = lab.of_study(loaded.folder, loaded.path.parent, terms, arms=named, tell=tell)
        else:
            settings = {"rank": rank or 16, **({} if targets is None else {"targets": targets})}
            made = lab.of_base(base, settings, terms, tell=tell)
        found = summarise(made)
        if json:
            import json as writer

            dumped = {"deployment": found.model_dump(mode="json"), "bench": made.model_dump(mode="json")}
            print(writer.dumps(dumped, indent=1))
        else:
            print(deployment.text(found), end="")
        if study is not None:
            loaded.report()
