"""A claim file against everything that can be counted or looked up: recomputed, tried, held beside a study.

Weights are counted by the methods' formulas, memory operation by operation as in a plan, measurements are read from a
study's decision; all else is in `analysis`. Nothing is trained, and no claim is changed.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunetrial import methods, models
from tunetrial.analysis import claimed_tests, metrics
from tunetrial.analysis import claims as checks
from tunetrial.analysis.drafts import draft
from tunetrial.core.claims import MOST, Audit, Claim, ClaimFile, Finding, Measured, Memory, Size, Weighing
from tunetrial.core.errors import EvidenceError, StoreError, TunetrialError
from tunetrial.core.evidence import Comparison, Decision
from tunetrial.core.findings import Ends
from tunetrial.core.quantities import Quantity, figure, read, unit
from tunetrial.core.study import Arm, Controls, Setting
from tunetrial.plan import catalogue
from tunetrial.plan.fit import Ask, Need
from tunetrial.spec.text import Subject, read_text

STEPS = ((1, 128), (1, 512), (4, 512), (16, 512))  # rows × tokens of a step
GB = 10**9
PLAIN = "plain"  # of numbers whose points are no hundredths
TEXT = Subject(name="text", example="report.md", instead="audit its parts one by one")


def audit(file: ClaimFile, decision: Decision | None = None) -> Audit:
    """What comes of every claim of a file, in its order; with a study's decision measured claims are held to it.

    Raises:
        EvidenceError: A claim cannot be worked out as it is written; the message names it.
        ModelError, ConfigError, SpecError: A model, device or method that a claim names is not known.
    """
    matrices = checks.recomputed(file.claims)
    own: dict[type[Claim], Callable[[Any], Finding]] = {
        Size: size,
        Memory: memory,
        Weighing: lambda claim: checks.weighing(claim, matrices),
        Measured: lambda claim: measured(claim, decision),
    }
    of = checks.CHECKS | claimed_tests.CHECKS | own
    findings = []
    for claim in file.claims:
        try:
            findings.append(of[type(claim)](claim))
        except TunetrialError as error:
            raise type(error)(f"{claim.id}: {error}") from None
        except ValueError as error:
            what = str(error) if ", got " in str(error) else f"cannot be worked out, got {error}; mend its terms"
            raise EvidenceError(f"{claim.id}: {what}") from None
    return Audit(document=file.document, about=file.about, draft=file.draft, findings=tuple(findings))


def read_decision(study: Path) -> Decision:
    """The decision of a study: a study file whose results are beside it, a folder of results, or a `decision.json`.

    Raises:
        StoreError: There is none, or it is none that this version reads.
    """
    path = study.with_name(f"{study.stem}-results") if study.suffix in (".yaml", ".yml") else study
    path = path if path.suffix == ".json" else path / "decision.json"
    try:
        return Decision.model_validate_json(path.read_bytes())
    except OSError:
        raise StoreError(f"{path}: no decision to read, got none; run the study, or name its decision.json") from None
    except ValidationError as error:
        what = error.errors()[0]
        place = ".".join(map(str, what["loc"])) or "the file"
        raise StoreError(f"{path}: is no decision, got {place}: {what['msg']}; run `tunetrial decide` again") from None


def arm(method: str, settings: dict[str, Setting]) -> Arm:
    return Arm(name=method, method=method, settings=methods.settle(method, settings))


def size(claim: Size) -> Finding:
    """Weights and bytes, by the methods' formulas; a head of `outputs` included where it is trained."""
    shape = _described(claim.model).shape
    method = methods.find(arm(claim.method, claim.settings))
    trained = method.trainable_parameters(shape, claim.outputs)
    if method.trains_base and not claim.outputs:  # with the language model's own head
        trained = shape.parameters
    bits = claim.bits or (8 * shape.bytes_per_weight if method.trains_base or claim.of == "weights" else 32)
    how = ", ".join(f"{k} {' '.join(v) if isinstance(v, tuple) else v}" for k, v in claim.settings.items())
    told = f"{claim.model}, {claim.method}" + (f" ({how})" if how else "")
    kinds: dict[str, tuple[float, str, str]] = {
        "trained": (trained, "x", f"of {shape.parameters:,} weights it trains"),
        "trained share": (trained / shape.parameters, "x", f"trains {trained:,} of {shape.parameters:,}"),
        "fewer trained": (1 - trained / shape.parameters, "x", f"trains {trained:,} of {shape.parameters:,}"),
        "artifact": (trained * bits / 8, "byte", f"saves {trained:,} weights of {bits} bits"),
        "weights": (shape.parameters * bits / 8, "byte", f"{shape.parameters:,} weights of {bits} bits"),
        "moments": (8 * trained, "byte", f"two fp32 moments for each of {trained:,} trained weights"),
        "layers": (shape.layers, "x", "blocks by its configuration"),
    }
    count, in_unit, words = kinds[claim.of]
    exact = Quantity.of(count, dimensions=unit(in_unit)[1])
    return checks.against(claim, read(claim.says), (exact, exact), f"{told}: {words}")


def memory(claim: Memory) -> Finding:
    """Memory that training needs free, at four sizes of a step: right where the stated range meets one of them.

    What meets none is wrong only where it is less than the base's weights by themselves (16 bits, 4 for QLoRA): other
    programs keep other things beside them.
    """
    said = read(claim.says)
    settings: dict[str, Setting] = {} if claim.method == "full" else {"rank": claim.rank}
    model = _described(claim.model)
    shape = model.shape
    needs = {
        f"{rows} × {tokens}": needed(model, claim.method, settings, claim.device, rows, tokens).bytes
        for rows, tokens in STEPS
    }
    dimensions = unit("GB")[1]
    found = {step: Quantity.of(need.low, need.high, dimensions=dimensions) for step, need in needs.items()}
    said.value.same(next(iter(found.values())))
    shown = ", ".join(f"{_gb(need)} at {step}" for step, need in found.items())
    working = f"{claim.model}, {claim.method} on {claim.device}, rows × tokens of a step: {shown}"
    readings = [(said, ""), (said.binary, f"; {checks.BINARY[1].format(said.unit)}")]
    right, hint = [], ""
    for reading, words in readings:
        if not right:
            right = [step for step, need in found.items() if checks.judged(reading, need, need) in checks.FITS]
            hint = words
    limits = "as tunetrial trains: fp32 masters, AdamW; context and reserve counted, layers not computed again"
    if not right:
        alone = shape.parameters * (0.5 if claim.method == "qlora" else 2)
        least = f"{alone / GB:.3g} GB are its weights alone in {4 if claim.method == 'qlora' else 16} bits"
        less = said.binary.rounded.high < alone  # a bound from below has no upper end
        outcome = "WRONG" if less else "NOT SUPPORTED"
        return checks.finding(claim, outcome, f"{working}; {least}", _gb(found["1 × 128"]) + " at least", limits=limits)
    where = f"; it is right at {', '.join(right)}" if len(right) < len(found) else ""
    return checks.finding(claim, "HOLDS", working + where + hint, limits=limits)


def needed(
    found: models.Described,
    method: str,
    settings: dict[str, Setting],
    device: str,
    rows: int,
    tokens: int,
    again: bool = False,
) -> Need:
    """Memory of training on rows all in one micro-batch, all of their tokens answered; `again` with layers computed
    again in the backward pass."""
    from tunetrial.engine.trace import trace
    from tunetrial.trial.forecast import capability

    place = catalogue.device(device)
    cuda = place.kind == "cuda"
    precision = "fp32" if not cuda else "bf16" if place.operations_per_s["bf16"] else "fp16"
    how = {"readout": "text", "max_new_tokens": 1, "epochs": 1, "batch_examples": rows, "max_tokens": tokens}
    traced = trace(
        found.config,
        arm(method, settings),
        Controls(base_fingerprint="none", precision=precision, **how),
        lengths=[tokens] * rows,
        micro_batch=rows,
        recomputes=again,
        training_alone=True,
        **({"device": "cuda", "capability": capability(place)} if cuda else {"device": "cpu"}),
    )
    return Need.of(traced, Ask(micro_batch=rows, recomputes=again), place.kind)


def measured(claim: Measured, decision: Decision | None) -> Finding:
    """A claim beside the study's interval, or beside the one that its file has."""
    if decision is None or claim.look is None:
        return checks.measured(claim)
    look, said = claim.look, read(claim.says)
    ends, unit_name, words = _looked_up(decision, claim)
    place = f"study {decision.study_digest[:12]}"
    if ends is None or ends[1] is None or ends[2] is None:
        why = f"the study has no interval for {look.what} of {look.arm} on {look.task}"
        return checks.finding(claim, "UNTESTABLE HERE", why, against=(place,))
    scale, dimensions = unit("x" if unit_name == PLAIN else unit_name)
    interval = Quantity.of(ends[1] * scale, ends[2] * scale, dimensions=dimensions)
    limits = f"{words}; that study's base, data and machine"
    if decision.synthetic:
        limits += "; synthetic"
    return checks.beside(claim, said if unit_name != PLAIN else said.plain, interval, at=place, limits=limits)


def _looked_up(decision: Decision, claim: Measured) -> tuple[Ends | None, str, str]:
    """A number with its interval, its unit, and what it is in words."""
    look = claim.look
    task, name, less = look.task, look.arm, look.less_reference
    words = f"{look.what} of {name} on {task}" + (" less the reference's" if less else "")
    if look.what == "score":
        for verdict in decision.verdicts if less else ():
            if (verdict.task, verdict.candidate) == (task, name):
                return _as_scored(verdict, words)
        return None, "x", words
    if look.what == "drift":
        for moved in decision.moved:
            at = (moved.task, moved.arm, moved.source, moved.pooling, moved.measure)
            if at == (task, name, "test", "mean", "1 - CKA"):
                return (moved.difference if less else moved.overall), "x", f"{words}, 1 - CKA of the test rows"
        return None, "x", words
    if look.what == "forgetting":
        for forgot in decision.forgotten:
            if (forgot.task, forgot.arm) == (task, name) and forgot.overall is not None:
                return (forgot.overall.beyond if less else forgot.overall.nats), "x", f"{words}, nats a token"
        return None, "x", words
    key, unit_name = {"peak memory": ("peak_gib", "GiB"), "storage": ("storage_mib", "MiB")}[look.what]
    return _cost(decision, name, key, less), unit_name, words


def _as_scored(verdict: Comparison, words: str) -> tuple[Ends, str, str]:
    """A difference of scores as the metric counts, where that of a comparison is turned so that more is better."""
    if metrics.find(verdict.metric).higher_is_better:
        return (verdict.effect, verdict.low, verdict.high), "x", words
    effect, low, high = (end if end is None else -end for end in (verdict.effect, verdict.high, verdict.low))
    return (effect, low, high), PLAIN, words


def _cost(decision: Decision, name: str, key: str, less: bool) -> Ends | None:
    """What is counted in bytes and needs no interval: its ends are itself."""
    own = decision.costs.get(name, {}).get(key)
    references = {verdict.reference for verdict in decision.verdicts}
    other = decision.costs.get(next(iter(references)), {}).get(key) if len(references) == 1 else None
    if own is None or (less and other is None):
        return None
    value = own.value - other.value if less else own.value
    return value, value, value


def _described(model: str) -> models.Described:
    found = models.described(model)
    if found.shape is None:
        raise EvidenceError(f"{model}: its weights are not counted, got {found.limit}; name a model of a known family")
    return found


def _gb(need: Quantity) -> str:
    low, high = need.low / GB, need.high / GB
    return f"{low:,.3g} to {high:,.3g} GB" if high < 1000 else f"{figure(round(low))} to {figure(round(high))} GB"


def drafted(path: Path) -> ClaimFile:
    """A claim file drafted from a text, named by the file's name up to its first underscore or dot.

    A claim file has at most 500 claims; `about` says how many of a longer text are left out.

    Raises:
        SpecError: It cannot be read.
        EvidenceError: It has nothing that looks like a claim.
    """
    text = read_text(path, str(path), TEXT)
    claims = draft(text, re.split(r"[_.]", path.name)[0] or path.stem)
    if not claims:
        raise EvidenceError(f"{path}: no claim found, got {len(text)} characters; write a claim file by hand")
    more = len(claims) - MOST
    about = f"Of its {len(claims)} claims the last {more} are left out; draft its parts singly" if more > 0 else None
    return ClaimFile(document=title(text) or path.name, about=about, draft=True, claims=claims[:MOST])


def title(text: str) -> str | None:
    """The first heading of a text, or its first line of words."""
    for line in text.splitlines():
        words = " ".join("".join(mark if mark.isprintable() else " " for mark in line).replace("*", "").split())
        if words := words.lstrip("#").strip():
            return words[:200]
    return None
