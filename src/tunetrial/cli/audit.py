"""The verb on claims of others: nothing is trained."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tunetrial.cli.terminal import Json, exit_status, misused, write_new

TEXTS = (".md", ".txt", ".markdown", ".rst")


def audit(
    files: Annotated[list[Path], typer.Argument(help="Claim files (YAML), or a text.", show_default=False)],
    study: Annotated[Path | None, typer.Option(help="Study to measure by.", show_default=False)] = None,
    draft: Annotated[Path | None, typer.Option(help="Write a text's claims here.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write (Markdown).", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Recompute the claims of a document: what holds, what does not."""
    texts = [path for path in files if path.suffix.lower() in TEXTS]
    if draft is not None and (len(files) != 1 or not texts or out is not None or study is not None or json):
        misused("audit", "--draft goes with one text and no other option")
    with exit_status():
        from tunetrial.report import audit as report
        from tunetrial.spec import claims
        from tunetrial.trial import audit as auditing

        if draft is not None:
            write_new(draft, claims.write(auditing.drafted(files[0])))
            print(draft)
            print("a draft: read it, mend it, and take out `draft: true`", file=sys.stderr)
            return
        decision = auditing.read_decision(study) if study is not None else None
        read = [auditing.drafted(path) if path in texts else claims.read(path) for path in files]
        found = [auditing.audit(file, decision) for file in read]
        if out is not None:
            write_new(out, report.markdown(found))
        print(report.to_json(found) if json else out or report.text(found))
