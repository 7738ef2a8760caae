"""What is recorded, when, and with which numbers it is replayed; a list of calls stands for a graph."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch

from test_packs import text_data
from test_varlen import flash_by_reference
from tiny import make_data, make_model, make_trial
from tunetrial.engine import graphs
from tunetrial.engine.graphs import Replay
from tunetrial.engine.torch_engine import TorchEngine


@dataclass
class Batch:
    tensors: tuple[torch.Tensor, ...]
    key: object


class Calls:
    """A recording calls the pass again; it was handed its tensors once and for all, as a graph was."""

    def __init__(self, fault=None):
        self.fault, self.recordings, self.runs = fault, 0, 0

    def run(self, pass_):
        self.runs += 1
        return pass_()

    def record(self, pass_):
        self.recordings += 1
        if self.fault is not None:
            raise self.fault
        return pass_


class World:
    """A weight w and the pass sum(factor * w * x), whose gradient is added to a buffer."""

    def __init__(self, fault=None):
        self.weight, self.gradient, self.abandoned = torch.tensor(2.0), torch.zeros(()), 0
        self.recorder = Calls(fault)
        self.replay = Replay(self.compute, self.recorder, abandon=self.abandon)

    def compute(self, batch, factors):
        (x,) = batch.tensors
        self.gradient += (factors * x).sum()
        return factors * self.weight * x

    def abandon(self):
        self.abandoned += 1

    def step(self, numbers, factors=1.0, *, key="as long"):
        self.gradient.zero_()
        key = len(numbers) if key == "as long" else key
        x, factors = torch.tensor(numbers), torch.full((len(numbers),), factors)
        losses = self.replay(Batch((x,), key), factors)
        torch.testing.assert_close(losses, factors * self.weight * x)
        torch.testing.assert_close(self.gradient, (factors * x).sum())


def test_a_shape_is_recorded_at_its_first_visit_and_replayed_with_the_numbers_at_hand():
    world = World()
    counts = []
    for number in range(5):
        world.weight.fill_(number)
        world.step([number, 1.0], 1.0 + number)
        counts.append((world.recorder.runs, world.recorder.recordings, world.replay.replayed))
    assert counts == [(1, 1, 0), (1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 1, 4)]
    assert world.replay.why_not is None


def test_every_key_has_its_own_recording():
    world = World()
    for _ in range(4):
        world.step([1.0, 2.0])
        world.step([3.0])
        world.step([4.0, 5.0], key=("of the same shape", 2))
    assert world.recorder.recordings == 3 and world.replay.replayed == 11 and world.recorder.runs == 1


def test_a_batch_without_a_key_is_never_recorded():
    world = World()
    for _ in range(4):
        world.step([1.0, 2.0], key=None)
    assert world.recorder.recordings == 0 and world.recorder.runs == 4


def test_no_more_are_recorded_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    world = World()
    for _ in range(3):
        for length in (1, 2, 3):
            world.step([1.0] * length)
    assert world.recorder.recordings == 2 and world.replay.replayed == 5 and world.recorder.runs == 4


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory\nmore"), RuntimeError("not permitted")])
def test_what_cannot_be_recorded_is_computed_as_before_for_good(fault):
    world = World(fault)
    for _ in range(4):
        world.step([1.0, 2.0])
        world.step([3.0])
    assert world.recorder.recordings == 1 and world.abandoned == 1 and world.replay.replayed == 0
    assert world.replay.why_not == f"recording failed: {str(fault).splitlines()[0]}"


def test_a_shape_that_cannot_be_recorded_at_once_is_computed_first():
    world = World()
    world.step([1.0])
    world.recorder.fault = RuntimeError("a kernel that was not there yet")
    real = world.recorder.run
    world.recorder.run = lambda pass_: (setattr(world.recorder, "fault", None), real(pass_))[1]
    for _ in range(3):
        world.step([1.0, 2.0])
        world.step([1.0, 2.0, 3.0])
    assert world.recorder.recordings == 4 and world.recorder.runs == 3 and world.replay.replayed == 4
    assert world.abandoned == 1 and world.replay.why_not is None and not world.replay.outright


def test_a_fault_of_the_program_is_not_taken_for_a_recording_that_failed():
    world = World(KeyError("a bug"))
    with pytest.raises(KeyError):
        world.step([1.0])


def test_recordings_are_let_go_when_memory_is_short():
    world = World()
    assert not world.replay.forget("no memory at first")
    world = World()
    for _ in range(3):
        world.step([1.0, 2.0])
    assert world.replay.forget("out of memory") and not world.replay.recorded
    for _ in range(3):
        world.step([1.0, 2.0])
    assert world.recorder.recordings == 1 and world.replay.replayed == 2 and world.replay.why_not == "out of memory"
    assert not world.replay.forget("again")


@pytest.mark.parametrize(
    ("method", "kind", "controls"),
    [
        ("lora", "classify", {}),
        ("full", "regress", {}),
        ("lora", "generate", {"readout": "text", "max_new_tokens": 8}),
        pytest.param("lora", "classify", {"readout": "labels"}, marks=pytest.mark.slow),
    ],
    ids=["classify", "regress", "text", "labels"],
)
def test_a_training_of_replayed_passes_is_one_of_computed_ones(method, kind, controls, tmp_path, monkeypatch):
    """Nothing but the tensors of a batch is read anew: the pass replayed is that of an earlier batch."""
    flash_by_reference(monkeypatch)
    base, data = make_model(tmp_path), text_data() if kind == "generate" else make_data(kind, rows=48)
    trial, curves = make_trial(method, epochs=4, **controls), {}
    for recorded in (True, False):
        run = TorchEngine(device="cpu").open(base, "fp32").start_pack([trial], data, micro_batch=8)
        replay = Replay(run.loop._pass(), Calls(), abandon=run.trainables.drop)
        if recorded:
            run.loop.replay = replay
        curves[recorded] = [(step.loss, step.grad_norm) for (step,) in run.steps(None)]
        assert replay.replayed >= 2 if recorded else replay.replayed == 0
        assert not replay.recorded and replay.why_not is None
        assert run.facts(0)["attention"] == "varlen" and run.facts(0)["cuda_graphs"] == recorded
    for ours, theirs in zip(curves[True], curves[False], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_loop_that_is_let_go_takes_its_recordings_along(tmp_path):
    """At once, and not when garbage is next collected: they hold a step's memory."""
    run = (
        TorchEngine(device="cpu")
        .open(make_model(tmp_path), "fp32")
        .start_pack([make_trial("lora")], make_data("classify", rows=16))
    )
    run.loop.replay = Replay(run.loop._pass(), Calls(), abandon=print)
    seen = weakref.ref(run.loop.replay)
    gc.disable()
    try:
        del run
        assert seen() is None
    finally:
        gc.enable()
