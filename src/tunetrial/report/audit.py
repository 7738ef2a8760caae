"""An audit as a page of Markdown, as lines for a terminal, and as JSON."""

import json
import re
from collections.abc import Iterator, Sequence

from tunetrial.core.claims import OUTCOMES, Audit, Finding

DRAFT = "Drafted by a program and read by nobody: what is told here may have been read wrongly from the text."
MEANS = {
    "HOLDS": "recomputed from the terms given, and the same",
    "HOLDS WITHIN ROUNDING": "the same, given how the numbers are rounded",
    "SUPPORTED HERE": "a measurement of ours agrees, within the limits named",
    "WRONG": "no reading of the terms given makes it true",
    "INCONSISTENT": "it and another place cannot both be true",
    "NOT SUPPORTED": "what is given cannot show it",
    "CONTRADICTED HERE": "a measurement of ours says otherwise, within the limits named",
    "UNTESTABLE HERE": "neither a computation nor a measurement at hand can tell",
}
HEAD = """Made by `tunetrial audit` from a claim file a document: each claim with its terms, and here with its working.
A number stands for all that is rounded to it, and a claim is called wrong only where none of these makes it true. That
terms are recomputed says nothing of where they came from. Rows of "a reader's judgement" were read, not computed.
"""
BAD = ("WRONG", "INCONSISTENT", "NOT SUPPORTED", "CONTRADICTED HERE")


def markdown(audits: Sequence[Audit]) -> str:
    """A page: what came out how often, then a table a document, claims in the order of its file."""
    return "\n".join(_page(audits)) + "\n"


def _page(audits: Sequence[Audit]) -> Iterator[str]:
    yield from ("# Claims, recomputed", *HEAD.splitlines(), "")
    yield "| document | " + " | ".join(OUTCOMES) + " |"
    yield "|" + "---|" * (len(OUTCOMES) + 1)
    for each in audits:
        counts = each.counts()
        yield f"| {_cell(each.document)} | " + " | ".join(str(counts.get(name, "")) for name in OUTCOMES) + " |"
    yield ""
    yield from (f"- **{name}**: {means}." for name, means in MEANS.items())
    for each in audits:
        yield from ("", f"## {_cell(each.document)}")
        yield from [_cell(each.about), ""] if each.about else [""]
        if each.draft:
            yield from (f"**{DRAFT}**", "")
        yield from ("| where | says | outcome | working |", "|---|---|---|---|")
        yield from map(_row, each.findings)


def _row(found: Finding) -> str:
    words = [found.working, *([f"Limits: {found.limits}"] if found.limits else [])]
    words += [found.note[:1].upper() + found.note[1:]] if found.note else []
    outcome = f"**{found.outcome}**" if found.outcome in BAD else found.outcome
    cells = [_cell(found.at), f"“{_cell(found.quote)}”", outcome, _cell(". ".join(words))]
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Text of a document stays text: no cell, tag, link or emphasis of its own."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return re.sub(r"([\\|`\[*_~])", r"\\\1", text)


def text(audits: Sequence[Audit]) -> str:
    """Every claim on two lines: its outcome, and the working."""
    lines = []
    for each in audits:
        lines += [_printed(each.document)] + ([DRAFT] if each.draft else [])
        lines += [_printed(each.about)] if each.about else []
        for found in each.findings:
            lines.append(f"{found.outcome:<22} {found.at}: {_printed(found.quote)}")
            lines.append(f"{'':<22} {_printed(found.working)}")
        lines.append(", ".join(f"{number} {name}" for name, number in each.counts().items()))
    return "\n".join(lines)


def _printed(words: str) -> str:
    """Text of a document without what a terminal would obey."""
    return "".join(mark if mark.isprintable() else " " for mark in words)


def to_json(audits: Sequence[Audit]) -> str:
    documents = [{**each.model_dump(mode="json", exclude_none=True), "counts": each.counts()} for each in audits]
    return json.dumps({"documents": documents}, indent=1, ensure_ascii=False)
