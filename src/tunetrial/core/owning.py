"""What an arm costs to own: what it was measured to take, on what terms it is used, and the bills that follow."""

from pydantic import Field

from tunetrial.core.money import HOURS_PER_MONTH, Basis, Bill, Price, Usd, total
from tunetrial.core.prices import Budget
from tunetrial.core.records import Record


class Figure(Record):
    """A number, its unit, how it is known, and in words from what."""

    value: float
    unit: str
    basis: Basis
    of: str


class Taken(Record):
    """What one arm takes, on the study's primary task; a figure that nothing measured is None.

    `shares_base`: its variants lie beside one base, as adapters do; else each is a whole model. `tuning_s`, `finals_s`
    and `evaluation_s` are machine seconds of all its runs; what was looked at in finals besides their answers is not in
    them. `cycle_s` are seconds of one more run, alone on the machine: "train" (loading included), "export" (saving),
    "deploy" (from files to answering), "test" (validation and test rows); None where one of them was not measured.
    `run_s` are train and test seconds of each final, by seed. `swap_s` is from one variant to another. `run_j` is the
    energy of one more run's training, by the GPU's own counter where there is one.

    `artifact_bytes` is what a variant takes on the disk, `base_bytes` the base beside it; `resident_bytes` and
    `resident_base_bytes` are the same in memory, weights alone. `alone_per_s` are requests a second of one variant,
    `together_per_s` of several in one process.
    """

    arm: str
    shares_base: bool
    machine: str | None
    tuning_s: Figure | None
    finals_s: Figure | None
    evaluation_s: Figure | None
    cycle_s: dict[str, Figure | None]
    run_s: dict[int, float]
    swap_s: Figure | None
    run_j: Figure | None
    artifact_bytes: Figure | None
    base_bytes: Figure | None
    resident_bytes: Figure | None
    resident_base_bytes: Figure | None
    alone_per_s: Figure | None
    together_per_s: Figure | None

    @property
    def iteration_s(self) -> float | None:
        """Machine seconds of one more run: train, export and test; None where one of them was not measured."""
        parts = [self.cycle_s[name] for name in ("train", "export", "test")]
        return None if None in parts else sum(part.value for part in parts)


class Terms(Record):
    """On what terms arms are owned: volumes as declared, and prices; None is not declared, or not known.

    `requests_per_month` are those of all variants together; each variant is trained again `retrainings_per_month` times
    a month. Serving is paid by the request if that has a price, else by memory and hour if that has one, else by hours
    of machines, each with `room_bytes` for weights. `on_machine` says whether the price of an hour is that of the
    machine that measured. `budget` is the study's.
    """

    variants: tuple[int, ...] = Field(min_length=1)
    requests_per_month: float | None = None
    retrainings_per_month: float | None = None
    hours_per_month: float = HOURS_PER_MONTH
    engineer_hours: float | None = None
    other_usd: float | None = None
    gpu_hour: Price | None = None
    gb_hour: Price | None = None
    gb_month: Price | None = None
    engineer_hour: Price | None = None
    request: Price | None = None
    room_bytes: float | None = None
    on_machine: bool = True
    budget: Budget = Budget()


class Owned(Record):
    """What so many variants of an arm cost: `once`, and every month. `left_out` are items without amount or price, with
    the reason: no total has them. `machines` is how many serve."""

    arm: str
    variants: int
    once: Bill
    monthly: Bill
    machines: int | None
    left_out: dict[str, str]

    @property
    def once_usd(self) -> Usd | None:
        """What is paid once, but for what is left out; None where nothing of it is known."""
        return _known(self.once)

    @property
    def monthly_usd(self) -> Usd | None:
        """What is paid every month, likewise."""
        return _known(self.monthly)

    @property
    def first_year_usd(self) -> Usd | None:
        """Once and twelve months, likewise."""
        year = self.monthly_usd and self.monthly_usd * 12
        parts = [part for part in (self.once_usd, year) if part is not None]
        return total(parts) if parts else None


class Iteration(Record):
    """One more run of an arm, trained, saved and tested: machine seconds, its cost, how many of them a machine makes in
    a month without a pause, and how many the study's budget pays for; None where it is not known."""

    arm: str
    seconds: float | None
    usd: Usd | None
    a_month: float | None
    in_budget: float | None


class Ownership(Record):
    """Every arm at every number of variants, one more run of each, what it follows from, and in sentences what is
    assumed."""

    task: str
    terms: Terms
    taken: tuple[Taken, ...]
    owned: tuple[Owned, ...]
    iterations: tuple[Iteration, ...]
    assumed: tuple[str, ...]

    def of(self, arm: str, variants: int) -> Owned:
        """One arm at one number of variants; KeyError if it was not reckoned."""
        for each in self.owned:
            if (each.arm, each.variants) == (arm, variants):
                return each
        raise KeyError((arm, variants))


def _known(bill: Bill) -> Usd | None:
    costs = [line.usd for line in bill.lines if line.usd is not None]
    return total(costs) if costs else None
