"""What a base makes of the rows of a study, in a minute and before any training: prompts as they will be read."""

import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tunetrial import models, tasks
from tunetrial.core.evidence import Example, TaskData, example_row
from tunetrial.core.pins import VARIANT
from tunetrial.core.records import Record
from tunetrial.core.study import Folding, Study, TaskSpec
from tunetrial.models import ModelShape, PinnedModel
from tunetrial.trial import rows as study_rows
from tunetrial.trial.pinning import Survey, resolve_bases
from tunetrial.trial.rows import OVER_LONG_SHARE

SHOWN = 3
RARE_LABEL = 5


class Finding(Record):
    """One thing looked at: whether it is as it should be, what was found, and what to do if not."""

    what: str
    state: Literal["ok", "note", "bad"]
    found: str
    remedy: str | None = None


class Rendered(Record):
    """A training row as the base reads it: pieces of text, each with whether it is an answer that is trained on."""

    row: str
    pieces: tuple[tuple[str, bool], ...]
    target: str
    tokens: int


class Diagnosis(Record):
    """What was found of base and machine, and of each task by name, with some of its rows as the study's base reads
    them; `others` is what was found of arms' own bases, by their names."""

    base: tuple[Finding, ...]
    others: dict[str, tuple[Finding, ...]] = {}
    tasks: dict[str, tuple[Finding, ...]]
    rows: dict[str, tuple[Rendered, ...]]

    @property
    def sound(self) -> bool:
        """Whether nothing bad was found."""
        groups = (self.base, *self.others.values(), *self.tasks.values())
        return not any(f.state == "bad" for found in groups for f in found)


def diagnose(study: Study, root: Path, *, engine: str = "torch") -> Diagnosis:
    """Look at a study's base and rows; the test rows are counted and measured, never shown. Nothing is written.

    Raises:
        ModelError, IntegrityError, DataError: Base or rows cannot be read at all.
    """
    bases = resolve_bases(study, root)
    loaded = study_rows.load(study, root)
    with TemporaryDirectory() as folder:
        survey = Survey(Path(folder) / "worker.log", engine=engine, precision=study.precision)
        with closing(survey):
            reads = {name: _read(study, base, loaded, survey) for name, base in bases.items()}
    own = reads.pop(study.base_model)
    return Diagnosis(
        base=own.base, tasks=own.tasks, rows=own.rows, others={name: _told(other) for name, other in reads.items()}
    )


def _read(study: Study, base: PinnedModel, loaded: dict[str, TaskData], survey: Survey) -> Diagnosis:
    """What one base makes of the rows."""
    shape, machine = models.shape(base.folder), survey.open(base.folder)
    found, rows = {}, {}
    for spec in study.tasks:
        data, readout = loaded[spec.name], study.readout_of(spec.name)
        lengths, train = survey.lengths(data, readout), _learned(data)
        told = survey.ask({"do": "describe", "rows": [example_row(e) for e in train], "readout": readout})
        limit = min(study.max_tokens, shape.context)
        cut = Folding(folds=data.folds, repeats=study.repeats) if data.folds else None
        found[spec.name] = (_rows(spec, data, cut), *_task(data, lengths, limit, told["controls"]), *_tools(told))
        rows[spec.name] = tuple(
            Rendered(row=e.id, pieces=pieces, target=str(e.target), tokens=n)
            for e, pieces, n in zip(train[:SHOWN], told["pieces"], next(iter(lengths.values())), strict=False)
        )
    chats = any(spec.messages for spec in study.tasks)
    return Diagnosis(base=tuple(_base(base, shape, machine, told, chats)), tasks=found, rows=rows)


def _told(other: Diagnosis) -> tuple[Finding, ...]:
    """What another base than the study's has of its own: all but the machine, and of the tasks what depends on it."""
    found = [finding for finding in other.base if finding.what != "machine"]
    for task, findings in other.tasks.items():
        own = (f for f in findings if f.what in ("lengths", "control tokens in the text"))
        found += [finding.model_copy(update={"what": f"{task}: {finding.what}"}) for finding in own]
    return tuple(found)


def _base(base: PinnedModel, shape: ModelShape, machine: dict, told: dict, chats: bool) -> Iterator[Finding]:
    """What base and machine are like."""
    yield Finding(
        what="base",
        state="ok",
        found=f"{shape.model_type}, {shape.parameters / 1e6:,.1f} M weights, context of {shape.context:,} tokens, "
        f"fingerprint {base.fingerprint[:12]}",
    )
    slow = machine["device"] == "cpu" and machine["precision"] == "fp32"
    yield Finding(
        what="machine",
        state="note" if slow else "ok",
        found=f"{machine['device']}, computes in {machine['precision']}, {machine['free_bytes'] / 2**30:.1f} GiB free",
        remedy="this processor has no bf16: expect several times the time of one that has" if slow else None,
    )
    missing = chats and told["template"] is None
    yield Finding(
        what="chat template",
        state="note" if missing else "ok",
        found="none: conversations are written as lines 'role: content'" if missing else told["template"] or "none",
        remedy="for a chat model, use the instruct version of the base" if missing else None,
    )
    end = told["end"]
    yield Finding(
        what="end of text",
        state="bad" if end is None else "ok",
        found="none, so no answer could end" if end is None else repr(end),
        remedy="add eos_token to the tokenizer's configuration" if end is None else None,
    )
    padding = "none" if told["padding"] is None else repr(told["padding"])
    same = ", the end of text" if padding == repr(end) else ""
    yield Finding(what="padding", state="ok", found=f"{padding}{same}; training pads nothing")


def _learned(data: TaskData) -> tuple[Example, ...]:
    """The training rows: all rows, of a task in folds, each of which is one somewhere."""
    return data.splits["all" if data.folds else "train"]


def _rows(spec: TaskSpec, data: TaskData, cut: Folding | None) -> Finding:
    """How many rows there are, and how they are used; rows that cannot be cut as asked are an error."""
    if cut is not None:
        tasks.fold(data, spec, cut.repeats)
        found = f"{len(data.splits['all']):,}, cut into {cut}: every row is tested by arms that learn from others"
        return Finding(what="rows", state="note", found=found, remedy="`tunetrial plan` says what they can show")
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items())
    few = len(data.splits["test"]) < 200
    return Finding(
        what="rows",
        state="note" if few else "ok",
        found=counts,
        remedy="few test rows leave wide intervals: `tunetrial plan` says how wide" if few else None,
    )


def _task(data: TaskData, lengths: dict[str, list[int]], limit: int, controls: dict[str, int]) -> Iterator[Finding]:
    """What the rows of a task are like."""
    every = sorted(n for split, one in lengths.items() if not split.startswith(VARIANT) for n in one)
    over = sum(n > limit for n in every)
    bad = any(sum(n > limit for n in one) > OVER_LONG_SHARE * len(one) for one in lengths.values())
    yield Finding(
        what="lengths",
        state="bad" if bad else "note" if over else "ok",
        found=f"median {statistics.median_low(every):,} tokens, longest {every[-1]:,}; {over:,} of {len(every):,} rows "
        f"above {limit:,}, left out in every arm",
        remedy="raise max_tokens, shorten the input, or use a base with a longer context" if over else None,
    )
    yield _targets(data)
    for remark in data.remarks:
        yield Finding(what="data", state="note", found=remark)
    marks = ", ".join(f"{token} in {rows:,} training rows" for token, rows in controls.items())
    yield Finding(
        what="control tokens in the text",
        state="note" if controls else "ok",
        found=f"{marks}: read as control tokens" if controls else "none in the training rows",
        remedy="remove them from the rows, unless they are meant" if controls else None,
    )


def _tools(told: dict) -> Iterator[Finding]:
    """Whether the base reads the tools that conversations may call, where any have some."""
    rows, unseen = told["tools"], told["unseen_tools"]
    if rows:
        why = "the chat template has no place for them" if told["template"] else "lines without a template show none"
        yield Finding(
            what="tools",
            state="note" if unseen else "ok",
            found=f"in {rows:,} training rows, " + (f"unseen in {unseen:,}: {why}" if unseen else "shown in all"),
            remedy="use a base whose template shows tools, or write them into the system turn" if unseen else None,
        )


def _targets(data: TaskData) -> Finding:
    targets = [example.target for example in _learned(data)]
    if data.kind == "regress":
        spread = f"{min(targets):g} to {max(targets):g}, mean {statistics.fmean(targets):.3g}"
        return Finding(what="targets", state="ok", found=f"numbers from {spread}")
    if data.kind == "generate":
        characters = sorted(len(str(target)) for target in targets)
        found = f"texts of {statistics.median_low(characters):,} characters in the middle, {characters[-1]:,} at most"
        return Finding(what="targets", state="ok", found=found)
    counts = Counter(map(str, targets))
    (common, most), (rare, least) = counts.most_common(1)[0], min(counts.items(), key=lambda item: item[1])
    few = least < RARE_LABEL
    return Finding(
        what="labels",
        state="note" if few else "ok",
        found=f"{len(counts)}: {common!r} has {most / len(targets):.0%} of the training rows, {rare!r} {least} rows",
        remedy=f"collect more rows of {rare!r}: no method learns it from {least}" if few else None,
    )
