"""From a task of a study to its three splits: read, examined, drawn where not given, and kept apart."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunetrial.core.errors import DataError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import TaskSpec
from tunetrial.tasks import files, hub, prompt, splits
from tunetrial.tasks import folds as cut
from tunetrial.tasks.examples import HIDDEN, Source, examine
from tunetrial.tasks.files import Row

SPLITS = ("train", "validation", "test")
MOST_HIDDEN = 0.1


def assemble(
    spec: TaskSpec,
    rows_of: Mapping[str, tuple[str, Sequence[Row]]],
    remarks: Sequence[str] = (),
    *,
    folds: str | int = "none",
) -> TaskData:
    """Make the three splits of the rows at hand; or one of all rows, where they are to be cut into folds.

    A missing test split is a fifth of train, a missing validation split a fifth of what is then left of train: never
    of test. A prompt that repeats an earlier one of its split is dropped, one that stands in test is dropped from
    train and validation, and one that stands in validation from train; a test split loses its own repeats alone.
    Of `generate` a prompt may have several targets: these rows stay together and, without `spec.cluster`, are one
    cluster. Every row dropped is counted in the remarks.

    Args:
        rows_of: By split ("train" at least), how messages name the file, and its rows.
        remarks: What is known of the rows already.
        folds: As a study asks; a task with more than one split at hand is never cut.
    Raises:
        DataError: Rows have faults, a split is empty or has one label only, or a label is unknown to train.
    """
    try:
        prompt.names(spec.input)
    except DataError as error:
        raise DataError(f"{spec.name}: input: {error}; mend the template") from None
    sources = {split: examine(rows, spec, where) for split, (where, rows) in rows_of.items()}
    remarks = list(remarks)
    parts = {split: _clean(source, split, spec, remarks) for split, source in sources.items()}
    count = cut.wanted(folds, len(parts["train"])) if len(parts) == 1 else None
    if count is not None:
        return _uncut(spec, sources["train"], parts["train"], count, remarks)
    for split, share in (("test", splits.TEST_SHARE), ("validation", splits.VALIDATION_SHARE)):
        if split not in parts:
            parts["train"], parts[split] = _draw(parts["train"], split, share, spec, remarks)
    for split, others in (("validation", ("test",)), ("train", ("test", "validation"))):
        parts[split] = _keep_apart(parts, split, others, remarks)
    _check_sizes(spec, sources, parts)
    labels = _check_labels(sources, parts, remarks) if spec.kind == "classify" else ()
    if spec.cluster is not None:
        _remark_shared_clusters(parts, spec.cluster, remarks)
    ordered = {split: parts[split] for split in SPLITS}
    return TaskData(name=spec.name, kind=spec.kind, labels=labels, splits=ordered, remarks=tuple(remarks))


def _uncut(spec: TaskSpec, source: Source, rows: Sequence[Example], count: int, remarks: list[str]) -> TaskData:
    """All rows in one split. A metric must be a mean over examples: on the few rows of a fold any other is biased."""
    from tunetrial.analysis import metrics  # numpy comes with it, for which reading other tasks need not wait

    if not metrics.find(spec.metric).is_mean:
        fit = [m.name for m in metrics.of_kind(spec.kind) if m.is_mean and m.higher_is_better is not None]
        raise DataError(
            f"{spec.name}: {len(rows)} rows are cut into {count} folds, which needs a metric that is a mean over "
            f"examples, got {spec.metric}; use {' or '.join(fit[:4])}, name a test file, or write replicates: "
            "{folds: none}"
        )
    if spec.kept_share is not None:
        raise DataError(
            f"{spec.name}: a share of a gain is not judged over folds, got margin {spec.margin!r} and {len(rows)} "
            "rows; give the margin in the metric's unit, or write replicates: {folds: none}"
        )
    _check_sizes(spec, {"train": source}, {split: rows for split in SPLITS})
    labels = (
        _check_labels({"train": source}, {split: rows for split in SPLITS}, remarks) if spec.kind == "classify" else ()
    )
    alone = cut.untested(rows, spec)
    if alone:
        remarks.append(f"labels: {', '.join(map(repr, alone[:5]))} stand in one group each, which is never tested")
    return TaskData(spec.name, spec.kind, labels, {"all": tuple(rows)}, tuple(remarks), folds=count)


def read_files(spec: TaskSpec, root: Path) -> tuple[dict[str, tuple[str, Sequence[Row]]], list[str]]:
    """Read the files or data sets of the Hub of a task, by split, with remarks; paths are relative to `root`, the
    folder of the study. A split that the study names goes before the one that a data set has besides.
    """
    named = {"train": spec.data, "validation": spec.validation, "test": spec.test}
    found, remarks = {}, []
    for split, name in named.items():
        if name and name.startswith(hub.PREFIX):
            rows_of, more = hub.read(name, split, spec.target)
            found, remarks = found | rows_of, remarks + [remark for remark in more if remark not in remarks]
        elif name:
            found[split] = name, files.read(root / Path(name).expanduser(), name)
    return found, remarks


def _clean(source: Source, split: str, spec: TaskSpec, remarks: list[str]) -> tuple[Example, ...]:
    """Note hidden labels and drop repeats."""
    rows = len(source.examples) + source.hidden
    if source.hidden:
        remarks.append(f"{split}: {source.hidden} of {rows} rows with the hidden label {HIDDEN} were dropped")
    if split == "train" and source.hidden > MOST_HIDDEN * rows:
        got = f"got {source.hidden} of {rows} rows"
        do = "remove these rows, or name it in words if it is a class"
        raise DataError(f"{source.where}: label {HIDDEN} means hidden, {got}; {do}")
    remarks += [f"{split}: {remark}" for remark in source.remarks]
    several = spec.kind == "generate"
    kept, dropped, conflicts = splits.drop_repeats(source.examples, several=several)
    what = "repeat an earlier prompt" + (" and its target" if several else "")
    _remark(remarks, split, what, len(source.examples), dropped, conflicts)
    return splits.join_prompts(kept) if several and spec.cluster is None else kept


def _draw(
    train: Sequence[Example], split: str, share: float, spec: TaskSpec, remarks: list[str]
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Part a split off train; without clusters the prompt itself says where a row goes."""
    group = splits.asked if spec.cluster is None else (lambda e: e.cluster)
    rest, part = splits.draw(train, share, group=group, by_label=spec.kind != "generate")
    whole = f", whole {spec.cluster} groups" if spec.cluster else ""
    remarks.append(f"{split}: drawn from train, {len(part)} of {len(train)} rows{whole}")
    return rest, part


def _keep_apart(
    parts: Mapping[str, Sequence[Example]], split: str, others: Sequence[str], remarks: list[str]
) -> tuple[Example, ...]:
    kept = tuple(parts[split])
    for other in others:
        before = len(kept)
        kept, dropped, conflicts = splits.drop_shared(kept, parts[other])
        _remark(remarks, split, f"have a prompt that stands in {other}", before, dropped, conflicts)
    return kept


def _remark(remarks: list[str], split: str, why: str, rows: int, dropped: int, conflicts: int) -> None:
    if dropped:
        other = f", {conflicts} of them with another target" if conflicts else ""
        remarks.append(f"{split}: {dropped} of {rows} rows {why} and were dropped{other}")


def _check_sizes(spec: TaskSpec, sources: Mapping[str, Source], parts: Mapping[str, Sequence[Example]]) -> None:
    """No split may be empty, and a target that never varies can be neither learned nor judged."""
    for split in SPLITS:
        where = sources.get(split, sources["train"]).where
        other_way = "" if split in sources else f", or name a {split} file"
        if not parts[split]:
            raise DataError(f"{where}: {split} has no rows left, got 0; add rows{other_way}")
        targets = {example.target for example in parts[split]}
        if len(targets) < 2 and (spec.kind == "classify" or split == "train"):
            what = "classes" if spec.kind == "classify" else "different targets"
            got = f"only {min(targets)!r} in {len(parts[split])} rows"
            raise DataError(f"{where}: {split} needs 2 or more {what}, got {got}; add rows of others{other_way}")


def _check_labels(
    sources: Mapping[str, Source], parts: Mapping[str, Sequence[Example]], remarks: list[str]
) -> tuple[str, ...]:
    """Check that train has every label; returns the labels in natural order."""
    known = {example.target for example in parts["train"]}
    for split in ("validation", "test"):
        source = sources.get(split, sources["train"])
        unknown = [e for e in parts[split] if e.target not in known]
        faults = [f"{source.row_of[e.id]}: {split} has label {e.target!r}, train has none" for e in unknown]
        files.refuse(source.where, faults, of=len(source.examples))
    alike: dict[str, list[str]] = {}
    for label in sorted(known):
        alike.setdefault(label.casefold(), []).append(label)
    remarks += [f"labels: {' and '.join(map(repr, same))} differ in case only" for same in alike.values() if same[1:]]
    return tuple(sorted(known, key=_natural))


def _natural(label: str) -> tuple:
    """Numbers by value, before and within text: -1, 2, 10, a2, a10."""
    if re.fullmatch(r"-?\d+", label):
        return 0, int(label), (), label
    return 1, 0, tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", label)), label


def _remark_shared_clusters(parts: Mapping[str, Sequence[Example]], cluster: str, remarks: list[str]) -> None:
    clusters = {split: {example.cluster for example in parts[split]} for split in SPLITS}
    for split in ("validation", "test"):
        shared = sorted(clusters["train"] & clusters[split])
        if shared:
            count = f"{len(shared)} of {len(clusters[split])} {cluster} groups"
            remarks.append(f"{split}: {count} stand in train too, for example {shared[0]!r}")
