"""The command line: verbs without logic. stdout is the result, stderr is progress.

Exit status: 0 done, 1 error or a gate that fails, 2 usage, 3 some trials or requests failed, 4 does not fit, 5 a gate
cannot tell, 130 interrupted. Nothing heavy is imported before a verb needs it, so that `--help` answers at once.
"""

from typing import Annotated

import typer

from tunetrial import __version__
from tunetrial.cli import registry
from tunetrial.cli.bench import bench
from tunetrial.cli.gate import gate
from tunetrial.cli.lab import calibrate, convert, init, merge, selfcheck
from tunetrial.cli.results import costs, decide, rate, recipe, report
from tunetrial.cli.serve import serve
from tunetrial.cli.ship import ship
from tunetrial.cli.study import compare, demo, doctor, plan, run

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find out by trial whether to fine-tune fully or with an adapter: plan, run, decide.",
)
VERBS = (
    demo,
    plan,
    calibrate,
    selfcheck,
    doctor,
    run,
    report,
    decide,
    costs,
    rate,
    gate,
    init,
    merge,
    convert,
    recipe,
    compare,
    ship,
    serve,
    bench,
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(registry.app, name="registry")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `tunetrial` command."""
    app()
