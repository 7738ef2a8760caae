"""Verbs before and while a study runs: what it will take, what its rows are like, and carrying it out."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tunetrial import Study
from tunetrial.cli.terminal import (
    DOES_NOT_FIT,
    FAILED,
    Engine,
    Exhaustive,
    Folder,
    Json,
    Margin,
    StudyFile,
    agreed,
    exit_status,
    misused,
    on_terminal,
    write_new,
)
from tunetrial.display import Display

if TYPE_CHECKING:
    from tunetrial.trial.doctor import Diagnosis

DEMOS = "demo: scores and queues, five minutes on 2 cores. demo-json: answers as JSON, about half an hour."
METHODS, GPUS = "full,lora:16,qlora:16", "t4,l4,a100-80"


def demo(
    study: Annotated[Literal["demo", "demo-json"], typer.Argument(help=DEMOS)] = "demo",
    folder: Annotated[Path, typer.Option(help="Where to put study and results.")] = Path("tunetrial-demo"),
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Full × LoRA on the built-in tasks, on the embedded base."""
    with exit_status():
        from tunetrial.core import files

        path = folder / f"{study}.yaml"
        with files.writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes((Path(__file__).parents[1] / "embedded" / path.name).read_bytes())
        _run(Study.load(path, engine=engine), wait_s=0.0, json=json)


def plan(
    study: Annotated[Path | None, typer.Argument(help="Study file (YAML).", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="No study: org/name, folder or sizes.", show_default=False)] = None,
    method: Annotated[str | None, typer.Option(help=f"With --model [{METHODS}].", show_default=False)] = None,
    gpu: Annotated[str | None, typer.Option(help=f"GPUs, colab, here [{GPUS}].", show_default=False)] = None,
    step: Annotated[str | None, typer.Option(help="With --model: rows × tokens [16x512].", show_default=False)] = None,
    rows: Annotated[int | None, typer.Option(help="With --model: rows of a run.", show_default=False)] = None,
    test: Annotated[str | None, typer.Option(help="With --model: test rows:margin.", show_default=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="SVG of memory to write.", show_default=False)] = None,
    exhaustive: Exhaustive = False,
    folder: Folder = None,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Say what a study will take; with --gpu on GPUs; with --model, no study."""
    if (study is None) == (model is None):
        misused("plan", "give a study file or --model, and not both")
    of_model = {"--method": method, "--step": step, "--rows": rows, "--test": test}
    of_study = {"--folder": folder, "--exhaustive": exhaustive or None}
    wrong, other = (of_model, "a study file") if study is not None else (of_study, "--model")
    if given := sorted(name for name, value in wrong.items() if value is not None):
        misused("plan", f"{', '.join(given)}: not with {other}; leave it out")
    with exit_status():
        if study is not None:
            loaded = Study.load(study, folder=folder, engine=engine, exhaustive=exhaustive)
            made = loaded.plan() if gpu is None else loaded.forecast(gpu.split(","))
        else:
            from tunetrial.trial.forecast import forecast

            asked = {"step": "16x512" if step is None else step, "rows": rows, "test": test, "phases": json}
            methods, gpus = (default if one is None else one for one, default in ((method, METHODS), (gpu, GPUS)))
            made = forecast(model, methods.split(","), gpus.split(","), **asked)
        if plot is not None:
            from tunetrial.report import memory

            write_new(plot, memory.svg(f"{model or study.name}: memory at the peak of training", made.memory))
        print(made.model_dump_json(indent=1) if json else made)
        if made.refused:
            raise typer.Exit(DOES_NOT_FIT)


def doctor(
    study: Annotated[str, typer.Argument(help="Study file, or base model with DATA.", show_default=False)],
    data: Annotated[str | None, typer.Argument(help="File of rows.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="Kind, column, or kind:column.", show_default=False)] = None,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Look at base and rows as they will be read, before any training."""
    with exit_status():
        if data is None:
            found = Study.load(study, engine=engine).doctor()
        else:
            from tunetrial import spec
            from tunetrial.spec import oneline
            from tunetrial.trial.doctor import diagnose

            guessed = oneline.guess(data, task=task)
            print(*guessed.remarks, sep="\n", file=sys.stderr)
            found = diagnose(spec.parse(oneline.study_file(study, guessed), data), Path.cwd(), engine=engine)
        print(found.model_dump_json(indent=1)) if json else _show_diagnosis(found)
        if not found.sound:
            raise typer.Exit(1)


def run(
    study: StudyFile,
    folder: Folder = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another run of it.", min=0)] = 0.0,
    exhaustive: Exhaustive = False,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Carry a study out, or go on with it, and decide."""
    with exit_status():
        _run(Study.load(study, folder=folder, engine=engine, exhaustive=exhaustive), wait_s=wait, json=json)


def compare(
    model: Annotated[str, typer.Argument(help="Base model: folder, Hub id, or embedded.", show_default=False)],
    data: Annotated[str, typer.Argument(help="File of rows: JSONL, CSV, Parquet.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="Kind, column, or kind:column.", show_default=False)] = None,
    margin: Margin = None,
    budget: Annotated[str | None, typer.Option(help="20usd@0.80 (an hour), or 2h.", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run without asking.")] = False,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Full × LoRA on a file of rows: guess, plan, ask, run."""
    with exit_status():
        from tunetrial import spec
        from tunetrial.spec import oneline
        from tunetrial.trial.machine import gpu_name

        spend = oneline.spend(budget, price=_price(budget)) if budget is not None else None
        guessed = oneline.guess(data, task=task, margin=margin)
        if margin is None and not yes and on_terminal():
            print(*guessed.remarks, sep="\n", file=sys.stderr)
            said = typer.prompt("Margin", default=guessed.margin, type=float, err=True)
            guessed = oneline.guess(data, task=task, margin=said)
        path = Path(f"{Path(data).stem}.yaml")
        text = oneline.study_file(model, guessed, budget=spend, gpu=gpu_name())
        spec.parse(text, str(path))
        write_new(path, text)
        study = Study.load(path, engine=engine)
        print(f"study: {path}", *guessed.remarks, study.plan(), sep="\n", file=sys.stderr)
        if not yes and not agreed("Run it?", f"tunetrial run {path}"):
            print(f"not run; change {path} and: tunetrial run {path}", file=sys.stderr)
            return
        _run(study, wait_s=0.0, json=json)


def _show_diagnosis(found: "Diagnosis") -> None:
    """Print findings, then rows with what is trained on in green; where there is no colour, between « and »."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    marks = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "red")}
    others = {f"base {name}": findings for name, findings in found.others.items()}
    for heading, findings in {"base": found.base, **others, **found.tasks}.items():
        console.print(Text(heading, style="bold"))
        for finding in findings:
            mark, colour = marks[finding.state]
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            console.print(Text.assemble("  ", (mark, colour), f" {finding.what}: {finding.found}{remedy}"))
        for row in found.rows.get(heading, ()):
            shown = Text(f"  row {row.row}, {row.tokens} tokens, target {row.target!r}:\n")
            for text, is_answer in row.pieces:
                plain = console.color_system is None and is_answer
                shown.append(f"«{text}»" if plain else text, style="green reverse" if is_answer else "dim")
            console.print(shown)


def _price(budget: str) -> str | None:
    """What an hour of this machine costs: as the environment says, or asked for a budget in dollars without one."""
    price = os.environ.get("TUNETRIAL_USD_PER_HOUR")
    if price is None and "usd" in budget.lower() and "@" not in budget and on_terminal():
        return typer.prompt("US dollars for an hour of this machine", err=True)
    return price


def _run(study: Study, *, wait_s: float, json: bool) -> None:
    """Run, report, and print the summary and where the page is; complain of trials that failed."""
    with Display() as display:
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
