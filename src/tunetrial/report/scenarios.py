"""Scenarios side by side: who is recommended in each, what carried it, and where it would change; computes nothing."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunetrial.analysis.argued import percent
from tunetrial.core.evidence import Decision
from tunetrial.core.weighed import Weighed
from tunetrial.report import headline, words

WIDTH = 98


@dataclass(frozen=True)
class Row:
    """One scenario in the table: the answer, how sure, what carried it, and the nearest flip."""

    name: str
    title: str
    answer: str
    sure: str
    carried: str
    flip: str
    settled: bool


@dataclass(frozen=True)
class Argument:
    """One scenario in sentences."""

    name: str
    title: str
    story: str
    answer: str
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    flips: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    sentence: str
    rows: tuple[Row, ...]
    arguments: tuple[Argument, ...]


def section(decision: Decision) -> Section | None:
    """All scenarios that were asked for; None without any."""
    weighed = decision.weighed
    if not weighed:
        return None
    return Section(sentence(weighed), tuple(map(row, weighed)), tuple(map(argument, weighed)))


def sentence(weighed: Sequence[Weighed]) -> str:
    """In how many scenarios each arm is recommended."""
    picks: dict[str, list[str]] = {}
    for one in weighed:
        picks.setdefault(one.recommendation or "", []).append(words.name(one.asked.name))
    said = [f"{words.name(arm)} in {', '.join(names)}" for arm, names in picks.items() if arm]
    said += [f"no recommendation yet in {', '.join(picks[''])}"] if "" in picks else []
    return "; ".join(said) + "."


def row(one: Weighed) -> Row:
    """One scenario on a line."""
    first = next(iter(one.standings.items()), None)
    answer = f"Use {words.name(one.recommendation)}" if one.recommendation else "No recommendation yet"
    sure = f"{words.name(first[0])} first in {percent(first[1].first)} of draws" if first else ""
    flips = [flip for flip in one.flips if flip.what.startswith("weight")] or list(one.flips)
    near = min(flips, key=lambda flip: abs(flip.at - flip.now), default=None)
    return Row(
        name=words.name(one.asked.name),
        title=words.clean(one.asked.title, 80),
        answer=answer,
        sure=sure,
        carried=_carried(one),
        flip=headline.flip(near) if near else "",
        settled=one.recommendation is not None,
    )


def _carried(one: Weighed) -> str:
    """The criteria that speak for the first arm, the strongest first, and those that speak against it."""
    opinions = {w.name for w in one.weights if w.basis == "opinion"}
    parts = [(n, x) for n, x in sorted(one.carried.items(), key=lambda part: -part[1]) if abs(x) >= 5e-4]
    return "; ".join(
        f"{_criterion(name)} {words.signed(x, 3)}{' (opinion)' if name in opinions else ''}" for name, x in parts
    )


def _criterion(name: str) -> str:
    return words.clean(words.criterion(name), 60).lower()


def argument(one: Weighed) -> Argument:
    """One scenario with its whole argument."""
    answer, lines = _answer(one), [*one.because, *_beyond(one)]
    if one.abstention is not None:
        worst = f" (at worst: {one.abstention.at_worst})" if one.abstention.at_worst else ""
        lines.append(f"Cheapest safe choice: {one.abstention.safe_choice or 'none'}{worst}.")
        lines.append(f"Best next spend: {one.abstention.next_spend}.")
    lines += [
        f"{more.seeds} more seeds of each arm: expected to gain {more.gain:.4f} in score, and to settle it in "
        f"{100 * more.settles:.0f} % of simulated futures."
        for more in one.more_seeds
    ]
    if one.knowing:
        name, worth = max(one.knowing.items(), key=lambda part: part[1])
        if worth >= 5e-4:
            lines.append(f"Worth knowing best: {name}; to know it perfectly would gain {worth:.4f} in score.")
    return Argument(
        name=words.name(one.asked.name),
        title=words.clean(one.asked.title, 80),
        story=words.clean(one.asked.story, 300),
        answer=answer,
        lines=tuple(words.prose(line, 1000) for line in lines),
        warnings=tuple(words.prose(line, 600) for line in one.warnings),
        flips=tuple(map(headline.flip, one.flips)),
    )


def _beyond(one: Weighed) -> Iterator[str]:
    """Arms that another beats in everything, and the weights for which the second arm would be the choice."""
    for arm, standing in one.standings.items():
        if standing.front < 1:
            over = max(one.standings, key=lambda other: one.standings[other].dominates.get(arm, 0.0))
            shared = percent(one.standings[over].dominates.get(arm, 0.0))
            yield f"{over} is as good as {arm} by every criterion and better by one in {shared} of draws."
    second = next(iter(list(one.standings.items())[1:2]), None)
    if second and second[1].central and len(one.weights) > 1:
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in second[1].central.items())
        sure = percent(second[1].confidence)
        yield f"{second[0]} would be the choice at weights such as {weights}: first in {sure} of draws there."


def _answer(one: Weighed) -> str:
    if one.recommendation is not None:
        return f"Use {words.name(one.recommendation)}."
    return f"No recommendation yet: {words.prose(one.abstention.reason)}."


def text(weighed: Sequence[Weighed]) -> str:
    """Scenarios for a terminal: one with its argument, several side by side and then each with its argument."""
    parts = [sentence(weighed)] if len(weighed) > 1 else []
    for one in map(argument, weighed):
        lines = [f"{one.title} ({one.name}): {one.answer}"]
        lines += [f"- {line}" for line in (one.story, *one.lines, *one.warnings, *one.flips) if line]
        parts.append("\n".join(_wrapped(line) for line in lines))
    return "\n\n".join(_wrapped(part) if "\n" not in part else part for part in parts) + "\n"


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
