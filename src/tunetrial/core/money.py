"""What a study costs: amounts whose units are types, prices that name their source, bills by arm.

An amount has the unit that its type says and goes with prices a unit of the same kind alone, so that a GB-month is
never charged by the hour. What has no price has no cost: it is named, and the total of its bill is absent, never 0.
Estimated costs are ranges; the ends of a total are the sums of the ends.
"""

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tunetrial.core.errors import ConfigError
from tunetrial.core.records import Record
from tunetrial.core.speed import Range

HOURS_PER_MONTH = 730.0  # a twelfth of 365 days, as cloud bills reckon
GB_BYTES = 10**9

Basis = Literal["measured", "estimated", "given"]
Unit = Literal["GPU-hour", "engineer-hour", "GB-month", "GB-hour", "request", "input token", "output token"]


class Source(Record):
    """Who says so, where, and the day on which it was read, or noted from memory; None for what the user gave."""

    text: str
    address: str | None = None
    date: str | None

    @property
    def confirmed(self) -> bool:
        """Whether it was found on a public page or in a public table, and is not from memory."""
        return "from memory" not in self.text

    def __str__(self) -> str:
        return ", ".join(part for part in (self.text, self.address, self.date) if part)


class Price(Record):
    """US dollars a unit, and whose: `given` by the user, or a default of a day that has passed.

    A GB of storage is `gb_bytes` in the provider's bills. Prices are without tax, transfer and volume discounts.
    """

    usd: float
    unit: Unit
    kind: Literal["given", "dated default"]
    provider: str
    what: str
    region: str | None = None
    gb_bytes: int | None = None
    source: Source

    def __str__(self) -> str:
        if self.kind == "given":
            return f"{self.usd:.4g} USD a {self.unit} ({self.source})"
        place = f", {self.region}" if self.region else ""
        doubt = "" if self.source.confirmed else ", from memory"
        return f"{self.usd:.4g} USD a {self.unit} ({self.provider} {self.what}{place}, {self.source.date}{doubt})"


class Amount(Record):
    """How much of one unit, from `low` to `high`; known exactly where they are equal.

    Only its leaves are used. Two of one type add up, a number scales; all else is a TypeError.

    Raises:
        ConfigError: An end is negative or no number, or `high` is below `low`.
    """

    unit: ClassVar[str]
    low: float = Field(allow_inf_nan=True)
    high: float = Field(allow_inf_nan=True)

    @classmethod
    def of(cls, low: float, high: float | None = None) -> Self:
        """So much, or from so much to so much."""
        return cls(low=low, high=low if high is None else high)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if not 0 <= self.low <= self.high < math.inf:
            ends = f"{self.low:g} to {self.high:g}"
            raise ConfigError(f"{self.unit}: no amount, got {ends}; give 0 or more, the lower end first")
        return self

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return type(self)(low=self.low + other.low, high=self.high + other.high)

    def __mul__(self, times: float) -> Self:
        if isinstance(times, Amount):
            return NotImplemented
        return type(self)(low=self.low * times, high=self.high * times)

    def __str__(self) -> str:
        ends = f"{self.low:,.4g}" if self.low == self.high else f"{self.low:,.4g} to {self.high:,.4g}"
        return f"{ends} {self.unit}"


class Usd(Amount):
    """US dollars."""

    unit = "USD"

    def __str__(self) -> str:
        return f"${self.low:,.2f}" if self.low == self.high else f"${self.low:,.2f} to ${self.high:,.2f}"


class GpuHours(Amount):
    """Hours of one GPU; of a machine of several, their sum."""

    unit = "GPU-hour"


class EngineerHours(Amount):
    """Hours of one person."""

    unit = "engineer-hour"


class GbMonths(Amount):
    """Gigabytes kept, times months."""

    unit = "GB-month"


class GbHours(Amount):
    """Gigabytes held in memory, times hours."""

    unit = "GB-hour"


class Requests(Amount):
    """Requests answered."""

    unit = "request"


class InputTokens(Amount):
    """Tokens of prompts."""

    unit = "input token"


class OutputTokens(Amount):
    """Tokens of completions."""

    unit = "output token"


class Line(Record):
    """One line of a bill: an amount, its price, and the cost; price and cost are None where no price is known.

    `basis` says how the amount is known, `source` whose price it is, `where` and `date` where the price was read.
    """

    what: str
    low: float
    high: float
    unit: str
    basis: Basis
    price: float | None
    usd: Usd | None
    source: Literal["given", "dated default"] | None
    where: str | None
    date: str | None


class Bill(Record):
    """What an arm costs, or what all arms share."""

    name: str
    lines: tuple[Line, ...]

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Lines without a price."""
        return tuple(line.what for line in self.lines if line.usd is None)

    @property
    def usd(self) -> Usd | None:
        """The whole; None where a line has no price, or there is none."""
        if self.unpriced or not self.lines:
            return None
        return total(line.usd for line in self.lines)


class Account(Record):
    """The bills of a study and the money there is for it."""

    bills: tuple[Bill, ...]
    budget: Usd | None = None

    @property
    def usd(self) -> Usd | None:
        """The study's cost; None where a bill has no total."""
        if any(bill.usd is None for bill in self.bills) or not self.bills:
            return None
        return total(bill.usd for bill in self.bills)

    @property
    def fits(self) -> Literal["yes", "no", "perhaps"] | None:
        """Whether the whole is within the budget at both ends of its range; None without a total or a budget.

        What is priced may exceed the budget by itself: then it does not fit, whatever else it takes.
        """
        if self.budget is None:
            return None
        known = [line.usd for bill in self.bills for line in bill.lines if line.usd is not None]
        if known and total(known).low > self.budget.high:
            return "no"
        if self.usd is None:
            return None
        return "yes" if self.usd.high <= self.budget.low else "perhaps"

    def __str__(self) -> str:
        """A table of at most 100 columns, the sources of the prices below it."""
        rows = [row for bill in self.bills for row in _rows(bill)]
        said = dict.fromkeys(_source(line) for bill in self.bills for line in bill.lines if line.source)
        whole = "not known: a price is missing" if self.usd is None else str(self.usd)
        budget = f", budget {self.budget}: {self.fits or 'not known'}" if self.budget else ""
        return "\n".join([*rows, f"in all {whole}{budget}", *(f"  price: {each}" for each in said)])


def given(usd: float, unit: Unit, *, where: str) -> Price:
    """A price of the user's; a GB is 10**9 bytes.

    Raises:
        ConfigError: It is negative or not a number.
    """
    if not 0 <= usd < math.inf:
        raise ConfigError(f"{where}: not a price, got {usd}; give US dollars, 0 or more")
    size = 10**9 if unit.startswith("GB") else None
    said = Source(text=where, date=None)
    return Price(usd=usd, unit=unit, kind="given", provider="you", what="given", gb_bytes=size, source=said)


def cost(amount: Amount, price: Price) -> Usd:
    """What an amount costs at a price.

    Raises:
        ConfigError: The price is for another unit.
    """
    if price.unit != amount.unit:
        raise ConfigError(f"price: for a {price.unit}, got an amount in {amount.unit}; give a price a {amount.unit}")
    return Usd.of(amount.low * price.usd, amount.high * price.usd)


def line(what: str, amount: Amount, price: Price | None, *, basis: Basis) -> Line:
    """A line of a bill; dollars are their own cost, anything else without a price has none.

    Raises:
        ConfigError: The price is for another unit.
    """
    own = amount if isinstance(amount, Usd) else None
    head = {"what": what, "low": amount.low, "high": amount.high, "unit": amount.unit, "basis": basis}
    if price is None:
        return Line(**head, price=None, usd=own, source=None, where=None, date=None)
    usd, source = cost(amount, price), price.source
    where = ", ".join(part for part in (source.text, source.address) if part)
    return Line(**head, price=price.usd, usd=usd, source=price.kind, where=where, date=source.date)


def compute(seconds: Mapping[str, Range], price: Price | None, *, basis: Basis, gpus: int = 1) -> tuple[Line, ...]:
    """Lines of what runs on a machine of so many GPUs: "tuning", "finals", "evaluation", each by its seconds.

    Raises:
        ConfigError: The price is not one of a GPU's hour.
    """
    hours = {what: GpuHours.of(ends.low * gpus / 3600, ends.high * gpus / 3600) for what, ends in seconds.items()}
    return tuple(line(what, amount, price, basis=basis) for what, amount in hours.items())


def kept(variant_bytes: int, *, variants: int, months: float, shared_bytes: int = 0, price: Price | None) -> GbMonths:
    """Storage of variants for some months: full copies, or adapters beside the one base that they share.

    A gigabyte is what the price's provider bills as one, 10**9 bytes without a price.
    """
    size = shared_bytes + variants * variant_bytes
    return GbMonths.of(size * months / ((price and price.gb_bytes) or GB_BYTES))


def held(memory_bytes: int, *, hours: float) -> GbHours:
    """Memory that is paid by the gigabyte (10**9 bytes) and hour."""
    return GbHours.of(memory_bytes * hours / GB_BYTES)


def always_on(*, months: float, gpus: int = 1) -> GpuHours:
    """Serving on GPUs that are never switched off, by months of 730 hours."""
    return GpuHours.of(months * HOURS_PER_MONTH * gpus)


def served(requests: Requests, *, prompt: float, completion: float) -> tuple[InputTokens, OutputTokens]:
    """Tokens in and out of so many requests, of prompts and completions of these mean lengths in tokens."""
    ends = requests.low, requests.high
    return InputTokens.of(*(end * prompt for end in ends)), OutputTokens.of(*(end * completion for end in ends))


def total(parts: Iterable[Usd]) -> Usd:
    """The sum; of nothing, nothing."""
    return sum(parts, start=Usd.of(0))


def _rows(bill: Bill) -> list[str]:
    whole = "a price is missing" if bill.usd is None else str(bill.usd)
    rows = [f"{bill.name[:60]:<60} {whole:>38}"]
    for each in bill.lines:
        ends = f"{each.low:,.4g}" if each.low == each.high else f"{each.low:,.4g} to {each.high:,.4g}"
        price = "no price" if each.price is None else f"at {each.price:,.4g}"
        usd = "" if each.usd is None else str(each.usd)
        amount = f"{ends} {each.unit} ({each.basis})" + ("" if each.unit == "USD" else f" {price}")
        rows.append(f"  {each.what[:24]:<24} {amount[:48]:<48} {usd:>24}")
    return rows


def _source(each: Line) -> str:
    return ", ".join(part for part in (each.source, each.where, each.date) if part)
