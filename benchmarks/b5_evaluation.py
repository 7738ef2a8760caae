"""B5: many adapters of one base evaluated on the same examples: labels read by heads, and text generated.

    python benchmarks/b5_evaluation.py --device cuda
    python benchmarks/b5_evaluation.py --small

`example_s` is the time of one example with one adapter, the median of repeats after the first. tunetrial takes all
adapters and examples; PEFT `batches` of those that it would take, evenly spread over lengths and adapters, since its
time is the same for each. How many completions end early is told by `new_tokens`, their mean length.
"""

import statistics

import torch

import lengths
import ours
import peers
import shapes
from contest import OURS, Benchmark, Case, Measured, Options, Target
from laps import Laps, peak_bytes

SWITCHED, MIXED = "PEFT, set_adapter loop", "PEFT, adapter_names batch"
LABELS = ("no", "yes")
RANK = 16


def case(shape: str, kind: str, size: tuple[int, int], goals: tuple, **more: object) -> Case:
    """`size` is of how many adapters and examples, `goals` what is to be reached, aimed at and predicted."""
    adapters, examples = size
    work = {
        "shape": shape,
        "kind": kind,
        "adapters": adapters,
        "examples": examples,
        "rank": RANK,
        "batch": 125,
        "batches": 16,
    }
    target = Target("example against PEFT", "speed-up", *goals, measure="example_s", against=(SWITCHED, MIXED))
    length = f" {more['longest']} tokens" if kind == "generate" else ""
    name = f"{shape}, {kind}{length}, {adapters} adapters × {examples} examples"
    return Case(name, work | more, (OURS, SWITCHED, MIXED), (target,))


GPU = (
    case("1.1B", "classify", (16, 500), (3, None, 4.0), rows="mrpc", repeats=3),
    case("1.1B", "generate", (16, 125), (6, 10, 4.0), rows="mrpc", longest=128, repeats=1, batches=1),
)
CPU = (
    case("embedded", "classify", (4, 100), (None, None, 1.5), rows="mrpc", repeats=3),
    case("embedded", "generate", (4, 32), (None, None, 1.5), rows="sst2", longest=16, repeats=3, batches=1),
)
SMALL = (
    case("tiny", "classify", (2, 16), (None, None, 1.0), rows="sst2", repeats=1),
    case("tiny", "generate", (2, 8), (None, None, 1.0), rows="sst2", longest=4, repeats=1),
)


def prepared(case: Case, options: Options):
    work = case.work
    folder = shapes.base(work["shape"], options.folder, options.device)
    tokenizer = peers.AutoTokenizer.from_pretrained(folder)
    labels = LABELS if work["kind"] == "classify" else ()
    sizes = [(prompt, 0 if labels else 2) for prompt, _ in lengths.drawn(work["rows"], 16 + work["examples"])]
    rows = lengths.examples(tokenizer, sizes, labels=labels)
    return folder, tokenizer, lengths.task("evaluated", rows[:16], rows[16:], kind=work["kind"], labels=labels)


def told(case: Case, options: Options, evaluate, answers: int, settings: dict) -> Measured:
    """Time an evaluation that makes so many answers: once cold, then as often as the case says."""
    work = case.work
    Laps(options.device, warm=0)  # peak memory from here on
    cold_s = peers.timed(evaluate, options.device)
    spent = [peers.timed(evaluate, options.device) for _ in range(work["repeats"])]
    example_s = statistics.median(spent) / answers
    return {
        "example_s": example_s,
        "examples_per_s": 1 / example_s,
        "answers": answers,
        "cold_s": cold_s,
        "repeats": work["repeats"],
        "peak_bytes": peak_bytes(options.device),
        "settings": settings,
    }


def by_tunetrial(case: Case, options: Options) -> Measured:
    work = case.work
    _, tokenizer, data = prepared(case, options)
    held = ours.session(work["shape"], options)
    text = {"readout": "text", "longest": work["longest"]} if work["kind"] == "generate" else {}
    trials = [
        ours.trial("lora", {"rank": RANK}, precision=held.precision, seed=1 + k, **text)
        for k in range(work["adapters"])
    ]
    pack = ours.train(held, trials, data, Laps(options.device, warm=1, blocks=0))
    made = []
    answers = work["adapters"] * work["examples"]
    found = told(case, options, lambda: made.append(pack.predict(data.splits["validation"])), answers, pack.facts(0))
    if work["kind"] == "generate":
        sizes = [len(ids) for texts in made[-1] for ids in tokenizer(list(texts)).input_ids]
        found["new_tokens"] = statistics.mean(sizes)
    return found


def adapted(folder, case: Case, data, options: Options):
    """The base with all adapters, none of them zero, in evaluation mode and in bf16 as it is served."""
    config = peers.lora_config(data, rank=RANK, targets=peers.ALL_LINEAR)
    config.init_lora_weights = False
    loaded = peers.model(folder, "lora", data, options.device)
    loaded = peers.adapted(loaded, "lora", config)
    names = ["default"] + [f"a{k}" for k in range(1, case.work["adapters"])]
    for name in names[1:]:
        loaded.add_adapter(name, config)
    return loaded.to(torch.bfloat16).eval(), names


def padded(rows: list[dict], device: str, *, left: bool) -> dict[str, torch.Tensor]:
    inputs = peers.collate([{**row, "labels": 0} for row in rows])
    inputs.pop("labels")
    if left:
        inputs = {
            name: torch.stack([_left(r, m) for r, m in zip(t, inputs["attention_mask"], strict=True)])
            for name, t in inputs.items()
        }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _left(row: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[mask == 0], row[mask == 1]])


def spread(case: Case, prompts: list[dict], names: list[str], *, mixed: bool) -> list[list[tuple[str, dict]]]:
    """Batches of examples by length; with `mixed` each holds rows of all adapters, else of one."""
    work = case.work
    by_length = sorted(prompts, key=lambda row: len(row["input_ids"]))
    groups = [[(n, row) for row in by_length for n in names]] if mixed else [[(n, r) for r in by_length] for n in names]
    size = -(-len(groups[0]) // -(-len(groups[0]) // work["batch"]))  # as many batches, none much smaller
    batches = [group[first : first + size] for group in groups for first in range(0, len(group), size)]
    taken = min(work["batches"], len(batches))
    return [batches[(2 * k + 1) * len(batches) // (2 * taken)] for k in range(taken)]


def by_peft(case: Case, options: Options, *, mixed: bool) -> Measured:
    work = case.work
    folder, _, data = prepared(case, options)
    loaded, names = adapted(folder, case, data, options)
    batches = spread(case, peers.prompt_rows(folder, data), names, mixed=mixed)
    sizes: list[int] = []

    @torch.inference_mode()
    def evaluate() -> None:
        sizes.clear()
        for batch in batches:
            if not mixed:
                loaded.set_adapter(batch[0][0])
            answer(batch, {"adapter_names": [name for name, _ in batch]} if mixed else {})

    def answer(batch: list[tuple[str, dict]], chosen: dict) -> None:
        inputs = padded([row for _, row in batch], options.device, left=work["kind"] == "generate")
        if work["kind"] == "classify":
            loaded(**inputs, **chosen).logits.argmax(-1).tolist()
            return
        stops = {"max_new_tokens": work["longest"], "eos_token_id": 0, "pad_token_id": peers.PADDING}
        out = loaded.generate(**inputs, **chosen, **stops, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        sizes.extend(((new != peers.PADDING) & (new != 0)).sum(-1).tolist())

    settings = peers.described(loaded) | {"batch": work["batch"], "cache": "dynamic"}
    found = told(case, options, evaluate, sum(map(len, batches)), settings)
    return found | ({"new_tokens": statistics.mean(sizes)} if sizes else {})


BENCHMARK = Benchmark(
    "B5",
    "Evaluation of many adapters over one base",
    {"cuda": GPU, "cpu": CPU, "small": SMALL},
    {
        OURS: by_tunetrial,
        SWITCHED: lambda case, options: by_peft(case, options, mixed=False),
        MIXED: lambda case, options: by_peft(case, options, mixed=True),
    },
)

if __name__ == "__main__":
    BENCHMARK.main(__file__)
