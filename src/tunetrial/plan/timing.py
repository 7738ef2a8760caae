"""How long a study's trials take: how many there are, what each computes, and how fast the device is.

What an arm's trial computes is counted (`core.work.Counted`) and becomes seconds by the device's speed (`plan.speed`),
corrected by what finished trials showed. A step's time is taken to be linear in its tokens between the fullest step and
the least. Where a trial cannot be counted, or nothing is known of the device in its precision, it is 6 operations a
weight and token at what devices reach (`plan.estimate`), which makes ranges of one to two orders of magnitude.

Left out: waits for the disk beyond checkpoints and artifacts, and what trials side by side take from each other, but
for what earlier trials showed of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tunetrial import methods
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import TaskData
from tunetrial.core.pins import VARIANT
from tunetrial.core.speed import Observed, Range, Speed, exactly
from tunetrial.core.study import Arm, Lock, TaskSpec
from tunetrial.core.work import Counted, Kernel
from tunetrial.models import ModelShape
from tunetrial.plan import estimate
from tunetrial.plan.duration import Duration, decoding, duration, moving, total
from tunetrial.plan.estimate import Sizes
from tunetrial.plan.halving import COMPLETED, SHARE
from tunetrial.plan.ladder import step_shares
from tunetrial.plan.machine import first_and_last
from tunetrial.plan.observing import observing
from tunetrial.plan.speed import corrected, correction
from tunetrial.plan.speed import seconds as seconds_of
from tunetrial.plan.tuning import CONFIRMED_POINTS, grid

# Attaching, reading rows and opening files: 0.03 to 0.05 s a trial in the demo, rows by the thousand take longer.
PREPARE_S = Range(low=0.02, high=2.0, likely=0.05)
CHECKPOINT_EVERY_S = 60.0
HALVES = ("bf16", "fp16")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
# Completions that are decoded at once; and tokens of a target where texts alone are known, in bytes each.
DECODED_ROWS, TOKEN_BYTES = 32, 4


@dataclass(frozen=True)
class Gauge:
    """How fast the device is that trials run on: one speed, or several of which any may be its own.

    `observed` is what finished trials showed of a measured one; `recorded` whether passes are recorded and replayed,
    as on newer GPUs. `said` tells the user what it rests on.
    """

    speeds: tuple[Speed, ...]
    said: str
    observed: tuple[Observed, ...] = ()
    recorded: bool = False

    def uncorrected(self, work: Sequence[Kernel], *, precision: str) -> Range:
        """Seconds of work, from the fastest of the speeds to the slowest; a device that does not compute in the work's
        dtype is not the one.

        Raises:
            EvidenceError: Of the work's dtype nothing is known of any.
        """
        recorded = self.recorded and precision in HALVES  # where rows are attended to as they lie
        able = [speed for speed in self.speeds if DTYPES[precision] in speed.products] or self.speeds
        found = [seconds_of(work, speed, recorded=recorded) for speed in able]
        if len(found) == 1:
            return found[0]
        return Range(low=min(one.low for one in found), high=max(one.high for one in found))

    def seconds(self, work: Sequence[Kernel], *, precision: str, method: str) -> Range:
        """As `uncorrected`, corrected by what trials of a method showed."""
        found = self.uncorrected(work, precision=precision)
        if not self.observed or len(self.speeds) > 1:
            return found
        return corrected(found, correction(self.speeds[0], self.observed, precision=precision, method=method))


@dataclass(frozen=True)
class Known:
    """What is known of a study beyond its lock and its base's shape; all of it may be missing.

    `data` are rows, and `counted` the tokens of each task's training rows; `others` the sizes of arms' bases that are
    not the study's own; `traced` what arms' trials compute, by arm and task; `gauge` how fast the device is.
    """

    data: Mapping[str, TaskData] = field(default_factory=dict)
    counted: Mapping[str, Sequence[int]] = field(default_factory=dict)
    others: Mapping[str, Sizes] = field(default_factory=dict)
    traced: Mapping[str, Mapping[str, Counted]] = field(default_factory=dict)
    gauge: Gauge | None = None


@dataclass(frozen=True)
class Timed:
    """Seconds of one trial of an arm on a task, alone or as its share of a pack: of a search and of a final, which is
    saved and sees the test rows as well. `step_s` is one optimiser step's; None of what takes none. `read_s` is of
    reading one row, whatever is asked of it. `rough` trials were not counted."""

    step_s: Range | None
    read_s: Range
    tune: Duration
    final: Duration
    rough: bool


@dataclass(frozen=True)
class Trials:
    """How many trials of an arm on a task there are: from a search that stops at once, and one look, which is likely,
    to all that there may be.

    `share` is how much of a run's steps a trial of the search takes on average: less than all where it is not
    exhaustive. `ladder` says the same of each run of a ladder.
    """

    tuning: Range
    finals: Range
    share: float = 1.0
    ladder: tuple[float, ...] = ()

    @property
    def all(self) -> Range:
        return self.tuning + self.finals + exactly(len(self.ladder))

    @property
    def runs(self) -> Range:
        """How many whole runs' worth of steps they take."""
        return exactly(self.share) * self.tuning + self.finals + exactly(sum(self.ladder))

    def searched(self, tune: Duration) -> Duration:
        """What a trial of the search takes on average, given a whole one."""
        return part_of(tune, self.share)

    def laddered(self, tune: Duration) -> Duration:
        """What all runs of the ladder take, given a whole trial of the search, which sees the rows that they see. A
        run at another rank is taken to be as long as one at the arm's own."""
        return total([part_of(tune, share) for share in self.ladder])


def part_of(tune: Duration, share: float) -> Duration:
    """A trial of so much of the steps."""
    return tune.model_copy(update={"train_s": exactly(share) * tune.train_s})


def counts(lock: Lock) -> dict[tuple[str, str], Trials]:
    """Trials that train, by task and arm, in all folds where there are such."""
    return {(t.name, a.name): trials(lock, t.name, a) for t in lock.study.tasks for a in lock.study.arms}


def trials(lock: Lock, task: str, arm: Arm) -> Trials:
    """Those of one arm on one task: search and confirmation, finals, and the runs of a ladder."""
    tuning, points = lock.study.tuning, len(grid(lock, arm.name))
    finals = exactly(1) if arm.fixed else first_and_last(lock, task)
    least = points + min(3, points) * (tuning.seeds - 1)
    most = max(tuning.max_points, points) * tuning.seeds
    whole = (SHARE * least + (1 - SHARE) * COMPLETED) / (least + COMPLETED)
    share = 1.0 if tuning.exhaustive or not points else whole
    if points and lock.study.tuned_as(arm.name) != arm:
        least, most = least + min(2, points) * tuning.seeds, most + CONFIRMED_POINTS * tuning.seeds
        share = min(1.0, share + CONFIRMED_POINTS * tuning.seeds / most)
    elif points and not tuning.exhaustive:
        least, most = least + COMPLETED, most + COMPLETED
    if lock.study.waits(arm.name):  # it may not be run at all; if it is, it was tried before
        least, most, finals = 0, most + lock.study.looks[0], Range(low=0, high=finals.high)
        share = min(1.0, share + lock.study.looks[0] / most)
    search = Range(low=least, high=most, likely=least) if points else exactly(0)
    parts = exactly(len(lock.parts(task)))
    ladder, finals = lock.study.ladder, finals.model_copy(update={"likely": finals.low})
    climbs = ladder is not None and (task, arm.name) == (lock.study.rule.primary, ladder.arm)
    rungs = tuple(step_shares(lock).values()) * lock.study.looks[0] if climbs else ()
    return Trials(parts * search, parts * finals, share, rungs)


def timed(lock: Lock, shape: ModelShape, known: Known) -> dict[tuple[str, str], Timed] | None:
    """Seconds of one trial by task and arm; None for a GPU whose speed is not known."""
    found = {}
    for spec in lock.study.tasks:
        for arm in lock.study.arms:
            own = known.others.get(arm.name, Sizes(shape, known.counted))
            one = _counted(lock, spec, arm, own, known) or _rough(lock, spec, arm, own, known)
            if one is None:
                return None
            found[spec.name, arm.name] = _observed(lock, spec, arm, own, known, one)
    return found


def _observed(lock: Lock, spec: TaskSpec, arm: Arm, own: Sizes, known: Known, one: Timed) -> Timed:
    """With what is looked at in its finals, each token at what reading one of a mean row takes."""
    if not lock.study.observed("final") or not methods.find(arm).tuned or lock.folding(spec.name):
        return one
    tokens = tokens_of(lock, spec, own, known.data)
    likely = None if None in (one.read_s.likely, tokens.likely) else one.read_s.likely / tokens.likely
    token_s = Range(low=one.read_s.low / tokens.high, high=one.read_s.high / tokens.low, likely=likely)
    seconds = observing(
        lock, spec.name, arm, own.shape, data=known.data.get(spec.name), row_tokens=tokens, token_s=token_s
    )
    return replace(one, final=one.final.model_copy(update={"observe_s": seconds}))


def tokens_of(lock: Lock, spec: TaskSpec, own: Sizes, data: Mapping[str, TaskData]) -> Range:
    """Mean tokens of a training row."""
    part, most = lock.parts(spec.name)[0], lock.controls(spec.name).max_tokens
    rows = data[part].splits["train"] if part in data else None
    return estimate.tokens_per_example(rows, most, counted=own.counted.get(spec.name))


def rows_of(lock: Lock, task: str) -> Mapping[str, int]:
    """Rows by split; of a task in folds those of its first fold."""
    return lock.data[lock.parts(task)[0]].counts


def tested(rows: Mapping[str, int]) -> int:
    """How many rows finals alone answer: the test rows, and as often again as there are variants of them."""
    return sum(count for split, count in rows.items() if split == "test" or split.startswith(VARIANT))


def _counted(lock: Lock, spec: TaskSpec, arm: Arm, own: Sizes, known: Known) -> Timed | None:
    """From what was counted; None where that, or the device's speed at it, is not known."""
    method, gauge = methods.find(arm), known.gauge
    alike = arm.name if method.tuned else _on_the_same_base(lock, arm, known)
    counted = known.traced.get(alike, {}).get(spec.name)
    if counted is None or gauge is None:
        return None
    seconds = lambda work: gauge.seconds(work, precision=lock.precision, method=arm.method)  # noqa: E731
    try:
        first = 1 if lock.folding(spec.name) else min(counted.members, lock.study.looks[0])
        tune_s, final_s = (step_seconds(counted, seconds, of=size) for size in (counted.members, first))
        read_s = _read_seconds(counted, seconds)
        row_s = _row_seconds(lock, spec, own, known, read_s, seconds)
    except EvidenceError:
        return None
    if not method.tuned:  # with examples in the prompt, each about as long as a row
        row_s *= exactly(1 + arm.settings.get("shots", 0))
        return _timed(lock, spec, None, None, read_s, row_s, prepare_s=PREPARE_S, save_s=exactly(0))
    outputs = len(lock.data[spec.name].labels) or 1
    written, read = moving(estimate.artifact_bytes(arm, own.shape, outputs=outputs)), PREPARE_S
    if method.trains_base:  # which the next trial reads anew
        read = PREPARE_S + moving(exactly(own.shape.parameters * own.shape.bytes_per_weight))
    return _timed(lock, spec, tune_s, final_s, read_s, row_s, prepare_s=read, save_s=written)


def _on_the_same_base(lock: Lock, arm: Arm, known: Known) -> str | None:
    """An arm that was counted and evaluates alike; None for one that computes without the base."""
    base = lock.study.base_of(arm.name)
    alike = (name for name in known.traced if lock.study.base_of(name) == base)
    return next(alike, None) if methods.find(arm).uses_base else None


def _timed(
    lock: Lock,
    spec: TaskSpec,
    tune_s: Range | None,
    final_s: Range | None,
    read_s: Range,
    row_s: Range,
    *,
    prepare_s: Range,
    save_s: Range,
) -> Timed:
    """A search's trial and a final, whose steps take so long; None of what takes none."""
    rows, controls = rows_of(lock, spec.name), lock.controls(spec.name)
    steps = 0 if tune_s is None else controls.epochs * -(-rows["train"] // controls.batch_examples)
    how = {"steps": steps, "batch_s": row_s, "prepare_s": prepare_s, "checkpoint_every_s": CHECKPOINT_EVERY_S}
    seen = rows.get("validation", 0)
    tune = duration(tune_s or exactly(0), save_s=exactly(0), batches=seen, **how)
    final = duration(final_s or exactly(0), save_s=save_s, batches=seen + tested(rows), **how)
    return Timed(step_s=tune_s, read_s=read_s, tune=tune, final=final, rough=False)


def step_seconds(counted: Counted, seconds: Callable[[Sequence[Kernel]], Range], *, of: int) -> Range | None:
    """A mean step of one trial alone, or a member's share of one in a pack `of` so many, whose time is taken to grow
    linearly from one alone to that of the pack that was counted. None where none was.

    Args:
        seconds: What work takes.
    """
    full, least = (seconds(one.phases["step"].work) for one in (counted.fullest, counted.least))
    wide = counted.fullest.tokens - counted.least.tokens
    share = (counted.step_tokens - counted.least.tokens) / wide if wide else 1.0
    solo = full * exactly(share) + least * exactly(1 - share)
    if of == 1 or counted.packed is None:
        return solo if of == 1 else None
    packed = seconds(counted.packed.phases["step"].work) * exactly(solo.low / full.low)
    grown = (of - 1) / (counted.members - 1)
    return Range(**{end: _between(getattr(solo, end), getattr(packed, end), grown, of) for end in Range.model_fields})


def _between(solo: float | None, packed: float | None, grown: float, of: int) -> float | None:
    return None if solo is None or packed is None else (solo + grown * (packed - solo)) / of


def _read_seconds(counted: Counted, seconds: Callable) -> Range:
    """Of one row, in a batch of evaluation."""
    batch = counted.packed or counted.least
    rows = batch.evaluated * (1 if counted.packed is None else counted.members)
    return seconds(batch.phases["evaluate"].work) * exactly(1 / rows)


def _row_seconds(lock: Lock, spec: TaskSpec, own: Sizes, known: Known, read_s: Range, seconds: Callable) -> Range:
    """Of evaluating one row: read, and where the readout is text, completed; or read with each of its labels."""
    times = len(lock.data[spec.name].labels) if lock.study.readout_of(spec.name) == "labels" else 1
    read = read_s * exactly(times)
    if spec.kind != "generate":
        return read
    prompt = max(1, round(tokens_of(lock, spec, own, known.data).low))
    dtype = DTYPES[lock.precision]
    size = {"prompt_tokens": prompt, "dtype": dtype, "bytes_per_number": estimate.COMPUTE_BYTES[lock.precision]}
    ends = [
        seconds(decoding(own.shape, rows=DECODED_ROWS, new_tokens=count, **size))
        for count in (_target_tokens(lock, spec, known.data), spec.max_new_tokens)
    ]
    written = Range(low=ends[0].low, high=ends[1].high, likely=ends[0].likely)
    return read + written * exactly(1 / DECODED_ROWS)


def _target_tokens(lock: Lock, spec: TaskSpec, data: Mapping[str, TaskData]) -> int:
    """Mean tokens of a target, as far as its bytes tell; 1 where rows are not known."""
    part = lock.parts(spec.name)[0]
    rows = data[part].splits["train"] if part in data else ()
    size_bytes = sum(len(str(row.target).encode()) for row in rows) / len(rows) if rows else 0
    return min(spec.max_new_tokens, 1 + round(size_bytes / TOKEN_BYTES))


def _reached(lock: Lock, gauge: Gauge | None) -> Range | None:
    """Operations a second: of a GPU that is at hand and not named, the shares of its rate that are taken of others."""
    gpu = lock.study.hardware.gpu
    if gpu is not None or gauge is None or gauge.speeds[0].kind == "cpu":
        return estimate.operations_per_s(gpu, lock.precision)
    peak = max(products.operations_per_s for speed in gauge.speeds for products in speed.products.values())
    low, high = estimate.REACHED_SHARE[lock.precision]
    return Range(low=low * peak, high=high * peak)


def _rough(lock: Lock, spec: TaskSpec, arm: Arm, own: Sizes, known: Known) -> Timed | None:
    """Operations at what the device reaches, and a least time a step."""
    speed = _reached(lock, known.gauge)
    if speed is None:
        return None
    tokens, rows, controls = tokens_of(lock, spec, own, known.data), rows_of(lock, spec.name), lock.controls(spec.name)
    taken = lambda operations: Range(  # noqa: E731
        low=operations * tokens.low / speed.high, high=operations * tokens.high / speed.low
    )
    steps = -(-rows["train"] // controls.batch_examples) if methods.find(arm).tuned else 0
    step_s = Range(low=estimate.STEP_S[0], high=estimate.STEP_S[1])
    train = taken(rows["train"] * estimate.train_operations(arm, own.shape)) + exactly(steps) * step_s
    scored = [rows.get("validation", 0), rows.get("validation", 0) + tested(rows)]
    tune, final = (
        Duration(
            prepare_s=exactly(0),
            train_s=exactly(controls.epochs) * train,
            evaluate_s=taken(count * estimate.evaluate_operations(arm, own.shape)),
            save_s=exactly(0),
        )
        for count in scored
    )
    each = train * exactly(1 / steps) if steps else None
    read_s = taken(estimate.evaluate_operations(arm, own.shape))
    return Timed(step_s=each, read_s=read_s, tune=tune, final=final, rough=True)
