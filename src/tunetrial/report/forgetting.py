"""What was forgotten: a sentence for each task, and a table of arms and held-out texts."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunetrial.core.evidence import Decision
from tunetrial.core.findings import Ends, Forgotten, Loss
from tunetrial.report import words


@dataclass(frozen=True)
class Row:
    """An arm on a task and a held-out text, each number with its interval as the report writes it."""

    task: str
    arm: str
    text: str
    nats: str
    beyond: str
    bits: str
    kl: str
    agreed: str
    basis: str


def rows(decision: Decision) -> tuple[Row, ...]:
    """Every arm with a final and every text, all texts together first."""
    return tuple(row for one in decision.forgotten for row in _rows(one))


def _rows(one: Forgotten) -> Iterator[Row]:
    task, arm = words.name(one.task), words.name(one.arm)
    if not one.losses:
        yield Row(task, arm, "all", *["not measured"] * 5, _basis(one, None))
    for loss in one.losses:
        text = "all" if loss.text is None else words.name(loss.text)
        beyond = "reference" if one.arm == one.reference else "not comparable"
        yield Row(
            task,
            arm,
            text,
            _ends(loss.nats),
            beyond if loss.beyond is None else _ends(loss.beyond),
            _ends(loss.bits),
            _ends(loss.kl, sign=False),
            _shares(loss.agreed),
            _basis(one, loss),
        )


def _basis(one: Forgotten, loss: Loss | None) -> str:
    """Of how much it is, what is missing, and why there is no interval."""
    parts = [_count(one.runs, "run")]
    if loss is not None:
        parts.append(
            _count(loss.texts, "text") + ("" if loss.texts == loss.clusters else f" of {loss.clusters} sources")
        )
        parts.append(f"{words.number(loss.tokens, 0)} tokens")
        parts += [f"no interval: {loss.why_bare}"] if loss.why_bare else []
    parts += [f"{one.diverged} diverged"] if one.diverged else []
    parts += [f"{one.unobserved} not observed"] if one.unobserved else []
    return ", ".join(parts)


def sentences(decision: Decision, limit: float | None, primary: str) -> tuple[str, ...]:
    """For each task what its arms lost on all texts; of the task that decides, what the limit says of it."""
    tasks = dict.fromkeys(one.task for one in decision.forgotten)
    found = []
    for task in tasks:
        told = [one for one in decision.forgotten if one.task == task and one.overall]
        if told:
            said = "; ".join(_said(one, limit if task == primary else None) for one in told)
            found.append(f"Tuned on {words.name(task)}, a token of the held-out texts costs with {said}.")
    return tuple(found)


def _said(one: Forgotten, limit: float | None) -> str:
    loss = one.overall
    value, low, high = loss.nats
    said = f"{words.name(one.arm)} {words.figure(abs(value), 2)} nats {'more' if value >= 0 else 'less'}"
    said += f" than under its base ({loss.why_bare or 'no interval'})" if low is None or high is None else ""
    if low is not None and high is not None:
        ends = " to ".join(words.signed(end, _decimals(loss.nats)) for end in (low, high))
        said += f" than under its base ({words.percent(one.level)} interval {ends})"
    if loss.beyond is not None and None not in loss.beyond[1:]:
        sides = (", more than with {0}", ", less than with {0}", ", not shown to differ from {0}")
        side = 0 if loss.beyond[1] > 0 else 1 if loss.beyond[2] < 0 else 2
        said += sides[side].format(words.name(one.reference))
    if limit is not None and value <= limit and high is not None and high > limit:
        said += f", within the limit of {words.plain(limit)} though its interval reaches beyond"
    return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ends(found: Ends, *, sign: bool = True) -> str:
    value, low, high = found
    decimals = _decimals(found)
    write = words.signed if sign else words.number
    if low is None or high is None:
        return write(value, decimals)
    return f"{write(value, decimals)} ({write(low, decimals)} to {write(high, decimals)})"


def _decimals(found: Ends) -> int:
    """So many that two significant digits of the interval's length, or of the value alone, are told."""
    value, low, high = found
    length = abs(value) if low is None or high is None else high - low
    return min(max(words.decimals_for(length or None), 2), 6)


def _shares(found: Ends) -> str:
    value, *ends = (None if part is None else words.percent(part) for part in found)
    return value if None in ends else f"{value} ({ends[0]} to {ends[1]})"
