"""What a study's finals forgot: likelihood of its held-out texts under each tuned model, beside that under its base.

Of finals that came through, all of them, on texts that no trial was tuned on or chosen by. Runs and texts are crossed,
and texts of one source stand together. Where an interval is not to be had (one run, texts of one source, folds whose
training rows overlap) the number is told alone, with the reason. A base in 4 or 8 bits is held against itself as it
was tuned on: what storing it so costs is not counted here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tunetrial.analysis import arms, forgetting, intervals
from tunetrial.analysis.stats import Floats
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Table
from tunetrial.core.findings import Ends, Forgotten, Loss

NUMBERS = ("tokens", "bytes", "base_nats", "tuned_nats", "kl", "agreed")
Run = tuple[str, int]  # the task, or the fold of it, and the seed


@dataclass(frozen=True)
class _Finals:
    """An arm's finals: tables of those that were observed, and how many could not be."""

    tables: Mapping[Run, Table]
    diverged: int
    unobserved: int


def forgotten(evidence: Evidence) -> tuple[Forgotten, ...]:
    """One for each task and trained arm with a final; none of a study without held-out texts.

    Intervals are at the study's level, each for itself: nothing is taken off for their number.
    """
    study = evidence.lock.study
    if not study.retention:
        return ()
    found = []
    for task in (task.name for task in study.tasks):
        reference = arms.reference(evidence, task)
        finals = {arm.name: _finals(evidence, task, arm.name) for arm in study.arms if not arm.untrained}
        against = finals.get(reference)
        for arm, own in finals.items():
            if own.tables or own.diverged or own.unobserved:
                other = {} if arm == reference or against is None else against.tables
                found.append(
                    Forgotten(
                        task=task,
                        arm=arm,
                        reference=reference,
                        losses=_losses(evidence, task, own.tables, other),
                        runs=len(own.tables),
                        diverged=own.diverged,
                        unobserved=own.unobserved,
                        level=study.rule.level,
                    )
                )
    return tuple(found)


def lost_by_run(evidence: Evidence, task: str, arm: str) -> dict[Run, float]:
    """Nats a token that each observed final lost on all texts together."""
    tables = _finals(evidence, task, arm).tables
    return {run: lost_by_token(table) for run, table in tables.items()}


def lost_by_token(table: Table) -> float:
    """Nats a token that one run lost on all texts together."""
    return float((table["tuned_nats"] - table["base_nats"]).sum() / table["tokens"].sum())


def usable(table: Table | None) -> bool:
    """Whether a table is there, of one text or more, and all its numbers are finite."""
    return table is not None and len(table["tokens"]) > 0 and all(np.isfinite(table[name]).all() for name in NUMBERS)


def _finals(evidence: Evidence, task: str, arm: str) -> _Finals:
    records = evidence.of(purpose="final", task=task, arm=arm)
    through = [r for r in records if r.status == "ok"]
    tables = {(r.trial.task, r.trial.seed): evidence.tables.get((r.trial.id, "forgetting")) for r in through}
    seen = {run: table for run, table in tables.items() if usable(table)}
    return _Finals(seen, sum(r.status == "diverged" for r in records), len(through) - len(seen))


def _losses(evidence: Evidence, task: str, own: Mapping[Run, Table], other: Mapping[Run, Table]) -> tuple[Loss, ...]:
    """On all texts first, where there are several files."""
    if not own:
        return ()
    files = dict.fromkeys(next(iter(own.values()))["text"].tolist())
    wanted = (None, *files) if len(files) > 1 else tuple(files)
    cut = evidence.lock.folding(task) is not None
    return tuple(_loss(text, own, other, level=evidence.lock.study.rule.level, cut=cut) for text in wanted)


def _loss(text: str | None, own: Mapping[Run, Table], other: Mapping[Run, Table], *, level: float, cut: bool) -> Loss:
    one = next(iter(own.values()))
    on_E = np.ones(len(one["text"]), dtype=bool) if text is None else one["text"] == text
    # Ids and sources are a file's own: the first of one file is not the first of another.
    cluster_E = tuple(f"{file}\n{name}" for file, name in zip(one["text"][on_E], one["cluster"][on_E], strict=True))
    tokens_E, bytes_E = (np.asarray(one[name][on_E], dtype=np.float64) for name in ("tokens", "bytes"))
    lost_RE, kl_RE, agreed_RE = (_stack(own, list(own), name)[:, on_E] for name in ("lost", "kl", "agreed"))
    why_bare = _why_bare(len(own), len(set(cluster_E)), cut=cut)
    asked = cluster_E if why_bare is None else None
    shared = [run for run in own if run in other and np.array_equal(own[run]["tokens"], other[run]["tokens"])]
    beyond = None
    if shared:
        more_RE = (_stack(own, shared, "lost") - _stack(other, shared, "lost"))[:, on_E]
        beyond = _rate(more_RE, tokens_E, asked if len(shared) > 1 else None, level)
    return Loss(
        text=text,
        nats=_rate(lost_RE, tokens_E, asked, level),
        bits=_rate(lost_RE / np.log(2), bytes_E, asked, level),
        kl=_not_below_0(_rate(kl_RE, tokens_E, asked, level)),
        agreed=_share(agreed_RE, tokens_E, asked, level),
        beyond=beyond,
        texts=int(on_E.sum()),
        clusters=len(set(cluster_E)),
        tokens=int(tokens_E.sum()),
        why_bare=why_bare,
    )


def _why_bare(runs: int, clusters: int, *, cut: bool) -> str | None:
    """Why no interval over new runs and texts is to be had."""
    if cut:
        return "folds share training rows"
    if runs < 2:
        return "one run"
    return "texts of one source alone" if clusters < 2 else None


def _stack(tables: Mapping[Run, Table], runs: list[Run], name: str) -> Floats:
    """One column of several runs, shape (R, E); "lost" are nats under the tuned model less those under the base."""
    if name == "lost":
        return _stack(tables, runs, "tuned_nats") - _stack(tables, runs, "base_nats")
    return np.stack([np.asarray(tables[run][name], dtype=np.float64) for run in runs])


def _rate(total_RE: Floats, size_E: Floats, cluster_E: tuple[str, ...] | None, level: float) -> Ends:
    """A sum over texts by a sum of sizes; without ends where nothing varies, or none are asked for."""
    if cluster_E is not None:
        try:
            found = forgetting.per_unit(total_RE, size_E, cluster_E=cluster_E)
        except EvidenceError:  # no spread to judge by
            pass
        else:
            return (found.effect, *found.interval(level))
    return float(total_RE.mean(axis=0).sum() / size_E.sum()), None, None


def _not_below_0(found: Ends) -> Ends:
    """What cannot be below 0, nor the low end of its interval: that covers no less so."""
    value, low, high = found
    return value, None if low is None else max(low, 0.0), high


def _share(total_RE: Floats, size_E: Floats, cluster_E: tuple[str, ...] | None, level: float) -> Ends:
    part_RE = forgetting.parts_per_unit(total_RE, size_E)
    if cluster_E is None:
        return float(part_RE.mean()), None, None
    found = intervals.of_share(part_RE, cluster_E, level=level)
    return found.value, found.low, found.high
