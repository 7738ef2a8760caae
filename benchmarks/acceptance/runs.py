"""The runs of the acceptance suite: what is asked of each, carried out in packs where they may, kept as they come.

A run is one arm at one rate with one seed on E2E (data to text): nats a token on rows that were not trained on, nats a
token lost on held-out paragraphs of WikiText-2, and, where asked, how many intruder dimensions its update has. What is
kept goes by a digest of what was asked, so a suite that is started again goes on where it was stopped.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from tunetrial import methods, models, tasks
from tunetrial.analysis import spectra
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.records import Record
from tunetrial.core.study import Arm, Controls, Trial
from tunetrial.engine.loop import Loop
from tunetrial.engine.torch_engine import TorchEngine, TorchPack, TorchSession
from tunetrial.engine.updates import updates

PACK = 16
TEXTS = 100


class Recipe(Record):
    """One run. `pure_bf16` rounds the weights to bf16 after every step, as a model without fp32 masters is trained;
    `spectra` asks for the update's singular vectors."""

    arm: str
    method: str
    settings: dict[str, bool | int | float | str | tuple[str, ...]] = {}
    rate: float
    seed: int
    rows: int = 1000
    batch: int = 16
    epochs: int = 2
    pure_bf16: bool = False
    spectra: bool = False


class Outcome(Record):
    """What came of a run: `nll` and `base_nll` in nats a token of the answers of rows not trained on, `forgotten` in
    nats a token of held-out text; `intruders` is the mean over matrices (k = 10, epsilon = 0.5). All None of a run that
    diverged."""

    recipe: Recipe
    nll: float | None = None
    forgotten: float | None = None
    intruders: float | None = None
    size: float | None = None


class Runs:
    """Runs carried out or read back."""

    def __init__(self, log: Path, data: Path, *, scale: float = 1.0, device: str | None = None) -> None:
        self.log, self.data, self.scale, self.device = log, data, scale, device
        kept = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        outcomes = map(Outcome.model_validate_json, kept)
        self.kept = {one.recipe.digest: one for one in outcomes}
        self._session: TorchSession | None = None

    def of(self, recipes: Sequence[Recipe]) -> list[Outcome]:
        """The outcomes of these recipes, in order; those not kept yet are carried out first."""
        due = {recipe.digest: recipe for recipe in recipes if recipe.digest not in self.kept}
        for number, pack in enumerate(packs(due.values()), start=1):
            print(f"{self.log.stem}: {len(pack)} of {pack[0].arm}, rate {pack[0].rate:g}, pack {number}", flush=True)
            for outcome in self._carry_out(pack):
                self.kept[outcome.recipe.digest] = outcome
                with self.log.open("a", encoding="utf-8") as log:
                    log.write(outcome.model_dump_json() + "\n")
        return [self.kept[recipe.digest] for recipe in recipes]

    @property
    def session(self) -> TorchSession:
        if self._session is None:
            engine = TorchEngine(device=self.device)
            self._session = engine.open(models.resolve("embedded").folder, engine.precision())
        return self._session

    def rows(self, recipe: Recipe) -> TaskData:
        """Rows of E2E to train on, one an input before further ones; rows for validation, whose inputs are theirs
        alone; texts."""
        firsts, further = _e2e(self.data)
        held = firsts[: self.scaled(100)]
        inputs = {row["input"] for row in held}
        train = [row for row in (*firsts, *further) if row["input"] not in inputs][: self.scaled(recipe.rows)]
        wiki = self.data / "wikitext2_eval/test.jsonl"
        texts = [text for text in tasks.read_texts(wiki) if len(text.text) >= 200][: self.scaled(TEXTS)]
        splits = {
            "train": tuple(_example("t", n, row) for n, row in enumerate(train)),
            "validation": tuple(_example("v", n, row) for n, row in enumerate(held)),
            "text~wikitext": tuple(Example(text.id, text.cluster, text.text, "") for text in texts),
        }
        return TaskData("e2e", "generate", (), splits)

    def scaled(self, count: int) -> int:
        return max(8, round(self.scale * count))

    def start(self, pack: Sequence[Recipe]) -> tuple[TorchPack, TaskData]:
        """Trials of these recipes, not yet begun, and their rows."""
        data = self.rows(pack[0])
        return self.session.start_pack([_trial(recipe, self.session) for recipe in pack], data), data

    def _carry_out(self, pack: Sequence[Recipe]) -> Iterator[Outcome]:
        run, data = self.start(pack)
        for _ in run.steps(None):
            if pack[0].pure_bf16:
                _round(run.loop)
        likelihoods = run.likelihoods(data.splits["validation"])
        counts = _intruders(run) if pack[0].spectra else {}
        for member, recipe in enumerate(pack):
            if member in run.diverged:
                yield Outcome(recipe=recipe)
                continue
            nats, tokens = np.array(likelihoods[member]).T
            table = run.observe(member, data, "forgetting")
            lost = (table["tuned_nats"] - table["base_nats"]).sum() / table["tokens"].sum()
            found = {"nll": float(nats.sum() / tokens.sum()), "forgotten": float(lost), **counts.get(member, {})}
            yield Outcome(recipe=recipe, **(found if np.isfinite(list(found.values())).all() else {}))


@cache
def _e2e(data: Path) -> tuple[list[dict], list[dict]]:
    """The first row of each input, and the others."""
    rows = [json.loads(line) for line in (data / "e2e_nlg/train.jsonl").read_text(encoding="utf-8").splitlines()]
    first = {row["input"]: number for number, row in reversed(list(enumerate(rows)))}
    chosen = sorted(first.values())
    return [rows[number] for number in chosen], [row for n, row in enumerate(rows) if first[row["input"]] != n]


def packs(recipes: Iterable[Recipe]) -> list[tuple[Recipe, ...]]:
    """Which runs train together: adapters that differ in rank, rate and seed alone; every full run is by itself."""
    together: dict[object, list[Recipe]] = {}
    for recipe in recipes:
        alike = ("targets", "rslora", "dora", "base")
        family = tuple((name, recipe.settings.get(name)) for name in alike)
        asked = (recipe.method, family, recipe.rows, recipe.batch, recipe.epochs, recipe.spectra)
        together.setdefault(recipe.digest if recipe.method == "full" else asked, []).append(recipe)
    return [tuple(alike[at : at + PACK]) for alike in together.values() for at in range(0, len(alike), PACK)]


def _trial(recipe: Recipe, session: TorchSession) -> Trial:
    return Trial(
        arm=Arm(name=recipe.arm, method=recipe.method, settings=methods.settle(recipe.method, recipe.settings)),
        controls=Controls(
            base_fingerprint=models.resolve("embedded").fingerprint,
            epochs=recipe.epochs,
            batch_examples=recipe.batch,
            precision=session.precision,
            readout="text",
            max_new_tokens=64,
        ),
        task="e2e",
        data_digest="e2e",
        learning_rate=recipe.rate,
        seed=recipe.seed,
        purpose="tune",
    )


def _example(kind: str, number: int, row: dict) -> Example:
    return Example(f"{kind}{number}", row["input"], row["input"] + "\n", row["output"])


@torch.no_grad()
def _round(loop: Loop) -> None:
    """Leave in the masters what bf16 holds; moments stay fp32, which favours such training."""
    loop.trainables.masters.copy_(loop.trainables.masters.to(torch.bfloat16))
    loop.trainables.publish()


def _intruders(run: TorchPack) -> dict[int, dict[str, float]]:
    """Mean over matrices, by member, of intruder dimensions and of the update's relative Frobenius norm."""
    found: dict[int, list[tuple[int, float]]] = {}
    for one in updates(run, vectors=10):
        count = spectra.intruders(one.left_K, tops=(10,), epsilons=(0.5,))[0, 0]
        found.setdefault(one.member, []).append((count, spectra.relative_size(one.update_K, one.base_K)[0]))
    means = {member: np.mean(values, axis=0) for member, values in found.items()}
    return {member: {"intruders": float(mean[0]), "size": float(mean[1])} for member, mean in means.items()}
