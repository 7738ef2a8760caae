"""Full fine-tuning after a merged adapter: equal to its two halves, and said wherever it counts."""

import pytest
import torch
from safetensors.torch import load_file

import planted
from tiny import make_data, make_model, make_trial
from trial_study import load, write_study
from tunetrial import methods, models, report
from tunetrial.analysis import decide
from tunetrial.core.errors import SpecError
from tunetrial.core.study import Arm
from tunetrial.engine.attention import lay_out
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.methods.method import full_centre
from tunetrial.plan import estimate
from tunetrial.spec import recipes

SHAPE = models.shape(models.EMBEDDED)
ROWS, HALF = [[5, 6, 7, 8], [9, 10]], {"warm_start": 0.5, "rank": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=32)


def start(base, method="full", precision="fp32", every_s=60.0, data=None, **how):
    session = TorchEngine(device="cpu", checkpoint_every_s=every_s).open(base, precision)
    how = {"epochs": 2, "precision": precision, **how}
    return session.start(make_trial(method, **how), data or make_data("classify"))


@torch.no_grad()
def logits(run) -> torch.Tensor:
    return run.model(lay_out(ROWS, run.model.device)).float()


def losses(run) -> list[float]:
    return [step.loss for step in run.steps(None)]


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-5), ("fp64", 1e-9), ("bf16", 2e-2)])
def test_the_merged_model_computes_what_adapter_and_base_did(base, precision, within):
    run = start(base, precision=precision, settings={**HALF, "warm_start": 0.9}, epochs=4)
    steps = run.steps(None)
    for _ in range(run.loop.merge_at):
        next(steps)
    assert any("lora_" in name for name in run.trainables.member(0))
    before, untrained = logits(run), logits(start(base, precision=precision))
    run.loop.merge()
    assert logits(run) == pytest.approx(before, abs=within)
    assert (before - untrained).abs().max() > 5 * within
    assert run.trainables.member(0).keys() == dict(run.model.named_parameters()).keys()


def test_masters_of_a_narrow_base_hold_the_merged_sum_in_fp32(base):
    run = start(base, precision="bf16", settings=HALF)
    for _ in zip(range(run.loop.merge_at), run.steps(None), strict=False):
        pass
    name = "model.layers.0.self_attn.q_proj"
    a, b = (run.trainables.member(0)[f"{name}.lora_{side}"].double() for side in "AB")
    run.loop.merge()
    stored = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].double()
    assert run.trainables.member(0)[f"{name}.weight"].double() == pytest.approx(stored + 2 * b @ a, abs=1e-7)


def test_its_first_steps_are_loras_at_the_adapters_rate_and_a_share_near_none_is_full(base):
    rate, factor = 1e-3, methods.Full().rate_factor(models.shape(base).parameters)
    warm = losses(start(base, rate=rate, settings=HALF))
    lora = losses(start(base, "lora", rate=rate * factor, settings={"rank": 4}))
    assert warm[:5] == lora[:5] and warm[6] != lora[6]
    assert losses(start(base, rate=rate, settings={**HALF, "warm_start": 0.01})) == losses(start(base, rate=rate))


@pytest.mark.parametrize("kind", ["classify", "regress"])
def test_the_head_is_trained_on_both_sides_of_the_merge(base, kind):
    run, heads = start(base, settings=HALF, data=make_data(kind)), []
    for _ in run.steps(None):
        heads.append(run.model.score.weight.detach().clone())
    first = run.loop.merge_at
    assert not torch.equal(heads[0], heads[first - 1]) and not torch.equal(heads[first - 1], heads[-1])


@pytest.mark.parametrize(("precision", "after"), [("bf16", 5), ("fp16", 6), ("fp16", 4)])
def test_a_resumed_run_saves_the_same_bytes(base, tmp_path, precision, after):
    whole = start(base, precision=precision, settings=HALF)
    losses(whole)
    whole.save(tmp_path / "whole")
    steps = start(base, precision=precision, settings=HALF, every_s=0.0).steps(tmp_path / "checkpoint")
    for _ in range(after + 1):
        next(steps)
    steps.close()
    resumed = start(base, precision=precision, settings=HALF, every_s=0.0)
    assert [step.step for step in resumed.steps(tmp_path / "checkpoint")] == list(range(after + 1, 11))
    resumed.save(tmp_path / "resumed")
    resumed.verify(tmp_path / "resumed")
    both = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert both[0] == both[1]
    assert not list(tmp_path.glob("*/adapter_*"))


def test_the_next_trial_of_the_session_finds_the_base_as_it_was(base):
    session = TorchEngine(device="cpu").open(base, "fp32")
    data, asked = make_data("classify"), make_trial("lora", epochs=1)
    expected = losses(session.start(asked, data))
    for most in (1, 4, 10):
        steps = session.start(make_trial("full", epochs=2, settings=HALF), data).steps(None)
        for _ in range(most):
            next(steps)
        steps.close()
        assert losses(session.start(asked, data)) == expected


def test_a_probe_times_both_halves_and_saves_a_full_model(base, tmp_path):
    session, data = TorchEngine(device="cpu").open(base, "fp32"), make_data("classify")
    found = session.probe(make_trial("full", epochs=1, settings=HALF), data, tmp_path / "probe")
    full = session.probe(make_trial("full", epochs=1), data, tmp_path / "full")
    for name in ("trainable_parameters", "optimizer_state_bytes"):
        assert found[name] == full[name]
    assert found["step_s"].n == 2 * full["step_s"].n


def test_settings_are_those_of_the_adapter_and_only_with_a_warm_start():
    assert methods.settle("full", {}) == {"optimizer_bits": 32}
    given = methods.settle("full", {"warm_start": 0.5, "rank": 8, "targets": "v_proj,q_proj"})
    lora = methods.settle("lora", {"rank": 8, "targets": "q_proj,v_proj"})
    assert given == {"warm_start": 0.5} | {name: lora[name] for name in ("rank", "alpha", "targets", "optimizer_bits")}
    with pytest.raises(SpecError, match="rank: is of the adapter of a warm start, got 8 without one; add warm_start"):
        methods.settle("full", {"rank": 8})
    for share in (0, 1, -0.1):
        with pytest.raises(SpecError, match="warm_start: must be .*, got"):
            methods.settle("full", {"warm_start": share})


def test_its_estimates_are_fulls_but_for_the_operations_of_the_frozen_share():
    full, warm = methods.Full(), methods.Full(warm_start=0.25)
    assert warm.trainable_parameters(SHAPE, 3) == full.trainable_parameters(SHAPE, 3)
    assert warm.learning_rate_centre(10**9) == full.learning_rate_centre(10**9) == 2e-5
    assert full.rate_factor(10**9) == pytest.approx(10)
    assert full.rate_factor(10**7) == pytest.approx(2e-3 / full_centre(10**7))
    weights = SHAPE.layers * SHAPE.block_parameters
    arms = [make_trial("full", settings=settings).arm for settings in ({}, {"warm_start": 0.25})]
    assert [estimate.train_operations(arm, SHAPE) / weights for arm in arms] == [6, 0.25 * 4 + 0.75 * 6]


def write_warm(folder):
    """A study of full fine-tuning with and without a warm start, which stands first and is not the reference."""
    path = write_study(folder, more="replicates: {looks: [2]}")
    full, lora = "  full: {method: full}\n", "  lora: {method: lora, rank: 2}\n"
    text = path.read_text().replace(full, "").replace("reference: full\n", "")
    path.write_text(text.replace(lora, "  warm: {method: full, warm_start: 0.5, rank: 2}\n" + full))
    return path


SAID = "the first 50 % of the steps train a LoRA adapter of rank 2 at"


def test_a_plan_declares_it_and_searches_its_rate_around_fulls_centre(tmp_path):
    study = load(write_warm(tmp_path), "plain")
    assert study.asked.reference == "full"
    made = study.plan()
    assert f"warm: {SAID}" in str(made) and made.remarks.keys() == {"warm"}
    assert made.memory_bytes["warm"] == made.memory_bytes["full"]
    rates = {arm: [t.learning_rate for t in made.first_wave if t.arm.name == arm] for arm in ("full", "warm")}
    assert rates["full"] == rates["warm"] != []


def test_a_report_declares_it_and_the_ledger_compares_it():
    warm = Arm(name="warm", method="full", settings=methods.settle("full", {**HALF, "rank": 2}))
    lock = planted.lock(("full", "warm"))
    lock = lock.model_copy(update={"study": lock.study.model_copy(update={"arms": (lock.study.arm("full"), warm)})})
    found = planted.evidence(lock, {"full": 0.8, "warm": 0.8})
    made = decide(found)
    assert all(check.holds for check in made.fairness) and len(made.fairness) > 8
    assert [verdict.candidate for verdict in made.verdicts] == ["warm"]
    assert SAID in report.markdown(found, made) and SAID in report.html(found, made)


def test_no_tools_recipe_can_have_it():
    made = recipes.Recipe(
        tool="trl",
        base_model="b",
        method="full",
        settings=methods.settle("full", HALF),
        learning_rate=1e-4,
        epochs=1,
        batch_examples=4,
        max_tokens=64,
        weight_decay=0.0,
        precision="bf16",
        data=None,
    )
    with pytest.raises(SpecError, match="trl has no recipe that merges an adapter half-way, got warm_start 0.5"):
        recipes.write("trl", made, seed=0)
