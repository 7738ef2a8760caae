"""The engine against a plain Hugging Face Trainer with PEFT, and what it promises of seeds, resume and memory."""

import json
import math
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForSequenceClassification, Trainer, TrainingArguments

from tiny import make_data, make_model, make_trial
from tunetrial import methods, models
from tunetrial.core.errors import DivergedError
from tunetrial.engine import probe
from tunetrial.engine.quantised import QuantisedLinear, matrix
from tunetrial.engine.torch_engine import TorchEngine

ROWS_PER_STEP = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


@pytest.fixture(params=["classify", "regress"])
def data(request):
    return make_data(request.param)


def open_session(base, precision="fp32", **settings):
    return TorchEngine(device="cpu", **settings).open(base, precision)


def trainer_losses(base, data, trial, run, session, folder) -> list[float]:
    """Train the same rows in the same order with HF Trainer and PEFT from the same head and adapter."""
    dtype = {"fp32": torch.float32, "fp64": torch.float64}[trial.controls.precision]
    readout = run.reader.readout
    model = LlamaForSequenceClassification.from_pretrained(
        base, dtype=dtype, num_labels=readout.outputs, attn_implementation="eager", pad_token_id=0
    )
    model.config.problem_type = "single_label_classification" if readout.labels else "regression"
    model.score.weight.data.copy_(run.model.score.weight[0].detach())
    if trial.arm.method == "lora":
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
        with warnings.catch_warnings():  # PEFT asks transformers for a name that is deprecated there
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(model, config, autocast_adapter_dtype=False)
        ours = run.trainables.member(0)
        for name, parameter in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                plain = name.removeprefix("base_model.model.").replace(".default.weight", "")
                parameter.data.copy_(ours[plain].detach())
    rows = [row for step in run.loop.courses[0].order for row in step]
    tokens = session.texts.prompts(data.splits["train"])
    targets = readout.encode([e.target for e in data.splits["train"]], torch.device("cpu"))
    dataset = [{"input_ids": tokens[row], "labels": targets[row]} for row in rows]

    def collate(batch):
        longest = max(len(row["input_ids"]) for row in batch)
        ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch])
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        labels = torch.stack([row["labels"] for row in batch])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels.to(dtype) if labels.is_floating_point() else labels,
        }

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS_PER_STEP,
        num_train_epochs=1,
        learning_rate=trial.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        logging_nan_inf_filter=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=collate)
    losses = []
    original = trainer.compute_loss

    def watched(*args, **kwargs):
        loss = original(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.compute_loss = watched
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return losses


@pytest.mark.parametrize(
    ("precision", "tolerance", "method"),
    [
        ("fp64", 1e-9, "full"),
        ("fp64", 1e-9, "lora"),
        ("fp32", 1e-5, "lora"),
        pytest.param("fp32", 1e-5, "full", marks=pytest.mark.slow),
    ],
)
def test_loss_curve_equals_hf_trainer_with_peft(base, data, method, precision, tolerance, tmp_path):
    session = open_session(base, precision)
    trial = make_trial(method, rate=1e-3, precision=precision)
    run = session.start(trial, data)
    theirs = trainer_losses(base, data, trial, run, session, tmp_path)
    ours = [step.loss for step in run.steps(None)]
    assert len(ours) == len(theirs) == 50
    assert run.facts()["attention"] == "grid"
    assert run.facts()["blocks"] == ("transformers" if precision == "fp64" else "tunetrial")
    assert ours == pytest.approx(theirs, rel=tolerance)
    assert ours[-1] < 0.9 * ours[0]


def weights(run) -> dict[str, torch.Tensor]:
    return {name: master.detach().clone() for name, master in run.trainables.member(0).items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_same_seed_gives_the_same_bytes_and_another_differs(base, method):
    session, data = open_session(base), make_data("classify", rows=32)
    made = []
    for seed in (1, 1, 2):
        run = session.start(make_trial(method, seed=seed, epochs=1), data)
        losses = [step.loss for step in run.steps(None)]
        made.append((losses, weights(run), run.predict(data.splits["validation"]), run.token_digest))
    assert made[0][0] == made[1][0] and same(made[0][1], made[1][1]) and made[0][2:] == made[1][2:]
    assert made[0][0] != made[2][0] and not same(made[0][1], made[2][1]) and made[0][3] != made[2][3]


def test_arms_of_a_pair_share_order_head_and_first_loss(base, data):
    session = open_session(base)
    runs = {}
    for method in ("full", "lora"):
        run = session.start(make_trial(method, seed=7), data)
        head = run.model.score.weight.detach().clone()
        runs[method] = run.token_digest, head, next(iter(run.steps(None))).loss
    assert runs["full"][0] == runs["lora"][0]
    assert torch.equal(runs["full"][1], runs["lora"][1])
    assert runs["full"][2] == runs["lora"][2]


@pytest.mark.parametrize("stop_after", [1, 4, 7])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_resume_continues_to_the_same_bytes(base, tmp_path, method, stop_after):
    data, trial = make_data("regress", rows=36), make_trial(method, epochs=3)
    whole = open_session(base).start(trial, data)
    losses = [step.loss for step in whole.steps(None)]
    broken = open_session(base, checkpoint_every_s=0.0).start(trial, data)
    steps = broken.steps(tmp_path)
    for _ in range(stop_after + 1):
        next(steps)
    steps.close()
    resumed = open_session(base).start(trial, data)
    rest = [step.loss for step in resumed.steps(tmp_path)]
    assert resumed.first_step == stop_after
    assert rest == losses[stop_after:]
    assert same(weights(resumed), weights(whole))
    assert resumed.predict(data.splits["validation"]) == whole.predict(data.splits["validation"])


def test_resume_passes_over_a_damaged_checkpoint(base, tmp_path):
    data, trial = make_data("regress", rows=36), make_trial("lora", epochs=3)
    broken = open_session(base, checkpoint_every_s=0.0).start(trial, data)
    steps = broken.steps(tmp_path)
    for _ in range(6):
        next(steps)
    steps.close()
    newest = max(tmp_path.glob("step-*")) / "state.safetensors"
    body = bytearray(newest.read_bytes())
    body[-3] ^= 1
    newest.write_bytes(body)
    resumed = open_session(base).start(trial, data)
    list(resumed.steps(tmp_path))
    assert resumed.first_step == 4


def test_session_gives_every_run_the_base_from_disk(base):
    session, data = open_session(base), make_data("classify", rows=16)
    first = [step.loss for step in session.start(make_trial("lora", epochs=1), data).steps(None)]
    list(session.start(make_trial("full", epochs=2), data).steps(None))
    again = [step.loss for step in session.start(make_trial("lora", epochs=1), data).steps(None)]
    assert first == again


@pytest.mark.parametrize("settings", [{}, {"rank": 4, "targets": "q_proj,v_proj"}, {"rank": 3, "rslora": True}])
def test_trainable_counts_and_bytes_equal_the_formulas(base, settings, tmp_path):
    session, data = open_session(base), make_data("classify", rows=16)
    trial = make_trial("lora", settings=settings)
    method, shape = methods.find(trial.arm), models.shape(base)
    run = session.start(trial, data)
    next(iter(run.steps(None)))
    assert run.trainables.count() == method.trainable_parameters(shape, 3)
    assert moments_bytes(run) == method.state_bytes(shape, 3)
    run.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.numel() * t.element_size() for t in saved.values()) == method.artifact_bytes(shape, 3, 4)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("settings", [{"dora": True, "rank": 4}, {"rank": 4}])
def test_saved_adapter_is_one_of_the_plain_base(base, method, settings, tmp_path):
    """PEFT loads it over the weights as they are stored to the same logits, and over the plain base to nearly these."""
    session, data = open_session(base), make_data("classify", rows=32)
    run = session.start(make_trial(method, settings=settings, rate=1e-2), data)
    assert next(run.steps(None)).steps > 1
    list(run.steps(None))
    run.save(tmp_path)
    plain = LlamaForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0, dtype=torch.float32)
    for name, module in run.model.model.named_modules():
        if isinstance(module, QuantisedLinear):
            plain.model.get_submodule(name.removesuffix(".base")).weight.data.copy_(matrix(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert_same_logits(run, theirs, session, data, tolerance=1e-5)


def test_session_stores_the_base_as_each_trial_wants_it(base):
    session, data = open_session(base), make_data("classify", rows=16)
    losses = {}
    for method in ("lora", "qlora", "full", "qlora", "lora"):
        found = [step.loss for step in session.start(make_trial(method, epochs=2), data).steps(None)]
        assert losses.setdefault(method, found) == found
        stored = [m for m in session.model.modules() if isinstance(m, QuantisedLinear)]
        assert len(stored) == (14 if method == "qlora" else 0)
    assert losses["qlora"] != losses["lora"]


def test_probe_of_qlora_finds_the_bytes_of_its_formula(base, tmp_path):
    session, data = open_session(base), make_data("classify", rows=32)
    trial = make_trial("qlora", epochs=1)
    found = session.probe(trial, data, tmp_path / "probe")
    method, shape = methods.find(trial.arm), models.shape(base)
    assert found["base_bytes"].value - method.base_bytes(shape, 4) in range(0, 4096)  # beside it rotary frequencies


def moments_bytes(run) -> int:
    states = run.loop.optimisers[0].state.values()
    return sum(state[key].numel() * state[key].element_size() for state in states for key in ("exp_avg", "exp_avg_sq"))


def test_full_trains_every_weight_of_the_backbone(base):
    session, data = open_session(base), make_data("classify", rows=16)
    run = session.start(make_trial("full"), data)
    next(iter(run.steps(None)))
    method, shape = methods.find(run.trials[0].arm), models.shape(base)
    assert run.trainables.count() == method.trainable_parameters(shape, 3) == shape.parameters + 3 * shape.hidden
    assert moments_bytes(run) == method.state_bytes(shape, 3)


def test_update_of_lora_has_at_most_its_rank(base):
    session, data = open_session(base, "fp64"), make_data("classify", rows=32)
    run = session.start(make_trial("lora", precision="fp64", settings={"rank": 3}), data)
    list(run.steps(None))
    layer = run.model.model.layers[1].mlp.up_proj
    update = layer.scaling[0] * (layer.lora_B[0] @ layer.lora_A[0]).detach()
    singular = torch.linalg.svdvals(update)
    assert singular[2] > 1e-6
    assert (singular[3:] < 1e-12 * singular[0]).all()


@pytest.mark.parametrize("rslora", [False, True])
def test_saved_adapter_gives_the_same_logits_in_peft(base, rslora, tmp_path):
    session, data = open_session(base), make_data("classify", rows=32)
    run = session.start(make_trial("lora", settings={"rank": 4, "rslora": rslora}), data)
    list(run.steps(None))
    run.save(tmp_path)
    plain = LlamaForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert_same_logits(run, theirs, session, data, tolerance=1e-5)


def test_saved_full_model_gives_the_same_logits_in_transformers(base, tmp_path):
    session, data = open_session(base), make_data("classify", rows=32)
    run = session.start(make_trial("full"), data)
    list(run.steps(None))
    run.save(tmp_path)
    theirs = LlamaForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert_same_logits(run, theirs, session, data, tolerance=1e-5)


def assert_same_logits(run, theirs, session, data, *, tolerance):
    from tunetrial.engine.attention import lay_out

    tokens = session.texts.prompts(data.splits["validation"])
    with torch.no_grad():
        ours = run.model(lay_out(tokens, torch.device("cpu")))[0]
        for row, ids in enumerate(tokens):
            assert torch.allclose(ours[row], theirs(input_ids=torch.tensor([ids])).logits[0], atol=tolerance)
    assert ours.std() > 0.03


def test_bf16_keeps_fp32_masters_and_scores_what_is_saved(tmp_path):
    base = make_model(tmp_path / "base", hidden=32, dtype=torch.bfloat16)
    session, data = open_session(base, "bf16"), make_data("classify", rows=16)
    run = session.start(make_trial("full", rate=1e-5, precision="bf16", epochs=1), data)
    before = weights(run)
    next(iter(run.steps(None)))  # the first step of the warm-up has rate 0
    run.loop.step([run.loop.courses[0].order[0]], [1e-5])
    name = "model.layers.0.mlp.up_proj.weight"
    changed = (run.trainables.member(0)[name] != before[name]).float().mean()
    assert run.trainables.member(0)[name].dtype == torch.float32 and changed > 0.99
    list(run.steps(None))
    run.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved[name].dtype == torch.bfloat16 and saved["score.weight"].dtype == torch.float32
    assert torch.equal(saved[name], dict(run.model.named_parameters())[name])


def test_smaller_micro_batch_is_the_same_experiment(base, data):
    session = open_session(base, "fp64")
    trial = make_trial("lora", precision="fp64", epochs=2)
    whole = session.start(trial, data)
    losses, digest = [step.loss for step in whole.steps(None)], whole.token_digest
    parts = session.start(trial, data, micro_batch=3)
    assert parts.facts()["micro_batch"] == 3 and parts.token_digest == digest
    assert [step.loss for step in parts.steps(None)] == pytest.approx(losses, rel=1e-7)  # transformers norms in fp32


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("wide"), hidden=256, layers=4)


def run_with_memory(base, room_mib: int) -> dict:
    script = Path(__file__).parent / "out_of_memory.py"
    done = subprocess.run([sys.executable, script, base, str(room_mib)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_not_the_batch(wide_base):
    plenty, scarce = (run_with_memory(wide_base, room) for room in (5000, 100))
    assert plenty["micro_batch"] == 16 and scarce["micro_batch"] in (1, 2, 4, 8)
    assert scarce["losses"] == pytest.approx(plenty["losses"], rel=1e-5)


def test_prediction_does_not_depend_on_company(base, data):
    session = open_session(base)
    run = session.start(make_trial("lora", epochs=1), data)
    list(run.steps(None))
    examples = data.splits["validation"]
    together, alone = run.predict(examples), [run.predict([example])[0] for example in examples]
    assert together == (alone if data.kind == "classify" else pytest.approx(alone, rel=1e-5))


@pytest.mark.parametrize("readout", ["head", "labels"])
def test_numbers_that_are_not_finite_name_no_label(base, readout):
    """As after a last step that ruined the weights: the largest of NaNs would else pass for an answer."""
    session, data = open_session(base), make_data("classify", rows=16, validation=4)
    run = session.start(make_trial("full", readout=readout, epochs=1), data)
    list(run.steps(None))
    next(iter(run.trainables.member(0).values())).data.fill_(math.nan)
    run.trainables.publish()
    assert all(math.isnan(label) for label in run.predict(data.splits["validation"]))


def test_a_rate_too_high_is_diverged(base):
    session, data = open_session(base), make_data("regress", rows=64)
    run = session.start(make_trial("full", rate=1e18), data)
    with pytest.raises(DivergedError, match=r"step \d+: numbers are no longer finite, got loss"):
        list(run.steps(None))


@pytest.mark.parametrize(
    "seconds",
    [
        lambda number: 0.04,
        lambda number: 0.13 if number < 30 else 0.04,
        lambda number: 0.04 + 0.13 * 0.95**number,
    ],
    ids=["at once", "after thirty", "slowly"],
)
def test_probe_times_steps_once_they_have_settled(seconds):
    """A fresh process prepares its kernels for dozens of steps: a run of hundreds does not cost that a step."""
    taken = []

    def take(number: int) -> float:
        taken.append(number)
        return seconds(number) * (1 + 0.02 * (number % 3))

    timed = probe.settled(take)
    assert [number for number, _ in timed] == taken[-probe.TIMED :]
    assert statistics.median(second for _, second in timed) == pytest.approx(0.04, rel=0.08)
    assert taken == list(range(len(taken)))


def test_probe_of_steps_that_never_settle_ends():
    assert len(probe.settled(lambda number: 0.9**number)) == probe.TIMED


def test_probe_tells_phases_apart(base, data, tmp_path):
    found = open_session(base).probe(make_trial("lora"), data, tmp_path / "artifact")
    assert found["step_s"].n >= 20
    assert {"load_s", "evaluate_examples_per_s", "latency_s", "save_s", "artifact_bytes", "peak_bytes"} <= found.keys()
    assert all(measured.value > 0 for measured in found.values())
    assert not (tmp_path / "artifact").exists()


def test_golden_count_of_tinyllama():
    """TinyLlama-1.1B, r = 8 on q and v, a two-class head: 1,126,400 + 4,096."""
    shape = models.ModelShape(
        model_type="llama",
        layers=22,
        hidden=2048,
        heads=32,
        kv_heads=4,
        head_dim=64,
        intermediate=5632,
        vocabulary=32000,
        context=2048,
        tied=False,
        bytes_per_weight=2,
        projections={"q_proj": (2048, 2048), "v_proj": (2048, 256)},
        norms=2 * 2048,
        outside=2048,
    )
    arm = make_trial("lora", settings={"rank": 8, "targets": "q_proj,v_proj"}).arm
    assert methods.find(arm).trainable_parameters(shape, 2) == 1_130_496
