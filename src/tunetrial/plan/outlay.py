"""What a study takes of a machine, and what that costs: seconds by arm and stage, wall time, sessions, money."""

from collections.abc import Mapping

from tunetrial.core.errors import ConfigError, DoesNotFitError
from tunetrial.core.money import Account, Bill, Price, Usd, compute
from tunetrial.core.prices import Hardware
from tunetrial.core.records import Record, added
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Lock
from tunetrial.plan import catalogue
from tunetrial.plan.duration import sessions, start_up
from tunetrial.plan.timing import CHECKPOINT_EVERY_S, Timed, Trials

# Steps that a probe takes: 24 on a CPU; on a GPU until they have settled, 44 to 224 (`engine.probe`).
PROBE_STEPS = {"cpu": exactly(24), "cuda": Range(low=44, high=224, likely=44)}


class Stages(Record):
    """Seconds of an arm's trials, one after the other: search, finals, and evaluation in both; all of a ladder; and
    what is looked at in finals besides."""

    tuning_s: Range
    finals_s: Range
    evaluation_s: Range
    ladder_s: Range = added(exactly(0))
    observing_s: Range = added(exactly(0))

    @property
    def seconds(self) -> Range:
        """All of it."""
        return self.tuning_s + self.finals_s + self.evaluation_s + self.ladder_s + self.observing_s

    def __add__(self, other: "Stages") -> "Stages":
        return Stages(**{name: getattr(self, name) + getattr(other, name) for name in Stages.model_fields})


class Time(Record):
    """How long a study takes. `step_s` are seconds of an optimiser step by arm and task, in a pack a member's share,
    and `arms` what each arm takes in all. `wall_s` is from the first trial to the last record, trials side by side on
    a CPU, probes and starting up included; on a GPU, which they share, side by side is at best faster.

    `rough` arms were not counted. `sessions` says how many of a free machine's that makes.
    """

    step_s: dict[str, dict[str, Range]]
    arms: dict[str, Stages]
    wall_s: Range
    rough: tuple[str, ...] = ()
    sessions: str | None = None

    @property
    def stages(self) -> Stages:
        """Those of all arms."""
        none = Stages(tuning_s=exactly(0), finals_s=exactly(0), evaluation_s=exactly(0))
        return sum(self.arms.values(), none)


def time_of(
    lock: Lock,
    counts: Mapping[tuple[str, str], Trials],
    each: Mapping[tuple[str, str], Timed],
    *,
    device: str,
    workers: int,
    base_bytes: float,
) -> Time:
    """Add up what trials take."""
    arms: dict[str, Stages] = {}
    for (task, arm), one in each.items():
        stages = _stages(counts[task, arm], one)
        arms[arm] = arms[arm] + stages if arm in arms else stages
    steps: dict[str, dict[str, Range]] = {}
    for (task, arm), one in each.items():
        if one.step_s is not None:
            steps.setdefault(arm, {})[task] = one.step_s
    time = Time(
        step_s=steps,
        arms=arms,
        wall_s=exactly(0),
        rough=tuple(dict.fromkeys(arm for (_, arm), one in each.items() if one.rough)),
    )
    begun = start_up(device, base_bytes)
    wall = _side_by_side(time.stages.seconds, each, device, workers) + begun + _probes(each, device, begun)
    return time.model_copy(update={"wall_s": wall, "sessions": _sessions(lock, wall, begun)})


def account(lock: Lock, time: Time) -> Account | None:
    """What the study's time costs by arm; None where the user gives no price and none is known of the named GPU.

    Hours are of the machine's wall time, of which every arm has its share.
    """
    price = price_of(lock.study.hardware)
    if price is None:
        return None
    whole, budget = time.stages.seconds, lock.study.budget.usd
    shares = {
        arm: {
            "tuning": _part(stages.tuning_s, whole, time.wall_s),
            "finals": _part(stages.finals_s, whole, time.wall_s),
            "evaluation": _part(stages.evaluation_s, whole, time.wall_s),
            **({"ladder": _part(stages.ladder_s, whole, time.wall_s)} if stages.ladder_s.high else {}),
            **({"observing": _part(stages.observing_s, whole, time.wall_s)} if stages.observing_s.high else {}),
        }
        for arm, stages in time.arms.items()
    }
    bills = tuple(Bill(name=arm, lines=compute(parts, price, basis="estimated")) for arm, parts in shares.items())
    return Account(bills=bills, budget=None if budget is None else Usd.of(budget))


def price_of(hardware: Hardware) -> Price | None:
    """The user's price of an hour, else a dated one of the GPU that is named, if any is known."""
    if hardware.usd_per_hour is not None:
        return catalogue.given(hardware.usd_per_hour, "GPU-hour", where="hardware.usd_per_hour")
    place = hardware.gpu and catalogue.find(hardware.gpu)
    try:
        return catalogue.rate(place, hardware) if place else None
    except ConfigError:
        return None


def _stages(trials: Trials, one: Timed) -> Stages:
    trained = [part.prepare_s + part.train_s + part.save_s for part in (trials.searched(one.tune), one.final)]
    return Stages(
        tuning_s=trials.tuning * trained[0],
        finals_s=trials.finals * trained[1],
        evaluation_s=trials.tuning * one.tune.evaluate_s + trials.finals * one.final.evaluate_s,
        ladder_s=trials.laddered(one.tune).seconds,
        observing_s=trials.finals * one.final.observe_s,
    )


def _side_by_side(total: Range, each: Mapping[tuple[str, str], Timed], device: str, workers: int) -> Range:
    """Wall time of all trials: at worst the longest begins last (Graham 1966), or on a GPU there is nothing gained."""
    if device != "cpu":
        return total.model_copy(update={"low": total.low / workers})
    longest = max(one.final.seconds.high for one in each.values())
    likely = None if total.likely is None else total.likely / workers
    return Range(low=total.low / workers, high=total.high / workers + longest * (1 - 1 / workers), likely=likely)


def _probes(each: Mapping[tuple[str, str], Timed], device: str, begun: Range) -> Range:
    """One of every arm and task, alone on the machine, in a process of its own."""
    steps = PROBE_STEPS["cpu" if device == "cpu" else "cuda"]
    taken = (begun + one.tune.evaluate_s + steps * (one.step_s or exactly(0)) for one in each.values())
    return sum(taken, exactly(0))


def _part(part: Range, whole: Range, wall: Range) -> Range:
    """A part of what trials take one after the other, as so much of the wall time."""
    of = lambda a, b, c: a / b * c if b else 0.0  # noqa: E731
    low, high = of(part.low, whole.low, wall.low), of(part.high, whole.high, wall.high)
    return Range(low=min(low, high), high=max(low, high))


def _sessions(lock: Lock, wall: Range, begun: Range) -> str | None:
    """How many sessions of a free machine, where the study names one."""
    place = lock.study.hardware.gpu and catalogue.find(lock.study.hardware.gpu)
    if not place or place.tier is None:
        return None
    limit_s = place.tier.session_h * 3600
    try:
        few, most = (sessions(end, limit_s, resume_s=begun.high + CHECKPOINT_EVERY_S) for end in (wall.low, wall.high))
    except DoesNotFitError as error:
        return f"{place.tier.title}: {error}"
    count = f"{few}" if few == most else f"{few} to {most}"
    return f"{count} of at most {place.tier.session_h:g} h ({place.tier.title}, {place.tier.source})"
