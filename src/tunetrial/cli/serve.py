"""The verb that serves what was shipped."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from tunetrial.cli.terminal import Json, exit_status


def serve(
    model: Annotated[str, typer.Argument(help="Shipped folder, NAME@ALIAS or NAME@VERSION.", show_default=False)],
    port: Annotated[int | None, typer.Option(help="Of the loopback [a free one].", min=1, max=65535)] = None,
    engine: Annotated[Literal["auto", "llama.cpp", "vllm"], typer.Option(help="What serves.")] = "auto",
    llama_cpp: Annotated[Path | None, typer.Option(help="Folder with llama-server.", show_default=False)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of a request.", min=1, show_default=False)] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start again to follow an alias.")] = False,
    where: Annotated[Path | None, typer.Option("--registry", help="Its folder.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Serve what was shipped on this machine, and follow its alias."""
    with exit_status():
        from tunetrial.ship import serving
        from tunetrial.ship.registry import Registry

        asked = serving.Asked(model, port=port, engine=engine, llama_cpp=llama_cpp, context=context, restart=restart)
        serving.serve(
            asked,
            Registry.at(where),
            announce=lambda made: print(made.model_dump_json() if json else made, flush=True),
            tell=lambda said: print(said, file=sys.stderr, flush=True),
        )
