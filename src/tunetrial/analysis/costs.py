"""What each arm costs, who is out by a hard limit, and who is on the Pareto front. Only what was measured counts."""

from collections.abc import Iterable, Mapping, Sequence

from tunetrial.analysis import bars, metrics, retention
from tunetrial.core.evidence import ArmResult, Evidence, Measurement
from tunetrial.core.scenario import SHARES

Costs = Mapping[str, Mapping[str, Measurement]]

# By these, in this order, the cheapest of several arms is told when the study states no criteria.
ORDER = ("train_s", "peak_gib", "storage_mib")
EQUAL = 1.1
OUT = ("does not fit", "diverged", "did not train", "not run")


def measured(evidence: Evidence, results: Iterable[ArmResult]) -> dict[str, dict[str, Measurement]]:
    """Each arm's criteria on the primary task, in the units that studies state them in.

    quality: mean of the metric over finals. train_s: one run, the probe's median step times the steps of a final (or
    what the probe says of an arm without steps), so tuning and other replicates are not in it. cost_usd: train_s at the
    price of the study's hardware. energy_wh: of the same steps, where the GPU counts it, without its host. peak_gib,
    storage_mib, latency_ms: of the probe. forgetting_nats: nats a token lost
    on all held-out texts together, mean over finals. What was not measured is absent. A task in folds is measured in
    its first, but for quality and forgetting.
    """
    study = evidence.lock.study
    return {r.arm: of_arm(evidence, r) for r in results if r.task == study.rule.primary}


def of_arm(evidence: Evidence, result: ArmResult) -> dict[str, Measurement]:
    """The same of one arm, on the task of the result."""
    study, found = evidence.lock.study, {}
    if result.mean is not None:
        unit = metrics.find(study.task(result.task).metric).unit
        found["quality"] = Measurement(value=result.mean, unit=unit, n=len(result.values) + result.failed)
    task = evidence.lock.parts(result.task)[0]
    probes = evidence.of(purpose="probe", task=task, arm=result.arm)
    probe = next((r.measurements for r in probes if r.status == "ok"), {})
    finals = evidence.of(purpose="final", task=task, arm=result.arm)
    steps = next((r.measurements["steps"].value for r in finals if "steps" in r.measurements), None)
    train_s = probe.get("train_s")
    if "step_s" in probe and steps is not None:
        train_s = Measurement(value=probe["step_s"].value * steps, unit="s", n=probe["step_s"].n)
    if train_s is not None:
        found["train_s"] = train_s
        if study.hardware.usd_per_hour is not None:
            usd = train_s.value / 3600 * study.hardware.usd_per_hour
            found["cost_usd"] = Measurement(value=usd, unit="USD", n=train_s.n)
    if "step_j" in probe and steps is not None:
        watt_hours = probe["step_j"].value * steps / 3600
        found["energy_wh"] = Measurement(value=watt_hours, unit="Wh", n=probe["step_j"].n)
    for name, source, unit, scale in (
        ("peak_gib", "peak_bytes", "GiB", 2**-30),
        ("storage_mib", "artifact_bytes", "MiB", 2**-20),
        ("latency_ms", "latency_s", "ms", 1000.0),
    ):
        if source in probe:
            found[name] = Measurement(value=probe[source].value * scale, unit=unit, n=probe[source].n)
    lost = retention.lost_by_run(evidence, result.task, result.arm)
    if lost:
        value = sum(lost.values()) / len(lost)
        found["forgetting_nats"] = Measurement(value=value, unit="nats a token", n=len(lost))
    return found


def excluded(evidence: Evidence, results: Sequence[ArmResult], costs: Costs) -> dict[str, str]:
    """Arms that are out before anything is weighed, and why: state, `limits` (at most), `require` (a floor).

    Limits and floors go by what was measured, whatever its interval. An arm that is not trained cannot have forgotten.
    """
    study, out = evidence.lock.study, {}
    for result in results:
        if result.task == study.rule.primary and result.state in OUT:
            idle = result.state == "did not train" and study.arm(result.arm).untrained
            out[result.arm] = f"{'no better than a constant' if idle else result.state} on {result.task}"
    for arm in (arm.name for arm in study.arms if arm.name not in out):
        asked = (*bars.limits_of(study, arm, costs.get(arm, {})), *bars.floors(evidence, results, arm))
        missed = [bar.said for bar in asked if not bar.holds]
        if missed:
            out[arm] = "; ".join(missed)
    return out


def cheapest(arms: Sequence[str], costs: Costs) -> str | None:
    """The cheapest by `ORDER`: what lies within 10 % of the least counts as equal and goes to the next measure.

    Complete equality leaves the first named. None of none, and when there are several and no measure that all have.
    """
    left = list(arms)
    usable = [name for name in ORDER if all(name in costs.get(arm, {}) for arm in arms)]
    if not left or len(left) > 1 and not usable:
        return None
    for name in usable:
        least = min(costs[arm][name].value for arm in left)
        left = [arm for arm in left if costs[arm][name].value <= EQUAL * least]
    return left[0]


def pareto(arms: Sequence[str], costs: Costs, *, higher_is_better: bool) -> tuple[str, ...]:
    """Arms that no other beats or equals in quality and every cost, beating it in one; point estimates, no claim.

    Two arms are compared by what both have; an arm without quality is not on the front.
    """
    rising = ("quality", *SHARES) if higher_is_better else SHARES
    points = {
        arm: {n: (-m.value if n in rising else m.value) for n, m in costs[arm].items()}
        for arm in arms
        if "quality" in costs.get(arm, {})
    }

    def dominates(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
        both = a.keys() & b.keys()
        return all(a[n] <= b[n] for n in both) and any(a[n] < b[n] for n in both)

    return tuple(arm for arm, own in points.items() if not any(dominates(other, own) for other in points.values()))
