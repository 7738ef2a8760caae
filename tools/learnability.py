"""Show that the embedded tasks can be learned and are not trivial; write the tables into their cards.

    python tools/learnability.py                     # all embedded tasks, CPU; writes tools/learnability.json, cards
    python tools/learnability.py --sst2 FOLDER       # 4,000 rows of SST-2 from FOLDER/{train,validation}.jsonl

Each arm trains at three rates with two seeds (SST-2: one rate, three seeds). Everything is scored on rows that were
not trained on; the test splits stay closed. This is a check of the data with a plain loop, not a trial of the
methods: rates are few and no verdict on LoRA against full fine-tuning follows from it.
"""

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tunetrial import models, tasks
from tunetrial.analysis import texts
from tunetrial.tasks import tickets_json

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "tools/learnability.json"
BASE = models.resolve("embedded").folder
RATES = {"full": (1e-4, 3e-4, 1e-3), "lora": (1e-3, 3e-3, 1e-2)}
SST2_RATES = {"full": (3e-4,), "lora": (1e-3,)}
SEEDS = (1, 2)
PASSES = {"newsletter": 15, "tickets": 15, "tickets_json": 30}
# On a CPU the fused attention's backward costs more than all matrix products at these lengths.
LOADING = dict(dtype=torch.float32, attn_implementation="eager")
LORA = dict(r=8, lora_alpha=16, target_modules="all-linear")


@dataclass(frozen=True)
class Problem:
    """One data set as lists: prompts and targets to train on, prompts and rows to score on."""

    name: str
    kind: str  # regress | classify | generate
    train: list[tuple[str, object]]
    held: list[tuple[str, object]]
    held_rows: list[dict]
    labels: tuple[str, ...]
    epochs: int


def problem(name: str) -> Problem:
    """Make a problem of a built-in task; `newsletter` is scored on its two unused splits, 259 rows."""
    task = tasks.find(name)
    held_rows = [row for split in task.splits if split not in ("train", "test") for row in tasks.read_rows(task, split)]
    train, held = (
        [(tasks.render(task, row), row[task.target]) for row in rows]
        for rows in (tasks.read_rows(task, "train"), held_rows)
    )
    return Problem(name, task.kind, train, held, held_rows, task.labels, epochs=PASSES[name])


def sst2(folder: Path) -> Problem:
    """4,000 seeded training rows and the whole validation split of a copy of SST-2."""
    read = [[json.loads(line) for line in (folder / f"{s}.jsonl").open()] for s in ("train", "validation")]
    read[0] = random.Random(0).sample(read[0], 4000)
    train, held = ([(row["text"], str(row["label"])) for row in rows] for rows in read)
    return Problem("sst2", "classify", train, held, read[1], ("0", "1"), epochs=3)


def measures(problem: Problem, predictions: list) -> dict[str, float]:
    """Score predictions on the held rows; the first measure is the task's own."""
    truth = [target for _, target in problem.held]
    if problem.kind == "regress":
        spread = (max(predictions) - min(predictions)) / (max(truth) - min(truth))
        rank = spearmanr(predictions, truth).statistic if spread else None
        return {"mae": mean_absolute_error(truth, predictions), "spearman": rank, "range_used": spread}
    if problem.kind == "classify":
        scores = {
            "macro_f1": f1_score(truth, predictions, average="macro"),
            "accuracy": accuracy_score(truth, predictions),
        }
        return dict(reversed(scores.items())) if problem.name == "sst2" else scores
    pairs, schema = list(zip(truth, predictions, strict=True)), tickets_json.TICKETS_JSON.json_schema
    return {
        "field_accuracy": statistics.mean(texts.field_accuracy(*pair) for pair in pairs),
        "schema_valid": statistics.mean(texts.fits_schema(said, schema) for _, said in pairs),
        "valid": statistics.mean(texts.valid_json(*pair) for pair in pairs),
    }


def own_measure(problem: Problem, predictions: list) -> float:
    """The task's own measure, turned so that higher is better."""
    value = next(iter(measures(problem, predictions).values()))
    return -value if problem.kind == "regress" else value


def item_scores(problem: Problem, predictions: list) -> np.ndarray:
    """What each held row contributes, higher is better, for the interval against the baseline."""
    truth = [target for _, target in problem.held]
    if problem.kind == "regress":
        return -np.abs(np.array(predictions) - np.array(truth))
    if problem.kind == "classify":
        return np.array([float(p == t) for p, t in zip(predictions, truth, strict=True)])
    return np.array([texts.field_accuracy(*pair) for pair in zip(truth, predictions, strict=True)])


def tfidf(model: Callable[[float], object], problem: Problem, targets: list) -> list:
    """Fit TF-IDF of words and pairs with a linear model; its strength is the best of five on the held rows."""
    texts, held = [t for t, _ in problem.train], [t for t, _ in problem.held]
    truth = [target for _, target in problem.held]
    best, best_score = None, -np.inf
    for strength in (0.1, 1.0, 3.0, 10.0, 100.0):
        pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model(strength))
        predicted = list(pipeline.fit(texts, targets).predict(held))
        score = (
            -mean_absolute_error(truth, predicted) if problem.kind == "regress" else accuracy_score(truth, predicted)
        )
        if score > best_score:
            best, best_score = predicted, score
    return best


def baselines(problem: Problem) -> dict[str, list]:
    """Predict without a language model: the mean or majority, and TF-IDF with a linear model."""
    texts, targets = zip(*problem.train, strict=True)
    held = [t for t, _ in problem.held]
    if problem.kind == "regress":
        mean = DummyRegressor().fit(texts, targets).predict(held)
        return {"mean": list(mean), "tfidf": tfidf(lambda c: Ridge(alpha=1 / c), problem, list(targets))}
    logistic = lambda c: LogisticRegression(C=c, max_iter=2000)  # noqa: E731
    if problem.kind == "classify":
        majority = DummyClassifier(strategy="most_frequent").fit(texts, targets).predict(held)
        return {"majority": list(majority), "tfidf": tfidf(logistic, problem, list(targets))}
    columns: dict[str, list[dict]] = {"majority": [{} for _ in held], "tfidf": [{} for _ in held]}
    for field in tickets_json.Routing.model_fields:
        part = lambda rows: [(text, json.loads(target)[field]) for text, target in rows]  # noqa: E731, B023
        single = Problem(field, "classify", part(problem.train), part(problem.held), problem.held_rows, (), 0)
        for name, values in baselines(single).items():
            for row, value in zip(columns[name], values, strict=True):
                row[field] = str(value)
    return {name: [json.dumps(row) for row in rows] for name, rows in columns.items()}


def attach(model: torch.nn.Module, arm: str, seed: int, task_type: str) -> torch.nn.Module:
    torch.manual_seed(seed)
    return model if arm == "full" else get_peft_model(model, LoraConfig(**LORA, task_type=task_type))


def optimise(model: torch.nn.Module, problem: Problem, rate: float, seed: int, loss_of: Callable) -> None:
    """AdamW, 16 examples a step, clip 1.0, 10 % warm-up, linear to 0; bf16 autocast over fp32 weights."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0, fused=True)
    rng, indices = random.Random(seed), list(range(len(problem.train)))
    order = [i for _ in range(problem.epochs) for i in rng.sample(indices, len(indices))]
    batches = [order[i : i + 16] for i in range(0, len(order), 16)]
    warm_up = max(1, len(batches) // 10)
    model.train()
    for step, batch in enumerate(batches):
        share = min((step + 1) / warm_up, (len(batches) - step) / max(1, len(batches) - warm_up))
        optimiser.param_groups[0]["lr"] = rate * share
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = loss_of([problem.train[i] for i in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def train_head(problem: Problem, arm: str, rate: float, seed: int) -> list:
    """Fine-tune with a readout head on the last token; return predictions for the held rows."""
    outputs = len(problem.labels) or 1
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=outputs, **LOADING)
    model = attach(model, arm, seed, "SEQ_CLS").to(DEVICE)
    targets = [target for _, target in problem.train]
    mean, sd = (statistics.mean(targets), statistics.stdev(targets)) if problem.kind == "regress" else (0.0, 1.0)

    def logits_of(texts: list[str]) -> torch.Tensor:
        return model(**TOKENIZER(texts, padding=True, return_tensors="pt").to(DEVICE)).logits.float()

    def loss_of(rows: list[tuple[str, object]]) -> torch.Tensor:
        logits = logits_of([text for text, _ in rows])
        if problem.kind == "regress":
            wanted = torch.tensor([(target - mean) / sd for _, target in rows], device=DEVICE)
            return F.mse_loss(logits[:, 0], wanted)
        return F.cross_entropy(logits, torch.tensor([problem.labels.index(t) for _, t in rows], device=DEVICE))

    optimise(model, problem, rate, seed, loss_of)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        texts = [text for text, _ in problem.held]
        logits = torch.cat([logits_of(texts[i : i + 64]) for i in range(0, len(texts), 64)])
    if problem.kind == "regress":
        return (logits[:, 0] * sd + mean).tolist()
    return [problem.labels[i] for i in logits.argmax(-1).tolist()]


def train_generator(problem: Problem, arm: str, rate: float, seed: int) -> list[str]:
    """Fine-tune on prompt + completion with the loss on the completion; return greedy completions."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(BASE, **LOADING)
    model = attach(model, arm, seed, "CAUSAL_LM").to(DEVICE)
    end = TOKENIZER.eos_token

    def loss_of(rows: list[tuple[str, object]]) -> torch.Tensor:
        batch = TOKENIZER([p + c + end for p, c in rows], padding=True, return_tensors="pt").to(DEVICE)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        for row, (prompt, _) in enumerate(rows):
            labels[row, : len(TOKENIZER(prompt).input_ids)] = -100
        return model(**batch, labels=labels).loss

    optimise(model, problem, rate, seed, loss_of)
    texts, completions = [text for text, _ in problem.held], []
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        for i in range(0, len(texts), 32):
            batch = TOKENIZER(texts[i : i + 32], padding=True, padding_side="left", return_tensors="pt").to(DEVICE)
            made = model.generate(**batch, max_new_tokens=48, do_sample=False, temperature=None, top_p=None)
            completions += TOKENIZER.batch_decode(made[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return completions


def margin_over(problem: Problem, runs: list[list], baseline: list) -> list[float]:
    """Mean row score of the runs minus the baseline's, with a 95 % percentile bootstrap over senders (10,000 draws).

    It is about other senders and these very runs: seeds are averaged, and that the rate was chosen on the same rows
    is not allowed for.
    """
    gain = np.mean([item_scores(problem, run) for run in runs], axis=0) - item_scores(problem, baseline)
    senders = [row.get("sender", index) for index, row in enumerate(problem.held_rows)]
    codes = np.array([senders.index(sender) for sender in senders])
    sums, counts = (np.bincount(codes, weights)[np.unique(codes)] for weights in (gain, None))
    drawn = np.random.default_rng(0).integers(len(sums), size=(10_000, len(sums)))
    draws = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return [round(float(x), 3) for x in (gain.mean(), *np.quantile(draws, (0.025, 0.975)))]


def rounded(values: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(float(value), 3) for name, value in values.items()}


def study(problem: Problem, rates_of: dict[str, tuple[float, ...]], seeds: tuple[int, ...]) -> dict:
    """Run baselines and arms; return what the card's table shows."""
    plain = baselines(problem)
    result: dict = {"baselines": {name: rounded(measures(problem, made)) for name, made in plain.items()}, "arms": {}}
    train = train_generator if problem.kind == "generate" else train_head
    for arm, rates in rates_of.items():
        runs = {}
        for rate in rates:
            started = time.perf_counter()
            runs[rate] = [train(problem, arm, rate, seed) for seed in seeds]
            cells = [rounded(measures(problem, run)) for run in runs[rate]]
            result["arms"].setdefault(arm, {})[f"{rate:g}"] = cells
            print(f"{problem.name} {arm} {rate:g} {time.perf_counter() - started:.0f}s {cells}", flush=True)
        best = max(rates, key=lambda rate: np.mean([own_measure(problem, run) for run in runs[rate]]))
        result["arms"][arm]["best"] = {
            "rate": f"{best:g}",
            "over": {name: margin_over(problem, runs[best], made) for name, made in plain.items()},
        }
    result |= {"train_rows": len(problem.train), "held_rows": len(problem.held), "epochs": problem.epochs}
    return result


def table(result: dict) -> str:
    """Markdown of one problem: a row an arm and rate, a cell a measure (every seed shown)."""
    names = list(next(iter(result["baselines"].values())))
    lines = ["| arm | rate | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    show = lambda value: "-" if value is None else f"{value:.3f}"  # noqa: E731
    for arm, cells in result["baselines"].items():
        lines.append(f"| {arm} | | " + " | ".join(show(cells[n]) for n in names) + " |")
    for arm, rates in result["arms"].items():
        for rate, cells in rates.items():
            if rate != "best":
                shown = [" · ".join(show(cell[n]) for cell in cells) for n in names]
                lines.append(f"| {arm} | {rate} | " + " | ".join(shown) + " |")
    lines.append("")
    for arm, rates in result["arms"].items():
        best = rates["best"]
        gains = "; ".join(f"{b} by {g:+.3f} (95 %: {lo:+.3f} to {hi:+.3f})" for b, (g, lo, hi) in best["over"].items())
        lines.append(f"- {arm} at {best['rate']}: a row's score beats {gains}.")
    lines.append(
        f"\n{result['train_rows']} training rows, {result['epochs']} passes, {result['held_rows']} rows scored. The "
        "rates and the strength of TF-IDF's model are the best on these same rows, which flatters all of them a little."
    )
    return "\n".join(lines)


def insert(card: Path, name: str, text: str) -> None:
    """Put the table between its markers in a card."""
    begin, end = f"<!-- learnability {name} -->", f"<!-- end {name} -->"
    old = card.read_text(encoding="utf-8")
    new, found = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.S)
    if found != 1:
        raise SystemExit(f"{card}: expected one pair of markers {begin} … {end}, got {found}; add them")
    card.write_text(new, encoding="utf-8")


def write_cards() -> None:
    """Put every logged table into its card."""
    for name, result in json.loads(LOG.read_text()).items():
        folder = {"sst2": "base"}.get(name, name.removesuffix("_json"))
        insert(ROOT / "src/tunetrial/embedded" / folder / "README.md", name, table(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tasks.BUILT_IN, default=list(tasks.BUILT_IN))
    parser.add_argument("--sst2", type=Path, help="a folder with SST-2 instead of the embedded tasks")
    parser.add_argument("--cards", action="store_true", help="rewrite the cards from the log and train nothing")
    args = parser.parse_args()
    if args.cards:
        return write_cards()
    todo = [(problem(name), RATES, SEEDS) for name in args.tasks]
    if args.sst2:
        todo = [(sst2(args.sst2), SST2_RATES, (1, 2, 3))]
    for each, rates, seeds in todo:
        result = study(each, rates, seeds) | {
            "device": DEVICE,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        log = json.loads(LOG.read_text()) if LOG.exists() else {}
        LOG.write_text(json.dumps(log | {each.name: result}, indent=1) + "\n")
        print(table(result), flush=True)
    write_cards()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENIZER = AutoTokenizer.from_pretrained(BASE)

if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main()
