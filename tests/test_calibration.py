"""The machine at hand, measured in seconds; what is found must be like what can be timed here at once."""

import time

import pytest
import torch

from tunetrial.core.speed import Speed
from tunetrial.core.work import Kernel
from tunetrial.engine.calibration import calibrate
from tunetrial.plan.speed import seconds


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
    assert speed.launch_s == 0 and {"product", "elementwise", "copy", "optimiser"} <= speed.error.keys()


def test_products_come_near_to_what_they_take_here(speed):
    m, n, k = 512, 512, 256
    a, b = torch.randn(m, k), torch.randn(k, n)
    kernel = Kernel(kind="product", dtype="fp32", shape=(m, n, k), count=1, operations=2 * m * n * k, bytes=2**20)
    taken = []
    for _ in range(30):
        began = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - began)
    assert min(taken) / 4 < seconds([kernel], speed, recorded=False).likely < 8 * min(taken) * torch.get_num_threads()
