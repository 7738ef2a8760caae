"""The machine at hand, measured in seconds; what is found must be like what can be timed here at once."""

import time

import pytest
import torch

from tiny import make_trial
from tunetrial.core.evidence import Measurement, TrialRecord
from tunetrial.core.speed import Rehearsed, Speed
from tunetrial.core.work import Kernel
from tunetrial.engine import rehearsal
from tunetrial.engine.calibration import calibrate
from tunetrial.plan.speed import seconds
from tunetrial.trial import calibration

MEASURED = {"train_s": Measurement(value=4.0, unit="s"), "steps": Measurement(value=20, unit="steps")}


@pytest.fixture(scope="module")
def speed() -> Speed:
    """As found in as few rounds as there may be; threads and random numbers are then as they were."""
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = calibrate("cpu", seconds=0)
    assert torch.equal(before, torch.get_rng_state()) and threads == torch.get_num_threads()
    return found


def test_a_calibrated_speed_says_what_it_is_of_and_outlives_its_file(speed):
    assert speed.measured and speed.kind == "cpu" and speed.threads == 1 and "torch" in speed.versions
    assert Speed.model_validate_json(speed.model_dump_json()) == speed
    assert (
        speed.launch_s == 0
        and speed.load >= 0
        and {"product", "elementwise", "copy", "optimiser"} <= speed.error.keys()
    )


def test_products_come_near_to_what_they_take_here(speed):
    m, n, k = 512, 512, 256
    a, b = torch.randn(m, k), torch.randn(k, n)
    kernel = Kernel(kind="product", dtype="float32", shape=(m, n, k), count=1, operations=2 * m * n * k, bytes=2**20)
    taken = []
    for _ in range(30):
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    assert min(taken) / 4 < seconds([kernel], speed, recorded=False).likely < 8 * min(taken) * torch.get_num_threads()


def test_what_is_kept_is_found_by_the_machine_and_learnt_from_trials(speed, tmp_path, monkeypatch):
    """Real steps, which take seconds, are left out: two made-up ones stand for them."""
    work = (Kernel(kind="elementwise", dtype="float32", count=100, operations=1e6, bytes=1e6),)
    steps = [
        Rehearsed(method="lora", precision="fp32", work=many * work, recorded=False, step_s=many * 0.1)
        for many in (1, 10)
    ]
    monkeypatch.setattr("tunetrial.engine.calibration.calibrate", lambda device, *, seconds: speed)
    monkeypatch.setattr("tunetrial.engine.rehearsal.rehearse", lambda device: steps)
    assert calibration.known(tmp_path, "cpu") is None and calibration.learn(tmp_path, "cpu", []) == 0
    made = calibration.calibrate(tmp_path, "cpu")
    assert calibration.known(tmp_path, "cpu") == (made, ())
    assert seconds(work, made, recorded=False).likely == pytest.approx(0.1)
    trained = TrialRecord(trial=make_trial(), status="ok", measurements=MEASURED)
    assert calibration.learn(tmp_path, "cpu", [(trained, 0.1)] * 2) == 2
    _, (seen,) = calibration.known(tmp_path, "cpu")
    assert (seen.trial, seen.predicted_s, seen.measured_s) == (trained.trial.id, 0.1, 0.2)


def test_real_steps_are_counted_and_timed(monkeypatch):
    """Two of them here; a machine is told by four."""
    monkeypatch.setattr(rehearsal, "STEPS", {"cpu": ((2, 4),)})
    monkeypatch.setattr(rehearsal, "SIZES", {"cpu": (1, 64, 128, 4)})
    full, lora = rehearsal.rehearse("cpu")
    assert (full.method, lora.method) == rehearsal.METHODS and not full.recorded
    optimised = [k.operations * k.count for step in (full, lora) for k in step.work if k.kind == "optimiser"]
    assert optimised[0] > 10 * optimised[1] and 0 < lora.step_s < 5
