"""The lab checks itself: planted truth on the user's machine, in under a minute, before anyone believes a verdict.

Whole studies on the simulator (`simulated`), with truths that the statistics do not assume, and differences drawn by
the thousand, through the interval and the verdict alone: how often is what they say false? Then the safeguards, each
shown the fault that it is there for (`safeguards`). An allowed count is the binomial bound that a lab whose errors have
exactly their nominal rates exceeds with probability `FAMILY`, all rows taken together (Bonferroni).

It proves nothing of a user's data, margin or base, nor of what is rarer than these counts can show.
"""

import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Literal

import numpy as np
from scipy import stats as distributions

from tunetrial.analysis import stats, verdict
from tunetrial.core.evidence import Words
from tunetrial.core.records import Record
from tunetrial.trial import safeguards, simulated
from tunetrial.trial.pool import cores
from tunetrial.trial.simulated import Outcome, Planted, both

STUDIES = 200
ROWS = {"train": 16, "validation": 60, "test": 240}
TUNING_ROWS = {"train": 16, "validation": 40, "test": 800}
PART, MOST_PROCESSES = 5, 8
ALPHA, NOT_FOUND, FAMILY = 0.05, 0.2, 0.05
UNDECIDED: frozenset[Words] = frozenset({"CAN'T TELL YET", "NOT COMPARABLE"})

USUAL = {"seed_sd": 0.02}
EQUAL = {
    "equal arms": Planted(margin=0.05, **both(**USUAL)),
    "15 % of seeds collapse": Planted(margin=0.05, **both(**USUAL, collapse=0.15)),
    "10 % of runs diverge": Planted(margin=0.05, **both(**USUAL, failure=0.1)),
    "high rates collapse or diverge": Planted(margin=0.05, full={**USUAL, "cliff": 0.4}, lora={**USUAL, "brink": 0.6}),
    "one arm's seeds 10 x as far apart": Planted(margin=0.05, full={"seed_sd": 0.04}, lora={"seed_sd": 0.004}),
    "rows in clusters": Planted(margin=0.05, world={"cluster": 0.3, "item": 0.3}, **both(**USUAL)),
    "numbers (MAE)": Planted(task="regress", margin=0.15, **both(quality=1.0, seed_sd=0.03)),
}
# Few rows to tune on, and finals that show much: here what tuning loses is most of what an interval has to allow for.
TUNING = {
    "equal arms, tuned on few rows": Planted(
        margin=0.05, world={"interaction": 0.0}, **both(seed_sd=0.005, curvature=0.06)
    )
}
AT_MARGIN = {
    "worse by the margin": Planted(margin=0.05, full={**USUAL, "quality": 0.85}, lora=USUAL),
    "better by the margin": Planted(margin=0.05, full=USUAL, lora={**USUAL, "quality": 0.85}),
}
BEYOND = {
    "worse by three margins": Planted(margin=0.05, full={**USUAL, "quality": 0.9}, lora={**USUAL, "quality": 0.75}),
    "better by three margins": Planted(margin=0.05, full={**USUAL, "quality": 0.75}, lora={**USUAL, "quality": 0.9}),
}
KINDS = EQUAL | TUNING | AT_MARGIN | BEYOND
SHARES = {
    kind: share for kinds, share in ((EQUAL, 0.08), (TUNING, 0.24), (AT_MARGIN, 0.06), (BEYOND, 0.04)) for kind in kinds
}

DRAWS, DRAWS_A_PART = 10_000, 500
LOOKS, EXAMPLES = (5, 10), 40
SEED_SD, EXAMPLE_SD, REST_SD, MARGIN = 1.0, 0.3, 2.0, 1.0

Part = Literal["verdicts", "tuning", "intervals", "power", "training", "ledger", "storage"]
DISTRUST: dict[Part, str] = {
    "verdicts": "the words of verdicts",
    "tuning": "verdicts at tuned learning rates",
    "intervals": "intervals",
    "power": "CAN'T TELL YET, where it should tell",
    "training": "what is trained on this machine",
    "ledger": "the fairness ledger",
    "storage": "results as they are kept",
}


class Finding(Record):
    """One row: what was planted or counted, what was found, what is allowed, and whether that holds.

    A counted row has `count` of `of`, at most `most` of them allowed at the nominal rate `nominal`; a row that is told
    and not judged has no `most` and no `holds`.
    """

    part: Part
    what: str
    found: str
    allowed: str
    holds: bool | None
    count: int | None = None
    of: int | None = None
    nominal: float | None = None
    most: int | None = None


class Tally(Record):
    """What the whole studies of one kind came to: false directions and sizes, intervals that left the truth out of
    those that there were, and words."""

    studies: int
    false_direction: int
    false_size: int
    intervals: int
    missed: int
    words: dict[str, int]


class SelfCheck(Record):
    """What a self-check found, in rows; `kinds` tells the counts of whole studies by what was planted."""

    studies: int
    seed: int
    version: str
    findings: tuple[Finding, ...]
    kinds: dict[str, Tally]

    @property
    def failed(self) -> tuple[Part, ...]:
        """The parts not to be trusted, in the order of the rows."""
        return tuple(dict.fromkeys(finding.part for finding in self.findings if finding.holds is False))

    def __str__(self) -> str:
        """The table, 80 columns wide, and a sentence."""
        rows = [(f"{self.studies} studies, seed {self.seed}", "found", "allowed", "")]
        rows += [(f.what, f.found, f.allowed, {True: "ok", False: "NO", None: ""}[f.holds]) for f in self.findings]
        lines = [f"{what:<42} {_short(found):>14}  {allowed:<17} {ok}".rstrip() for what, found, allowed, ok in rows]
        reasons = [f"{f.what}: {f.found}" for f in self.findings if f.holds is False and _short(f.found) != f.found]
        return "\n".join([*lines, "", *reasons, self.sentence])

    @property
    def sentence(self) -> str:
        """What it comes to."""
        if self.failed:
            return f"Do not trust {' or '.join(DISTRUST[part] for part in self.failed)} of this installation."
        return "All holds: on planted truth this installation errs no more often than it says."


def _short(found: str) -> str:
    return found if len(found) <= 14 else "see below"


@dataclass(frozen=True)
class Drawn:
    """Of differences drawn at random: how many verdicts on equal arms were BETTER or WORSE, how many on arms that
    differ by the margin were SAME or NOT WORSE, and how many intervals left the truth out."""

    draws: int
    false_direction: int
    false_size: int
    missed: int


def selfcheck(*, studies: int = STUDIES, seed: int = 0, processes: int | None = None) -> SelfCheck:
    """Check the lab. The counts are the same for the same seed, however many processes share the work.

    Args:
        studies: Whole simulated studies in all, by `SHARES` of every kind, at least one of each.
        processes: How many work side by side; one a core, `MOST_PROCESSES` at most, if not said; 1 for this one alone.
    """
    each = {kind: max(round(studies * share), 1) for kind, share in SHARES.items()}
    parts = [(kind, range(i, min(i + PART, count))) for kind, count in each.items() for i in range(0, count, PART)]
    jobs: list[Callable[[], object]] = [partial(judge_some, kind, numbers, seed) for kind, numbers in parts]
    jobs += [partial(draw, min(DRAWS_A_PART, DRAWS - i), (seed, i)) for i in range(0, DRAWS, DRAWS_A_PART)]
    with _at_work(jobs, processes or min(cores(), MOST_PROCESSES)) as done:
        guarded = (*safeguards.trained(seed), *safeguards.compared(seed))
        results = list(done)
    outcomes: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
    for (kind, _), result in zip(parts, results, strict=False):
        outcomes[kind] += result
    shown = (Finding(part=g.part, what=g.what, found=g.found, allowed=g.wanted, holds=g.holds) for g in guarded)
    return SelfCheck(
        studies=sum(each.values()),
        seed=seed,
        version=version("tunetrial"),
        findings=(*_counted(outcomes, results[len(parts) :]), *shown),
        kinds={kind: _tally(found) for kind, found in outcomes.items()},
    )


def _tally(found: list[Outcome]) -> Tally:
    missed = [o.missed for o in found if o.missed is not None]
    return Tally(
        studies=len(found),
        false_direction=sum(o.false_direction for o in found),
        false_size=sum(o.false_size for o in found),
        intervals=len(missed),
        missed=sum(missed),
        words=dict(Counter(o.verdict.words for o in found).most_common()),
    )


@contextmanager
def _at_work(jobs: list[Callable[[], object]], processes: int) -> Iterator[Iterable[object]]:
    """The jobs' results in order: by processes that are at work already, or made here when they are asked for."""
    if processes == 1:
        yield (job() for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_signals) as pool:
        futures: list[Future] = [pool.submit(job) for job in jobs]
        try:
            yield (future.result() for future in futures)
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C is for the process that asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def judge_some(kind: str, numbers: range, seed: int) -> list[Outcome]:
    """Carry out some whole studies of one kind."""
    planted, first = KINDS[kind], first_world(kind, seed)
    data = simulated.task_data(planted.task, TUNING_ROWS if kind in TUNING else ROWS)
    locked = simulated.lock(simulated.study(planted), data)
    return [simulated.judge(planted, first + number, data, locked) for number in numbers]


def first_world(kind: str, seed: int) -> int:
    """The number of a kind's first world, a million apart: studies of no two kinds or seeds share their luck, else
    counts over kinds would not be binomial."""
    return 1_000_000 * (1 + seed * len(KINDS) + list(KINDS).index(kind))


def draw(draws: int, seed: tuple[int, ...]) -> Drawn:
    """Judge differences drawn from the model that the interval assumes, in which seeds matter most: there the levels
    are exact, so that 10,000 draws show what a few hundred studies cannot."""
    rng = np.random.default_rng(seed)
    size = (draws, LOOKS[-1], EXAMPLES)
    diff_DRE = SEED_SD * rng.normal(size=(*size[:2], 1)) + EXAMPLE_SD * rng.normal(size=(draws, 1, EXAMPLES))
    diff_DRE += REST_SD * rng.normal(size=size)
    direction = false_size = missed = 0
    for number, diff_RE in enumerate(diff_DRE):
        estimates = [stats.crossed(diff_RE[:look]) for look in LOOKS]
        margin = -MARGIN if number % 2 else MARGIN
        direction += _last_verdict(estimates, 0.0).direction != "unresolved"
        at_margin = _last_verdict(estimates, margin)
        false_size += at_margin.size == "within" or (margin < 0 and at_margin.words == "NOT WORSE")
        low, high = estimates[-1].interval(1 - ALPHA)
        missed += not low <= 0 <= high
    return Drawn(draws, direction, false_size, missed)


def _last_verdict(estimates: list[stats.Estimate], truth: float) -> verdict.Verdict:
    """The verdict on a true effect of this size, at the look that settles it, else at the last."""
    for estimate in estimates:
        shifted = estimate.model_copy(update={"effect": estimate.effect + truth})
        [judged] = verdict.judge([verdict.by_margin(shifted, MARGIN)], alpha=ALPHA, looks=[LOOKS])
        if judged.words not in verdict.OPEN:
            break
    return judged


def _counted(outcomes: dict[str, list[Outcome]], drawn: list[Drawn]) -> list[Finding]:
    """The rows that are counts, with their bounds."""
    groups = (EQUAL, TUNING, AT_MARGIN, BEYOND)
    equal, tuned, at_margin, beyond = ([o for kind in group for o in outcomes[kind]] for group in groups)
    missed = [o.missed for found in outcomes.values() for o in found if o.missed is not None]
    wrong = sum(o.false_direction or o.false_size for o in beyond)
    unfound = sum(o.verdict.words not in ("BETTER", "WORSE") for o in beyond)
    draws = sum(one.draws for one in drawn)
    rows: list[tuple[Part, str, int, int, float]] = [
        ("verdicts", "equal arms called BETTER or WORSE", sum(o.false_direction for o in equal), len(equal), ALPHA),
        ("tuning", "the same, tuned on few rows", sum(o.false_direction for o in tuned), len(tuned), ALPHA),
        ("verdicts", "wrong about arms a margin apart", sum(o.false_size for o in at_margin), len(at_margin), ALPHA),
        ("verdicts", "wrong about arms three margins apart", wrong, len(beyond), ALPHA),
        ("power", "three margins not found", unfound, len(beyond), NOT_FOUND),
        ("intervals", "intervals without the truth", sum(missed), len(missed), ALPHA),
        ("verdicts", "drawn: equal, called BETTER or WORSE", sum(o.false_direction for o in drawn), draws, ALPHA),
        ("verdicts", "drawn: a margin apart, called SAME", sum(o.false_size for o in drawn), draws, ALPHA),
        ("intervals", "drawn: intervals without the truth", sum(o.missed for o in drawn), draws, ALPHA),
    ]
    found = [_bounded(*row, share=FAMILY / len(rows)) for row in rows]
    undecided = sum(o.verdict.words in UNDECIDED for o in equal)
    told = {"found": _ratio(undecided, len(equal)), "allowed": "told, no bound", "count": undecided, "of": len(equal)}
    return [*found, Finding(part="power", what="equal arms left undecided", holds=None, **told)]


def _bounded(part: Part, what: str, count: int, of: int, nominal: float, *, share: float) -> Finding:
    """A count beside the most that an error of exactly the nominal rate exceeds with no more than this probability."""
    most = int(distributions.binom.ppf(1 - share, of, nominal))
    shown = {"found": _ratio(count, of), "allowed": f"at most {most} ({100 * nominal:.0f} %)"}
    return Finding(part=part, what=what, **shown, holds=count <= most, count=count, of=of, nominal=nominal, most=most)


def _ratio(count: int, of: int) -> str:
    return f"{count} of {of:,}"
