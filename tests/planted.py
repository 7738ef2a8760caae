"""Evidence with planted truth: locks, records and scores of a study that never ran, honest unless a test breaks it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from tunetrial.analysis import metrics
from tunetrial.core.evidence import Evidence, Measurement, Scores, TrialRecord
from tunetrial.core.study import Arm, DataPin, Lock, Rule, Study, TaskSpec

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LABELS = ("a", "b", "c")
EXECUTED = {"device": "cpu", "threads": 2, "micro_batch": 16}
KIND = {"accuracy": "classify", "macro_f1": "classify"} | dict.fromkeys(
    ("exact_match", "valid_json", "nll"), "generate"
)


def lock(arms=("full", "lora"), *, margin=0.05, metric="accuracy", tasks=("mail",), **study) -> Lock:
    specs = tuple(
        TaskSpec(name=t, kind=KIND.get(metric, "regress"), metric=metric, margin=margin, input="{{ x }}", target="y")
        for t in tasks
    )
    settings = {"reference": arms[0], "rule": Rule(primary=tasks[0]), **study}
    methods = {"full": "full", "base": "none", "tfidf": "tfidf"}
    asked = Study(
        question="?",
        base_model="embedded",
        tasks=specs,
        arms=tuple(Arm(name=a, method=methods.get(a, "lora")) for a in arms),
        **settings,
    )
    pins = {t: DataPin(digests={"train": f"{t}-train", "test": f"{t}-test"}, counts={"train": 100}) for t in tasks}
    return Lock(study=asked, base_fingerprint="f", parameters=12_000_000, precision="fp32", data=pins, engine="torch")


def evidence(
    held: Lock,
    quality: Mapping[str, float],
    *,
    seeds: int = 5,
    rows: int = 300,
    per_cluster: int = 1,
    seed_sd: float = 0.005,
    item_sd: float = 1.0,
    rate: float = 1e-3,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    diverged: Mapping[str, int] | None = None,
    luck: int = 0,
) -> Evidence:
    """A study in which each arm has this accuracy (classify), mean absolute error (regress), or share of right texts
    and likelihood of the targets in nats a token (generate)."""
    rng, records, scores = np.random.default_rng(luck), [], {}
    for task in held.study.tasks:
        targets = {split: _targets(rng, task.kind, rows) for split in ("validation", "test")}
        ease_E = rng.normal(0, item_sd, rows)
        for arm, level in quality.items():
            planned = held.study.arm(arm)
            for tuning_rate in RATES if not planned.untrained else ():
                for seed in range(901, 904):
                    trial = held.trial(arm, task.name, learning_rate=tuning_rate, seed=seed, purpose="tune")
                    records.append(_tuned(trial, task, level))
                    scores[trial.id, "validation"] = _scores(
                        rng, task.kind, targets["validation"], ease_E, level, per_cluster
                    )
            final_rate = None if planned.untrained else rate
            for seed in range(1, 2 if planned.fixed else seeds + 1):
                trial = held.trial(arm, task.name, learning_rate=final_rate, seed=seed, purpose="final")
                if seed <= (diverged or {}).get(arm, 0):
                    records.append(TrialRecord(trial=trial, status="diverged", reason="loss is NaN at step 7"))
                    continue
                lucky = level + rng.normal(0, seed_sd)
                found = {}
                for split in ("validation", "test"):
                    made = _scores(rng, task.kind, targets[split], ease_E, lucky, per_cluster)
                    scores[trial.id, split] = made
                    value = metrics.value(metrics.find(task.metric), made)
                    found[f"{split}.{task.metric}"] = Measurement(value=value, unit="share")
                records.append(
                    TrialRecord(
                        trial=trial,
                        status="ok",
                        measurements={**found, "steps": Measurement(value=100, unit="steps")},
                        token_digest=None if planned.untrained else f"{task.name}-{seed}",
                        resolved=EXECUTED,
                    )
                )
            if costs and arm in costs:
                trial = held.trial(arm, task.name, learning_rate=final_rate, seed=1, purpose="probe")
                measured = {name: Measurement(value=v, unit="?", n=20) for name, v in costs[arm].items()}
                records.append(TrialRecord(trial=trial, status="ok", measurements=measured, resolved={"device": "cpu"}))
    return Evidence(lock=held, records=tuple(records), scores=scores, curves={})


def _tuned(trial, task, level) -> TrialRecord:
    """A tuning record whose score is best at 1e-3 and falls off on both sides."""
    away, turn = np.log10(trial.learning_rate / 1e-3) ** 2, 1 if metrics.find(task.metric).higher_is_better else -1
    found = {f"validation.{task.metric}": Measurement(value=level - turn * 0.05 * level * away, unit="share")}
    tokens = f"{task.name}-{trial.seed}"
    return TrialRecord(trial=trial, status="ok", measurements=found, token_digest=tokens, resolved=EXECUTED)


def change(found: Evidence, what: Callable[[TrialRecord], TrialRecord | None]) -> Evidence:
    """Replace every record by what the function makes of it; None drops it."""
    return replace(found, records=tuple(r for r in map(what, found.records) if r is not None))


def unstated(found: Evidence) -> Evidence:
    """Take the test metrics out of the records, for a test that changes the scores."""

    def bare(record: TrialRecord) -> TrialRecord:
        kept = {name: m for name, m in record.measurements.items() if not name.startswith("test.")}
        return record.model_copy(update={"measurements": kept})

    return change(found, bare)


def one(found: Evidence, arm: str, seed: int, purpose: str = "final") -> TrialRecord:
    return next(r for r in found.of(purpose=purpose, arm=arm) if r.trial.seed == seed)


def _targets(rng: np.random.Generator, kind: str, rows: int) -> np.ndarray:
    return rng.choice(LABELS, rows, p=(0.5, 0.3, 0.2)) if kind != "regress" else rng.uniform(1, 10, rows).round(1)


def _scores(rng, kind, target_E, ease_E, level, per_cluster) -> Scores:
    rows, measured = len(target_E), {}
    if kind == "generate":
        tokens_E = np.array([len(target) + 1 for target in target_E])
        nll_E = tokens_E * level * np.exp(0.2 * ease_E + rng.normal(0, 0.1, rows) - (0.2**2 + 0.1**2) / 2)
        measured = {"nll": nll_E, "tokens": tokens_E}
    if kind != "regress":
        right_E = rng.random(rows) < 1 / (1 + np.exp(-(np.log(level / (1 - level)) * 1.2 + ease_E)))
        wrong_E = np.array([LABELS[(LABELS.index(t) + 1) % 3] for t in target_E])
        prediction_E = np.where(right_E, target_E, wrong_E)
    else:
        prediction_E = target_E + rng.normal(0, level / 0.8, rows)
    ids = tuple(f"r{i}" for i in range(rows))
    clusters = tuple(f"c{i // per_cluster}" for i in range(rows))
    return Scores(ids, clusters, target_E, prediction_E, measured)
