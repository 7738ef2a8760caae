"""Claim files: YAML in, `ClaimFile` out, every fault with line and field; and back.

from tunetrial.spec import claims
file = claims.read(Path("claims.yaml"))
print(claims.write(file))
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tunetrial.core import expressions
from tunetrial.core.claims import (
    Arithmetic,
    ClaimFile,
    Consistency,
    Matrix,
    Money,
    Weighing,
)
from tunetrial.spec import form
from tunetrial.spec.explain import explain
from tunetrial.spec.faults import Fault, nearest, refuse, show
from tunetrial.spec.text import Subject, read_text, read_tree
from tunetrial.spec.write import Dumper

CLAIMS = Subject(
    name="claim file",
    example="claims.yaml",
    begins="document: and claims:",
    instead="write a second one for another document",
    most=10_000,
    keeps_text=True,
)


def read(path: Path) -> ClaimFile:
    """Read a claim file.

    Raises:
        SpecError: It cannot be read, or is no claim file; up to five faults, a line each.
    """
    where = str(path) if str(path).isprintable() else show(str(path))
    return parse(read_text(path, where, CLAIMS), where)


def parse(text: str, where: str = "claims.yaml") -> ClaimFile:
    """Read claims from text; `where` names it in messages.

    Raises:
        SpecError: As `read`.
    """
    tree = read_tree(text, where, CLAIMS)
    refuse(where, tree, explain(tree, ClaimFile))
    file = ClaimFile.model_validate(tree.value, strict=True)
    refuse(where, tree, _faults(file))
    return file


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a claim file; relations between fields are not in it."""
    return form.json_schema(ClaimFile)


def write(file: ClaimFile) -> str:
    """A claim file as YAML that reads back as the same."""
    document = file.model_dump(exclude_none=True, exclude_defaults=True)
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6)


def _faults(file: ClaimFile) -> list[Fault]:
    """What must hold between fields."""
    faults = []
    counted = Counter(claim.id for claim in file.claims)
    tables = {claim.id: claim for claim in file.claims if isinstance(claim, Matrix)}
    for number, claim in enumerate(file.claims):
        here = ("claims", number)
        if counted[claim.id] > 1:
            faults.append(Fault((*here, "id"), f"must be another in each claim, got {claim.id!r} twice; rename one"))
        if isinstance(claim, Arithmetic):
            faults += _names((*here, "of"), claim.of, set(claim.given), "given", compares=False)
        if isinstance(claim, Consistency) and claim.must is not None:
            faults += _names((*here, "must"), claim.must, set(claim.values), "values", compares=True)
        if isinstance(claim, Money) and not claim.bill:
            faults.append(Fault((*here, "bill"), "must have a line, got none; give each amount and its price"))
        if isinstance(claim, Matrix):
            faults += _table(here, claim)
        if isinstance(claim, Weighing):
            faults += _weighed(here, claim, tables)
    return faults


def _names(keys: tuple, text: str, known: set[str], field: str, *, compares: bool) -> list[Fault]:
    body = expressions.tree(text, expressions.FUNCTIONS, compares=compares)
    missing = sorted(expressions.names(body) - known)
    return [Fault(keys, f"must use names under {field}, got {missing[0]!r}; give it a number")] if missing else []


def _table(here: tuple, claim: Matrix) -> list[Fault]:
    faults = []
    for option in claim.says:
        if option not in claim.scores:
            faults.append(Fault((*here, "says", option), f"must have scores, got none; give scores.{option}"))
    for option, scores in claim.scores.items():
        if odd := sorted(set(scores) ^ set(claim.weights)):
            what = f"must have a weight and a score for every criterion, got one of {odd[0]!r}; give both"
            faults.append(Fault((*here, "scores", option), what))
    return faults


def _weighed(here: tuple, claim: Weighing, tables: dict[str, Matrix]) -> list[Fault]:
    table = tables.get(claim.matrix)
    if table is None:
        known = nearest(claim.matrix, tables) if tables else "add one of kind matrix"
        return [Fault((*here, "matrix"), f"must be the id of a matrix, got {claim.matrix!r}; {known}")]
    faults = []
    if claim.says not in table.scores:
        what = f"must be an option of the matrix, got {claim.says!r}; {nearest(claim.says, table.scores)}"
        faults.append(Fault((*here, "says"), what))
    if odd := sorted(set(claim.restates) - set(table.weights)):
        what = f"must be criteria of the matrix, got {odd[0]!r}; {nearest(odd[0], table.weights)}"
        faults.append(Fault((*here, "restates"), what))
    return faults
