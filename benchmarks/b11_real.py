"""B11, its real part: what the search at rungs finds in tiny real studies, beside a grid of 9 rates by 2 seeds.

    python benchmarks/b11_real.py --data FOLDER     # goes on where it stopped; writes results/b11/real-runs.jsonl
    python benchmarks/b11_real.py --count           # counts what the runs on record say; writes results/b11/real.json

A study is full fine-tuning against LoRA on questions of TREC or on ten intents of Banking77 (FOLDER has `trec6` and
`banking77`), on the first layer of the embedded base or on a small random one; which intents and rows, how many of them
and the rank are drawn from the study's number. Two searches see the same runs, in fp32 on one thread:
the grid, whose best mean wins, and that of `plan.tuning` at rungs. A run is trained once, to its end if any search asks
for that, and answers at the rung and at the end; each search pays for the steps that it would have taken. Runs of LoRA
train in packs.

The rates found are held against each other by three further seeds on the same validation rows, so that neither search
gains from having chosen by luck. No test row is read. Which rate is the best, nobody knows: the grid's is itself chosen
by two seeds, so how often its seeds, one by one, choose within a step of each other stands beside.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import b11_counts
from tunetrial import methods, models
from tunetrial.analysis.rates import Point, choose, rounded, search_cost
from tunetrial.core.evidence import Evidence, Example, Measurement, TaskData, TrialRecord
from tunetrial.core.study import Arm, DataPin, Lock, Rule, Study, TaskSpec, Trial, Tuning
from tunetrial.plan.halving import SHARE
from tunetrial.plan.tuning import grid, search, tuning_seeds

RESULTS = Path(__file__).resolve().parent / "results" / "b11"
RUNS, SUMMARY = RESULTS / "real-runs.jsonl", RESULTS / "real.json"
STUDIES, SEED = 40, 20_261_122
GRID_SEEDS, JUDGING_SEEDS = (901, 902), (1, 2, 3)
HALF_DECADE = 10**0.5
ARMS, MARGIN = ("full", "lora"), 0.05
LONGEST_TOKENS, VALIDATION_ROWS = 40, 200
SOURCES = {"TREC": "trec6", "Banking77": "banking77"}
MOST_LABELS = 10
SMALL = "random, 1 layer of 64"
BASES = (SMALL, SMALL, "embedded, 1 layer", SMALL, "random, 2 layers of 64")


@dataclass(frozen=True)
class Setting:
    """What a study is of: source and base in turn, the rest drawn from its number, so that none was picked for what it
    shows."""

    number: int
    source: str
    base: str
    rows: int
    epochs: int
    batch_examples: int
    rank: int

    @classmethod
    def drawn(cls, number: int) -> "Setting":
        rng = np.random.default_rng([SEED, number])
        return cls(
            number=number,
            source=list(SOURCES)[number % len(SOURCES)],
            base=BASES[number % len(BASES)],
            rows=int(rng.choice([128, 160, 192, 256])),
            epochs=2,
            batch_examples=16,
            rank=int(rng.choice([2, 4, 8, 16])),
        )

    @property
    def steps(self) -> int:
        return math.ceil(self.rows / self.batch_examples) * self.epochs

    def lock(self, parameters: int) -> Lock:
        """Of a study of two arms by the defaults, but for what is drawn."""
        task = TaskSpec(name="t", kind="classify", metric="accuracy", margin=MARGIN, input="{{ text }}", target="label")
        ranks = {"full": {}, "lora": {"rank": self.rank}}
        asked = Study(
            question="Is the rate found?",
            base_model=self.base,
            tasks=(task,),
            arms=tuple(Arm(name=arm, method=arm, settings=methods.settle(arm, ranks[arm])) for arm in ARMS),
            reference="full",
            epochs=self.epochs,
            batch_examples=self.batch_examples,
            precision="fp32",
            rule=Rule(primary="t"),
            tuning=Tuning(exhaustive=False),
        )
        pin = DataPin(digests={"train": self.source, "validation": self.source}, counts={"train": self.rows})
        return Lock(study=asked, base_fingerprint=self.base, parameters=parameters, precision="fp32", data={"t": pin})


@dataclass(frozen=True)
class Run:
    """A run on record: its accuracy at the rung and at the end, None of one that had diverged by then or was not asked
    to go so far; `taken` of `steps` steps were taken."""

    study: int
    arm: str
    rate: float
    seed: int
    parameters: int
    steps: int
    taken: int
    rung: float | None
    end: float | None
    diverged: bool

    def reaches(self, trial: Trial) -> bool:
        """Whether it tells how the trial ends."""
        return self.diverged or self.taken >= trial.stop(self.steps)

    def record(self, trial: Trial) -> TrialRecord:
        value = self.end if trial.share is None else self.rung
        if value is None:
            return TrialRecord(trial=trial, status="diverged", reason="on record")
        measured = {"validation.accuracy": Measurement(value=value, unit="share")}
        return TrialRecord(trial=trial, status="ok", measurements=measured)


Train = Callable[[Sequence[Trial]], Iterable[Run]]


class World:
    """One study: its runs on record, and how to train those that are not; without that, they cannot be asked for."""

    def __init__(self, setting: Setting, runs: Iterable[Run], parameters: int, train: Train | None = None):
        self.setting, self.train, self.locked = setting, train, setting.lock(parameters)
        self.runs = {(run.arm, run.rate, run.seed): run for run in runs}

    def know(self, trials: Iterable[Trial]) -> list[Run]:
        """The runs that tell how these trials end.

        Raises:
            LookupError: One is not on record, and cannot be trained.
        """
        asked = [(t.arm.name, t.learning_rate, t.seed) for t in trials]
        missing = [
            t for key, t in zip(asked, trials, strict=True) if key not in self.runs or not self.runs[key].reaches(t)
        ]
        if missing and self.train is None:
            raise LookupError(f"study {self.setting.number}: {missing[0].arm.name}: not on record")
        for run in self.train(missing) if missing else ():
            self.runs[run.arm, run.rate, run.seed] = run
        return [self.runs[key] for key in asked]

    def ends(self, arm: str, rates: Iterable[float], seeds: Iterable[int]) -> list[Run]:
        """Runs to the end, rate by rate."""
        pairs = [(rate, seed) for rate in rates for seed in seeds]
        return self.know([self.locked.trial(arm, "t", learning_rate=r, seed=s, purpose="tune") for r, s in pairs])


def at_rungs(world: World, arm: str) -> dict:
    """The search that studies make, its steps counted as studies count them."""
    locked, records, curves = world.locked, [], {}
    kept = tuning_seeds(locked)[0]
    while (found := search(Evidence(locked, tuple(records), {}, curves), arm, "t")).pending:
        for trial, run in zip(found.pending, world.know(found.pending), strict=True):
            record = run.record(trial)
            if trial.share is None and trial.seed == kept:
                taken_up = Measurement(value=math.ceil(SHARE * run.steps), unit="steps")
                record = record.model_copy(update={"measurements": record.measurements | {"taken_up": taken_up}})
            records.append(record)
            curves[trial.id] = tuple({"steps": run.steps} for _ in range(min(run.taken, trial.stop(run.steps))))
    cost = search_cost(Evidence(locked, tuple(records), {}, curves), arm, "t")
    expected = found.rate and found.rate.expected_regret
    return {"rate": found.rate and found.rate.value, "steps": cost.steps, "expected": expected}


def of_grid(world: World, arm: str) -> dict:
    """The best mean of nine rates: the middle of the study's own grid, and four half-decades up and down.

    `apart` is how many decades its second seed alone chooses from its first, `top` the rate at the top of a parabola
    through the runs, `moved` how many decades that lies higher at the end than at the rung, with the luck of two seeds.
    """
    own = grid(world.locked, arm)
    rates = [rounded(own[len(own) // 2] * HALF_DECADE**place) for place in range(-4, 5)]
    runs = world.ends(arm, rates, GRID_SEEDS)
    at_rung, at_end = (curve([(r.rate, r.seed, getattr(r, when)) for r in runs]) for when in ("rung", "end"))
    alone = [max(at_end, key=lambda point: point.scores[seed]).learning_rate for seed in GRID_SEEDS]
    return {
        "rate": max(at_end, key=lambda point: point.mean).learning_rate,
        "steps": sum(run.taken for run in runs),
        "apart": math.log10(alone[1] / alone[0]),
        "top": choose(at_end).value,
        "moved": math.log10(choose(at_end).value / choose(at_rung).value),
    }


def curve(scored: Sequence[tuple[float, int, float | None]]) -> list[Point]:
    """The scores by rate; a run that diverged counts as the worst of all."""
    worst = min(score for *_, score in scored if score is not None)
    found: dict[float, dict[int, float]] = {}
    for rate, seed, score in scored:
        found.setdefault(rate, {})[seed] = worst if score is None else score
    return [Point(learning_rate=r, scores=s, mean=statistics.fmean(s.values())) for r, s in sorted(found.items())]


def carry_out(world: World) -> dict:
    """One study by both searches: rates, steps, and what further seeds score at the rates."""
    row: dict = dict(vars(world.setting))
    for name, way in (("grid", of_grid), ("rungs", at_rungs)):
        for arm in ARMS:
            row[f"{name}, {arm}"] = found = way(world, arm)
            runs = world.ends(arm, [found["rate"]], JUDGING_SEEDS) if found["rate"] else []
            found["judged"] = [run.end for run in runs]
    return row


def trainer(setting: Setting, folder: Path, data: Path, keep: Callable[[Run], None]) -> tuple[Train, int]:
    """How the runs of a study are trained, and the weights of its base. `keep` is told of each run."""
    from tunetrial.engine.torch_engine import TorchEngine

    session = TorchEngine(device="cpu").open(base(setting.base, folder), "fp32")
    given, parameters = task_data(setting, session, data), session.model.num_parameters()

    def train(trials: Sequence[Trial]) -> Iterable[Run]:
        full = [[trial] for trial in trials if trial.arm.method == "full"]
        packed = [[t for t in trials if t.arm.method == "lora" and t.purpose == p] for p in ("rung", "tune")]
        for pack in (*full, *filter(None, packed)):
            for run in one_pack(pack):
                keep(run)
                yield run

    def one_pack(pack: Sequence[Trial]) -> list[Run]:
        run, rungs, taken = session.start_pack(pack, given), [None] * len(pack), [0] * len(pack)
        for steps in run.steps(None):
            step = next(step for number, step in enumerate(steps) if number not in run.diverged)
            taken = [count if n in run.diverged else step.step for n, count in enumerate(taken)]
            if step.step == math.ceil(SHARE * step.steps):
                rungs = accuracies(run, given)
        ends = accuracies(run, given) if pack[0].share is None else [None] * len(pack)
        found = []
        for number, trial in enumerate(pack):
            asked, lost = (ends if trial.share is None else rungs)[number], number in run.diverged
            key = setting.number, trial.arm.name, trial.learning_rate, trial.seed, parameters, setting.steps
            found.append(Run(*key, taken[number], rungs[number], ends[number], diverged=lost or asked is None))
        return found

    return train, parameters


def accuracies(run: object, given: TaskData) -> list[float | None]:
    """Of each member; None of one that has diverged, in training or in what it answers."""
    rows = given.splits["validation"]
    if len(run.diverged) == len(run.trials):
        return [None] * len(run.trials)
    answers = run.predict(rows)
    lost = [n in run.diverged or any(not isinstance(a, str) for a in answers[n]) for n in range(len(answers))]
    right = [statistics.fmean(a == row.target for a, row in zip(one, rows, strict=True)) for one in answers]
    return [None if gone else share for gone, share in zip(lost, right, strict=True)]


def task_data(setting: Setting, session: object, data: Path) -> TaskData:
    """The rows of a study: so many of those of at most 40 tokens, the same for every arm and seed.

    Validation rows and those to train on are told apart before anything is drawn; no text is in both.
    """
    rng = np.random.default_rng([SEED, setting.number, 1])
    lines = (data / SOURCES[setting.source] / "train.jsonl").read_text(encoding="utf-8").splitlines()
    label_of = {row["text"]: str(row["label"]) for row in map(json.loads, lines)}
    labels = sorted(set(label_of.values()))
    labels = sorted(labels[place] for place in rng.permutation(len(labels))[:MOST_LABELS])
    rows = [Example(f"r{n}", f"r{n}", text, said) for n, (text, said) in enumerate(label_of.items()) if said in labels]
    rows = [rows[place] for place in np.random.default_rng(SEED).permutation(len(rows))[:1500]]
    rows = [row for row, tokens in zip(rows, session.lengths(rows), strict=True) if tokens <= LONGEST_TOKENS]
    train = rows[VALIDATION_ROWS:]
    drawn = rng.permutation(len(train))[: setting.rows]
    splits = {"train": tuple(train[place] for place in drawn), "validation": tuple(rows[:VALIDATION_ROWS])}
    return TaskData("t", "classify", tuple(labels), splits)


def base(name: str, folder: Path) -> Path:
    """The first layer of the embedded base, or random weights under its tokenizer, in fp32; made once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    path, whole = folder / name.replace(",", "").replace(" ", "-"), models.resolve("embedded").folder
    if (path / "config.json").exists():
        return path
    layers = int(name.split(", ")[1].split()[0])
    if name.startswith("random"):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": layers}
        ends = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1}
        config = LlamaConfig(vocab_size=8192, max_position_embeddings=512, tie_word_embeddings=True, **sizes, **ends)
        model = LlamaForCausalLM(config)
    else:
        model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        model.config.num_hidden_layers = layers
        model.model.layers = model.model.layers[:layers]
    AutoTokenizer.from_pretrained(whole).save_pretrained(path)
    model.save_pretrained(path)
    return path


def read(path: Path = RUNS) -> dict[int, list[Run]]:
    """The runs on record by study; of one that was taken further, the later line counts."""
    found: dict[int, list[Run]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        run = Run(**json.loads(line))
        found.setdefault(run.study, []).append(run)
    return found


def complete(runs: dict[int, list[Run]]) -> list[dict]:
    """The studies of which every run is on record, by both searches."""
    rows = []
    for number, known in sorted(runs.items()):
        try:
            rows.append(carry_out(World(Setting.drawn(number), known, known[0].parameters)))
        except LookupError:
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("TUNETRIAL_DATA"))
    parser.add_argument("--studies", type=int, nargs="*", default=range(STUDIES))
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--bases", type=Path, default=Path(tempfile.gettempdir()) / "b11-bases")
    parser.add_argument("--runs", type=Path, default=RUNS)
    arguments = parser.parse_args()
    known = read(arguments.runs)
    if arguments.count:
        made = b11_counts.count(complete(known), margin=MARGIN)
        SUMMARY.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        print(b11_counts.said(made))
        return
    with arguments.runs.open("a", encoding="utf-8") as file:

        def keep(run: Run) -> None:
            file.write(json.dumps(vars(run)) + "\n")
            file.flush()

        for number in arguments.studies:
            setting, started_s = Setting.drawn(number), time.process_time()
            train, parameters = trainer(setting, arguments.bases, Path(arguments.data), keep)
            carry_out(World(setting, known.get(number, ()), parameters, train))
            print(f"{number}: {setting}: {time.process_time() - started_s:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
