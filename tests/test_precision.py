"""fp16 with scaled losses, forced on a CPU; and moments in 8 bits."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tiny import make_data, make_model, make_trial
from tunetrial import methods
from tunetrial.core.errors import DivergedError
from tunetrial.engine.optimisers import Scaler
from tunetrial.engine.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"), hidden=64)


@pytest.fixture(scope="module")
def data():
    return make_data("classify", rows=64)


def start(base, data, method="lora", precision="fp16", settings=None, **terms):
    session = TorchEngine(device="cpu", **terms).open(base, precision)
    return session.start(make_trial(method, precision=precision, settings=settings, epochs=5), data)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fp16_follows_fp32_with_fp32_masters(base, data, method):
    exact = [step.loss for step in start(base, data, method, "fp32").steps(None)]
    run = start(base, data, method)
    losses = [step.loss for step in run.steps(None)]
    assert run.facts()["compute_dtype"] == "fp16" and run.facts()["loss_scale"] == 2.0**16
    assert {m.dtype for m in run.trainables.member(0).values()} == {torch.float32}
    assert losses == pytest.approx(exact, rel=5e-3)
    assert losses != exact


def test_an_overflow_halves_the_scale_and_repeats_the_step(base, data):
    calm = start(base, data)
    expected = [step.loss for step in calm.steps(None)]
    run = start(base, data)
    run.loop.courses[0].scaler.scale = 2.0**40
    found = [step.loss for step in run.steps(None)]
    assert run.facts()["overflows"] > 5 and run.facts()["loss_scale"] < 2.0**40
    assert len(found) == len(expected) and found == pytest.approx(expected, rel=5e-3)


def test_what_is_no_overflow_of_the_scale_diverges(base, data):
    run = start(base, data)
    next(iter(run.trainables.member(0).values())).data.fill_(math.inf)
    run.trainables.publish()
    with pytest.raises(DivergedError, match="no longer finite"):
        list(run.steps(None))
    assert run.facts()["loss_scale"] == 1.0


def test_the_scale_grows_after_two_thousand_sound_steps():
    scaler = Scaler()
    for _ in range(1999):
        assert scaler.accepts(1.0)
        scaler.grow()
    assert scaler.accepts(1.0) and scaler.scale == 2.0**16  # judging alone, as often as a step is begun again, is free
    scaler.grow()
    assert scaler.scale == 2.0**17
    assert not scaler.accepts(math.nan) and scaler.scale == 2.0**16


@pytest.mark.parametrize("settings", [{}, {"optimizer_bits": 8}])
def test_a_checkpoint_holds_scale_and_moments(base, data, tmp_path, settings):
    whole = start(base, data, "full", settings=settings)
    expected = [step.loss for step in whole.steps(None)]
    first = start(base, data, "full", settings=settings, checkpoint_every_s=0.0)
    for step in first.steps(tmp_path):
        if step.step == 9:
            first.loop.courses[0].scaler.scale = 4.0
        if step.step == 10:
            break
    second = start(base, data, "full", settings=settings)
    rest = [step.loss for step in second.steps(tmp_path)]
    assert second.first_step == 9 and second.facts()["loss_scale"] == 4.0
    assert rest == pytest.approx(expected[9:], rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_moments_in_8_bits_take_a_quarter_and_train_alike(base, data, method):
    rank = {"rank": 64} if method == "lora" else {}
    exact = [step.loss for step in start(base, data, method, "fp32", rank).steps(None)]
    run = start(base, data, method, "fp32", {"optimizer_bits": 8, **rank})
    losses = [step.loss for step in run.steps(None)]
    assert losses == pytest.approx(exact, rel=0.05) and losses != exact
    states = run.loop.optimisers[0].state
    pieces = [piece for group in run.loop.optimisers[0].param_groups for piece in group["params"]]
    large = [piece for piece in pieces if piece.numel() >= 4096]
    assert large and all(states[piece]["state1"].dtype == torch.uint8 for piece in large)
    counted = sum(
        t.numel() * t.element_size()
        for m in large
        for key, t in states[m].items()
        if key in ("state1", "state2", "absmax1", "absmax2")
    )
    weights = sum(m.numel() for m in large)
    assert counted == pytest.approx(2 * (1 + 4 / 256) * weights, rel=1e-3)


def test_state_bytes_follow_the_bits():
    arm = make_trial("full", settings={"optimizer_bits": 8}).arm
    from tunetrial import models

    shape = models.shape(models.resolve("embedded").folder)
    eight = methods.find(arm).state_bytes(shape, 1)
    wide = methods.find(make_trial("full").arm).state_bytes(shape, 1)
    assert eight == round(wide * (1 + 4 / 256) / 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_full_model_is_saved_in_the_bases_own_dtype(data, dtype, tmp_path):
    session = TorchEngine(device="cpu").open(make_model(tmp_path / "base", hidden=32, dtype=dtype), "fp32")
    run = session.start(make_trial("full", epochs=1), data)
    list(run.steps(None))
    run.save(tmp_path / "made")
    saved = load_file(tmp_path / "made" / "model.safetensors")
    assert {t.dtype for name, t in saved.items() if name.startswith("model.")} == {dtype}
    run.verify(tmp_path / "made")
