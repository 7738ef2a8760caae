"""The verbs that take what a study chose out of it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tunetrial import Study
from tunetrial.cli.terminal import Folder, Json, StudyFile, exit_status, misused


def ship(
    study: StudyFile,
    arm: Annotated[str, typer.Option(help="Arm whose run ships.", show_default=False)],
    to: Annotated[Path, typer.Option(help="New folder to write.", show_default=False)],
    format: Annotated[
        Literal["adapter", "merged", "gguf", "ollama", "vllm", "hub"], typer.Option(help="What to write.")
    ] = "adapter",
    task: Annotated[str | None, typer.Option(help="Task [the one that decides].", show_default=False)] = None,
    retrain: Annotated[bool, typer.Option("--retrain-final", help="Train on validation rows too.")] = False,
    seed: Annotated[int | None, typer.Option(help="Run [the median one].", show_default=False)] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16", "q8_0", "q4_k_m", "q5_k_m", "q6_k"] | None,
        typer.Option(help="Of merged weights [the base's] or GGUF [fp32].", show_default=False),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="GGUF, vLLM, Hub: one whole model.")] = False,
    onto: Annotated[Literal["base", "dequantised"], typer.Option(help="What to merge into.")] = "base",
    llama_cpp: Annotated[
        Path | None, typer.Option(help="Checkout whose programs write GGUF.", show_default=False)
    ] = None,
    score: Annotated[bool, typer.Option("--score", help="Score what was merged on test rows.")] = False,
    prove: Annotated[bool, typer.Option("--prove", help="Hold every hop to these files to the run.")] = False,
    push_to: Annotated[
        str | None, typer.Option("--push-to-hub", help="New repository, org/name.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Not a private repository.")] = False,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Write what a study chose for other tools, with its card."""
    given = locals()
    with exit_status():
        from tunetrial.ship.order import Order

        asked = {name: value for name, value in given.items() if name in Order.model_fields}
        order, loaded = Order(**asked, dequantised=onto == "dequantised"), Study.load(study, folder=folder)
        tell = lambda said: print(said, file=sys.stderr)  # noqa: E731
        tell(f"shipping {arm} as {format}")
        made = loaded.ship(order, to, score=score, prove=prove, tell=tell)
        if prove:
            loaded.report()
        print(made.model_dump_json(indent=1) if json else f"{made}\n{to}")
        if made.broken:
            raise typer.Exit(1)


def combine(
    study: StudyFile,
    arm: Annotated[str, typer.Option(help="LoRA or QLoRA arm.", show_default=False)],
    to: Annotated[Path, typer.Option(help="New folder to write.", show_default=False)],
    how: Annotated[str, typer.Option(help="Also sequential, joint.")] = "weighted,ties,dare",
    rank: Annotated[int | None, typer.Option(help="Of what is combined [the sum].", min=1, show_default=False)] = None,
    density: Annotated[float, typer.Option(help="Of TIES, DARE: share kept.", min=0, max=1)] = 0.5,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Make one adapter for all tasks of a study."""
    from tunetrial.core.combination import HOWS, Recipe

    named = tuple(dict.fromkeys(name.strip() for name in how.split(",")))
    if unknown := [name for name in named if name not in HOWS]:
        misused("combine", f"--how: no such way, got {unknown[0]!r}; use some of {', '.join(HOWS)}")
    if not density > 0:  # NaN too
        misused("combine", f"--density: must be above 0, got {density:g}; 0.5 is usual")
    with exit_status():
        from tunetrial.report.combination import text

        loaded = Study.load(study, folder=folder)
        recipes = [Recipe(how=name, density=density, rank=rank) for name in named]
        found = loaded.combine(arm, recipes, to, tell=lambda said: print(said, file=sys.stderr))
        print(found.model_dump_json(indent=1) if json else f"{text(found)}{to}")
