"""What a study will take, before anything is spent: its first wave, most trials, tokens, memory, time, money, power."""

import textwrap
from collections.abc import Mapping, Sequence

from tunetrial import methods
from tunetrial.core.evidence import Evidence, Held, TaskData
from tunetrial.core.money import Account
from tunetrial.core.records import Record, added
from tunetrial.core.spans import between, span
from tunetrial.core.speed import Range, exactly
from tunetrial.core.study import Arm, Lock, TaskSpec, Trial
from tunetrial.core.work import Counted
from tunetrial.models import ModelShape
from tunetrial.plan import budget, catalogue, estimate
from tunetrial.plan.escalation import steps_in_words
from tunetrial.plan.estimate import GIB, Sizes
from tunetrial.plan.ladder import runs_in_words
from tunetrial.plan.machine import Machine, disk_bytes, side_by_side
from tunetrial.plan.outlay import Time, account, time_of
from tunetrial.plan.peaks import peaks, phases
from tunetrial.plan.power import Power, power, prior
from tunetrial.plan.timing import Gauge, Known, counts, rows_of, timed, tokens_of, trials
from tunetrial.plan.upkeep import upkeep
from tunetrial.plan.waves import next_wave

WIDTH = 100


class Plan(Record):
    """A study before it runs; estimates are ranges and never stand beside measurements.

    Trials, tokens and time range from a search that stops at once and a verdict at the first look, to a search that
    uses its last point and a verdict at the last look. `seconds` is for one trial after the other and None for a GPU
    that is not known; `time` says more of it. `account` is what it costs and `usd` its total, None without a price;
    `upkeep` what comes beside the trials, where the study says anything of that.
    `memory_bytes` is of the device, `host_bytes` of the host for one worker, by arm; `memory` what the device then
    holds, and `phases` bytes at the peak of each phase, where that was counted. `workers` trials go side by side.
    `disk_bytes` is the most that lies on the disk at any time, from what suffices to what is used where there is room.
    `refused` names arms that cannot fit, and why; `remarks` say of arms what their settings alone do not. `budget_s` is
    the machine's time that the budget allows, and `reductions` what was made smaller for its sake. `ladder` says which
    runs the study's ladder adds after the first look, `steps` which arms wait for others.
    """

    first_wave: tuple[Trial, ...]
    why: str
    trials: Range
    trained_tokens: Range
    memory_bytes: dict[str, Range]
    memory: tuple[Held, ...] = ()
    phases: dict[str, dict[str, Range]] = {}
    host_bytes: dict[str, Range] = {}
    workers: int = 1
    disk_bytes: Range
    free_host_bytes: int | None = None
    free_disk_bytes: int | None = None
    seconds: Range | None
    usd: Range | None = None
    time: Time | None = None
    account: Account | None = None
    upkeep: Account | None = None
    power: tuple[Power, ...]
    refused: dict[str, str]
    remarks: dict[str, str] = {}
    budget_s: float | None = None
    reductions: tuple[str, ...] = ()
    folds: dict[str, str] = {}
    ladder: str | None = added()
    steps: str | None = added()
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def preview(
    lock: Lock,
    shape: ModelShape,
    data: Mapping[str, TaskData] | None = None,
    *,
    counted: Mapping[str, Sequence[int]] | None = None,
    others: Mapping[str, Sizes] | None = None,
    machine: Machine | None = None,
    traced: Mapping[str, Mapping[str, Counted]] | None = None,
    gauge: Gauge | None = None,
) -> Plan:
    """Estimate a study from its lock and the base's sizes.

    `data` narrows the ranges of tokens and power, and `counted`, the tokens of each task's training rows, leaves of
    tokens what depends on the number of trials. `others` are the sizes of arms' bases that are not the study's own.
    `traced` is the memory and work of arms' trials by task, where they were counted; else memory is bounded by the
    shape. `gauge` says how fast the device is, where that is known.
    """
    study, data, counted = lock.study, data or {}, counted or {}
    wave = next_wave(Evidence(lock=lock, records=(), scores={}, curves={}))
    sizes = _sizes(lock, shape, counted, others)
    tokens, counted_trials = _tokens(lock, data, sizes), counts(lock)
    device = machine.device if machine else "cpu" if study.hardware.gpu is None else "cuda"
    memory = _memories(lock, sizes, tokens, traced or {}, device)
    host = _host(lock, sizes, memory, machine)
    workers = 1 if machine is None else side_by_side(machine, memory, host)
    known = Known(data, counted, others or {}, traced or {}, gauge)
    time = _time(lock, shape, known, device=device, workers=workers)
    bill = None if time is None else account(lock, time)
    return Plan(
        first_wave=wave.trials if wave else (),
        why=wave.why if wave else "nothing to run",
        trials=sum((one.all for one in counted_trials.values()), exactly(0)) + exactly(len(counted_trials)),
        trained_tokens=sum(
            (n.runs * exactly(_epochs_rows(lock, key[0])) * tokens[key] for key, n in counted_trials.items()),
            exactly(0),
        ),
        memory_bytes=memory,
        memory=peaks(traced or {}, len(study.tasks), device=device, room_bytes=machine and machine.device_bytes),
        phases=phases(lock, traced or {}, sizes),
        host_bytes=host,
        workers=workers,
        disk_bytes=_disk(lock, sizes, workers),
        free_host_bytes=machine and machine.host_bytes,
        free_disk_bytes=machine and machine.disk_bytes,
        seconds=time and time.stages.seconds,
        time=time,
        account=bill,
        upkeep=upkeep(lock, sizes, max(_outputs(lock, spec) for spec in study.tasks)),
        usd=None if bill is None or bill.usd is None else Range(low=bill.usd.low, high=bill.usd.high),
        power=tuple(power(lock, spec, prior(spec, _targets(lock, data, spec))) for spec in study.tasks),
        refused=_refused(lock, memory) | _refused_by_host(host, machine),
        remarks={arm.name: said for arm in study.arms if (said := _remark(lock, arm))},
        budget_s=budget.allowed_s(study),
        reductions=tuple(map(str, lock.reductions)),
        folds={task: _why_folds(lock, task) for task in lock.folds},
        ladder=runs_in_words(lock),
        steps=steps_in_words(lock),
        assumptions=_assumptions(lock, known, time),
    )


def _sizes(
    lock: Lock, shape: ModelShape, counted: Mapping[str, Sequence[int]], others: Mapping[str, Sizes] | None
) -> dict[str, Sizes]:
    """The sizes of each arm's base."""
    return {arm.name: (others or {}).get(arm.name, Sizes(shape, counted)) for arm in lock.study.arms}


def _tokens(lock: Lock, data: Mapping[str, TaskData], sizes: Mapping[str, Sizes]) -> dict[tuple[str, str], Range]:
    """Mean tokens of a row by task and arm."""
    return {
        (spec.name, arm): tokens_of(lock, spec, own, data) for spec in lock.study.tasks for arm, own in sizes.items()
    }


def _epochs_rows(lock: Lock, task: str) -> int:
    return lock.controls(task).epochs * rows_of(lock, task)["train"]


def _memories(
    lock: Lock,
    sizes: Mapping[str, Sizes],
    tokens: Mapping[tuple[str, str], Range],
    traced: Mapping[str, Mapping[str, Counted]],
    device: str,
) -> dict[str, Range]:
    """Of every arm as it was counted on all tasks, else as its shape bounds it."""
    memory = {arm.name: _memory(lock, arm, sizes[arm.name], tokens) for arm in lock.study.arms}
    for arm, found in traced.items():
        if len(found) == len(lock.study.tasks):
            memory[arm] = estimate.around(max(one.fullest.training_bytes for one in found.values()), device)
    return memory


def _memory(lock: Lock, arm: Arm, sizes: Sizes, tokens: Mapping[tuple[str, str], Range]) -> Range:
    """The largest of an arm's tasks."""
    found = [
        estimate.memory_bytes(
            arm,
            sizes.shape,
            lock.controls(spec.name),
            outputs=_outputs(lock, spec),
            tokens=tokens[spec.name, arm.name],
            longest=max(sizes.counted.get(spec.name, ()), default=None),
        )
        for spec in lock.study.tasks
    ]
    return Range(low=max(r.low for r in found), high=max(r.high for r in found))


def _host(
    lock: Lock, sizes: Mapping[str, Sizes], memory: Mapping[str, Range], machine: Machine | None
) -> dict[str, Range]:
    device = machine.device if machine else "cpu" if lock.study.hardware.gpu is None else "cuda"
    controls = lock.controls(lock.study.tasks[0].name)
    return {
        arm.name: estimate.host_bytes(arm, sizes[arm.name].shape, controls, device=device, memory=memory[arm.name])
        for arm in lock.study.arms
    }


def _refused_by_host(host: Mapping[str, Range], machine: Machine | None) -> dict[str, str]:
    """Arms of which not even one worker finds room in the host's memory."""
    return {
        arm: f"needs at least {needed.low / GIB:.1f} GiB of the host's memory, {machine.host_bytes / GIB:.1f} are free"
        for arm, needed in host.items()
        if machine is not None and needed.low > machine.host_bytes
    }


def _disk(lock: Lock, sizes: Mapping[str, Sizes], workers: int) -> Range:
    study = lock.study
    cases = [(t.name, arm, sizes[arm.name].shape, _outputs(lock, t)) for t in study.tasks for arm in study.arms]
    return disk_bytes(lock, cases, workers)


def _remark(lock: Lock, arm: Arm) -> str:
    """What an arm does that its settings do not say, and how it is tuned where that differs between arms."""
    tuning, said = lock.study.tuning, [methods.find(arm).remark(lock.base(arm.name).parameters)]
    if lock.study.tuned_as(arm.name) != arm:
        said.append(
            f"tuned with its base in NF4, then confirmed in {lock.precision}: {tuning.seeds} seeds at the rate found "
            "and its neighbours, from which the rate is chosen"
        )
    elif tuning.on is not None and methods.find(arm).tuned:
        said.append("tuned as its finals are run: NF4 is for the plain base of lora alone")
    return "; ".join(filter(None, said))


def _outputs(lock: Lock, spec: TaskSpec) -> int:
    return len(lock.data[spec.name].labels) if spec.kind == "classify" else 1


def _why_folds(lock: Lock, task: str) -> str:
    """How a task's rows are used, and why so."""
    rows, counts, cut = lock.data[task].counts["all"], rows_of(lock, task), lock.folding(task)
    why = "as asked" if lock.study.folds != "auto" else f"a fifth of {rows} rows, tested once, would show little"
    times = {1: "once", 2: "twice"}.get(cut.repeats, f"{cut.repeats} times")
    each = sum((trials(lock, task, arm).all for arm in lock.study.arms), exactly(0))
    return (
        f"{rows} rows in {cut}: every row is tested {times}, by arms that learn from about "
        f"{counts['train']} rows at rates chosen anew in each fold on {counts['validation']} more; {each.low:.0f} to "
        f"{each.high:.0f} short runs ({why}; replicates: {{folds: none}} splits once)"
    )


def _refused(lock: Lock, memory: Mapping[str, Range]) -> dict[str, str]:
    """Arms whose least memory is more than the named GPU has, or than the study's limit."""
    known = catalogue.find(lock.study.hardware.gpu) if lock.study.hardware.gpu else None
    usable = known and known.usable_bytes
    bounds = {f"a {lock.study.hardware.gpu} has": usable / GIB} if usable else {}
    if "peak_gib" in lock.study.limits:
        bounds["limits.peak_gib allows"] = lock.study.limits["peak_gib"]
    return {
        arm: f"needs at least {needed.low / GIB:.1f} GiB, {what} {bound:g}"
        for what, bound in bounds.items()
        for arm, needed in memory.items()
        if needed.low / GIB > bound
    }


def _time(lock: Lock, shape: ModelShape, known: Known, *, device: str, workers: int) -> Time | None:
    each = timed(lock, shape, known)
    if each is None:
        return None
    read = shape.parameters * shape.bytes_per_weight
    return time_of(lock, counts(lock), each, device=device, workers=workers, base_bytes=read)


def _assumptions(lock: Lock, known: Known, time: Time | None) -> tuple[str, ...]:
    """What the ranges rest on."""
    said = [_speed(lock, known, time), "tokens as counted" if known.counted else _lengths(known)]
    if time and any(time.arms[arm].seconds.high for arm in time.rough) and set(time.rough) < set(time.arms):
        said.append(f"time of {', '.join(time.rough)} bounded by operations alone")
    return *said, "parts of time one trial after the other"


def _speed(lock: Lock, known: Known, time: Time | None) -> str:
    gpu = lock.study.hardware.gpu
    if known.gauge is not None and time and set(time.rough) < set(time.arms):
        return known.gauge.said
    if gpu is None:
        return "a CPU of 1 to 16 cores: name a GPU under hardware if there is one"
    if catalogue.find(gpu) is None:
        return f"no time without the speed of {gpu!r}; known are {', '.join(catalogue.devices())}"
    low, high = (100 * share for share in estimate.REACHED_SHARE[lock.precision])
    return f"a {gpu} at {low:g} to {high:g} % of its bf16 peak"


def _lengths(known: Known) -> str:
    return "2.5 to 6 bytes a token" if known.data else "prompts of any length up to max_tokens"


def _targets(lock: Lock, data: Mapping[str, TaskData], spec: TaskSpec) -> list[float] | None:
    part = lock.parts(spec.name)[0]
    rows = data[part].splits["validation"] if part in data else None
    return [float(row.target) for row in rows] if rows and spec.kind == "regress" else None


def _lines(plan: Plan) -> list[str]:
    lines = [
        f"first: {len(plan.first_wave)} trials, {plan.why}",
        f"in all: {plan.trials.low:.0f} to {plan.trials.high:.0f} trials, "
        f"{_short(plan.trained_tokens.low)} to {_short(plan.trained_tokens.high)} trained tokens",
    ]
    lines += _time_lines(plan) + _bill_lines(plan)
    if plan.budget_s is not None:
        lines.append(f"budget: {span(plan.budget_s)} of the machine")
    lines += [f"reduced: {one}" for one in plan.reductions]
    lines += [f"{task}: {how}" for task, how in plan.folds.items()]
    lines += [] if plan.ladder is None else [f"ladder: {plan.ladder}"]
    lines += [] if plan.steps is None else [f"steps: {plan.steps}"]
    lines += [f"{arm}: {said}" for arm, said in plan.remarks.items()]
    for arm, needed in plan.memory_bytes.items():
        how = "bounded by the shape" if needed.likely is None else f"counted; likely {needed.likely / GIB:.2g}"
        lines.append(f"memory of {arm}: {needed.low / GIB:.2g} to {needed.high / GIB:.2g} GiB (estimate, {how})")
    most = max((needed.high for needed in plan.host_bytes.values()), default=0)
    least = max((needed.low for needed in plan.host_bytes.values()), default=0)
    room = "" if plan.free_host_bytes is None else f", {plan.free_host_bytes / GIB:.2g} GiB free"
    lines.append(f"host memory of a worker: {least / GIB:.2g} to {most / GIB:.2g} GiB (estimate){room}")
    if plan.free_host_bytes is not None:
        lines.append(f"side by side: {plan.workers}")
    free = "" if plan.free_disk_bytes is None else f", {plan.free_disk_bytes / GIB:.2g} GiB free"
    short = plan.free_disk_bytes is not None and plan.free_disk_bytes < plan.disk_bytes.low
    lines.append(
        f"disk: {plan.disk_bytes.low / GIB:.2g} to {plan.disk_bytes.high / GIB:.2g} GiB (estimate){free}"
        + (": too little, `run` will refuse" if short else "")
    )
    lines += [f"does not fit: {arm} {why}" for arm, why in plan.refused.items()]
    lines += [str(one) for one in plan.power]
    return [*lines, f"assumed: {'; '.join(plan.assumptions)}"]


def _time_lines(plan: Plan) -> list[str]:
    """Time and money, as ranges, and what is likely where that is known."""
    if plan.seconds is None or plan.time is None:
        return []
    stages, time = plan.time.stages, plan.time
    parts = {"tuning": stages.tuning_s, "finals": stages.finals_s, "evaluation": stages.evaluation_s}
    parts |= {"ladder": stages.ladder_s} if stages.ladder_s.high else {}
    parts |= {"observing": stages.observing_s} if stages.observing_s.high else {}
    said = ", ".join(f"{name} {_about(part)}" for name, part in parts.items())
    lines = [
        f"time: {_between(plan.seconds)} (estimate; {said})",
        f"from start to end: {_between(time.wall_s)} (estimate)",
    ]
    for arm, tasks in time.step_s.items():
        steps = ", ".join(f"{between(step.low, step.high)} on {task}" for task, step in tasks.items())
        lines.append(f"a step of {arm}: {steps} (estimate)")
    if time.sessions is not None:
        lines.append(f"sessions: {time.sessions}")
    return [part for line in lines for part in _wrapped(line)]


def _bill_lines(plan: Plan) -> list[str]:
    """What the trials cost, and what comes beside them."""
    lines = []
    for what, bill in {"cost": plan.account, "beside the trials": plan.upkeep}.items():
        if bill is not None:
            lines.append(f"{what} (estimate):")
            for line in str(bill).splitlines():
                lines += [line] if len(line) <= WIDTH else _wrapped(line)
    return lines


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, break_on_hyphens=False, break_long_words=False, subsequent_indent="  ")


def _about(found: Range) -> str:
    return between(found.low, found.high) if found.likely is None else span(found.likely)


def _between(found: Range) -> str:
    if found.low == found.high:
        return span(found.low)
    likely = "" if found.likely is None else f", likely {span(found.likely)}"
    return f"{span(found.low)} to {span(found.high)}{likely}"


def _short(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:.0f}"
