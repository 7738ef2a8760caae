"""The statement that lies in every shipped folder, `tunetrial.json`: what the files are, and what they came from."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tunetrial.core.errors import IntegrityError, ModelError
from tunetrial.core.records import Record, added

NAME = "tunetrial.json"
LARGEST_BYTES = 65_536

# It is shown on terminals, so it is one line that cannot steer one.
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}$")]


class Fidelity(Record):
    """Whether every hop of the export still computes the same; None where that was not tried.

    `first_break` is the first hop that does not, of a chain that failed.
    """

    passed: bool | None = None
    first_break: Line | None = None


class Shipped(Record):
    """What a shipped folder says of itself. Nothing here proves it: it is what `ship` wrote down.

    `study` is the digest of the study's lock, `trial` the id of the replicate whose weights these are (of a combination
    of several, a name of its own), `verdict` the words of its arm against the reference. `test_rows` is the digest of
    the rows that its scores are of, by which the test ledger counts; None where no scores came with it. `base_bytes`
    are those of the weights of the base that it needs beside it; None of what needs none.
    """

    format: Literal["adapter", "merged", "gguf", "ollama", "vllm"]
    base_fingerprint: Line
    study: Line
    arm: Line
    trial: Line
    verdict: Line
    test_rows: Line | None = added()
    base_bytes: Annotated[int, Field(ge=0)] | None = added()
    chain: Fidelity = Fidelity()

    def write(self, folder: Path) -> None:
        """Put the statement into a folder that nobody reads yet."""
        (folder / NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_shipped(folder: Path) -> Shipped:
    """Read the statement of a shipped folder.

    Raises:
        ModelError: There is no such folder or statement.
        IntegrityError: The statement is no such record.
    """
    path = folder / NAME
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; name one that `tunetrial ship` wrote")
    if path.is_symlink() or not path.is_file():
        remedy = "write the folder with `tunetrial ship STUDY --arm ARM --to FOLDER`"
        raise ModelError(f"{folder}: not said what it came from, got no file {NAME}; {remedy}")
    if path.stat().st_size > LARGEST_BYTES:
        raise IntegrityError(f"{path}: not a statement of `ship`, got {path.stat().st_size} bytes; ship it again")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise IntegrityError(f"{path}: not JSON; ship the folder again") from None
    try:
        return Shipped.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        got = ascii(first["input"])[:60]
        raise IntegrityError(f"{path}: {where}: {first['msg'][:80]}, got {got}; ship the folder again") from None
