"""The model card of a shipped folder: a README with the Hub's header. Every value is escaped: text stays text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tunetrial.core.evidence import ArmResult, Decision, Evidence
from tunetrial.report import headline, words
from tunetrial.report.text import SYNTHETIC, escape
from tunetrial.ship.order import Source
from tunetrial.ship.replicate import comparison, verdict

NOT_STATED = "not stated"
KINDS = {
    "adapter": "A PEFT adapter",
    "merged": "A whole model in the Hugging Face layout",
    "gguf": "GGUF files for llama.cpp",
    "ollama": "GGUF files and a Modelfile for Ollama",
    "vllm": "Weights and a command for vLLM",
}


@dataclass(frozen=True)
class Subject:
    """What a card is about: the run, `why` it ships, the licence of its base if one is stated. `scores` are what
    shipped weights scored on the test rows, by what they are, `use` how files are used, in paragraphs of Markdown."""

    format: str
    library: str | None
    source: Source
    why: str
    licence: str | None
    remarks: tuple[str, ...]
    scores: Mapping[str, float]
    use: tuple[str, ...]


def card(evidence: Evidence, decision: Decision, subject: Subject) -> str:
    """Write the card."""
    trial = subject.source.record.trial
    parts = [
        _header(subject),
        f"# {escape(trial.arm.name)} on {escape(subject.source.task.name)}",
        f"{SYNTHETIC}\n" if decision.synthetic else "",
        f"{KINDS[subject.format]}: {escape(trial.arm.method)}, trained and chosen by a tunetrial study. "
        f"Question: {escape(evidence.lock.study.question)}",
        "## Results",
        *_results(evidence, decision, subject),
        "## What this is",
        *_listed(_facts(evidence, decision, subject)),
        "## Use",
        *subject.use,
        "## Limits",
        *_listed((None, line) for line in _limits(subject)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def licence(folder: Path) -> str | None:
    """The licence that a base's folder states in the header of its README; None where it states none."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.startswith("---\n"):
        return None
    try:
        header = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    stated = header.get("license") if isinstance(header, dict) else None
    return stated if isinstance(stated, str) and stated else None


def _header(subject: Subject) -> str:
    content = {
        "base_model": subject.source.public_base,
        "library_name": subject.library,
        "license": subject.licence,
        "tags": ["tunetrial", subject.source.record.trial.arm.method],
    }
    kept = {name: value for name, value in content.items() if value is not None}
    return f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---"


def _results(evidence: Evidence, decision: Decision, subject: Subject) -> Iterator[str]:
    """The arm beside the reference and the arms without training, and what was decided of it."""
    trial, study = subject.source.record.trial, evidence.lock.study
    task = study.task(trial.task)
    found = comparison(decision, trial.arm.name, task.name)
    reference = found.reference if found else study.reference
    beside = {trial.arm.name, reference, *(arm.name for arm in study.arms if arm.untrained)}
    rows = [a for a in decision.arms if a.task == task.name and a.arm in beside]
    digits = words.decimals_for(task.margin if task.kept_share is None else None)
    lines = [f"| arm | {escape(words.metric(task.metric))}, test rows | SD | runs | state |", "|---|---|---|---|---|"]
    yield "\n".join([*lines, *(_row(row, reference, digits) for row in rows)])
    said = f": {headline.sentence(evidence, found)}" if found else ""
    yield f"Verdict: **{escape(verdict(decision, trial.arm.name, task.name))}**{escape(said)}."
    measured = subject.source.record.measurements.get(f"test.{task.metric}")
    scores = ({"this run, as trained": measured.value} if measured else {}) | dict(subject.scores)
    if scores:
        yield "\n".join(f"- {name}: {words.number(value, digits + 1)}" for name, value in scores.items())


def _row(row: ArmResult, reference: str, digits: int) -> str:
    number = lambda value: "" if value is None else words.number(value, digits)  # noqa: E731
    name = f"{escape(row.arm)}{' (reference)' if row.arm == reference else ''}"
    return f"| {name} | {number(row.mean)} | {number(row.sd)} | {len(row.values)} | {row.state} |"


def _facts(evidence: Evidence, decision: Decision, subject: Subject) -> Iterator[tuple[str, object]]:
    record, lock = subject.source.record, evidence.lock
    trial, controls = record.trial, record.trial.controls
    pin, cut = lock.data[trial.task], lock.folding(trial.task)
    yield "run", f"{trial.id}, seed {trial.seed}: {subject.why}{' (of folds)' if cut else ''}"
    seeds = sorted(r.trial.seed for r in evidence.of(purpose="final", task=trial.task, arm=trial.arm.name))
    yield "seeds of the arm's runs", ", ".join(map(str, seeds))
    yield "base model", subject.source.public_base
    yield "base fingerprint", subject.source.base.fingerprint
    if subject.source.base.revision:
        yield "base revision", subject.source.base.revision
    yield "licence of the base", subject.licence or NOT_STATED
    yield "settings", ", ".join(f"{name} {value}" for name, value in trial.arm.settings.items()) or "defaults"
    rate = "none" if trial.learning_rate is None else words.rate(trial.learning_rate)
    yield "training", f"learning rate {rate}, {controls.epochs} epochs, {controls.batch_examples} examples a step"
    yield "precision", controls.precision
    yield "answers", {"head": "a trained head", "labels": "scored texts of labels", "text": "text"}[controls.readout]
    yield "rows", ", ".join(f"{count} {split}" for split, count in pin.counts.items())
    yield "SHA-256 of rows", ", ".join(f"{split} {digest[:16]}" for split, digest in pin.digests.items())
    times = decision.test_openings.get(lock.study.task(trial.task).name)
    if times:
        yield "test rows opened", f"{times} times" if times > 1 else "once"
    yield "study", decision.study_digest


def _limits(subject: Subject) -> Iterator[str]:
    yield "Results hold for rows like those of the study, and for its metric alone."
    yield "The results are means over runs; what ships is one of them."
    yield from subject.remarks
    if subject.licence is None:
        yield "The base's folder states no licence: look it up before you pass this on."


def _listed(pairs: Iterator[tuple[str | None, object]]) -> list[str]:
    return ["\n".join(f"- {name}: {escape(text)}" if name else f"- {escape(text)}" for name, text in pairs)]
