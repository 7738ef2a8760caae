"""The report as Markdown, as JSON, and as a few lines to paste into a chat."""

import json
import re
from functools import cache

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tunetrial.core.evidence import Decision, Evidence
from tunetrial.report import (
    deployment,
    drift,
    forgetting,
    headline,
    learning,
    owning,
    provenance,
    raters,
    shipping,
    tables,
    wordings,
    words,
)
from tunetrial.report.page import TEMPLATES

LINES = 12
SYNTHETIC = "SYNTHETIC: simulated runs with a planted truth; nothing was measured on a model."


def markdown(evidence: Evidence, decision: Decision) -> str:
    """Write the report as Markdown, without the plots. Every value is escaped, so that text stays text."""
    study = evidence.lock.study
    limit = study.limits.get("forgetting_nats"), study.rule.primary
    text = (
        _environment()
        .get_template("report.md.jinja")
        .render(
            synthetic=SYNTHETIC if decision.synthetic else "",
            study=study,
            decision=decision,
            headline=headline.conclude(evidence, decision),
            verdicts=headline.verdicts(decision),
            columns=tables.columns(evidence, decision),
            rows=tables.rows(evidence, decision),
            again=tables.again(decision),
            raters=raters.section(decision),
            raters_heads=raters.HEADS,
            worded=wordings.section(evidence, decision),
            worded_heads=wordings.HEADS,
            drift=drift.section(evidence, decision),
            deployed=deployment.section(decision),
            owned=owning.section(decision),
            volumes=shipping.volumes(decision),
            volume_heads=shipping.VOLUME_HEADS,
            shipped=shipping.ways(decision),
            forgotten=forgetting.rows(decision),
            forgetting=forgetting.sentences(decision, *limit),
            equal_learning=forgetting.frontier_sentences(evidence, decision),
            explanations=forgetting.explanations(decision),
            soon=learning.soon(decision),
            ahead=learning.ahead(evidence, decision),
            predictions=tables.predictions(decision),
            coverage=tables.coverage(decision),
            failures=tables.failures(evidence, decision),
            provenance=provenance.gather(evidence, decision),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def summary(evidence: Evidence, decision: Decision) -> str:
    """Say it in at most 12 lines of plain text: the answer, its support, the other verdicts, what flips it."""
    head = headline.conclude(evidence, decision)
    first = [SYNTHETIC] if decision.synthetic else []
    first += [
        f"tunetrial: {words.clean(evidence.lock.study.question, 120)}",
        head.answer,
        *map(str, head.support[:5]),
        *head.flips[:1],
    ]
    broken = [check for check in decision.fairness if not check.holds]
    held = f"Fairness: {len(decision.fairness) - len(broken)} of {len(decision.fairness)} checks hold"
    said = f"; broken: {', '.join(words.clean(check.what, 60) for check in broken[:3])}" if broken else ""
    last = [f"{held}{said}. Study {decision.study_digest[:12]}."]
    if decision.searches:
        last.insert(0, f"The search of rates stopped runs at a rung: {headline.searched(decision)}.")
    if decision.post_hoc:
        last.insert(0, f"Post hoc: {'; '.join(words.clean(change, 60) for change in decision.post_hoc[:3])}.")
    return "\n".join([*first, *_verdict_lines(evidence, decision, LINES - len(first) - len(last)), *last]) + "\n"


def _verdict_lines(evidence: Evidence, decision: Decision, room: int) -> list[str]:
    """As many verdicts as there is room for, and how many more there are; none that the headline already says."""
    told = headline.leading(evidence, decision)
    lines = [
        f"{words.name(c.task)}, {words.name(c.candidate)}: {c.words}; {headline.sentence(evidence, c)}."
        for c in decision.verdicts
        if not any(c is other for other in told)
    ]
    if len(lines) <= room:
        return lines
    kept = max(room - 1, 0)
    return [*lines[:kept], f"… and {len(lines) - kept} more verdicts in the report."][:room]


def to_json(evidence: Evidence, decision: Decision) -> str:
    """Write decision and provenance as JSON. Keys are stable within a `schema_version`; absent numbers are null."""
    head = headline.conclude(evidence, decision)
    study = evidence.lock.study
    report = {
        "schema_version": 1,
        "synthetic": decision.synthetic,
        "question": study.question,
        "answer": head.answer,
        "support": [str(line) for line in head.support],
        "reference": study.reference,
        "primary_task": study.rule.primary,
        "runs": len(evidence.records),
        "machine_s": sum(sum(r.legs_s) for r in evidence.records) if any(r.legs_s for r in evidence.records) else None,
        "usd_per_hour": study.hardware.usd_per_hour,
        "decision": decision.model_dump(mode="json"),
        "failures": [
            {"arm": f.arm, "task": f.task, "what": f.what, "why": f.why} for f in tables.failures(evidence, decision)
        ],
        "provenance": {title: dict(pairs) for title, pairs in provenance.gather(evidence, decision)},
    }
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def escape(value: object) -> str:
    """Make a value one line of Markdown that renders as itself: no markup, link, mention, HTML or table cell."""
    text = words.clean(value, 1000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    return text.replace("://", "&#58;//").replace("@", "&#64;").replace("www.", "www&#46;")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = words.prose
    return environment
