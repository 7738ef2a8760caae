"""The verb that times deployments: of a study, over a base, or behind an address."""

import json as writer
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tunetrial.cli.terminal import FAILED, Folder, Json, exit_status, misused


def bench(
    study: Annotated[Path | None, typer.Argument(help="Study file (YAML).", show_default=False)] = None,
    arms: Annotated[str | None, typer.Option(help="Arms of the study [all].", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="No study: folder, Hub id, embedded.", show_default=False)] = None,
    rank: Annotated[int | None, typer.Option(help="With --base: rank [16].", min=1, show_default=False)] = None,
    targets: Annotated[str | None, typer.Option(help="With --base [all-linear].", show_default=False)] = None,
    batches: Annotated[str | None, typer.Option(help="Rows of a request [1,8].", show_default=False)] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens of prompts [a row's, 64].", show_default=False)] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of answers [32].", show_default=False)] = None,
    sessions: Annotated[int, typer.Option(help="The replicates; process starts.", min=1)] = 5,
    seconds: Annotated[float | None, typer.Option(help="Of a session [60].", min=0, show_default=False)] = None,
    endpoint: Annotated[str | None, typer.Option(help="A server: http://host/v1[,…].", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Its model [the only one].", show_default=False)] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests at once [1,8].", show_default=False)] = None,
    requests: Annotated[int | None, typer.Option(help="Of a session [32].", show_default=False)] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL [made up].", show_default=False)] = None,
    key_from: Annotated[str | None, typer.Option(help="Variable that holds its key.", show_default=False)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Time separate, merged and full models as they are deployed."""
    of_study = {"--arms": arms, "--folder": folder}
    of_base = {"--rank": rank, "--targets": targets}
    of_both = {"--batches": batches, "--prompt": prompt, "--seconds": seconds}
    of_server = {"--model": model, "--concurrency": concurrency, "--requests": requests, "--prompts": prompts}
    of_server |= {"--key-from": key_from}
    kinds = {"a study file": study, "--base": base, "--endpoint": endpoint}
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) != 1:
        misused("bench", "give a study file, --base or --endpoint, and one of them alone")
    wrong = {"a study file": of_base | of_server, "--base": of_study | of_server}
    wrong["--endpoint"] = of_study | of_base | of_both
    if odd := sorted(name for name, value in wrong[given[0]].items() if value is not None):
        misused("bench", f"{', '.join(odd)}: not with {given[0]}; leave it out")
    with exit_status():
        if endpoint is not None:
            names = {name[2:].replace("-", "_"): value for name, value in of_server.items()}
            _of_endpoint(endpoint, tokens=tokens, sessions=sessions, json=json, **names)
            return
        from tunetrial.trial import bench as lab

        many = lab.numbers("--batches", "1,8" if batches is None else batches)
        how = {"prompt_tokens": prompt, "new_tokens": tokens, "sessions": sessions}
        terms = lab.Terms(many, seconds=60.0 if seconds is None else seconds, **how)
        _of_weights(study, folder, arms, base, {"rank": rank or 16, "targets": targets}, terms, json)


def _tell(said: str) -> None:
    print(said, file=sys.stderr)


def _of_weights(
    study: Path | None, folder: Path | None, arms: str | None, base: str | None, random: dict, terms: Any, json: bool
) -> None:
    """Time a study's finals, or random adapters over a base."""
    from tunetrial.analysis.latency import summarise
    from tunetrial.report import deployment
    from tunetrial.trial import bench as lab

    if study is not None:
        from tunetrial import Study

        loaded = Study.load(study, folder=folder)
        named = tuple(name.strip() for name in arms.split(",")) if arms is not None else ()
        made = lab.of_study(loaded.folder, loaded.path.parent, terms, arms=named, tell=_tell)
    else:
        settings = {name: value for name, value in random.items() if value is not None}
        made = lab.of_base(base, settings, terms, tell=_tell)
    found = summarise(made)
    if json:
        print(
            writer.dumps({"deployment": found.model_dump(mode="json"), "bench": made.model_dump(mode="json")}, indent=1)
        )
    else:
        print(deployment.text(found), end="")
    if study is not None:
        loaded.report()


def _of_endpoint(
    endpoint: str,
    *,
    model: str | None,
    concurrency: str | None,
    requests: int | None,
    prompts: Path | None,
    key_from: str | None,
    tokens: int | None,
    sessions: int,
    json: bool,
) -> None:
    """Time servers that are there already; ends with status 3 where requests failed."""
    from tunetrial.analysis.endpoints import summarise
    from tunetrial.report import endpoints as shown
    from tunetrial.trial import endpoints as load
    from tunetrial.trial.bench import numbers

    given = {"requests": requests, "tokens": tokens, "key_from": key_from}
    given = {name: value for name, value in given.items() if value is not None}
    if concurrency is not None:
        given["concurrency"] = numbers("--concurrency", concurrency)
    terms = load.Terms(sessions=sessions, **given)
    known = load.read_prompts(prompts) if prompts is not None else None
    names = model.split(",") if model is not None else []
    made = load.measure(load.find_targets(endpoint.split(","), names, terms), terms, known, tell=_tell)
    found = summarise(made)
    if json:
        print(
            writer.dumps({"endpoints": found.model_dump(mode="json"), "bench": made.model_dump(mode="json")}, indent=1)
        )
    else:
        print(shown.text(found), end="")
    if found.faults:
        raise typer.Exit(FAILED)
