"""What the report says first, and how it says an effect: one reading of the decision that all outputs share.

Every number comes from a record or from the decision; sums of wall time are the only arithmetic.
"""

from dataclasses import dataclass

from tunetrial.analysis import metrics
from tunetrial.core.evidence import Abstention, Comparison, Decision, Evidence, Flip
from tunetrial.report import words

VERDICTS = {
    "BETTER": ("better", "▲"),
    "SAME (within your margin)": ("same", "="),
    "NOT WORSE": ("same", "≥"),
    "WORSE, negligibly": ("slight", "▽"),
    "WORSE": ("worse", "▼"),
    "CAN'T TELL YET": ("open", "?"),
    "NOT COMPARABLE": ("void", "×"),
}


@dataclass(frozen=True)
class Line:
    """One sentence, and what it is about."""

    label: str
    text: str

    def __str__(self) -> str:
        mark = "" if self.label.endswith("?") else ":"
        return f"{self.label}{mark} {self.text}" if self.label else self.text


@dataclass(frozen=True)
class Headline:
    """The first thing read: the answer, what supports it, and what would change it."""

    answer: str
    support: tuple[Line, ...]
    flips: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """One comparison in words; `kind` and `symbol` tell the words apart without colour."""

    comparison: Comparison
    kind: str
    symbol: str
    effect: str
    interval: str
    basis: str
    power: str
    margin: str
    gain: str


def conclude(evidence: Evidence, decision: Decision) -> Headline:
    """Say what to use and why; or why not yet, what is safe meanwhile and what to spend next on."""
    spent = Line("", f"This study took {spending(evidence)}.")
    need, use = _need(decision), decision.recommendation
    if decision.abstention is not None:
        support = (*need, *_abstained(decision.abstention), *_effects(evidence, decision), spent)
        return Headline(_without_tuning(evidence, decision) or "No recommendation yet.", support, ())
    if use is None:
        return Headline("Nothing is decided.", (*_effects(evidence, decision), spent), ())
    support = (*need, *_effects(evidence, decision), *_costs(evidence, decision, use), spent)
    answer = _without_tuning(evidence, decision) or f"Use {words.name(use)}{on_base(evidence, use)}."
    return Headline(answer, support, tuple(map(flip, decision.flips)))


def _need(decision: Decision) -> tuple[Line, ...]:
    if decision.need is None:
        return ()
    answer = {"no": "No", "yes": "Yes", "open": "Can't tell yet"}[decision.need.answer]
    return (Line("Do you need to tune at all?", _stop(f"{answer}: {words.prose(decision.need.reason)}")),)


def _without_tuning(evidence: Evidence, decision: Decision) -> str | None:
    """The answer where an arm without training is not worse than any trained one."""
    use, study = decision.recommendation, evidence.lock.study
    if decision.need is None or decision.need.answer != "no":
        return None
    if use is None:
        return f"You need not tune: {words.name(decision.need.arm)} is not worse."
    if study.arm(use).untrained:
        return f"You need not tune: use {words.name(use)}{on_base(evidence, use)}."
    return (
        f"Use {words.name(use)}{on_base(evidence, use)}; {words.name(decision.need.arm)} is not worse without tuning."
    )


def on_base(evidence: Evidence, arm: str) -> str:
    """On which base an arm is, where the study's arms are on several; else nothing."""
    lock = evidence.lock
    several = len({lock.base(a.name).fingerprint for a in lock.study.arms}) > 1
    return f" on {words.clean(lock.study.base_of(arm), 80)}" if several else ""


def _abstained(abstention: Abstention) -> tuple[Line, ...]:
    safe = words.name(abstention.safe_choice) if abstention.safe_choice else "none"
    worst = f"; at worst: {words.prose(abstention.at_worst)}" if abstention.at_worst else ""
    return (
        Line("Why", _stop(words.prose(abstention.reason))),
        Line("Cheapest safe choice", _stop(f"{safe}{worst}")),
        Line("Best next spend", _stop(words.prose(abstention.next_spend))),
    )


def _stop(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def leading(evidence: Evidence, decision: Decision) -> tuple[Comparison, ...]:
    """The comparisons that the headline says: of what is recommended on the task that decides, else up to three."""
    primary = [c for c in decision.verdicts if c.task == evidence.lock.study.rule.primary]
    own = [c for c in primary if c.candidate == decision.recommendation]
    return tuple(own or primary[:3])


def _effects(evidence: Evidence, decision: Decision) -> tuple[Line, ...]:
    lines = []
    for c in leading(evidence, decision):
        label = c.words if c.candidate == decision.recommendation else f"{words.name(c.candidate)}, {c.words}"
        gain = f"; {share_of_gain(c)}" if share_of_gain(c) else ""
        lines.append(Line(label, f"{sentence(evidence, c)}{gain}."))
    return tuple(lines)


def _costs(evidence: Evidence, decision: Decision, use: str) -> tuple[Line, ...]:
    """Up to three costs of what is recommended, beside those of the reference or, if it is that, of the candidate."""
    primary = [c for c in decision.verdicts if c.task == evidence.lock.study.rule.primary]
    reference = primary[0].reference if primary else evidence.lock.study.reference
    beside = reference if use != reference else next((c.candidate for c in primary), None)
    own, other = decision.costs.get(use, {}), decision.costs.get(beside, {})
    parts = []
    for name in (name for name in words.CRITERIA if name != "quality" and name in own):
        against = f" vs {words.quantity(other[name])}" if name in other else ""
        parts.append(f"{words.quantity(own[name])}{against} {words.criterion(name).lower()}")
    pair = f" ({words.name(use)} vs {words.name(beside)})" if beside and other else ""
    return (Line("", f"{'; '.join(parts[:3])}{pair}."),) if parts else ()


def sentence(evidence: Evidence, comparison: Comparison) -> str:
    """Effect, interval and margin of one comparison; or why there is none."""
    c = comparison
    if not comparable(c):
        return words.prose(c.reason, 300).removesuffix(".") if c.reason else "no interval"
    unit = _spaced(unit_of(evidence, c))
    turned = "" if metrics.find(c.metric).higher_is_better else ", + is better"
    said = f"you said {_asked(c)} matters{_estimated(c)}"
    against = f"{words.name(c.reference)}{on_base(evidence, c.reference)}"
    return f"{words.metric(c.metric)} {effect(c)}{unit} vs {against}{turned} ({interval(c)}; {said})"


def margin_of(c: Comparison) -> str:
    """The margin as the study asks for it, and what a share of the gain comes to as estimated."""
    return f"{_asked(c)}{_estimated(c)}"


def _asked(c: Comparison) -> str:
    return words.plain(c.margin) if c.kept_share is None else f"{words.percent(1 - c.kept_share)} of the gain"


def _estimated(c: Comparison) -> str:
    return "" if c.kept_share is None or c.margin is None else f", {words.figure(c.margin, 2)} as estimated"


def share_of_gain(c: Comparison) -> str:
    """How much of the reference's gain over the untuned base the candidate keeps; empty where that was not asked."""
    if c.gain is None or not comparable(c):
        return ""
    gain = f"{words.name(c.reference)}'s gain over the untuned base"
    if c.gain.share is None:
        return f"{gain} is not shown, so no share of it is"
    share, low, high = (words.number(100 * x, 0) for x in (c.gain.share, c.gain.low, c.gain.high))
    kept = f"keeps {share}{words.THIN}% ({words.percent(c.gain.level)}: {low} to {high}{words.THIN}%)"
    return f"{kept} of {gain}"


def comparable(c: Comparison) -> bool:
    """Whether there is an effect to show: an unfair or invalid comparison has none, whatever was computed."""
    return c.words != "NOT COMPARABLE" and None not in (c.effect, c.low, c.high, c.level)


def effect(c: Comparison) -> str:
    """The effect, with digits by the margin; empty if there is none."""
    return words.signed(c.effect, words.decimals_for(c.margin)) if comparable(c) else ""


def interval(c: Comparison) -> str:
    """The interval with its level; empty if there is none."""
    if not comparable(c):
        return ""
    decimals = words.decimals_for(c.margin)
    return f"{words.percent(c.level)}: {words.signed(c.low, decimals)}…{words.signed(c.high, decimals)}"


def unit_of(evidence: Evidence, c: Comparison) -> str:
    """The unit in which the metric was measured; empty for a share or a coefficient."""
    name = f"test.{c.metric}"
    units = (r.measurements[name].unit for r in evidence.of(purpose="final", task=c.task) if name in r.measurements)
    unit = next(units, metrics.find(c.metric).unit)
    return "" if unit in words.UNITLESS else words.clean(unit, 20)


def _spaced(unit: str) -> str:
    return f"{words.THIN}{unit}" if unit else ""


def flip(point: Flip) -> str:
    """One point at which the recommendation changes."""
    now = words.plain(float(f"{point.now:.3g}") if abs(point.now) < 1 else point.now)
    at = words.plain(float(f"{point.at:.3g}"))
    return f"Flips to {words.name(point.to)} if the {words.clean(point.what, 120)} reaches {at} (now {now})."


def spending(evidence: Evidence) -> str:
    """Wall time of all attempts, and its price where the user gave one an hour."""
    seconds = sum(sum(r.legs_s) for r in evidence.records)
    runs = f"{len(evidence.records)} run" + ("" if len(evidence.records) == 1 else "s")
    if not any(r.legs_s for r in evidence.records):
        return f"{runs}; their time is not recorded"
    usd = evidence.lock.study.hardware.usd_per_hour
    price = "" if usd is None else f", {words.dollars(seconds / 3600 * usd)} at {words.dollars(usd)} an hour"
    return f"{words.duration(seconds)} of machine time for {runs}{price}"


def searched(decision: Decision) -> str:
    """What the search of rates took where it stopped runs at rungs, of all steps that its runs have."""
    found = decision.searches
    if not found:
        return "no step is on record"
    steps, whole = sum(one.steps for one in found), sum(one.whole_steps for one in found)
    of = f"{words.number(steps, 0)} of the {words.number(whole, 0)} steps of {sum(one.runs for one in found)} runs"
    if steps >= whole:
        return f"{of}, nothing saved"
    seconds = [one.whole_s - one.train_s for one in found if one.train_s is not None and one.whole_s is not None]
    time = f", about {words.duration(sum(seconds))} of training" if len(seconds) == len(found) else ""
    return f"{of}, {words.percent(round(1 - steps / whole, 2))} saved{time}"


def verdicts(decision: Decision) -> tuple[Verdict, ...]:
    """Every comparison, in the decision's order: never sorted by effect."""
    return tuple(_verdict(c) for c in decision.verdicts)


def _verdict(c: Comparison) -> Verdict:
    kind, symbol = VERDICTS[c.words]
    clusters = f" in {c.n_clusters} clusters" if c.n_clusters and c.n_clusters != c.n_examples else ""
    rows = words.number(c.n_examples, 0)
    basis = f"{c.n_replicates} seeds × {rows} examples{clusters}" if c.n_replicates else ""
    if c.folding is not None:
        basis = f"{c.folding} of {rows} rows{clusters}"
    decimals = words.decimals_for(c.margin)
    power = "" if c.mde is None else f"80{words.THIN}% power to show {words.number(c.mde, decimals)}"
    return Verdict(c, kind, symbol, effect(c), interval(c), basis, power, margin_of(c), share_of_gain(c))
