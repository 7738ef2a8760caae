"""Real optimiser steps of a small random model, counted and timed: they show how far seconds of counted work are off.

    for step in rehearse("cpu"):
        ...

What the host does between kernels, and what a kernel takes within a pass and not by itself, no timing of single kernels
tells; steps do. They are those of the engine's own loop, one thread on a CPU as in every worker.
"""

import json
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from tunetrial import methods, models
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.speed import Rehearsed
from tunetrial.core.study import Arm, Controls, Trial
from tunetrial.engine.calibration import Watch, one_thread
from tunetrial.engine.torch_engine import TorchEngine, TorchSession
from tunetrial.engine.trace import trace

# Layers, hidden and intermediate size, and heads, of what a second of steps is enough for.
SIZES = {"cpu": (4, 256, 768, 4), "cuda": (4, 2048, 5632, 16)}
# Rows of a step, and words of each.
STEPS = {"cpu": ((2, 4), (16, 24)), "cuda": ((2, 16), (16, 192))}
COLD, TIMED = 3, 7
METHODS = ("full", "lora")


def rehearse(device: str) -> Iterator[Rehearsed]:
    """Take some steps of a small random Llama by full fine-tuning and by LoRA, over few tokens and over many, in the
    device's native precision; and where those are recorded, over few tokens in fp32, which are not."""
    with tempfile.TemporaryDirectory() as folder, one_thread(device == "cpu"):
        base, native = _random_base(Path(folder) / "base", device), TorchEngine(device=device).precision()
        steps = [(native, rows, words) for rows, words in STEPS[device]]
        for precision, rows, words in steps + [("fp32", *STEPS[device][0])] * (device == "cuda" and native == "bf16"):
            session = TorchEngine(device=device).open(base, precision)
            data = _rows(random.Random(0), rows, words)
            for method in METHODS:
                controls = Controls(base_fingerprint="random", precision=precision)
                arm = Arm(name=method, method=method, settings=methods.settle(method, {}))
                yield measure(session, arm, controls, data)


def measure(session: TorchSession, arm: Arm, controls: Controls, data: TaskData) -> Rehearsed:
    """Count one optimiser step of an arm over all training rows of a task, and time some.

    `controls` are taken with as many examples a step as there are rows, so that every step is the same work.
    """
    rows, device = data.splits["train"], session.device
    controls = controls.model_copy(update={"batch_examples": len(rows), "epochs": COLD + TIMED})
    given = {"task": data.name, "data_digest": "", "learning_rate": 1e-5, "seed": 1, "purpose": "probe"}
    texts = session.texts.rows(rows) if controls.readout != "head" else None
    traced = trace(
        json.loads((session.base / "config.json").read_text(encoding="utf-8")),
        arm,
        controls,
        lengths=session.lengths(rows, readout=controls.readout),
        answered=None if texts is None else [sum(row.answers_T) for row in texts],
        device=device.type,
        kind=data.kind,
        outputs=max(1, len(data.labels)),
        **_capability(device),
    )
    pack = session.start_pack([Trial(arm=arm, controls=controls, **given)], data)
    steps, watch = pack.steps(None), Watch(device)
    taken = [watch.time(lambda: next(steps)) for _ in range(COLD + TIMED)]
    recorded = pack.loop.replay is not None and bool(pack.loop.replay.recorded)
    steps.close()
    return Rehearsed(
        method=arm.method,
        precision=controls.precision,
        work=traced.phases["step"].work,
        recorded=recorded,
        step_s=statistics.median(taken[COLD:]),
    )


def _capability(device: torch.device) -> dict[str, object]:
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {"capability": (properties.major, properties.minor), "processors": properties.multi_processor_count}


def _random_base(folder: Path, device: str) -> Path:
    """A Llama with drawn weights, and the embedded base's tokenizer."""
    layers, hidden, intermediate, heads = SIZES[device]
    config = LlamaConfig(
        vocab_size=models.shape(models.EMBEDDED).vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    for file in models.EMBEDDED.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def _rows(rng: random.Random, count: int, words: int) -> TaskData:
    """Rows of drawn words, half to one and a half times as many as said, with one of two labels."""
    drawn = "bread oven late price refund parcel broken clock login invoice courier gold watch queue repair".split()
    rows = []
    for number, label in zip(range(count), "ab" * count, strict=False):
        prompt = " ".join(rng.choices(drawn, k=rng.randint(words // 2, words * 3 // 2)))
        rows.append(Example(id=f"r{number}", cluster=f"r{number}", prompt=prompt, target=label))
    return TaskData(name="rehearsal", kind="classify", labels=("a", "b"), splits={"train": tuple(rows)})
