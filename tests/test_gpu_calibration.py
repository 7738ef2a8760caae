"""On a CUDA device: its speed in seconds, and steps of another model foretold."""

import json

import pytest
import torch

from tiny import make_data, make_model
from tunetrial import methods
from tunetrial.core.study import Arm, Controls
from tunetrial.engine.calibration import calibrate
from tunetrial.engine.rehearsal import measure, rehearse
from tunetrial.engine.torch_engine import TorchEngine
from tunetrial.plan.speed import fitted, seconds

pytestmark = pytest.mark.gpu


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_calibrated_and_foretells_steps_of_another_model(tmp_path):
    speed = fitted(calibrate("cuda", seconds=5), list(rehearse("cuda")))
    assert speed.kind == "cuda" and speed.threads is None and json.loads(speed.model_dump_json())
    session = TorchEngine(device="cuda").open(make_model(tmp_path, layers=6, hidden=512), "fp32")
    arm = Arm(name="lora", method="lora", settings=methods.settle("lora", {}))
    controls = Controls(base_fingerprint="tiny", precision="fp32")
    step = measure(session, arm, controls, make_data("classify", rows=32))
    assert 1 / 3 < seconds(step.work, speed, recorded=step.recorded).likely / step.step_s < 3
