"""The command line: verbs without logic. stdout is the result, stderr is progress.

Exit status: 0 done, 1 error, 2 usage, 3 some trials failed, 4 does not fit, 130 interrupted. Nothing heavy is imported
before a verb needs it, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from tunetrial import Study, __version__
from tunetrial.display import Display

if TYPE_CHECKING:
    from tunetrial.trial.doctor import Diagnosis

USAGE, FAILED, DOES_NOT_FIT, INTERRUPTED = 2, 3, 4, 130

DEMOS = "demo: scores and queues, five minutes on 2 cores. demo-json: answers as JSON, about half an hour."

METHODS, GPUS = "full,lora:16,qlora:16", "t4,l4,a100-80"

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
Margin = Annotated[float | None, typer.Option(help="Smallest difference that matters.", min=0, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Exhaustive = Annotated[bool, typer.Option("--exhaustive", help="Search rates by whole runs.", show_default=False)]


@app.command()
def demo(
    study: Annotated[Literal["demo", "demo-json"], typer.Argument(help=DEMOS)] = "demo",
    folder: Annotated[Path, typer.Option(help="Where to put study and results.")] = Path("tunetrial-demo"),
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Full × LoRA on the built-in tasks, on the embedded base."""
    with _exit_status():
        from tunetrial.core import files

        path = folder / f"{study}.yaml"
        with files.writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes((Path(__file__).parent / "embedded" / path.name).read_bytes())
        _run(Study.load(path, engine=engine), wait_s=0.0, json=json)


@app.command()
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
        _misused("give a study file or --model, and not both")
    of_model = {"--method": method, "--step": step, "--rows": rows, "--test": test}
    of_study = {"--folder": folder, "--exhaustive": exhaustive or None}
    wrong, other = (of_model, "a study file") if study is not None else (of_study, "--model")
    if given := sorted(name for name, value in wrong.items() if value is not None):
        _misused(f"{', '.join(given)}: not with {other}; leave it out")
    with _exit_status():
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

            _write_new(plot, memory.svg(f"{model or study.name}: memory at the peak of training", made.memory))
        print(made.model_dump_json(indent=1) if json else made)
        if made.refused:
            raise typer.Exit(DOES_NOT_FIT)


@app.command()
def calibrate(
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")] = "auto",
    json: Json = False,
) -> None:
    """Measure how fast this machine is, in half a minute, for plans."""
    with _exit_status():
        from tunetrial.store import home
        from tunetrial.trial import calibration
        from tunetrial.trial.machine import driver_name

        kind = device if device != "auto" else "cpu" if driver_name() is None else "cuda"
        print("measuring; leave the machine to it", file=sys.stderr)
        speed = calibration.calibrate(home(), kind)
        print(speed.model_dump_json(indent=1) if json else calibration.words(speed, home()))


@app.command()
def selfcheck(
    studies: Annotated[int, typer.Option(help="Simulated studies in all.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same counts.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Show this lab's own error rates on planted truth, in a minute."""
    with _exit_status():
        from tunetrial.trial import selfcheck as lab

        print("checking; leave the machine to it for a minute", file=sys.stderr)
        found = lab.selfcheck(studies=studies, seed=seed)
        print(found.model_dump_json(indent=1) if json else found)
        if found.failed:
            raise typer.Exit(1)


@app.command()
def doctor(
    study: Annotated[str, typer.Argument(help="Study file, or base model with DATA.", show_default=False)],
    data: Annotated[str | None, typer.Argument(help="File of rows.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="Kind, column, or kind:column.", show_default=False)] = None,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Look at base and rows as they will be read, before any training."""
    with _exit_status():
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


@app.command()
def run(
    study: StudyFile,
    folder: Folder = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for another run of it.", min=0)] = 0.0,
    exhaustive: Exhaustive = False,
    json: Json = False,
    engine: Engine = "torch",
) -> None:
    """Carry a study out, or go on with it, and decide."""
    with _exit_status():
        _run(Study.load(study, folder=folder, engine=engine, exhaustive=exhaustive), wait_s=wait, json=json)


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


@app.command()
def init(
    source: Annotated[Path, typer.Option("--from", help="Recipe of axolotl, LLaMA-Factory or TRL.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Study file to write.")] = Path("study.yaml"),
    margin: Margin = None,
    devices: Annotated[int | None, typer.Option(help="GPUs that it runs on.", min=1, show_default=False)] = None,
    json: Json = False,
) -> None:
    """Make a study of a recipe: yours beside full and LoRA."""
    with _exit_status():
        from tunetrial import spec
        from tunetrial.spec import recipes

        recipe = recipes.read(source, devices=devices)
        text = recipes.study_file(recipe, source, out, margin=margin)
        spec.parse(text, str(out))
        _write_new(out, text)
        if margin is None:
            print(recipes.MARGIN_SAID, file=sys.stderr)
        for left in recipe.left:
            print(f"not carried over: {left}", file=sys.stderr)
        print(recipe.model_dump_json(indent=1) if json else out)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA or DoRA adapter.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Model folder to write.", show_default=False)],
    base: Annotated[str | None, typer.Option(help="Base [the one it names].", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, proven: a base for a next study."""
    with _exit_status():
        from tunetrial.engine.merge import merge as merge_adapter

        made = merge_adapter(adapter, out, base_model=base)
        print(made.model_dump_json(indent=1) if json else f"{made}\n{out}")


@app.command()
def recipe(
    study: StudyFile,
    tool: Annotated[str, typer.Option("--for", help="axolotl, llamafactory, trl or peft.")],
    arm: Annotated[str | None, typer.Option(help="Arm [the recommended].", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write.", show_default=False)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Write an arm back as another tool's recipe."""
    with _exit_status():
        text = Study.load(study, folder=folder).recipe(tool, arm=arm)
        if out is not None:
            _write_new(out, text)
        elif not json:
            print(text, end="")
        if json:
            import json as writer

            print(writer.dumps({"tool": tool, "recipe": text}))


@app.command()
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
    with _exit_status():
        from tunetrial import spec
        from tunetrial.spec import oneline
        from tunetrial.trial.machine import gpu_name

        spend = oneline.spend(budget, price=_price(budget)) if budget is not None else None
        guessed = oneline.guess(data, task=task, margin=margin)
        if margin is None and not yes and _on_terminal():
            print(*guessed.remarks, sep="\n", file=sys.stderr)
            said = typer.prompt("Margin", default=guessed.margin, type=float, err=True)
            guessed = oneline.guess(data, task=task, margin=said)
        path = Path(f"{Path(data).stem}.yaml")
        text = oneline.study_file(model, guessed, budget=spend, gpu=gpu_name())
        spec.parse(text, str(path))
        _write_new(path, text)
        study = Study.load(path, engine=engine)
        print(f"study: {path}", *guessed.remarks, study.plan(), sep="\n", file=sys.stderr)
        if not yes and not _agreed(path):
            return
        _run(study, wait_s=0.0, json=json)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `tunetrial` command."""
    app()


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


def _misused(what: str) -> NoReturn:
    print(f"tunetrial: plan: {what}", file=sys.stderr)
    raise typer.Exit(USAGE)


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, or has this very text; another is never overwritten."""
    from tunetrial.core import files
    from tunetrial.core.errors import StoreError

    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise StoreError(f"{path}: there is another file of this name; remove it, or write to another")
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _price(budget: str) -> str | None:
    """What an hour of this machine costs: as the environment says, or asked for a budget in dollars without one."""
    price = os.environ.get("TUNETRIAL_USD_PER_HOUR")
    if price is None and "usd" in budget.lower() and "@" not in budget and _on_terminal():
        return typer.prompt("US dollars for an hour of this machine", err=True)
    return price


def _agreed(path: Path) -> bool:
    """Ask on a terminal; without one nothing is spent that was not agreed to by --yes."""
    if not _on_terminal():
        print(f"tunetrial: no terminal to ask on; add --yes, or: tunetrial run {path}", file=sys.stderr)
        raise typer.Exit(USAGE)
    agreed = typer.confirm("Run it?", err=True)
    if not agreed:
        print(f"not run; change {path} and: tunetrial run {path}", file=sys.stderr)
    return agreed


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
