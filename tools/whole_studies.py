"""Carry out whole studies on planted truth, tuning included, and count the verdicts that are false.

    python tools/whole_studies.py                    # every kind, over an hour of one core; writes whole_studies.json
    python tools/whole_studies.py --kind null --studies 100 --processes 4

With 1,000 studies at a nominal 5 %, an exact procedure shows more than 62 false ones in 1 of 20 cases. `tunetrial
selfcheck` does the like with fewer studies in under a minute.
"""

import argparse
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from tunetrial.trial.simulated import Outcome, Planted, both, judge, lock, study, task_data

LOG = Path(__file__).resolve().parent / "whole_studies.json"
PART = 10
MORE = {"null, unequal spreads": 2000, "null, paired seeds": 2000}
FEWER = ("no difference, margin 0.05", "better by 0.05", "worse by 0.05", "15 % collapse in one arm, equal means")
STUDIES = MORE | dict.fromkeys(FEWER, 200)

KINDS = {
    "null": Planted(),
    "null, steep curves": Planted(**both(curvature=0.12)),
    "null, collapse at high rates": Planted(full={"cliff": 0.4}, lora={"cliff": 0.6}),
    "null, unequal spreads": Planted(full={"seed_sd": 0.04}, lora={"seed_sd": 0.004}),
    "null, clusters": Planted(world={"cluster": 0.3, "item": 0.3}),
    "null, 15 % collapse": Planted(**both(collapse=0.15)),
    "null, 10 % diverge": Planted(**both(failure=0.1)),
    "null, paired seeds": Planted(world={"pairing": 0.7}, **both(seed_sd=0.03)),
    "null, mean absolute error": Planted(task="regress", margin=0.1),
    "worse by the margin": Planted(full={"quality": 0.82}),
    "better by the margin": Planted(lora={"quality": 0.82}),
    "no difference, margin 0.05": Planted(margin=0.05),
    "better by 0.05": Planted(lora={"quality": 0.85}),
    "worse by 0.05": Planted(full={"quality": 0.85}),
    "15 % collapse in one arm, equal means": Planted(
        full={"quality": 0.7475}, lora={"collapse": 0.15, "quality": 0.7911764705882353}
    ),
}


def judge_some(planted: Planted, numbers: range) -> tuple[list[Outcome], float]:
    """Carry out the studies of these numbers; also the processor seconds they took."""
    data = task_data(planted.task)
    locked = lock(study(planted), data)
    started_s = time.process_time()
    return [judge(planted, number, data, locked) for number in numbers], time.process_time() - started_s


def count(planted: Planted, studies: int, *, processes: int = 1) -> dict:
    """Carry out studies of one kind and count; the same, seconds apart, by however many processes."""
    parts = [range(first, min(first + PART, studies)) for first in range(0, studies, PART)]
    if processes == 1:
        done = [judge_some(planted, part) for part in parts]
    else:
        with ProcessPoolExecutor(processes) as pool:
            done = list(pool.map(partial(judge_some, planted), parts))
    found = [outcome for outcomes, _ in done for outcome in outcomes]
    regrets = [regret for one in found for regret in one.regret.values()]
    return {
        "studies": studies,
        "effect": planted.effect,
        "margin": planted.margin,
        "false_direction": sum(one.false_direction for one in found),
        "false_size": sum(one.false_size for one in found),
        "words": dict(Counter(one.verdict.words for one in found).most_common()),
        "mean_regret": round(float(np.mean(regrets)), 5),
        "mean_trials": round(float(np.mean([one.trials for one in found])), 1),
        "extended_share": round(float(np.mean([one.verdict.n_replicates > 5 for one in found])), 3),
        "cpu_s_each": round(sum(seconds for _, seconds in done) / studies, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, help="instead of each kind's own number")
    parser.add_argument("--kind", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--processes", type=int, default=1, help="how many work side by side")
    arguments = parser.parse_args()
    log = json.loads(LOG.read_text()) if LOG.exists() else {}
    for name in arguments.kind:
        log[name] = count(KINDS[name], arguments.studies or STUDIES.get(name, 1000), processes=arguments.processes)
        print(name, json.dumps(log[name]), flush=True)
        LOG.write_text(json.dumps({key: log[key] for key in KINDS if key in log}, indent=1) + "\n")


if __name__ == "__main__":
    main()
