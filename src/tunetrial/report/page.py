"""The HTML page: one file that needs no network and no font of its own, and is whole without script.

Its policy forbids everything but the one style sheet, and where scenarios were weighed the one script, whose digests it
names: text from a study or a model cannot load, run or restyle anything, even if escaping were to fail.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tunetrial.analysis import metrics
from tunetrial.core.evidence import Decision, Evidence
from tunetrial.report import (
    deployment,
    drift,
    forgetting,
    headline,
    interactive,
    learning,
    memory,
    owning,
    plots,
    provenance,
    raters,
    scenarios,
    shipping,
    tables,
    wordings,
    words,
)

TEMPLATES = Path(__file__).parent / "templates"


def html(evidence: Evidence, decision: Decision, sheet: Mapping[str, Any] | None = None) -> str:
    """Draw the report as one HTML document. Equal input gives equal bytes; it holds no date and no path.

    Args:
        sheet: `scenarios.json` of the decision's scenarios, for a page that weighs again as weights and prices move.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    again = interactive.again(sheet, TEMPLATES)
    study = evidence.lock.study
    limit = study.limits.get("forgetting_nats"), study.rule.primary
    chosen = {(a.task, a.arm): (a.learning_rate, a.at_edge) for a in decision.arms if a.learning_rate is not None}
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            style=style,
            policy=_policy(style, again["script"]),
            evidence=evidence,
            study=study,
            decision=decision,
            order={arm.name: index for index, arm in enumerate(evidence.lock.study.arms)},
            headline=headline.conclude(evidence, decision),
            verdicts=headline.verdicts(decision),
            forests=plots.forests(decision.verdicts),
            columns=tables.columns(evidence, decision),
            glance=tables.glance(evidence, decision),
            rows=tables.rows(evidence, decision),
            rate_panels=plots.rate_panels(evidence, chosen),
            loss_panels=plots.loss_panels(evidence),
            soon=learning.soon(decision),
            ahead=learning.ahead(evidence, decision),
            probe_bars=plots.probe_bars(evidence),
            predictions=tables.predictions(decision),
            memory=memory.picture(decision.memory),
            memory_parts=memory.TITLES,
            coverage=tables.coverage(decision),
            again=tables.again(decision),
            raters=raters.section(decision),
            raters_heads=raters.HEADS,
            worded=wordings.section(evidence, decision),
            worded_heads=wordings.HEADS,
            source_names=tuple(wordings.SOURCES.values()),
            drift=drift.section(evidence, decision),
            volumes=shipping.volumes(decision),
            volume_heads=shipping.VOLUME_HEADS,
            shipped=shipping.ways(decision),
            **again,
            **_use(decision),
            forgotten=forgetting.rows(decision),
            forgetting=forgetting.sentences(decision, *limit),
            searched=headline.searched(decision),
            equal_learning=forgetting.frontier_sentences(evidence, decision),
            explanations=forgetting.explanations(decision),
            frontiers=forgetting.panels(evidence, decision),
            failures=tables.failures(evidence, decision),
            provenance=provenance.gather(evidence, decision),
            flips=tuple(headline.flip(point) for point in decision.flips),
        )
    )


def _use(decision: Decision) -> dict[str, Any]:
    """How what was found is deployed, what it costs, and how it is decided for other uses."""
    return {
        "deployed": deployment.section(decision),
        "deployed_px": deployment.SIZES_PX,
        "owned": owning.section(decision),
        "owned_heads": owning.HEADS,
        "owned_item_heads": owning.ITEM_HEADS,
        "owned_run_heads": owning.RUN_HEADS,
        "scenarios": scenarios.section(decision),
    }


def _policy(style: str, script: str) -> str:
    scripts = f"script-src 'sha256-{_digest(script)}'; " if script else ""
    return f"default-src 'none'; {scripts}style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'"


def _digest(style: str) -> str:
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clean=words.clean,
        name=words.name,
        metric=words.metric,
        tie=words.tie,
        prose=words.prose,
        rate=words.rate,
        plain=words.plain,
        figure=words.figure,
    )
    environment.globals.update(higher_is_better=lambda name: metrics.find(name).higher_is_better)
    return environment
