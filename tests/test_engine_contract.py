"""What every engine promises (core.engine), asked of each through its public doors alone."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tiny import make_model
from tunetrial import methods, models
from tunetrial.core.engine import Engine, Session, Step
from tunetrial.core.errors import DivergedError, IntegrityError
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.study import Arm, Controls, Trial
from tunetrial.engine.sim import SimEngine, Truth, World

ARMS = {
    "full": Arm(name="full", method="full"),
    "lora": Arm(name="lora", method="lora", settings=methods.settle("lora", {"rank": 2, "targets": ("q_proj",)})),
    "warm": Arm(
        name="warm",
        method="full",
        settings=methods.settle("full", {"warm_start": 0.45, "rank": 2, "targets": ("q_proj",)}),
    ),
}
ROWS, BATCH, EPOCHS = 42, 4, 4
STEPS = EPOCHS * math.ceil(ROWS / BATCH)
MERGE = 20
TOO_HIGH = 1e6


@dataclass(frozen=True)
class Case:
    """An engine under test: how to make one that saves a checkpoint now and then, and a base that it can open."""

    name: str
    make: Callable[[], Engine]
    base: Path


def _sim() -> Case:
    truth = Truth(diverges_above=1.0)
    return Case("sim", lambda: SimEngine(World(arms=dict.fromkeys(ARMS, truth))), models.EMBEDDED)


def _torch() -> Case:
    from tunetrial.engine.torch_engine import TorchEngine

    return Case("torch", lambda: TorchEngine(device="cpu", checkpoint_every_s=0.0), _tiny_base())


@cache
def _tiny_base() -> Path:
    return make_model(Path(tempfile.mkdtemp(prefix="tiny-base-")), hidden=32)


CASES = {"sim": _sim, "torch": _torch}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]()


@pytest.fixture(scope="module")
def uninterrupted():
    """Steps of an arm's whole training, and what it predicts then; of each engine once."""

    known: dict[tuple[str, str, str], tuple[list[Step], list]] = {}

    def made(case: Case, arm: str, purpose: str) -> tuple[list[Step], list]:
        asked = case.name, arm, purpose
        if asked not in known:
            data = data_of("classify")
            run, steps = finished(case.make().open(case.base, "fp32"), trial(arm, purpose=purpose), data)
            known[asked] = steps, run.predict(data.splits["test"])
        return known[asked]

    return made


@pytest.fixture
def session(case) -> Session:
    return case.make().open(case.base, "fp32")


def rows(split: str, count: int, kind: str) -> tuple[Example, ...]:
    words = ("late train", "lost parcel", "wrong bill")
    return tuple(
        Example(
            id=f"{split}-{row}",
            cluster=f"{split}-{row // 2}",
            prompt=f"{words[row % 3]} number {row}" + " again" * (row % 5),
            target="abc"[row % 3] if kind == "classify" else row / 10,
        )
        for row in range(count)
    )


def data_of(kind: str) -> TaskData:
    splits = {split: rows(split, count, kind) for split, count in (("train", ROWS), ("validation", 9), ("test", 12))}
    return TaskData(name="mail", kind=kind, labels=("a", "b", "c") if kind == "classify" else (), splits=splits)


@pytest.fixture(params=["classify", "regress"])
def data(request) -> TaskData:
    return data_of(request.param)


def trial(arm: str = "full", *, seed: int = 1, learning_rate: float = 1e-3, purpose: str = "final") -> Trial:
    controls = Controls(base_fingerprint="f", epochs=EPOCHS, batch_examples=BATCH, precision="fp32")
    return Trial(
        arm=ARMS[arm],
        controls=controls,
        task="mail",
        data_digest="d",
        learning_rate=learning_rate,
        seed=seed,
        purpose=purpose,
    )


def timeless(steps: list[Step]) -> list[Step]:
    return [replace(step, seconds=0.0) for step in steps]


def finished(session: Session, asked: Trial, data: TaskData, **how):
    run = session.start(asked, data, **how)
    return run, timeless(list(run.steps(None)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_engine_says_its_precision_and_whether_it_is_synthetic(case):
    engine = case.make()
    assert engine.precision() in ("bf16", "fp32", "fp64")
    assert isinstance(engine.synthetic, bool)


def test_lengths_count_tokens_and_grow_with_the_prompt(session):
    short, long = rows("train", 1, "classify")[0], replace(rows("train", 1, "classify")[0], prompt="one " * 50)
    lengths = session.lengths([short, long])
    assert 0 < lengths[0] < lengths[1]


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_steps_are_all_there_once_and_warm_up_then_fall(session, data, arm):
    _, steps = finished(session, trial(arm), data)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert {step.steps for step in steps} == {STEPS}
    assert all(math.isfinite(value) for step in steps for value in (step.loss, step.grad_norm))
    rates = [step.learning_rate for step in steps]
    warm = math.ceil(0.1 * STEPS)
    assert rates[0] == 0 and rates[warm] == max(rates) == 1e-3
    assert rates[: warm + 1] == sorted(rates[: warm + 1]) and rates[warm:] == sorted(rates[warm:], reverse=True)


def test_a_warm_start_keeps_the_schedule_and_begins_at_the_adapters_rate(case, session, data):
    _, steps = finished(session, trial("warm"), data)
    _, plain = finished(session, trial("full"), data)
    own = models.shape(case.base).parameters
    factor = methods.find(ARMS["lora"]).learning_rate_centre(own) / methods.find(ARMS["full"]).learning_rate_centre(own)
    assert factor > 1
    expected = [step.learning_rate * (factor if step.step <= MERGE else 1) for step in plain]
    assert [step.learning_rate for step in steps] == pytest.approx(expected)


def test_a_warm_start_that_is_only_tried_merges_half_way(session, data):
    few = replace(data, splits={name: rows[: BATCH + 1] for name, rows in data.splits.items()})
    tried = [step.learning_rate for step in session.start(trial("warm"), few).steps(None, most=4)]
    whole = [step.learning_rate for step in session.start(trial("full"), few).steps(None)]
    assert [one > other for one, other in zip(tried[1:], whole[1:], strict=False)] == [True, False, False]


def test_a_trial_that_is_only_tried_ends_after_its_first_steps_or_its_last(session, data):
    few = replace(data, splits={name: rows[: BATCH + 1] for name, rows in data.splits.items()})
    whole = [step.loss for step in session.start(trial(), few).steps(None)]
    for most in (2, len(whole) + 1):
        assert [step.loss for step in session.start(trial(), few).steps(None, most=most)] == whole[:most]


def test_every_token_is_trained_on_once_an_epoch(session, data):
    run, steps = finished(session, trial(), data)
    tokens = EPOCHS * sum(session.lengths(data.splits["train"]))
    assert sum(step.tokens for step in steps) == tokens
    assert run.measurements()["tokens"].value == tokens
    assert run.measurements()["steps"].value == STEPS
    assert run.measurements()["trainable_parameters"].value > 0


@pytest.mark.parametrize("arm", ARMS)
def test_the_same_trial_is_the_same_to_the_last_bit(case, data, arm, tmp_path):
    folders, seen = (tmp_path / "a", tmp_path / "b"), []
    for folder in folders:
        run, steps = finished(case.make().open(case.base, "fp32"), trial(arm), data)
        run.save(folder)
        seen.append((steps, run.predict(data.splits["test"]), run.token_digest))
    assert seen[0] == seen[1]
    assert content(folders[0]) == content(folders[1]) != {}


def test_another_seed_is_another_run(session, data):
    (one, steps), (other, other_steps) = (finished(session, trial(seed=seed), data) for seed in (1, 2))
    assert one.token_digest != other.token_digest
    assert [step.loss for step in steps] != [step.loss for step in other_steps]


def test_arms_of_a_pair_see_the_same_tokens_in_the_same_order(session, data):
    rates = {"full": 1e-4, "lora": 1e-3, "warm": 3e-4}
    assert len({session.start(trial(arm, learning_rate=rate), data).token_digest for arm, rate in rates.items()}) == 1


def test_a_smaller_micro_batch_leaves_the_effective_batch(session, data):
    whole, steps = finished(session, trial(), data)
    run, small = finished(session, trial(), data, micro_batch=1)
    assert run.token_digest == whole.token_digest
    assert [step.tokens for step in small] == [step.tokens for step in steps]
    assert [step.loss for step in small] == pytest.approx([step.loss for step in steps], rel=1e-4)


def test_predictions_are_labels_or_numbers_whoever_is_asked_with_them(session, data):
    run, _ = finished(session, trial(), data)
    examples = data.splits["test"]
    together, alone = run.predict(examples), [run.predict([example])[0] for example in reversed(examples)]
    if data.kind == "classify":
        assert set(together) <= set(data.labels)
        assert together == alone[::-1]
    else:
        assert all(math.isfinite(number) for number in together)
        assert together == pytest.approx(alone[::-1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("arm", "after"),
    [("warm", after) for after in (1, MERGE, MERGE + 1, MERGE + 2, STEPS - 1)]
    + [(arm, after) for arm in ("full", "lora") for after in (1, STEPS - 1)],
)
def test_an_interrupted_run_goes_on_to_the_same_end(case, uninterrupted, arm, after, tmp_path):
    data, checkpoint = data_of("classify"), tmp_path / "checkpoint"
    expected, predicted = uninterrupted(case, arm, "final")
    steps = case.make().open(case.base, "fp32").start(trial(arm), data).steps(checkpoint)
    seen = timeless([next(steps) for _ in range(after)])
    steps.close()
    run = case.make().open(case.base, "fp32").start(trial(arm), data)
    rest = timeless(list(run.steps(checkpoint)))
    assert 0 <= run.first_step <= after
    assert [step.step for step in rest] == list(range(run.first_step + 1, STEPS + 1))
    assert seen[: run.first_step] + rest == expected
    assert run.predict(data.splits["test"]) == predicted


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("share", [1 / 3, 0.6])
def test_a_run_goes_on_from_a_rung_in_the_schedule_of_the_whole_run(case, uninterrupted, arm, share, tmp_path):
    data, checkpoint = data_of("classify"), tmp_path / "checkpoint"
    asked = trial(arm, purpose="tune")
    expected, predicted = uninterrupted(case, arm, "tune")
    paused = (
        case.make().open(case.base, "fp32").start(asked.model_copy(update={"purpose": "rung", "share": share}), data)
    )
    before = timeless(list(paused.steps(checkpoint)))
    assert len(before) == math.ceil(share * STEPS) and before == expected[: len(before)]
    assert len(paused.predict(data.splits["validation"])) == len(data.splits["validation"])
    run = case.make().open(case.base, "fp32").start(asked, data)
    assert timeless(list(run.steps(checkpoint))) == expected[len(before) :]
    assert run.first_step == len(before)
    assert run.predict(data.splits["test"]) == predicted


def test_a_damaged_checkpoint_is_passed_over(case, tmp_path):
    data, checkpoint = data_of("classify"), tmp_path / "checkpoint"
    _, expected = finished(case.make().open(case.base, "fp32"), trial(), data)
    list(case.make().open(case.base, "fp32").start(trial(), data).steps(checkpoint))
    newest = max(checkpoint.iterdir())
    for path in newest.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    run = case.make().open(case.base, "fp32").start(trial(), data)
    rest = timeless(list(run.steps(checkpoint)))
    assert run.first_step < int(newest.name.split("-")[1])
    assert rest == expected[run.first_step :]


def test_another_trials_checkpoint_is_refused(case, tmp_path):
    data, checkpoint = data_of("classify"), tmp_path / "checkpoint"
    list(case.make().open(case.base, "fp32").start(trial(seed=1), data).steps(checkpoint))
    run = case.make().open(case.base, "fp32").start(trial(seed=2), data)
    with pytest.raises(IntegrityError, match="of another trial, got .*; remove it"):
        list(run.steps(checkpoint))


def test_numbers_that_are_not_finite_end_the_run(session):
    run = session.start(trial(learning_rate=TOO_HIGH), data_of("regress"))
    with pytest.raises(DivergedError, match=r"step \d+: .*got .*; lower the"):
        list(run.steps(None))


def test_facts_say_how_it_was_executed(session, data):
    facts = session.start(trial(), data, micro_batch=2).facts()
    assert {"device", "compute_dtype", "micro_batch"} <= facts.keys()
    assert facts["micro_batch"] == 2


def test_a_probe_measures_what_decides(session, tmp_path):
    found = session.probe(trial("lora", purpose="probe"), data_of("classify"), tmp_path / "probe")
    units = {
        "load_s": "s",
        "step_s": "s",
        "tokens_per_s": "tokens/s",
        "evaluate_examples_per_s": "examples/s",
        "latency_s": "s",
        "save_s": "s",
        "peak_bytes": "bytes",
        "artifact_bytes": "bytes",
        "trainable_parameters": "weights",
        "optimizer_state_bytes": "bytes",
    }
    assert {name: one.unit for name, one in found.items() if name in units} == units
    assert all(found[name].value > 0 for name in units)
    assert found["step_s"].n >= 20


def test_training_does_not_depend_on_what_the_test_split_holds(session):
    """A trial's name does, since its data is pinned; what it learns and predicts does not."""
    asked = trial(purpose="tune")
    seen = []
    for other in (asked, asked.model_copy(update={"data_digest": "scrambled"})):
        run, steps = finished(session, other, data_of("classify"))
        seen.append((steps, run.predict(data_of("classify").splits["validation"]), run.token_digest))
    assert seen[0] == seen[1]
