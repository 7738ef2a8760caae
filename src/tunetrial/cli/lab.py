"""Verbs that need no study: the machine, the lab's own error rates, other tools' recipes, and adapters."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tunetrial.cli.terminal import Json, Margin, exit_status, write_new


def calibrate(
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: the GPU if there is one.")] = "auto",
    json: Json = False,
) -> None:
    """Measure how fast this machine is, in half a minute, for plans."""
    with exit_status():
        from tunetrial.store import home
        from tunetrial.trial import calibration
        from tunetrial.trial.machine import driver_name

        kind = device if device != "auto" else "cpu" if driver_name() is None else "cuda"
        print("measuring; leave the machine to it", file=sys.stderr)
        speed = calibration.calibrate(home(), kind)
        print(speed.model_dump_json(indent=1) if json else calibration.words(speed, home()))


def selfcheck(
    studies: Annotated[int, typer.Option(help="Simulated studies in all.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same counts.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Show this lab's own error rates on planted truth, in a minute."""
    with exit_status():
        from tunetrial.trial import selfcheck as lab

        print("checking; leave the machine to it for a minute", file=sys.stderr)
        found = lab.selfcheck(studies=studies, seed=seed)
        print(found.model_dump_json(indent=1) if json else found)
        if found.failed:
            raise typer.Exit(1)


def init(
    source: Annotated[Path, typer.Option("--from", help="Recipe of axolotl, LLaMA-Factory or TRL.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Study file to write.")] = Path("study.yaml"),
    margin: Margin = None,
    devices: Annotated[int | None, typer.Option(help="GPUs that it runs on.", min=1, show_default=False)] = None,
    json: Json = False,
) -> None:
    """Make a study of a recipe: yours beside full and LoRA."""
    with exit_status():
        from tunetrial import spec
        from tunetrial.spec import recipes

        recipe = recipes.read(source, devices=devices)
        text = recipes.study_file(recipe, source, out, margin=margin)
        spec.parse(text, str(out))
        write_new(out, text)
        if margin is None:
            print(recipes.MARGIN_SAID, file=sys.stderr)
        for left in recipe.left:
            print(f"not carried over: {left}", file=sys.stderr)
        print(recipe.model_dump_json(indent=1) if json else out)


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA or DoRA adapter.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Model folder to write.", show_default=False)],
    base: Annotated[str | None, typer.Option(help="Base [the one it names].", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, proven: a base for a next study."""
    with exit_status():
        from tunetrial.engine.merge import merge as merge_adapter

        made = merge_adapter(adapter, out, base_model=base)
        print(made.model_dump_json(indent=1) if json else f"{made}\n{out}")


def convert(
    adapter: Annotated[Path, typer.Argument(help="Folder of a PiSSA-like adapter.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Adapter folder to write.", show_default=False)],
    initial: Annotated[Path, typer.Option(help="Adapter saved before its first step.", show_default=False)],
    base: Annotated[str | None, typer.Option(help="Base [the one it names].", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Make a PiSSA-like adapter an ordinary one of twice the rank."""
    with exit_status():
        from tunetrial.engine.convert import convert as convert_adapter

        made = convert_adapter(adapter, out, initial=initial, base_model=base)
        print(made.model_dump_json(indent=1) if json else f"{made}\n{out}")
