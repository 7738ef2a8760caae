"""What a trial takes, counted without weights: the same as when it really runs, and as by hand."""

import dataclasses
import gc
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import bases
import contest
import lengths
import shapes
import tiny
from tunetrial import methods
from tunetrial.core.errors import ModelError
from tunetrial.core.evidence import TaskData
from tunetrial.core.study import Arm, Controls
from tunetrial.engine import batches
from tunetrial.engine import trace as tracing
from tunetrial.engine.meter import MIB, Meter, cuda_block, matmul_workspace
from tunetrial.engine.optimisers import moments, optimiser
from tunetrial.engine.place import Place
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.engine.trace import trace

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def arm(method: str, **settings: object) -> Arm:
    return Arm(name=method, method=method, settings=methods.settle(method, settings))


def controls(**other: object) -> Controls:
    return Controls(**{"base_fingerprint": "", "precision": "bf16", "readout": "text", "max_new_tokens": 8} | other)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Bases of three layers with a tokenizer, by family."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = tiny.make_model(root / "tokenizer")
    made = {}
    for family in ("llama", "qwen3", "mistral"):
        made[family] = Path(shutil.copytree(tokenizer, root / family))
        sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 128}
        bases.make(family, made[family], num_hidden_layers=3, **sizes)
    return made


def rows(kind: str) -> TaskData:
    data = tiny.make_data("classify", rows=16, validation=4)
    if kind == "classify":
        return data
    write = lambda example: dataclasses.replace(example, target=example.prompt[:9])  # noqa: E731
    splits = {name: tuple(map(write, examples)) for name, examples in data.splits.items()}
    return TaskData(name="tiny", kind="generate", labels=(), splits=splits)


@pytest.mark.parametrize(
    ("family", "kind", "method", "members", "recomputes"),
    [
        ("llama", "generate", "full", 1, False),
        ("llama", "generate", "lora", 3, False),
        ("qwen3", "classify", "lora", 3, True),
        ("mistral", "generate", "qlora", 1, True),
    ],
)
def test_count_is_what_a_step_on_the_cpu_takes(folders, family, kind, method, members, recomputes):
    readout = {"classify": "head", "generate": "text"}[kind]
    asked = {"epochs": 1, "batch_examples": 16, "readout": readout, "max_new_tokens": 8}
    trials = [tiny.make_trial(method, seed=seed, **asked) for seed in range(members)]
    session, meter = TorchEngine(device="cpu").open(folders[family], "fp32"), Meter("cpu")
    session.prepare(trials[0])
    meter.give((*session.model.parameters(), *session.model.buffers()), "base")
    with meter:
        loop = session.start_pack(trials, rows(kind)).loop
        loop.recomputes, order = recomputes, [course.order[0] for course in loop.courses]
        loop.step(order, [1e-3] * members)
        gc.collect()
        meter.reset()
        loop.step(order, [1e-3] * members)
    answered = [loop.objective.answered[row] for row in order[0]] if kind == "generate" else None
    counted = trace(
        json.loads((folders[family] / "config.json").read_text()),
        trials[0].arm,
        trials[0].controls,
        lengths=[len(loop.tokens[row]) for row in order[0]],
        answered=answered,
        device="cpu",
        kind=kind,
        outputs=3,
        members=members,
        recomputes=recomputes,
    )
    assert counted.phases["step"].peak_bytes == pytest.approx(meter.peak, rel=0.005)


@pytest.mark.parametrize(
    ("device", "method", "members", "recomputes"), [("cpu", "full", 1, False), ("cuda", "lora", 2, True)]
)
def test_layers_drawn_on_are_layers_counted(monkeypatch, device, method, members, recomputes):
    asked = {"lengths": [64] * 16, "answered": [32] * 16, "members": members, "recomputes": recomputes}
    drawn = trace(LLAMA, arm(method), controls(), device=device, **asked)
    monkeypatch.setattr(tracing, "FEW", 99)
    assert drawn == trace(LLAMA, arm(method), controls(), device=device, **asked)


def test_gradients_that_meet_are_added_in_place_where_autograd_does_so():
    """Outside of a meter the gradients of one weight from two places lie where the first did."""
    weight = torch.zeros(256, 64, device="meta", requires_grad=True)
    rows, size = torch.zeros(8, dtype=torch.long, device="meta"), 256 * 64 * 4
    whole = lambda: weight.sum()  # noqa: E731  whose gradient is one number, seen at every place
    found = lambda: torch.nn.functional.embedding(rows, weight).sum()  # noqa: E731
    with Meter("meta") as meter:
        for one, other, matrices in ((whole, found, 1), (found, found, 2), (found, whole, 2)):  # the last goes first
            loss = one() + other()
            meter.reset()
            held = meter.live
            loss.backward()
            weight.grad = None
            assert meter.peak - held == pytest.approx(matrices * size, rel=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_dropout": "x"}, "attention_dropout"),
        ({"head_dim": 15}, "rotary dimension"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"id2label": 5}, "items"),
    ],
)
def test_settings_that_transformers_refuses_are_one_line(change, said):
    with pytest.raises(ModelError, match="config.json: transformers refuses its settings, got .*; mend it") as raised:
        trace(LLAMA | {"model_type": "qwen3"} | change, arm("lora"), controls(), lengths=[8])
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_states_are_counted_as_by_hand():
    weights = 32000 * 512 + 8 * (512 * (512 + 256 + 256 + 512) + 3 * 512 * 1024 + 2 * 512) + 512
    step = trace(LLAMA, arm("full"), controls(), lengths=[64] * 4).phases["step"]
    parts = step.parts
    assert parts["moments"] == pytest.approx(8 * weights, rel=1e-4)
    assert parts["trained"] == pytest.approx(6 * weights, rel=1e-2)
    assert parts["workspace"] >= 3 * 32 * MIB
    copied = [kernel.bytes for kernel in step.work if kernel.kind == "copy" and kernel.bytes > 5 * weights]
    assert (
        copied == [pytest.approx(6 * weights, rel=1e-4)] * len(copied) and copied
    )  # gradients wider, masters narrower


def test_parts_of_every_phase_add_up_to_its_peak():
    phases = trace(LLAMA, arm("lora"), controls(), lengths=[64] * 4).phases
    assert list(phases) == ["load", "prepare", "step", "evaluate", "save", "resume"]
    for name, phase in phases.items():
        assert sum(phase.parts.values()) == phase.peak_bytes, name


def test_resuming_takes_the_states_alone():
    """By hand: 2 bytes of a copy, 4 of a master, a gradient, 8 of moments; no activations, and no master twice."""
    weights = 32000 * 512 + 8 * (512 * (512 + 256 + 256 + 512) + 3 * 512 * 1024 + 2 * 512) + 512
    phases = trace(LLAMA, arm("full"), controls(), lengths=[64] * 4).phases
    found = phases["resume"]
    assert found.peak_bytes - found.parts["workspace"] == pytest.approx(18 * weights, rel=0.01)
    assert found.peak_bytes < phases["step"].peak_bytes and not found.work


def test_work_is_six_operations_a_weight_and_token_or_four_where_the_base_is_frozen():
    blocks = 8 * (512 * (512 + 256 + 256 + 512) + 3 * 512 * 1024)
    asked = {"lengths": [256] * 4, "answered": [64] * 4}
    for method, passes in (("full", 6), ("lora", 4)):
        work = trace(LLAMA, arm(method), controls(), **asked).phases["step"].work
        products = sum(kernel.count * kernel.operations for kernel in work if kernel.kind == "product")
        head = 32000 * 512 * 256 * {6: 8, 4: 4}[passes]  # where the weight is trained, logits are made twice
        adapter = 0 if method == "full" else 6 * 16 * 1024 * 8 * (1024 + 768 + 768 + 1024 + 3 * 1536)
        unasked = 0 if method == "full" else 2 * 1024 * 512 * (1024 + 3 * 16)  # what embeddings would be trained by
        assert products == passes * blocks * 1024 + head + adapter - unasked
        attention = {kernel.operations for kernel in work if kernel.kind == "attention"}
        assert min(attention) == 4 * 4 * (256 * 257 / 2) * 8 * 64


@pytest.mark.parametrize("method", ["full", "lora"])
def test_passes_of_one_shape_are_the_first_again_but_that_they_add_gradients(method):
    def work(micro_batch: int) -> dict[tuple, int]:
        asked = {"lengths": [64] * 8, "micro_batch": micro_batch}
        found = trace(LLAMA, arm(method), controls(), **asked).phases["step"].work
        return {(k.kind, k.dtype, k.shape, k.operations, k.bytes): k.count for k in found}

    two, four = work(4), work(2)
    weights = max(key[4] for key in two if key[0] == "optimiser") / 28
    for made, passes in ((two, 2), (four, 4)):
        assert made["copy", "float32", (), 0.0, 6 * weights] == 1
        assert made["elementwise", "float32", (), weights, 10 * weights] == passes - 1
        assert sum(count for key, count in made.items() if key[0] == "attention") == 2 * 8 * passes


def test_memory_grows_with_members_and_rows_and_shrinks_by_recomputing():
    peak = lambda **other: trace(LLAMA, arm("lora"), controls(), **other).phases["step"].peak_bytes  # noqa: E731
    alone = peak(lengths=[512] * 8)
    assert peak(lengths=[512] * 8, members=2) > alone
    assert peak(lengths=[512] * 8, recomputes=True) < 0.7 * alone
    assert peak(lengths=[512] * 8, micro_batch=2) < 0.5 * alone


@pytest.mark.parametrize("bits", [32, 8])
def test_moments_are_those_that_an_optimiser_makes(bits):
    weights = [torch.zeros(size) for size in (100, 4095, 4096, 10_001)]
    moving = optimiser([{"params": [torch.nn.Parameter(one) for one in weights]}], bits=bits)
    for one in moving.param_groups[0]["params"]:
        one.grad = torch.zeros_like(one)
    moving.step()
    held = {id(t): t for state in moving.state.values() for t in state.values() if isinstance(t, torch.Tensor)}
    kinds = lambda tensors: sorted((str(t.dtype), t.numel()) for t in tensors if t.numel() > 1)  # noqa: E731
    assert kinds(moments(weights, bits=bits)) == kinds(held.values())


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_gpus_that_attend_alike_differ_by_workspaces_alone(method):
    of = {
        ability: trace(LLAMA, arm(method), controls(), lengths=[64] * 4, capability=ability)
        for ability in [(8, 0), (9, 0)]
    }
    assert tracing.elsewhere(of[8, 0], (8, 0), (9, 0)) == of[9, 0] != of[8, 0]


def test_blocks_and_workspaces_are_those_of_torch():
    assert [cuda_block(size) for size in (1, 512, 513, 11 * MIB, 12 * MIB - 1)] == [512, 512, 1024, 12 * MIB, 12 * MIB]
    assert cuda_block(10 * MIB + 512) == 10 * MIB + 512
    assert [matmul_workspace((major, 0)) for major in (8, 9, 10)] == [8519680, 32 * MIB, 32 * MIB]


def test_what_is_not_trained_or_not_known_is_refused():
    with pytest.raises(ModelError, match="nothing is trained"):
        trace(LLAMA, arm("none"), controls(), lengths=[8])
    with pytest.raises(ModelError, match="family not supported"):
        trace(LLAMA | {"model_type": "mamba"}, arm("full"), controls(), lengths=[8])


@pytest.mark.parametrize(("peft_type", "why"), [("FROD", "depends on the numbers"), ("TINYLORA", "PEFT's TINYLORA")])
def test_what_cannot_be_counted_says_why(peft_type, why):
    config = bases.configuration("llama").to_dict()
    with pytest.raises(ModelError, match=why) as raised:
        trace(config, arm("peft", peft_type=peft_type), controls(precision="fp32"), lengths=[8], device="cpu")
    assert re.search(r"got \w+Error in \w+\.py:\d+: .+; measure it", str(raised.value))


@pytest.mark.parametrize("fault", [KeyError("layers"), RuntimeError("shapes"), ValueError("0"), TypeError("None")])
def test_a_fault_of_the_counter_is_no_property_of_the_model(monkeypatch, fault):
    def broken(pack, meter):
        raise fault

    monkeypatch.setattr(tracing, "_name_parts", broken)
    with pytest.raises(type(fault)) as raised:
        trace(LLAMA, arm("lora"), controls(), lengths=[8])
    assert raised.value is fault


@pytest.mark.parametrize("name", ["1.1B lora, batch 16", "1.1B full, batch 16", "7B lora, batch 8"])
def test_peaks_measured_on_an_h200_are_foretold(name):
    results = json.loads((contest.RESULTS / "b3-cuda.json").read_text())
    case = next(case for case in results["cases"] if case["name"] == name)
    work, shape = case["work"], dataclasses.asdict(shapes.SHAPES[case["work"]["shape"]])
    steps = 64 + 8 * work.get("blocks", 3)
    sizes = lengths.drawn("alpaca", steps * work["batch"])
    taken = batches.order(len(sizes), epochs=1, batch_examples=work["batch"], seed=1)
    longest = [sizes[row] for row in max(taken, key=lambda step: sum(sum(sizes[row]) for row in step))]
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "intermediate": "intermediate_size",
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
    }
    config = {"model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": False}
    config |= {names[size]: value for size, value in shape.items()}
    asked = {"lengths": [sum(size) for size in longest], "answered": [answer for _, answer in longest]}
    counted = trace(config, arm(work["method"]), controls(), **asked).phases["step"].peak_bytes
    assert counted == pytest.approx(case["measured"]["tunetrial"]["peak_bytes"], rel=0.005)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "bert"])
def test_other_families_are_counted(family):
    config = bases.configuration(family, num_hidden_layers=6).to_dict()
    head = family in bases.ENCODERS
    asked = {"lengths": [20, 30] * 4, "kind": "classify" if head else "generate", "outputs": 3}
    given = controls(readout="head") if head else controls()
    peaks = [
        trace(config, arm("lora"), given, **asked, device=device).phases["step"].peak_bytes
        for device in ("cpu", "cuda")
    ]
    assert 0 < peaks[0] < peaks[1]


def test_a_trial_is_counted_by_its_fullest_step_and_its_least():
    lengths = [8] * 30 + [100, 90]
    steps = batches.order(len(lengths), epochs=1, batch_examples=5, seed=3)
    by_tokens = sorted(([lengths[row] for row in rows] for rows in steps), key=sum)
    asked, given = {"kind": "classify", "outputs": 2}, controls(batch_examples=5)
    found = tracing.count(LLAMA, arm("lora"), given, lengths, place=Place("cpu"), seed=3, members=2, **asked)
    for one, rows, members in (
        (found.fullest, by_tokens[-1], 1),
        (found.least, by_tokens[0], 1),
        (found.packed, by_tokens[-1], 2),
    ):
        alone = trace(LLAMA, arm("lora"), given, lengths=rows, device="cpu", members=members, **asked)
        assert one.phases["step"] == alone.phases["step"] and one.tokens == members * sum(rows)
    peaks = [found.fullest.phases[phase].peak_bytes for phase in ("load", "step")]
    assert found.fullest.training_bytes == max(peaks) < found.packed.training_bytes
    longest, mean = 100, 430 // 32
    assert (found.fullest.evaluated, found.least.evaluated) == (2048 // longest, 2048 // mean)
    assert found.step_tokens == pytest.approx(sum(map(sum, by_tokens)) / 7) and found.members == 2
    widest = max(kernel.shape[0] for kernel in found.least.phases["evaluate"].work if len(kernel.shape) == 3)
    assert 157 * 13 <= widest < 157 * 15  # of 13.4 tokens in the mean, with room


@pytest.mark.parametrize(("config", "method"), [(LLAMA, "none"), (LLAMA | {"model_type": "unheard"}, "lora")])
def test_of_what_cannot_be_counted_nothing_is_said(config, method):
    how = {"place": Place("cpu"), "kind": "classify", "outputs": 2, "seed": 1}
    assert tracing.count(config, arm(method), controls(batch_examples=2), [8, 8], **how) is None
