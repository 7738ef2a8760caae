"""What arms cost to own: totals, the items of the most variants, sentences; computes no statistics."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunetrial.core.evidence import Decision
from tunetrial.core.money import Bill, Line
from tunetrial.core.owning import Owned, Ownership
from tunetrial.core.spans import span
from tunetrial.report import words

HEADS = ("Arm", "Variants", "Once", "A month", "First year", "Machines")
ITEM_HEADS = ("Arm", "Item", "Amount", "Known by", "Price", "USD")
RUN_HEADS = ("Arm", "Train", "Export", "Test", "In all", "USD", "Energy", "A month", "In budget")
JOULES_PER_KWH = 3.6e6
MOST, NARROW = 100, 60
SHOWN = {"GPU-hour": "machine hour"}  # nothing in these amounts needs a GPU


@dataclass(frozen=True)
class Section:
    """What the report says: a sentence, a table of totals, one of items with the most variants, one of one more run and
    how many of them there can be, where energy is from, what no total has, what is assumed, whose the prices are."""

    task: str
    answer: str
    variants: int
    totals: tuple[tuple[str, ...], ...]
    items: tuple[tuple[str, ...], ...]
    runs: tuple[tuple[str, ...], ...]
    energy: tuple[str, ...]
    left_out: tuple[str, ...]
    assumed: tuple[str, ...]
    prices: tuple[str, ...]


def section(decision: Decision) -> Section | None:
    """None where the study does not say how what it finds is used."""
    return None if decision.owned is None else of(decision.owned)


def of(found: Ownership) -> Section:
    """All of it in words and cells."""
    most = max(found.terms.variants)
    largest = [each for each in found.owned if each.variants == most]
    return Section(
        task=words.clean(found.task, 60),
        answer=answer(found),
        variants=most,
        totals=tuple(_totals(found)),
        items=tuple(cells for each in largest for cells in _items(each)),
        runs=tuple(_runs(found)),
        energy=tuple(dict.fromkeys(f"{one.run_j.basis}, {one.run_j.of}" for one in found.taken if one.run_j)),
        left_out=tuple(_left_out(largest)),
        assumed=found.assumed,
        prices=tuple(_prices(largest)),
    )


def answer(found: Ownership) -> str:
    """The dearest arm and the cheapest in their first year, in a sentence; or why totals do not compare."""
    most = max(found.terms.variants)
    owned = [each for each in found.owned if each.variants == most and (each.once.lines or each.monthly.lines)]
    many = f"with {most} variants" if most > 1 else "with one variant"
    missing = list(owned[0].left_out)
    if any(set(each.left_out) != set(missing) for each in owned):
        return f"The totals {many} do not compare: each leaves out other items."
    usd = sorted((each.first_year_usd.low, words.name(each.arm)) for each in owned if each.first_year_usd)
    if len(usd) < len(owned):
        return f"Nothing of the first year {many} has both an amount and a price."
    without = f", without {_joined(missing)}" if missing else ""
    (least, cheap), (largest, dear) = usd[0], usd[-1]
    costs = f"In the first year {many}, {cheap} costs {_dollars(least)}"
    if least == largest:
        return f"{costs}{', as much as any other' if len(usd) > 1 else ''}{without}."
    share = 1 - least / largest
    less = f"{_dollars(largest - least)} ({f'{share:.0%}' if share >= 0.01 else 'under 1%'}) less"
    return f"{costs} and {dear} {_dollars(largest)}: {less}{without}."


def text(found: Ownership, width: int = MOST) -> str:
    """The section as plain text, at most so many columns wide where arms' names let it."""
    made, width = of(found), max(NARROW, min(width, MOST))
    wrap = lambda line: textwrap.fill(line, width, subsequent_indent="  ")  # noqa: E731
    lines = [wrap(f"What each arm costs to own, on {made.task}"), "", *_table(HEADS, made.totals), ""]
    lines += [f"Items with {made.variants} variants", *_item_lines(made.items), ""]
    lines += ["One more run", *_table(RUN_HEADS, made.runs), ""]
    lines += [wrap(made.answer), *(wrap(f"left out (*): {each}") for each in made.left_out)]
    lines += [wrap(f"energy of training: {each}") for each in made.energy]
    lines += [wrap(f"price: {each}") for each in made.prices] + [wrap(f"assumed: {each}") for each in made.assumed]
    return "\n".join(lines) + "\n"


def _totals(found: Ownership) -> Iterator[tuple[str, ...]]:
    for each in found.owned:
        usd = (each.once_usd, each.monthly_usd, each.first_year_usd)
        machines = "–" if each.machines is None else f"{each.machines}"
        marked = "*" if each.left_out else ""
        sums = ("–" if one is None else f"{_dollars(one.low)}{marked}" for one in usd)
        yield (words.name(each.arm), f"{each.variants}", *sums, machines)


def _items(owned: Owned) -> Iterator[tuple[str, ...]]:
    for bill in (owned.once, owned.monthly):
        for line in bill.lines:
            price = "–" if line.price is None else f"{line.price:.4g}"
            usd = "–" if line.usd is None else _dollars(line.usd.low)
            yield (words.name(owned.arm), f"{line.what}, {bill.name}", _amount(line), line.basis, price, usd)


def _runs(found: Ownership) -> Iterator[tuple[str, ...]]:
    for taken, run in zip(found.taken, found.iterations, strict=True):
        parts = (taken.cycle_s[name] for name in ("train", "export", "test"))
        times = (*(part and part.value for part in parts), run.seconds)
        kwh = "–" if taken.run_j is None else f"{taken.run_j.value / JOULES_PER_KWH:.2g} kWh"
        usd = "–" if run.usd is None else _dollars(run.usd.low)
        many = ("–" if each is None else f"{each:,.0f}" for each in (run.a_month, run.in_budget))
        yield (words.name(taken.arm), *("–" if s is None else span(s) for s in times), usd, kwh, *many)


def _amount(line: Line) -> str:
    if line.unit == "USD":
        return "–"
    unit = SHOWN.get(line.unit, line.unit)
    return f"{line.low:,.4g} {unit}{'' if line.low == 1 else 's'}"


def _left_out(owned: list[Owned]) -> Iterator[str]:
    """Items with the same reason in one line, and whose they are unless they are every arm's."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in owned:
        for what, why in each.left_out.items():
            found.setdefault((what, why), []).append(words.name(each.arm))
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (what, why), arms in found.items():
        together.setdefault((why, tuple(arms)), []).append(what)
    for (why, arms), items in together.items():
        whose = "" if len(arms) == len(owned) else f" of {_joined(arms)}"
        yield f"{_joined(items)}{whose}: {why}"


def _prices(owned: list[Owned]) -> Iterator[str]:
    lines = (line for each in owned for bill in (each.once, each.monthly) for line in _priced(bill))
    said = (f"{line.price:.4g} USD a {SHOWN.get(line.unit, line.unit)}: {_source(line)}" for line in lines)
    return iter(dict.fromkeys(said))


def _priced(bill: Bill) -> Iterator[Line]:
    return (line for line in bill.lines if line.price is not None)


def _source(line: Line) -> str:
    return words.clean(", ".join(part for part in (line.source, line.where, line.date) if part))


def _dollars(usd: float) -> str:
    return f"${usd:,.2f}" if usd >= 1000 else words.dollars(usd)


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _table(heads: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Columns as wide as they need; the first is of text, the others of numbers."""
    wide = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    for first, *others in (heads, *rows):
        numbers = "  ".join(f"{cell:>{size}}" for cell, size in zip(others, wide[1:], strict=True))
        yield f"{first:<{wide[0]}}  {numbers}"


def _item_lines(rows: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    arm = None
    for name, what, amount, basis, _, usd in rows:
        if name != arm:
            arm = name
            yield name
        yield f"  {what:<25} {amount:>22}  {basis:<9} {usd:>12}".rstrip()
