"""Escalation in small real studies: each carried out step by step, then with every arm, in one folder.

    python benchmarks/escalation_real.py                # goes on where it stopped; writes results/escalation/real.jsonl
    python benchmarks/escalation_real.py --studies 3 7  # these alone
    python benchmarks/escalation_real.py --count        # says what the studies on record came to

A study is of the embedded tickets, rows drawn by its number, on the first layer of the embedded base or a small random
one: LoRA at two ranks, then full fine-tuning. A second of training costs a dollar; what a gain of one margin is worth
is drawn from 1 to 1,000 dollars. Which arm is truly best nobody knows: arms stand by their mean test score in the study
that ran them all, and regret is by that, so it holds luck of both. Meant for a quiet machine: prices are measured.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from b11_real import BASES, base
from tunetrial import Study
from tunetrial.core.evidence import Decision

LOG = Path(__file__).resolve().parent / "results" / "escalation" / "real.jsonl"
STUDIES, SEED, MARGIN = 20, 20_261_124, 0.05
ROWS = {"train": 160, "validation": 200, "test": 300}
STUDY = """
base_model: {base}
tasks:
  - name: queue
    data: train.jsonl
    validation: validation.jsonl
    test: test.jsonl
    kind: classify
    input: "{{{{ message }}}}"
    target: queue
    id: id
    metric: accuracy
    margin: {margin}
arms:
  low: {{method: lora, rank: {rank}}}
  high: {{method: lora, rank: {double}}}
  full: {{method: full}}
strategy: {{name: escalate, margin_usd: {worth}}}
hardware: {{usd_per_hour: 3600}}
replicates: {{looks: [5]}}
epochs: 2
max_tokens: 64
precision: fp32
"""


def write(number: int, folder: Path, bases: Path) -> tuple[Path, dict]:
    """The study of this number, and what was drawn of it."""
    import tunetrial.tasks as tasks

    rng, source = np.random.default_rng([SEED, number]), tasks.BUILT_IN["tickets"].folder
    for split, count in ROWS.items():
        lines = (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        drawn = rng.permutation(len(lines))[:count]
        (folder / f"{split}.jsonl").write_text("".join(lines[place] + "\n" for place in drawn), encoding="utf-8")
    rank, worth = int(rng.choice([1, 2, 4])), round(float(10 ** rng.uniform(0, 3)), 1)
    drawn = {"study": number, "base": BASES[number % len(BASES)], "rank": rank, "margin_usd": worth}
    text = STUDY.format(base=base(drawn["base"], bases), margin=MARGIN, rank=rank, double=2 * rank, worth=worth)
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path, drawn


def both(number: int, bases: Path) -> dict:
    """Carry one study out step by step, then with every arm; runs that both need are made once."""
    with tempfile.TemporaryDirectory() as folder:
        path, drawn = write(number, Path(folder), bases)
        found = {}
        for name, exhaustive in (("escalated", False), ("exhaustive", True)):
            study = Study.load(path, exhaustive=exhaustive).run()
            if study.outcome.status != "done":
                raise RuntimeError(f"study {number}: {study.outcome.failed}")
            found[name] = told(study.decide(), study)
        return drawn | found


def told(decision: Decision, study: Study) -> dict:
    """What a study came to; dollars are its runs' at the prices that probes measured."""
    runs = [r for r in study.outcome.evidence.records if r.trial.purpose != "probe"]
    steps = decision.escalated.steps if decision.escalated else ()
    return {
        "chosen": decision.recommendation or decision.abstention.safe_choice,
        "means": {one.arm: one.mean for one in decision.arms if one.mean is not None},
        "usd": {
            arm.name: own["cost_usd"].value * sum(r.trial.arm.name == arm.name for r in runs)
            for arm in study.asked.arms
            if "cost_usd" in (own := decision.costs[arm.name])
        },
        "runs": {arm.name: sum(r.trial.arm.name == arm.name for r in runs) for arm in study.asked.arms},
        "steps": {step.arm: step.state for step in steps},
        "words": {c.candidate: c.words for c in decision.verdicts},
    }


def count(rows: list[dict]) -> dict:
    """Compute saved, by the runs' prices of the exhaustive study; quality and dollars lost by its test means."""
    saved, lost, regret = [], [], []
    for row in rows:
        everything, stepwise = row["exhaustive"], row["escalated"]
        price = {arm: usd / everything["runs"][arm] for arm, usd in everything["usd"].items()}
        usd = [sum(price[arm] * n for arm, n in one["runs"].items()) for one in (everything, stepwise)]
        quality = [everything["means"][one["chosen"]] for one in (everything, stepwise)]
        saved.append(1 - usd[1] / usd[0])
        lost.append(quality[0] - quality[1])
        regret.append(lost[-1] * row["margin_usd"] / MARGIN - (usd[0] - usd[1]))
    if not rows:
        return {"studies": 0}
    return {
        "studies": len(rows),
        "saved": round(statistics.fmean(saved), 3),
        "lost_quality": round(statistics.fmean(lost), 4),
        "regret_usd": round(statistics.fmean(regret), 2),
        "same_arm": sum(row["exhaustive"]["chosen"] == row["escalated"]["chosen"] for row in rows),
        "first_step_alone": sum(list(row["escalated"]["steps"].values()).count("run") == 1 for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, nargs="*", default=range(STUDIES))
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    known = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []
    if not arguments.count:
        with tempfile.TemporaryDirectory() as bases:
            os.environ["TUNETRIAL_HOME"] = str(Path(bases) / "home")
            for number in sorted(set(arguments.studies) - {row["study"] for row in known}):
                known.append(both(number, Path(bases)))
                with LOG.open("a") as log:
                    log.write(json.dumps(known[-1]) + "\n")
    print(json.dumps(count(known)))


if __name__ == "__main__":
    main()
