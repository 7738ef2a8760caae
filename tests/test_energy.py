"""Energy by a GPU's own counter: the mean over steps, and nothing where nothing counts it."""

import itertools
import sys
import types

import pytest
import torch

from tunetrial.engine import energy


def test_a_steps_energy_is_the_counters_difference_over_the_steps():
    clock = itertools.count(1000, 5)
    reads = []
    read = lambda: reads.append(next(clock)) or float(reads[-1])  # noqa: E731
    assert energy.a_step(lambda number: None, read, least_s=0) == (5.0, 1)
    spent = {"joules": 0.0}

    def step(number):
        assert number == round(spent["joules"] / 3)
        spent["joules"] += 3

    each, steps = energy.a_step(step, lambda: spent["joules"], least_s=0.02)
    assert each == pytest.approx(3) and steps > 1


def test_nothing_counts_a_cpu_or_a_gpu_without_its_library(monkeypatch):
    assert energy.counter(torch.device("cpu")) is None

    class NVMLError(Exception):
        pass

    def absent():
        raise NVMLError("no library")

    monkeypatch.setitem(sys.modules, "pynvml", types.SimpleNamespace(nvmlInit=absent, NVMLError=NVMLError))
    assert energy.counter(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.counter(torch.device("cuda")) is None


def test_a_gpus_millijoules_are_read_by_its_uuid(monkeypatch):
    library = types.SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: {"GPU-12-ab": "handle"}[name],
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"handle": 7_250}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="12-ab"))
    assert energy.counter(torch.device("cuda"))() == 7.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: this test measures one")
def test_work_takes_more_than_nothing():
    pytest.importorskip("pynvml")
    read = energy.counter(torch.device("cuda"))
    matrix = torch.randn(4096, 4096, device="cuda")

    def multiply(number):
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()

    each, steps = energy.a_step(multiply, read)
    assert 0 < each < 1000 / 10 and steps > 10
