"""Evidence and decisions built by hand: one study for each outcome that a report must show."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tunetrial.core.evidence import (
    Abstention,
    ArmResult,
    Check,
    Comparison,
    Decision,
    Evidence,
    Flip,
    Measurement,
    TrialRecord,
)
from tunetrial.core.study import Arm, Criterion, DataPin, Hardware, Lock, Rule, Study, TaskSpec

Case = tuple[Evidence, Decision]
SEEDS = (1, 2, 3, 4, 5)
TICKETS = TaskSpec(name="tickets", kind="classify", metric="macro_f1", margin=0.05, input="{{ text }}", target="queue")
NEWSLETTER = TaskSpec(
    name="newsletter", kind="regress", metric="mae", margin=0.25, input="{{ title }}", target="score", cluster="sender"
)
FULL = Arm(name="full", method="full")
LORA = Arm(name="LoRA r16", method="lora", settings={"rank": 16, "alpha": 32.0, "targets": "all-linear"})
SMALL = Arm(name="LoRA r4", method="lora", settings={"rank": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj")})
FAIR = (
    Check(what="token stream", holds=True, found="one digest a seed over all arms: 10 of 10 seeds"),
    Check(what="tuning budget", holds=True, found="every arm had 11 tuning runs: 5 rates, 3 seeds at the best"),
    Check(what="learning rate interior", holds=True, found="full 1e-3 and LoRA r16 3.2e-3, neither at an edge"),
    Check(what="machine", holds=True, found="all cost figures from one machine, 2 threads"),
    Check(what="test split", holds=True, found="opened once, after rates were locked"),
)
GIB, MIB = 2**30, 2**20
FACTS = {"device": "cpu", "compute_dtype": "fp32", "attention": "sdpa", "threads": 2}
VERSIONS = {"tunetrial": "0.2.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"}


def lock(
    *, tasks: Sequence[TaskSpec] = (TICKETS,), arms: Sequence[Arm] = (FULL, LORA), engine: str = "torch", **fields
) -> Lock:
    """A locked study; `fields` are the study's own."""
    study = Study(
        **{
            "question": "Can LoRA replace full fine-tuning for routing our tickets?",
            "base_model": "embedded",
            "tasks": tuple(tasks),
            "arms": tuple(arms),
            "reference": arms[0].name,
            "rule": Rule(primary=tasks[0].name),
            "hardware": Hardware(usd_per_hour=0.8),
            **fields,
        }
    )
    pin = DataPin(
        digests={"train": "5e" * 32, "validation": "7a" * 32, "test": "c4" * 32},
        counts={"train": 400, "validation": 120, "test": 380},
        labels=("billing", "delivery"),
        remarks=("3 rows longer than 512 tokens were dropped in every arm",),
    )
    pins = {task.name: pin for task in tasks}
    return Lock(
        study=study, base_fingerprint="ab" * 32, parameters=12_300_000, precision="fp32", data=pins, engine=engine
    )


def tuned(lock: Lock, task: str, arm: str, best: float, top: float, *, broken_above: float = 1.0) -> list[TrialRecord]:
    """Tuning runs on a half-decade grid around `best`, worse by a parabola in log rate; diverged above a rate."""
    metric = lock.study.task(task).metric
    worse = -1 if metric != "mae" else 1
    noise = np.random.default_rng([a.name for a in lock.study.arms].index(arm))
    records = []
    for step in range(-2, 3):
        for seed in (901, 902, 903) if abs(step) < 2 else (901,):
            rate = best * math.sqrt(10) ** step
            trial = lock.trial(arm, task, learning_rate=rate, seed=seed, purpose="tune")
            value = top + worse * (0.05 * step**2 * abs(top) + abs(noise.normal(0, 0.012 * abs(top))))
            ok = rate <= broken_above
            values = {f"validation.{metric}": Measurement(value=value, unit="")} if ok else {}
            records.append(
                record(
                    trial,
                    values,
                    status="ok" if ok else "diverged",
                    reason=None if ok else "loss is not finite at step 31",
                )
            )
    return records


def finals(
    lock: Lock, task: str, arm: str, rate: float, values: Sequence[float], seeds: Sequence[int] = SEEDS
) -> list[TrialRecord]:
    """Final runs, one value a seed."""
    metric = lock.study.task(task).metric
    found = []
    for seed, value in zip(seeds, values, strict=True):
        measured = {f"test.{metric}": Measurement(value=value, unit="points" if metric == "mae" else "F1")}
        found.append(record(lock.trial(arm, task, learning_rate=rate, seed=seed, purpose="final"), measured))
    return found


def probe(lock: Lock, task: str, arm: str, *, peak_gib: float, step_s: float, artifact_mib: float) -> TrialRecord:
    """A solo probe."""
    measured = {
        "peak_bytes": Measurement(value=peak_gib * GIB, unit="bytes"),
        "optimizer_state_bytes": Measurement(value=2 * artifact_mib * MIB, unit="bytes"),
        "artifact_bytes": Measurement(value=artifact_mib * MIB, unit="bytes"),
        "step_s": Measurement(value=step_s, unit="s", n=20),
        "latency_s": Measurement(value=0.011 + step_s / 40, unit="s", n=20),
        "load_s": Measurement(value=0.31, unit="s"),
    }
    return record(lock.trial(arm, task, learning_rate=1e-3, seed=1, purpose="probe"), measured)


def record(trial, measurements, *, status="ok", reason=None, seconds=19.5) -> TrialRecord:
    return TrialRecord(
        trial=trial,
        status=status,
        reason=reason,
        measurements=measurements,
        resolved={**FACTS, "micro_batch": 16 if trial.arm.method == "lora" else 8},
        provenance=VERSIONS,
        legs_s=(seconds,),
    )


def curve(trial_seed: int, floor: float, steps: int = 75, *, wild: bool = False) -> tuple[dict, ...]:
    """A loss that falls with noise; a wild one blows up two thirds of the way and ends in NaN."""
    noise = np.random.default_rng(trial_seed)
    rows = []
    for step in range(1, steps + 1):
        loss = floor + 1.4 * math.exp(-step / 18) + 0.06 * noise.normal()
        if wild and step > 2 * steps // 3:
            loss = math.nan if step == steps else loss * 4 ** (step - 2 * steps // 3)
        rows.append(
            {
                "step": step,
                "steps": steps,
                "loss": loss,
                "grad_norm": 1.0,
                "learning_rate": 1e-3,
                "tokens": 640,
                "seconds": 0.2,
            }
        )
    return tuple(rows)


def curves(records: Sequence[TrialRecord], floors: dict[str, float]) -> dict[str, tuple[dict, ...]]:
    return {
        r.trial.id: curve(r.trial.seed, floors.get(r.trial.arm.name, 0.5), wild=r.status == "diverged")
        for r in records
        if r.trial.purpose == "final"
    }


def arm_result(task: str, arm: str, values: Sequence[float], rate: float, **fields) -> ArmResult:
    return ArmResult(
        task=task,
        arm=arm,
        state="trained",
        learning_rate=rate,
        values=dict(zip(SEEDS, values, strict=False)),
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)),
        **fields,
    )


def comparison(task: TaskSpec, candidate: str, words: str, effect: float, half: float, **fields) -> Comparison:
    return Comparison(
        **{
            "task": task.name,
            "candidate": candidate,
            "reference": "full",
            "metric": task.metric,
            "margin": task.margin,
            "words": words,
            "effect": effect,
            "low": effect - half,
            "high": effect + half,
            "level": 0.972,
            "mde": 1.3 * half,
            "n_replicates": 5,
            "n_examples": 380,
            "n_clusters": 380,
            "bound_by": "examples",
            "procedure": "crossed t, Holm over 2, looks {5, 10}",
            **fields,
        }
    )


def blocked(task: TaskSpec, candidate: str, **fields) -> Comparison:
    """A comparison without an interval; `fields` hold the reason."""
    absent = {"effect": None, "low": None, "high": None, "level": None, "mde": None, "procedure": None}
    return comparison(task, candidate, "NOT COMPARABLE", 0, 0, **fields).model_copy(update=absent)


def costs(peak_gib: float, storage_mib: float, train_s: float, latency_ms: float) -> dict[str, Measurement]:
    return {
        "peak_gib": Measurement(value=peak_gib, unit="GiB"),
        "storage_mib": Measurement(value=storage_mib, unit="MiB"),
        "train_s": Measurement(value=train_s, unit="s", n=5),
        "cost_usd": Measurement(value=train_s / 3600 * 0.8, unit="USD"),
        "latency_ms": Measurement(value=latency_ms, unit="ms", n=20),
    }


def decision(evidence: Evidence, **fields) -> Decision:
    """A decision over `evidence`; what is not given is empty."""
    digests = {r.trial.id: r.digest for r in evidence.records}
    return Decision(
        **{
            "verdicts": (),
            "arms": (),
            "costs": {},
            "recommendation": None,
            "abstention": None,
            "because": (),
            "flips": (),
            "pareto": (),
            "excluded": {},
            "fairness": FAIR,
            "post_hoc": (),
            "study_digest": evidence.lock.digest,
            "record_digests": digests,
            "synthetic": evidence.lock.engine == "sim",
            **fields,
        }
    )


F1 = {"full": (0.812, 0.806, 0.821, 0.809, 0.815), "LoRA r16": (0.809, 0.804, 0.819, 0.811, 0.805)}
MAE = {"full": (2.02, 1.96, 2.05, 1.99, 2.01), "LoRA r16": (2.24, 2.19, 2.31, 2.22, 2.20)}


def two_tasks(**fields) -> tuple[Evidence, tuple[ArmResult, ...]]:
    """Full and LoRA r16 on tickets and newsletter: everything went well."""
    locked = lock(tasks=(TICKETS, NEWSLETTER), **fields)
    records = []
    for task, planted in ((TICKETS, F1), (NEWSLETTER, MAE)):
        for arm, rate, peak, step, artifact in (
            ("full", 1e-3, 1.12, 0.41, 23.5),
            ("LoRA r16", 3.2e-3, 0.43, 0.29, 0.61),
        ):
            records += tuned(locked, task.name, arm, rate, planted[arm][0], broken_above=9e-3)
            records += finals(locked, task.name, arm, rate, planted[arm])
            records.append(probe(locked, task.name, arm, peak_gib=peak, step_s=step, artifact_mib=artifact))
    evidence = Evidence(locked, tuple(records), {}, curves(records, {"full": 0.35, "LoRA r16": 0.42}))
    arms = tuple(
        arm_result(task.name, arm, planted[arm], rate, floor=floor, at_edge=task is NEWSLETTER and arm != "full")
        for task, planted, floor in ((TICKETS, F1, 0.29), (NEWSLETTER, MAE, 2.66))
        for arm, rate in (("full", 1e-3), ("LoRA r16", 3.2e-3))
    )
    return evidence, arms


BOTH = {"full": costs(1.12, 23.5, 30.8, 21.4), "LoRA r16": costs(0.43, 0.61, 21.9, 18.2)}


def clear() -> Case:
    """LoRA is as good within the margin on the task that decides, and cheaper; worse on the other task."""
    criteria = {"quality": Criterion(weight=0.5), "peak_gib": Criterion(weight=0.3, worst=2, best=0)}
    evidence, arms = two_tasks(criteria=criteria, limits={"peak_gib": 2.0}, require={"newsletter.mae": "<= 2.5"})
    verdicts = (
        comparison(
            TICKETS, "LoRA r16", "SAME (within your margin)", -0.003, 0.024, direction="unresolved", size="within"
        ),
        comparison(NEWSLETTER, "LoRA r16", "WORSE", -0.226, 0.141, direction="worse", size="unresolved", n_clusters=40),
    )
    return evidence, decision(
        evidence,
        verdicts=verdicts,
        arms=arms,
        costs=BOTH,
        recommendation="LoRA r16",
        pareto=("full", "LoRA r16"),
        because=(
            "On tickets, the task that decides, LoRA r16 is the SAME (within your margin) as full.",
            "Of the arms that are not worse there, LoRA r16 has the highest value: 0.71 against 0.58.",
        ),
        flips=(
            Flip(what="weight of quality", now=0.5, at=0.83, to="full"),
            Flip(what="margin of tickets (macro_f1)", now=0.05, at=0.027, to="full"),
        ),
    )


def cant_tell() -> Case:
    """The interval holds both a real loss and a real gain; examples bound it."""
    evidence, arms = two_tasks()
    verdicts = (
        comparison(
            TICKETS,
            "LoRA r16",
            "CAN'T TELL YET",
            -0.021,
            0.064,
            direction="unresolved",
            size="unresolved",
            needs="about 300 more test rows; more seeds would not settle it",
        ),
        comparison(NEWSLETTER, "LoRA r16", "CAN'T TELL YET", 0.11, 0.32, bound_by="seeds", needs="5 more seeds"),
    )
    abstention = Abstention(
        reason="on tickets LoRA r16 may be 0.085 worse or 0.043 better than full, and you said 0.05 matters",
        safe_choice="full",
        at_worst="0.69 GiB more memory than LoRA r16 and $0.002 more a run",
        next_spend="300 more test rows, not more seeds",
    )
    return evidence, decision(
        evidence, verdicts=verdicts, arms=arms, costs=BOTH, abstention=abstention, pareto=("full", "LoRA r16")
    )


def no_fit() -> Case:
    """The reference does not fit: the verdict is among those that do."""
    locked = lock(arms=(FULL, LORA, SMALL), limits={"peak_gib": 0.5})
    reason = "a micro-batch of one example needs more than the 8 GiB there are"
    records = [
        record(
            locked.trial("full", "tickets", learning_rate=1e-3, seed=1, purpose="probe"),
            {},
            status="infeasible",
            reason=reason,
        )
    ]
    planted = {"LoRA r16": F1["LoRA r16"], "LoRA r4": (0.741, 0.752, 0.738, 0.747, 0.744)}
    for arm, peak in (("LoRA r16", 0.43), ("LoRA r4", 0.40)):
        records += tuned(locked, "tickets", arm, 3.2e-3, planted[arm][0])
        records += finals(locked, "tickets", arm, 3.2e-3, planted[arm])
        records.append(probe(locked, "tickets", arm, peak_gib=peak, step_s=0.29, artifact_mib=0.61))
    evidence = Evidence(locked, tuple(records), {}, curves(records, {"LoRA r4": 0.6}))
    arms = (
        ArmResult(task="tickets", arm="full", state="does not fit"),
        *(arm_result("tickets", arm, values, 3.2e-3) for arm, values in planted.items()),
    )
    verdicts = (
        blocked(TICKETS, "full", reference="LoRA r16", n_replicates=0, reason="full does not fit in memory"),
        comparison(TICKETS, "LoRA r4", "WORSE", -0.065, 0.022, reference="LoRA r16", direction="worse", size="beyond"),
    )
    return evidence, decision(
        evidence,
        verdicts=verdicts,
        arms=arms,
        recommendation="LoRA r16",
        pareto=("LoRA r16", "LoRA r4"),
        costs={"LoRA r16": costs(0.43, 0.61, 21.9, 18.2), "LoRA r4": costs(0.40, 0.16, 20.4, 18.0)},
        excluded={"full": "does not fit: needs more than the 8 GiB there are"},
        because=("full, the reference, does not fit: the verdict is among those that do.",),
    )


def diverged() -> Case:
    """Three of five final runs of LoRA diverged; newsletter alone; full is recommended."""
    locked = lock(tasks=(NEWSLETTER,), hardware=Hardware())
    records = tuned(locked, "newsletter", "full", 1e-3, 2.0) + tuned(
        locked, "newsletter", "LoRA r16", 3.2e-3, 2.2, broken_above=4e-3
    )
    records += finals(locked, "newsletter", "full", 1e-3, MAE["full"])
    records += finals(locked, "newsletter", "LoRA r16", 3.2e-3, MAE["LoRA r16"][:2], SEEDS[:2])
    for seed in SEEDS[2:]:
        trial = locked.trial("LoRA r16", "newsletter", learning_rate=3.2e-3, seed=seed, purpose="final")
        records.append(record(trial, {}, status="diverged", reason="gradient norm is not finite at step 51"))
    evidence = Evidence(locked, tuple(records), {}, curves(records, {"full": 0.35}))
    arms = (
        arm_result("newsletter", "full", MAE["full"], 1e-3),
        arm_result("newsletter", "LoRA r16", MAE["LoRA r16"][:2], 3.2e-3, failed=3).model_copy(
            update={"state": "diverged"}
        ),
    )
    verdicts = (blocked(NEWSLETTER, "LoRA r16", n_replicates=2, reason="3 of 5 final runs diverged"),)
    return evidence, decision(
        evidence,
        verdicts=verdicts,
        arms=arms,
        recommendation="full",
        excluded={"LoRA r16": "3 of 5 final runs diverged"},
        because=("full is the only arm that trained in every run.",),
    )


def not_comparable() -> Case:
    """The arms did not see the same tokens: an unfair comparison is none; a margin was changed afterwards."""
    evidence, arms = two_tasks()
    verdicts = tuple(
        blocked(task, "LoRA r16", reason="token streams differ at seed 3") for task in (TICKETS, NEWSLETTER)
    )
    broken = Check(what="token stream", holds=False, found="seed 3: full 91ac2f…, LoRA r16 77b01d…")
    abstention = Abstention(
        reason="the arms were not trained on the same tokens",
        safe_choice=None,
        at_worst=None,
        next_spend="run the study again with one tokenizer; no new data is needed",
    )
    return evidence, decision(
        evidence,
        verdicts=verdicts,
        arms=arms,
        abstention=abstention,
        fairness=(broken, *FAIR[1:]),
        costs=BOTH,
        post_hoc=("the margin of tickets was 0.02 when results were first seen",),
    )


def untrained() -> Case:
    """No arm beat the untuned base: there is nothing to recommend."""
    evidence, _ = two_tasks()
    arms = tuple(
        ArmResult(
            task=task.name,
            arm=arm,
            state="did not train",
            learning_rate=1e-3,
            mean=mean,
            sd=0.02,
            floor=floor,
            values={1: mean, 2: mean},
        )
        for task, mean, floor in ((TICKETS, 0.24, 0.29), (NEWSLETTER, 2.71, 2.66))
        for arm in ("full", "LoRA r16")
    )
    verdicts = (comparison(TICKETS, "LoRA r16", "NOT COMPARABLE", 0.001, 0.03, reason="neither arm trained"),)
    abstention = Abstention(
        reason="no arm did better than the best constant answer",
        safe_choice=None,
        at_worst=None,
        next_spend="more training rows: 400 did not suffice",
    )
    return evidence, decision(evidence, verdicts=verdicts, arms=arms, costs=BOTH, abstention=abstention)


def synthetic() -> Case:
    """The clear case as the simulator would give it."""
    evidence, verdict = clear()
    evidence = Evidence(evidence.lock.model_copy(update={"engine": "sim"}), evidence.records, {}, evidence.curves)
    return evidence, verdict.model_copy(update={"synthetic": True})


def crowd() -> Case:
    """Nine arms on four tasks: more arms than colours, every verdict there is."""
    arms = (FULL, *(Arm(name=f"LoRA r{2**k}", method="lora", settings={"rank": 2**k}) for k in range(8)))
    tasks = tuple(TICKETS.model_copy(update={"name": name}) for name in ("tickets", "banking77", "trec", "sst2"))
    locked = lock(tasks=tasks, arms=arms)
    said = (
        "BETTER",
        "SAME (within your margin)",
        "NOT WORSE",
        "WORSE, negligibly",
        "WORSE",
        "CAN'T TELL YET",
        "CAN'T TELL YET",
        "SAME (within your margin)",
    )
    effects = (0.09, -0.001, 0.012, -0.018, -0.071, -0.03, 0.02, 0.004)
    halves = (0.03, 0.02, 0.045, 0.015, 0.03, 0.08, 0.11, 0.02)
    verdicts = tuple(
        comparison(task, arm.name, words, effect, half)
        for task in tasks
        for arm, words, effect, half in zip(arms[1:], said, effects, halves, strict=True)
    )
    records = [
        r
        for t in tasks[:2]
        for i, a in enumerate(arms)
        for r in tuned(locked, t.name, a.name, 1e-3 * (1 + i % 3), 0.8 - 0.01 * i)
    ]
    records += [
        r for i, a in enumerate(arms) for r in finals(locked, "tickets", a.name, 1e-3, np.array(F1["full"]) - 0.01 * i)
    ]
    records += [
        probe(locked, t.name, a.name, peak_gib=1.1 - 0.05 * i, step_s=0.4, artifact_mib=1 + i)
        for t in tasks[:2]
        for i, a in enumerate(arms)
    ]
    evidence = Evidence(
        locked, tuple(records), {}, curves(records, {a.name: 0.2 + 0.06 * i for i, a in enumerate(arms)})
    )
    results = tuple(
        arm_result(t.name, a.name, np.array(F1["full"]) - 0.01 * i, 1e-3) for t in tasks for i, a in enumerate(arms)
    )
    return evidence, decision(
        evidence, verdicts=verdicts, arms=results, recommendation="LoRA r2", because=("It is cheapest.",)
    )


def empty() -> Case:
    """A study just begun: no records, no criteria, no price, nothing decided."""
    evidence = Evidence(lock(hardware=Hardware()), (), {}, {})
    return evidence, decision(evidence, fairness=())


def hostile(text: str) -> Case:
    """`text` wherever a user, a row or an engine can put words."""
    full, lora = (
        Arm(name=f"full {text}", method="full"),
        Arm(name=f"lora {text}", method="lora", settings={"targets": text or "q"}),
    )
    task = TICKETS.model_copy(update={"name": f"task {text}"})
    locked = lock(tasks=(task,), arms=(full, lora), question=text, base_model=text, rule=Rule(primary=task.name))
    locked = locked.model_copy(
        update={"data": {task.name: DataPin(digests={text: "ab"}, counts={text: 1}, remarks=(text,))}}
    )
    records = tuned(locked, task.name, lora.name, 1e-3, 0.8) + finals(locked, task.name, lora.name, 1e-3, F1["full"])
    records.append(probe(locked, task.name, lora.name, peak_gib=1.0, step_s=0.1, artifact_mib=1.0))
    trial = locked.trial(full.name, task.name, learning_rate=1e-3, seed=9, purpose="final")
    records.append(record(trial, {}, status="diverged", reason=text).model_copy(update={"provenance": {text: text}}))
    evidence = Evidence(locked, tuple(records), {}, curves(records, {}))
    verdicts = (
        comparison(task, lora.name, "WORSE", -0.1, 0.02, reference=full.name, needs=text, procedure=text),
        blocked(task, full.name, reference=lora.name, reason=text),
    )
    return evidence, decision(
        evidence,
        verdicts=verdicts,
        arms=(arm_result(task.name, lora.name, F1["full"], 1e-3),),
        costs={lora.name: {text: Measurement(value=1.0, unit=text)}},
        recommendation=lora.name,
        because=(text,),
        flips=(Flip(what=text, now=1.0, at=2.0, to=full.name),),
        pareto=(lora.name,),
        excluded={full.name: text},
        fairness=(Check(what=text, holds=False, found=text),),
        post_hoc=(text,),
    )


CASES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (clear, cant_tell, no_fit, diverged, not_comparable, untrained, synthetic, crowd, empty)
}
