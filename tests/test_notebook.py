"""The quickstart notebook, cell by cell, in one namespace and an empty folder: without Jupyter, which it does not need.

In the ordinary tests the simulator stands in for the engine: all cells run, and nothing is trained. The slow test is
the notebook as it stands.
"""

import ast
import json
from html import unescape
from pathlib import Path

import pytest

import tunetrial
from tunetrial import Study

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


def cells(kind: str) -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def run(source: str, namespace: dict) -> object:
    """Run a cell; the value of its last line, if that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace) if last else None


def run_all() -> dict[str, object]:
    """Run every cell in order; what each gave, by its first line."""
    namespace, given = {}, {}
    for cell in cells("code"):
        source = "".join(cell["source"])
        given[source.splitlines()[0]] = run(source, namespace)
    return {**namespace, "given": given}


def check(made: dict[str, object]) -> None:
    study, trials = made["study"], made["trials"]
    assert study.outcome.status == "done" and set(trials["arm"]) == {"full", "lora", "tfidf"}
    assert {(c.candidate, c.reference) for c in made["decision"].verdicts} == {("lora", "full"), ("tfidf", "full")}
    drawn = made["given"]["study.show()"]._repr_html_()
    assert drawn.startswith("<iframe") and unescape(drawn.split('"')[1]) == study.report().read_text()


class Simulated(Study):
    """A study on the simulator, whatever its cell asks for."""

    @classmethod
    def load(cls, path: str) -> "Simulated":
        return cls(path, engine="sim")


def test_every_cell_runs_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tunetrial, "Study", Simulated)
    check(run_all())
    printed = capsys.readouterr().out
    assert "first: 6 trials, learning-rate search" in printed and "SYNTHETIC" in printed


@pytest.mark.slow
def test_the_notebook_trains_and_decides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run_all()
    check(made)
    assert not made["decision"].synthetic


def test_the_notebook_is_kept_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    assert "pip install tunetrial" in "".join(cells("code")[0]["source"])
