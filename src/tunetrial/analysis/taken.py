"""What each arm of a study takes: seconds, bytes, requests a second, and how each is known. No files, no torch."""

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping

from tunetrial.core.deployment import Deployment, Footprint, Timing
from tunetrial.core.errors import EvidenceError
from tunetrial.core.evidence import Evidence, Measurement, TrialRecord
from tunetrial.core.owning import Figure, Taken

Part = Callable[[TrialRecord], float | None]  # seconds of a part of a run

SEARCH = ("tune", "rung", "confirm")
FILE_BYTES_PER_WEIGHT = 2


def take(
    evidence: Evidence,
    *,
    whole: Collection[str],
    deployed: Deployment | None = None,
    side_by_side: float = 1.0,
) -> tuple[Taken, ...]:
    """Read from a study what each of its arms takes on the primary task.

    Seconds of tuning, finals and evaluation are those that its runs took, packed or not; a further run is reckoned from
    the probe, which had the machine to itself. Diverged runs count: they were paid for.

    Args:
        whole: Arms whose variants are whole models, not something beside the base.
        deployed: What was timed of the finals; without it, requests a second are those of the probe's evaluation, and
            there is no deployment or swap time.
        side_by_side: How many runs went on at once, so that so many of their seconds are one of the machine's.
    Raises:
        EvidenceError: `side_by_side` is below 1.
    """
    if not side_by_side >= 1:
        raise EvidenceError(f"runs side by side: must be 1 or more, got {side_by_side}; say 1 if they were not")
    return tuple(
        _Arm(evidence, arm.name, arm.name not in whole, deployed).taken(side_by_side)
        for arm in evidence.lock.study.arms
    )


class _Arm:
    """One arm's records, as they are read."""

    def __init__(self, evidence: Evidence, arm: str, shares_base: bool, deployed: Deployment | None):
        self.evidence, self.arm, self.shares_base, self.deployed = evidence, arm, shares_base, deployed
        self.task = evidence.lock.study.rule.primary
        self.part = evidence.lock.parts(self.task)[0]
        probes = evidence.of(purpose="probe", task=self.part, arm=arm)
        self.probe: Mapping[str, Measurement] = next((r.measurements for r in probes if r.status == "ok"), {})
        self.finals = evidence.of(purpose="final", task=self.task, arm=arm)

    def taken(self, side_by_side: float) -> Taken:
        search = tuple(r for purpose in SEARCH for r in self.evidence.of(purpose=purpose, task=self.task, arm=self.arm))
        spent = {"tuning_s": (search, _training_s), "finals_s": (self.finals, _training_s)}
        spent["evaluation_s"] = ((*search, *self.finals), _evaluation_s)
        sums = {name: _sum(records, part, side_by_side) for name, (records, part) in spent.items()}
        if self.evidence.lock.study.arm(self.arm).untrained and not search:
            sums["tuning_s"] = Figure(value=0.0, unit="s", basis="measured", of="nothing is searched for")
        resident, resident_base = self._resident()
        return Taken(
            arm=self.arm,
            shares_base=self.shares_base,
            machine=next((str(r.resolved["device"]) for r in self.finals if "device" in r.resolved), None),
            cycle_s={name: getattr(self, f"_{name}")() for name in ("train", "export", "deploy", "test")},
            run_s=self._run_s(),
            swap_s=self._swap(),
            run_j=self._energy(),
            artifact_bytes=self._artifact(),
            base_bytes=self._base() if self.shares_base else None,
            resident_bytes=resident,
            resident_base_bytes=resident_base,
            alone_per_s=self._rate("merged", "full", "separate"),
            together_per_s=self._rate("mixed", "swapped", "separate", "full"),
            **sums,
        )

    def _train(self) -> Figure | None:
        steps = self._steps()
        if "step_s" not in self.probe or "load_s" not in self.probe or steps is None:
            return self._of_probe("train_s", "s")
        seconds = self.probe["load_s"].value + steps * self.probe["step_s"].value
        return Figure(value=seconds, unit="s", basis="measured", of=f"probe: loading and {steps:g} steps")

    def _energy(self) -> Figure | None:
        """Of the GPU alone, not of its host."""
        steps, step = self._steps(), self.probe.get("step_j")
        if step is None or steps is None:
            return None
        of = f"probe: the GPU's own counter, {steps:g} steps"
        return Figure(value=steps * step.value, unit="J", basis="measured", of=of)

    def _steps(self) -> float | None:
        """Steps of one final."""
        return next((r.measurements["steps"].value for r in self.finals if "steps" in r.measurements), None)

    def _export(self) -> Figure | None:
        return self._of_probe("save_s", "s")

    def _test(self) -> Figure | None:
        counts, rate = self.evidence.lock.data[self.part].counts, self.probe.get("evaluate_examples_per_s")
        if rate is None or not rate.value:
            return None
        rows = counts.get("validation", 0) + counts.get("test", 0)
        return Figure(value=rows / rate.value, unit="s", basis="measured", of=f"probe: {rows} rows answered")

    def _deploy(self) -> Figure | None:
        found = self._held("separate") if self.shares_base else self._held("full")
        return found and Figure(value=found.load_s, unit="s", basis="measured", of=f"bench: {found.contender.name}")

    def _held(self, setup: str) -> Footprint | None:
        prints = self.deployed.footprints if self.deployed else ()
        own = [each for each in prints if each.contender.arm == self.arm and each.contender.setup == setup]
        return min(own, key=lambda each: each.contender.path != "engine", default=None)

    def _swap(self) -> Figure | None:
        """From the host's memory or the device's, the quicker; a whole model is loaded afresh."""
        if not self.shares_base:
            return self._deploy()
        swaps = [s for s in (self.deployed.swaps if self.deployed else ()) if s.arm == self.arm and s.path == "engine"]
        best = min(swaps, key=lambda swap: swap.swap_s, default=None)
        return best and Figure(value=best.swap_s, unit="s", basis="measured", of=f"bench: {best.where}")

    def _artifact(self) -> Figure | None:
        sizes = [r.measurements["artifact_bytes"].value for r in self.finals if "artifact_bytes" in r.measurements]
        if not sizes:
            return self._of_probe("artifact_bytes", "bytes")
        return Figure(value=statistics.median(sizes), unit="bytes", basis="measured", of="finals: what was saved")

    def _base(self) -> Figure:
        """The base's files: as timed, else as large as a plain base in memory, else two bytes a weight."""
        prints = self.deployed.footprints if self.deployed else ()
        files = [each.artifact_bytes for each in prints if each.contender.setup == "base" and each.artifact_bytes]
        if files and self.evidence.lock.study.arm(self.arm).base_model is None:
            return Figure(value=files[0], unit="bytes", basis="measured", of="bench: files of the base")
        weights = self.evidence.lock.base(self.arm).parameters
        said = f"{weights:,} weights of {FILE_BYTES_PER_WEIGHT} bytes"
        return Figure(value=weights * FILE_BYTES_PER_WEIGHT, unit="bytes", basis="estimated", of=said)

    def _resident(self) -> tuple[Figure | None, Figure | None]:
        """Of a variant in memory, and of the base that it shares."""
        base = self._of_probe("base_bytes", "bytes")
        if self.shares_base:
            artifact = self._artifact()
            return artifact, base
        return base or self._artifact(), None

    def _rate(self, *setups: str) -> Figure | None:
        """Requests a second at the batch that gives most, deployed in the first of these ways that was timed."""
        timings = self.deployed.timings if self.deployed else ()
        for setup in setups:
            own = [t for t in timings if t.contender.setup == setup and t.contender.arm == self.arm]
            if own:
                longest = max(t.work.new_tokens for t in own)
                best = max((t for t in own if t.work.new_tokens == longest), key=_requests_per_s)
                of = f"bench: {best.contender.path} {best.contender.name}, {best.work}"
                return Figure(value=_requests_per_s(best), unit="requests/s", basis="measured", of=of)
        rate = self.probe.get("evaluate_examples_per_s")
        said = "probe: validation rows answered in batches"
        return rate and Figure(value=rate.value, unit="requests/s", basis="measured", of=said)

    def _run_s(self) -> dict[int, float]:
        names = ("train_s", "evaluate_s")
        rows = ((r.trial.seed, [r.measurements.get(name) for name in names]) for r in self.finals)
        return {seed: sum(each.value for each in found) for seed, found in rows if None not in found}

    def _of_probe(self, name: str, unit: str) -> Figure | None:
        found = self.probe.get(name)
        return found and Figure(value=found.value, unit=unit, basis="measured", of="probe")


def _sum(
    records: Iterable[TrialRecord], part: Callable[[TrialRecord], float | None], side_by_side: float
) -> Figure | None:
    """Machine seconds of a part of some runs; None of none, or where one of them has no times."""
    seconds = [part(record) for record in records]
    if not seconds or None in seconds:
        return None
    of = f"{len(seconds)} runs" + (f", {side_by_side:.3g} at once" if side_by_side > 1 else "")
    return Figure(value=sum(seconds) / side_by_side, unit="s", basis="measured", of=of)


def _training_s(record: TrialRecord) -> float | None:
    """Wall time of a run without evaluation and without what was observed besides."""
    if not record.legs_s:
        return None
    beside = (m.value for name, m in record.measurements.items() if name == "evaluate_s" or name.endswith(".observe_s"))
    return max(sum(record.legs_s) - sum(beside), 0.0)


def _evaluation_s(record: TrialRecord) -> float | None:
    """None for a run that was evaluated and not timed; one that failed was not evaluated."""
    found = record.measurements.get("evaluate_s")
    return found.value if found else None if record.status == "ok" else 0.0


def _requests_per_s(timing: Timing) -> float:
    return timing.per_s / timing.work.new_tokens
