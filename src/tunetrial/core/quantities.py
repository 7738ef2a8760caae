"""Numbers as people write them: "17 GB", "~56–84 GB", "99.6 %", "$10,247", "3x", "26.01 ± 0.18 ms", "<3%", "4K".

A number is known to half of its last written digit; after "~" trailing zeros are not written digits, and whole numbers
of things that are counted ("22 layers") are exact. Bytes, seconds,
dollars and degrees are units that do not mix; anything else that is counted (weights, steps, GPUs) has no unit. GB are
10**9 bytes, a month is 730 hours, B alone is a billion, a point is a hundredth.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Self

Dimensions = tuple[int, int, int, int]  # exponents of bytes, seconds, dollars, degrees
NONE: Dimensions = (0, 0, 0, 0)
_BYTES, _SECONDS, _USD, _DEGREES = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)
_HOUR = 3600.0
COUNTED = ("parameters", "params", "weights", "models", "steps", "examples", "samples", "rows", "layers", "epochs")
COUNTED += ("request", "requests", "token", "tokens", "seeds", "runs", "tasks", "methods", "variants")
TIMES, POINTS = ("x", "×", "times"), ("pt", "points")
_UNITS: dict[str, tuple[float, Dimensions]] = {
    **{f"{prefix}B": (1000.0**power, _BYTES) for power, prefix in enumerate("KMGTP", 1)},
    **{f"{prefix}iB": (1024.0**power, _BYTES) for power, prefix in enumerate("KMGTP", 1)},
    **dict.fromkeys(("byte", "bytes"), (1.0, _BYTES)),
    **dict.fromkeys(("bit", "bits"), (0.125, _BYTES)),
    "kB": (1e3, _BYTES),
    "us": (1e-6, _SECONDS),
    "ms": (1e-3, _SECONDS),
    **dict.fromkeys(("s", "sec", "second", "seconds"), (1.0, _SECONDS)),
    **dict.fromkeys(("min", "minute", "minutes"), (60.0, _SECONDS)),
    **dict.fromkeys(("h", "hour", "hours"), (_HOUR, _SECONDS)),
    **dict.fromkeys(("day", "days"), (24 * _HOUR, _SECONDS)),
    **dict.fromkeys(("week", "weeks"), (168 * _HOUR, _SECONDS)),
    **dict.fromkeys(("month", "months"), (730 * _HOUR, _SECONDS)),
    **dict.fromkeys(("year", "years"), (8760 * _HOUR, _SECONDS)),
    **dict.fromkeys(("USD", "dollar", "dollars"), (1.0, _USD)),
    **dict.fromkeys(("deg", "°", "degrees"), (1.0, _DEGREES)),
    **dict.fromkeys(("%", *POINTS), (0.01, NONE)),
    **dict.fromkeys((*TIMES, *COUNTED, "req", "GPU", "engineer"), (1.0, NONE)),
}
_TIMES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "Mi": 2.0**20}
_TIMES |= {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_FIGURE = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?|\.\d+"
_MANY = r"(?:\s?(?:thousand|million|billion|trillion|Mi|[kKMBT])(?![A-Za-z]))?"
_ROUGH = ("~", "≈", "about ", "around ", "roughly ", "approximately ", "nearly ", "almost ")
_BOUNDS = {"<": "<", "under ": "<", "less than ": "<", "fewer than ": "<", "at most ": "<=", "<=": "<=", "≤": "<="}
_BOUNDS |= {">": ">", "over ": ">", "more than ": ">", "at least ": ">=", ">=": ">=", "≥": ">=", "up to ": "up to"}
_RELATION = "|".join(sorted(map(re.escape, (*_ROUGH, *_BOUNDS, "=")), key=len, reverse=True))
_UNIT = r"\s?(?:%|°|×|[A-Za-z]+)(?:[-·/][A-Za-z]+)*"
SAID = re.compile(
    rf"(?P<relation>(?i:{_RELATION}))?\s*(?P<sign>[+−-])?(?P<dollar>\$)?(?P<low>{_FIGURE})(?P<low_many>{_MANY})"
    rf"(?:\s?(?:-|–|—|to)\s?[~≈]?(?P<minus>[−-])?\$?(?P<high>{_FIGURE})(?P<high_many>{_MANY}))?(?P<more>\+(?!\d))?"
    rf"(?P<unit>{_UNIT})?(?:\s?±\s?(?P<spread>{_FIGURE})(?P<spread_unit>{_UNIT})?)?"
)
_NO_MORE_THAN_NOISE = 1e-12


class UnitError(ValueError):
    """Numbers of units that do not go together."""


class Numeral(float):
    """A number of a file with its text: `2.50` is known to a digit more than `2.5`."""

    text: str

    @classmethod
    def of(cls, text: str) -> Self:
        number = cls(float(text) + 0.0)
        number.text = text
        return number


@dataclass(frozen=True)
class Quantity:
    """What lies between two ends, in bytes, seconds, dollars, degrees and their products; arithmetic is of intervals.

    An end is infinite where a bound was written, "<3%", or where a divisor reaches down to 0.

    Raises:
        UnitError: Units do not go together.
        ValueError: A divisor may be 0, or a result is not finite.
    """

    low: float
    high: float
    dimensions: Dimensions = NONE

    @classmethod
    def of(cls, *ends: float, dimensions: Dimensions = NONE) -> Self:
        if not all(math.isfinite(end) for end in ends):
            raise ValueError("the result is not a finite number")
        return cls(min(ends), max(ends), dimensions)

    @property
    def open(self) -> bool:
        return math.isinf(self.low) or math.isinf(self.high)

    @property
    def anything(self) -> bool:
        return math.isinf(self.low) and math.isinf(self.high)

    def __neg__(self) -> Self:
        return replace(self, low=-self.high, high=-self.low)

    def __add__(self, other: Self) -> Self:
        self.same(other)
        return self._made(self.low + other.low, self.high + other.high, dimensions=self.dimensions, of=(self, other))

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __mul__(self, other: Self) -> Self:
        products = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return self._made(*products, dimensions=self._joined(other, 1), of=(self, other))

    def __truediv__(self, other: Self) -> Self:
        noise = 0.0 if other.open else _NO_MORE_THAN_NOISE * max(abs(other.low), abs(other.high))
        ends = [end if abs(end) > noise else 0.0 for end in (other.low, other.high)]
        if ends[0] < 0 < ends[1] or not any(ends):
            raise ValueError("the divisor may be 0")
        beyond = math.inf if ends[1] > 0 else -math.inf
        ratios = [a / b if b else a * beyond for a in (self.low, self.high) for b in ends]
        bounded = () if 0.0 in ends else (self, other)
        return self._made(*ratios, dimensions=self._joined(other, -1), of=bounded)

    def __pow__(self, other: Self) -> Self:
        power = other.low
        if other.dimensions != NONE or other.low != other.high or power % 1 or not 0 <= power <= 12:
            raise ValueError("an exponent must be a whole number from 0 to 12")
        whole = int(power)
        ends = [self.low**whole, self.high**whole] + ([0.0] if self.low < 0 < self.high and whole % 2 == 0 else [])
        return self._made(*ends, dimensions=tuple(whole * part for part in self.dimensions), of=(self,))

    def same(self, other: Self) -> None:
        """Refuse what has another unit."""
        if self.dimensions != other.dimensions:
            raise UnitError(f"{unit_of(self.dimensions)} and {unit_of(other.dimensions)} do not go together")

    def _made(self, *ends: float, dimensions: Dimensions, of: tuple[Self, ...]) -> Self:
        """What ends come to; infinite only where a term is, or nothing bounds it. 0 times infinity is 0."""
        ends = tuple(0.0 if math.isnan(end) else end for end in ends)
        if of and not any(part.open for part in of):
            return self.of(*ends, dimensions=dimensions)
        return type(self)(min(ends), max(ends), dimensions)

    def _joined(self, other: Self, sign: int) -> Dimensions:
        return tuple(a + sign * b for a, b in zip(self.dimensions, other.dimensions, strict=True))


@dataclass(frozen=True)
class Said:
    """A number as written: its ends, how far each may be rounded, and whether it is a bound ("<", ">=", "up to")."""

    text: str
    value: Quantity
    slack: tuple[float, float]
    relation: str
    unit: str
    scale: float
    spread: Quantity | None = None

    @property
    def exact(self) -> Quantity:
        """What it stands for in a computation: a bound for all that it allows."""
        return self._opened(0.0, 0.0)

    @property
    def rounded(self) -> Quantity:
        """All that is written so."""
        return self._opened(*self.slack)

    @property
    def binary(self) -> Self:
        """The same with MB read as MiB, as many write it; itself in other units."""
        power = "KMGTP".find(self.unit[:1].upper()) + 1
        return self._times(1.024**power) if re.fullmatch("[kKMGTP]B", self.unit) else self

    @property
    def plain(self) -> Self:
        """The same with points read as numbers without a unit, as of scores out of 100; itself in other units."""
        return replace(self._times(100.0), scale=1.0) if self.unit in POINTS else self

    def show(self, found: Quantity) -> str:
        """A quantity in the unit of what was said."""
        unit = f" {self.unit}" if self.unit else ""
        if found.anything:
            return "any number"
        low, high = (figure(end / self.scale) if math.isfinite(end) else "" for end in (found.low, found.high))
        if found.open:
            return f"{low}{unit} and above" if low else f"{high}{unit} and below"
        return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"

    def _times(self, by: float) -> Self:
        value = replace(self.value, low=self.value.low * by, high=self.value.high * by)
        return replace(self, value=value, slack=(self.slack[0] * by, self.slack[1] * by))

    def _opened(self, below: float, above: float) -> Quantity:
        """Below a bound lie all numbers down to 0; below one of percentages or of 0, which may be negative, all."""
        low, high = self.value.low - below, self.value.high + above
        if self.relation in (">", ">="):
            high = math.inf
        elif self.relation != "=":
            low = 0.0 if self.value.low > 0 and self.unit not in ("%", *POINTS) else -math.inf
        return replace(self.value, low=low, high=high)


def read(text: str | int | float) -> Said:
    """Read a number as written, all of the text.

    Raises:
        ValueError: It is no such number, or its unit is not known.
    """
    written = f"{text}" if isinstance(text, str) else repr(text)
    match = SAID.fullmatch(written.strip())
    if match is None:
        raise ValueError(f"must be a number with a unit, got {written[:60]!r}; write it as in '17 GB', '3x' or '2-5 %'")
    return said_of(match)


def as_written(value: object) -> object:
    """A value, of a number of a file its text where `read` takes that: `7e9` is not known to ten digits."""
    if not isinstance(value, Numeral):
        return value
    return value.text if SAID.fullmatch(value.text) else float(value)


def said_of(match: re.Match[str]) -> Said:
    """What a match of `SAID` says.

    Raises:
        ValueError: Its unit is not known, or it is too large.
    """
    part = match.groupdict()
    name = (part["unit"] or (not part["dollar"] and part["spread_unit"]) or "").strip().replace("·", "-")
    name = f"USD{name}" if part["dollar"] else name
    scale, dimensions = unit(name)
    relation = (part["relation"] or "").lower()
    rough = relation in _ROUGH
    lows = _figure(part["low"], part["low_many"], rough)
    highs = _figure(part["high"], part["high_many"], rough) if part["high"] else lows
    if part["high"] and not part["low_many"]:  # "1-5M", but not "500-1K"
        shared = _figure(part["low"], part["high_many"], rough)
        lows = shared if shared[0] <= highs[0] else lows
    if name in COUNTED and not rough and not (part["low_many"] or part["high_many"]):
        lows, highs = ((number, 0.0 if number == int(number) else half) for number, half in (lows, highs))
    low = -lows[0] * scale if part["sign"] in ("-", "−") else lows[0] * scale
    high = low if not part["high"] else -highs[0] * scale if part["minus"] else highs[0] * scale
    low, high, slack = (low, high, (lows[1], highs[1])) if low <= high else (high, low, (highs[1], lows[1]))
    bound = _BOUNDS.get(relation, ">=" if part["more"] else "=")
    value = Quantity.of(low, high, dimensions=dimensions)
    ends = (slack[0] * scale, slack[1] * scale)
    return Said(match[0].strip(), value, ends, bound, name, scale, _spread(part, name, value))


def _spread(part: dict[str, str | None], name: str, value: Quantity) -> Quantity | None:
    """What stands after "±", in its own unit: a percentage of anything else is a share of the number."""
    if not part["spread"]:
        return None
    scale, dimensions = unit(own := (part["spread_unit"] or name).strip().replace("·", "-"))
    size = _figure(part["spread"], "", False)[0] * scale
    if own == "%" and name != "%":
        return Quantity.of(size * max(abs(value.low), abs(value.high)), dimensions=value.dimensions)
    spread = Quantity.of(size, dimensions=dimensions)
    spread.same(value)
    return spread


def unit(name: str) -> tuple[float, Dimensions]:
    """What a unit is in bytes, seconds and dollars: `GB-month`, `USD/GB-month`, `req/s`; after a slash all divides.

    Raises:
        ValueError: It is not known.
    """
    scale, dimensions, sign = 1.0, NONE, 1
    for mark, part in re.findall(r"([-/]?)([^-/]+)", name):
        if part not in _UNITS:
            raise ValueError(f"must have a known unit, got {name!r}; use one such as GB, h, USD/GB-month, % or x")
        sign = -1 if mark == "/" else sign
        size, own = _UNITS[part]
        scale *= size**sign
        dimensions = tuple(a + sign * b for a, b in zip(dimensions, own, strict=True))
    return scale, dimensions


def unit_of(dimensions: Dimensions) -> str:
    """Dimensions in words: `bytes·s`, `USD/s`."""
    names = ("bytes", "s", "USD", "degrees")
    over = [name for name, power in zip(names, dimensions, strict=True) for _ in range(power)]
    under = [name for name, power in zip(names, dimensions, strict=True) for _ in range(-power)]
    if not over and not under:
        return "a plain number"
    return "·".join(over or ["1"]) + "".join(f"/{name}" for name in under)


def figure(value: float) -> str:
    """A number in at most six digits, whole ones in full."""
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e15:
        digits = max(0, 5 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{min(digits, 6)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.4g}"


def _figure(text: str, many: str, rough: bool) -> tuple[float, float]:
    """A written number and half of its last digit."""
    plain, _, power = text.replace(",", "").lower().partition("e")
    times = _TIMES[(many or "").strip()] * float(f"1e{power or 0}")
    decimals = len(plain.partition(".")[2])
    zeros = len(plain) - len(plain.rstrip("0")) if rough and not decimals and plain.strip("0") else 0
    value = float(plain) * times
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {text[:40]!r}; write a smaller one")
    return value, 0.5 * 10.0 ** (zeros - decimals) * times
