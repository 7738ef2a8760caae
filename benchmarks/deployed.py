"""Models as they are deployed, for B6 and B7: tokens written over a base with adapters beside it, ours and PEFT's."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

import peers
import shapes
from contest import Case, Measured, Options
from tunetrial import models
from tunetrial.engine import offers
from tunetrial.engine.contenders import (
    Answering,
    Eager,
    EagerMixed,
    Engine,
    beside_by_engine,
    beside_by_peft,
    by_engine,
    load,
    mixed,
    twin,
)
from tunetrial.engine.merge import adapter_weights
from tunetrial.models.adapters import read_adapter

ADAPTERS = {"q,v r8": {"rank": 8, "targets": ["q_proj", "v_proj"]}, "all-linear r16": {"rank": 16}}
PROMPT, WRITTEN = 128, 128
ROUNDS = 5


class Bench:
    """A base and adapters drawn at random in memory, once for all contenders of a process."""

    def __init__(self, case: Case, options: Options):
        work = case.work
        self.device, self.dtype = torch.device(options.device), torch.bfloat16
        self.base = models.resolve(str(shapes.base(work["shape"], options.folder, options.device)))
        scratch = Path(tempfile.mkdtemp(prefix="deployed-"))
        settings = ADAPTERS[work["adapted"]]
        folders = offers.drawn(self.base, settings, work["adapters"], scratch, seed=0)
        self.read = []
        for folder in folders:
            found = read_adapter(folder)
            weights, _ = adapter_weights(found, self.base)
            self.read.append((found, {name: weight.to(self.dtype) for name, weight in weights.items()}))
        self.plain = load(self.base.folder, self.dtype, self.device)
        self.count = work["adapters"]
        drawn = np.random.default_rng(0)
        self.rows = drawn.integers(shapes.SHAPES[work["shape"]].vocabulary, size=(work["batch"], PROMPT)).tolist()

    def merged(self) -> Answering:
        """Weights of the base: in the shapes of merged ones, and so as fast."""
        return Engine(by_engine(load(self.base.folder, self.dtype, self.device)))

    def separate(self) -> Answering:
        own = by_engine(load(self.base.folder, self.dtype, self.device))
        choose = {"choose": mixed(self.count)} if self.count > 1 else {}
        return Engine(beside_by_engine(own, self.read), adapters_of=lambda rows: self.count, **choose)

    def eager(self) -> Answering:
        model = beside_by_peft(twin(self.plain), self.read)
        if self.count == 1:
            return Eager(model, adapters_of=lambda rows: 1)
        return EagerMixed(model, mixed(self.count), lambda rows: self.count)


HELD: dict[tuple[str, str], Bench] = {}


def bench(case: Case, options: Options) -> Bench:
    """The one of a case; another case's is let go before it is made."""
    key = case.name, options.device
    if key not in HELD:
        HELD.clear()
        HELD[key] = Bench(case, options)
    return HELD[key]


def token_s(answering: Answering, held: Bench, written: int) -> float:
    """Seconds of one more token of each row: a long answer's time less that of its first two, over those between."""
    long = peers.timed(lambda: answering.answer(held.rows, written + 2), held.device.type)
    short = peers.timed(lambda: answering.answer(held.rows, 2), held.device.type)
    return (long - short) / written


def in_turns(contenders: dict[str, Answering], held: Bench, written: int) -> dict[str, Measured]:
    """Time contenders one after the other, round after round, after one that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(ROUNDS + 1):
        for name, answering in contenders.items():
            seconds = token_s(answering, held, written)
            if number:
                spent[name].append(seconds)
    found = {}
    for name, answering in contenders.items():
        found[name] = {
            "token_s": statistics.median(spent[name]),
            "fastest_token_s": min(spent[name]),
            "slowest_token_s": max(spent[name]),
            "rounds": ROUNDS,
            "written": written,
            "settings": facts(answering),
        }
    return found


def facts(answering: Answering) -> dict[str, object]:
    if not isinstance(answering, Engine):
        return {"attention": answering.model.config._attn_implementation, "generate": "transformers, dynamic cache"}
    answers = answering.answers
    return {
        "steps": "stacked" if answers else "by modules",
        "own_kernels": bool(answers and answers.decoder.own_kernels),
        "recorded": bool(answers and answers.recorded),
        "first_tokens_recorded": answering.recorded,
    }


def adapter_share(shape_name: str, adapted: str, count: int) -> float:
    """Bytes of so many adapters over those of what a token is multiplied by: what reading them adds at least."""
    shape = shapes.SHAPES[shape_name]
    kv = shape.hidden // shape.heads * shape.kv_heads
    sizes = {
        "q_proj": shape.hidden * 2,
        "k_proj": shape.hidden + kv,
        "v_proj": shape.hidden + kv,
        "o_proj": shape.hidden * 2,
        "gate_proj": shape.hidden + shape.intermediate,
        "up_proj": shape.hidden + shape.intermediate,
        "down_proj": shape.hidden + shape.intermediate,
    }
    settings = ADAPTERS[adapted]
    own = shape.layers * settings["rank"] * sum(sizes[name] for name in settings.get("targets", sizes))
    return count * own / shape.multiplied(text=True)
