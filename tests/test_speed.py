"""Seconds from counted work, by a speed that is written down here, and what observations make of them."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tunetrial.core.errors import EvidenceError, IntegrityError
from tunetrial.core.evidence import Measurement, TrialRecord
from tunetrial.core.speed import Curve, Observed, Products, Range, Rehearsed, Speed, exactly
from tunetrial.core.study import Arm, Controls, Trial
from tunetrial.core.work import Kernel
from tunetrial.plan.catalogue import device, devices
from tunetrial.plan.speed import assumed, corrected, correction, fitted, observe, seconds
from tunetrial.store.speeds import Machine, Speeds

MACHINE = Machine(device="a processor", threads=1, cores=2, torch="2.13.0")


def speed(kind: str = "cpu", **changed) -> Speed:
    """1e12 operations a second, 1e10 bytes a second, 10 µs a kernel; a launch takes 100 µs on a GPU, 1 µs recorded."""
    said = {
        "device": "a processor",
        "kind": kind,
        "measured": True,
        "date": date(2026, 11, 22),
        "products": {"float32": Products(operations_per_s=1e12, halves=(0, 0, 0))},
        "attention_operations_per_s": {"attention": 1e11},
        "bytes_per_s": {
            kind: Curve(points=((1e6, 1e10),)) for kind in ("product", "elementwise", "elementwise bfloat16")
        },
        "fixed_s": {"product": 1e-5},
        "launch_s": 1e-4 if kind == "cuda" else 0.0,
        "recorded_launch_s": 1e-6,
        "error": {},
    }
    return Speed(**said | changed)


def product(m: int, n: int, k: int, count: int = 1, dtype: str = "float32") -> Kernel:
    moved = 4 * (m * n + n * k + m * k)
    return Kernel(kind="product", dtype=dtype, shape=(m, n, k), count=count, operations=2 * m * n * k, bytes=moved)


def test_a_kernel_takes_as_long_as_its_operations_or_its_bytes():
    large, skinny = product(1000, 1000, 1000), product(1000, 1, 1000)
    assert seconds([large], speed(), recorded=False).likely == pytest.approx(2e9 / 1e12 + 1e-5)
    assert seconds([skinny], speed(), recorded=False).likely == pytest.approx(4 * 1_002_000 / 1e10 + 1e-5)


def test_kernels_of_a_pass_add_up_and_of_none_it_takes_no_time():
    many = [product(1000, 1000, 1000, count=3), product(500, 500, 500)]
    assert seconds(many, speed(), recorded=False).likely == pytest.approx(3 * (2e-3 + 1e-5) + 3e-4 + 1e-5)
    assert seconds([], speed(), recorded=False) == exactly(0)


def test_a_gpu_is_as_fast_as_the_slower_of_launches_and_kernels():
    small, large = [product(10, 10, 10, count=100)], [product(1000, 1000, 1000)]
    assert seconds(small, speed("cuda"), recorded=False).likely == pytest.approx(100 * 1e-4)
    assert seconds(large, speed("cuda"), recorded=False).likely == pytest.approx(2e-3 + 1e-5)


def test_launches_are_part_of_the_time_on_a_cpu_and_of_what_is_replayed():
    large = [product(1000, 1000, 1000, count=2)]
    assert seconds(large, speed("cuda"), recorded=True).likely == pytest.approx(2 * (2e-3 + 1e-5 + 1e-6))
    assert seconds(large, speed(launch_s=1e-4), recorded=False).likely == pytest.approx(2 * (2e-3 + 1e-5 + 1e-4))


def test_kernels_take_longer_in_a_pass_and_launches_do_not():
    found = seconds([product(1000, 1000, 1000)], speed(in_pass=2.0, launch_s=1e-4), recorded=False)
    assert found.likely == pytest.approx(2 * 2.01e-3 + 1e-4)


def test_errors_widen_what_they_are_of():
    wide = speed(error={"product": Range(low=0.5, high=2, likely=1)})
    found = seconds([product(1000, 1000, 1000)], wide, recorded=False)
    assert (found.low, found.high) == pytest.approx((0.5 * 2.01e-3, 2 * 2.01e-3))


def test_a_dtype_of_which_nothing_is_known_is_named():
    with pytest.raises(EvidenceError, match="nothing is known of product in bfloat16, got float32; calibrate"):
        seconds([product(10, 10, 10, dtype="bfloat16")], speed(), recorded=False)


def test_half_sizes_are_where_half_the_rate_is_reached():
    shaped = Products(operations_per_s=1e12, halves=(64, 0, 0))
    assert shaped.seconds((64, 512, 512)) == pytest.approx(2 * 2 * 64 * 512 * 512 / 1e12)
    assert shaped.seconds((64, 512, 512)) * 5 == pytest.approx(shaped.seconds((5, 64, 512, 512)))


def test_tiles_are_computed_whole():
    tiled = Products(operations_per_s=1e12, halves=(0, 0, 0), tile=16)
    assert tiled.seconds((100, 8, 64)) == tiled.seconds((112, 16, 64)) == pytest.approx(2 * 112 * 16 * 64 / 1e12)


def test_a_curve_is_straight_in_logarithms_and_flat_beyond_its_ends():
    curve = Curve(points=((1e3, 1.0), (1e5, 100.0)))
    assert [curve.at(size) for size in (1, 1e3, 1e4, 1e5, 1e9)] == pytest.approx([1, 1, 10, 100, 100])
    for points in ((), ((2, 1), (1, 1)), ((1, 0),)):
        with pytest.raises(ValidationError):
            Curve(points=points)


@given(st.lists(st.tuples(*[st.integers(1, 5000)] * 3), min_size=1, max_size=5))
def test_more_work_never_takes_less_time(shapes):
    shaped = speed(products={"float32": Products(operations_per_s=1e12, halves=(5, 6, 7), tile=16)})
    work = [product(*shape) for shape in shapes]
    more = [product(m + 1, n, k, count=2) for m, n, k in shapes]
    assert 0 < seconds(work, shaped, recorded=False).low <= seconds(more, shaped, recorded=False).low


def rehearsed(work: list[Kernel], step_s: float, *, recorded: bool = False) -> Rehearsed:
    return Rehearsed(method="lora", precision="fp32", work=tuple(work), recorded=recorded, step_s=step_s)


def test_two_constants_are_found_from_steps_of_which_they_are_true():
    true = speed(in_pass=1.7, launch_s=3e-5)
    works = [
        [product(64, 64, 64, count=500)],
        [product(1000, 1000, 1000, count=100)],
        [product(500, 200, 900, count=9)],
    ]
    steps = [rehearsed(work, seconds(work, true, recorded=False).likely) for work in works]
    found = fitted(speed(in_pass=5.0, launch_s=1.0), steps)
    assert (found.in_pass, found.launch_s) == pytest.approx((1.7, 3e-5), rel=1e-3)
    assert seconds(works[1], found, recorded=False).high == pytest.approx(steps[1].step_s * 1.2, rel=1e-3)


def test_recorded_steps_tell_what_a_replayed_kernel_takes_besides():
    true = speed("cuda", in_pass=1.2, recorded_launch_s=4e-6)
    works = [[product(64, 64, 64, count=500)], [product(1000, 1000, 1000, count=100)]]
    steps = [rehearsed(work, seconds(work, true, recorded=True).likely, recorded=True) for work in works]
    found = fitted(speed("cuda"), steps)
    assert (found.in_pass, found.recorded_launch_s, found.launch_s) == pytest.approx((1.2, 4e-6, 1e-4), rel=1e-3)


def test_steps_that_agree_less_leave_a_wider_error():
    work = [product(1000, 1000, 1000)]
    wide = fitted(speed(), [rehearsed(work, 1e-3), rehearsed(work, 4e-3)])
    assert wide.error["product"].high / wide.error["product"].low > 4


def test_where_launches_set_the_pace_of_short_steps_alone_both_constants_are_found():
    true = speed("cuda", in_pass=1.5, launch_s=2e-5)
    works = [[product(10, 10, 10, count=500)], [product(1000, 1000, 1000, count=100)]]
    steps = [rehearsed(work, seconds(work, true, recorded=False).likely) for work in works]
    found = fitted(speed("cuda"), steps)
    assert (found.in_pass, found.launch_s) == pytest.approx((1.5, 2e-5), rel=1e-3)


def test_steps_that_cannot_be_fitted_are_refused():
    one = rehearsed([product(10, 10, 10)], 1.0)
    for steps in ([one], [one, one.model_copy(update={"recorded": True})]):
        with pytest.raises(EvidenceError, match="cannot be fitted.*rehearse 2 or more"):
            fitted(speed("cuda"), steps)


def test_steps_that_were_not_recorded_tell_what_a_launch_takes_beside_those_that_were():
    works = [[product(64, 64, 64, count=50)], [product(2048, 2048, 2048, count=50)]]
    recorded = [rehearsed(work, (number + 1) * 1e-3, recorded=True) for number, work in enumerate(works)]
    alone = fitted(speed("cuda"), recorded)
    found = fitted(speed("cuda"), [*recorded, rehearsed(works[0], 50 * 3e-5)])
    assert found.launch_s == pytest.approx(3e-5)
    assert found == alone.model_copy(update={"launch_s": found.launch_s})


@pytest.mark.parametrize("name", sorted(devices()))
def test_every_device_of_the_catalogue_has_a_wide_speed(name):
    found = assumed(device(name))
    dtype = "bfloat16" if "bfloat16" in found.products else "float32"
    work = [product(4096, 4096, 4096, dtype=dtype)]
    said = seconds(work, found, recorded=True)
    assert not found.measured and said.high > 2 * said.low
    assert 2 * 4096**3 / said.low < max(device(name).operations_per_s.values(), key=lambda rate: rate or 0)


def test_an_h200_takes_as_long_as_was_measured():
    """788 TFLOP/s for products of 8192 × 8192 matrices, as the benchmarks' page has it."""
    said = seconds([product(8192, 8192, 8192, dtype="bfloat16")], assumed(device("h200")), recorded=True)
    assert said.low < 2 * 8192**3 / 788e12 * 1.03 < said.high


def observed(ratios: list[float], method: str = "lora", precision: str = "bf16", first: int = 0) -> list[Observed]:
    of = {"speed_digest": speed().digest, "precision": precision, "method": method, "predicted_s": 1.0}
    return [Observed(trial=f"{method}{n}", measured_s=ratio, **of) for n, ratio in enumerate(ratios, first)]


def test_many_observations_correct_wholly_and_few_in_part():
    known = {"precision": "bf16", "method": "lora"}
    assert correction(speed(), observed([2.0] * 200), **known).likely == pytest.approx(2, rel=0.02)
    few = correction(speed(), observed([2.0]), **known)
    assert 1 < few.likely < 2 and few.low < 1.2
    assert few.high / few.low > correction(speed(), observed([2.0] * 20), **known).high / 2


def test_a_slow_trial_among_others_does_not_count():
    known = {"precision": "bf16", "method": "lora"}
    calm, shaken = observed([1.5] * 9), [*observed([1.5] * 8), *observed([30.0], first=8)]
    assert correction(speed(), shaken, **known).likely == pytest.approx(correction(speed(), calm, **known).likely)


def test_a_method_never_seen_is_corrected_as_the_others_are_and_with_less_certainty():
    seen = observed([1.5] * 20)
    lora, dora = (correction(speed(), seen, precision="bf16", method=name) for name in ("lora", "peft"))
    assert dora.likely == pytest.approx(1.5, rel=0.06)
    assert dora.low < lora.low and dora.high > lora.high
    assert correction(speed(), seen, precision="float32", method="lora") is None


def test_observations_of_another_speed_are_left_out():
    other = speed(launch_s=1.0)
    assert correction(other, observed([2.0] * 5), precision="bf16", method="lora") is None


def test_a_correction_multiplies_the_middle_and_brings_its_own_range():
    said = Range(low=1.0, high=4.0, likely=2.0)
    assert corrected(said, None) == said
    assert corrected(said, Range(low=0.5, high=2.0, likely=1)) == Range(low=1.0, high=4.0, likely=2.0)


def record(**changed) -> TrialRecord:
    arm = Arm(name="small", method="lora", settings={})
    controls = Controls(base_fingerprint="x", precision="bf16")
    trial = Trial(arm=arm, controls=controls, task="t", data_digest="d", learning_rate=1e-3, seed=1, purpose="tune")
    measured = {"train_s": Measurement(value=30.0, unit="s"), "steps": Measurement(value=20, unit="steps")}
    return TrialRecord(**{"trial": trial, "status": "ok", "measurements": measured} | changed)


def test_finished_trials_are_observed_by_their_mean_step():
    seen = observe(record(), speed(), 1.2)
    assert (seen.method, seen.precision, seen.measured_s, seen.predicted_s) == ("lora", "bf16", 1.5, 1.2)
    assert observe(record(synthetic=True), speed(), 1.2) is None
    assert observe(record(measurements={}), speed(), 1.2) is None


def test_a_speed_is_kept_for_its_machine_alone_and_found_again(tmp_path):
    speeds = Speeds(tmp_path)
    assert speeds.find(MACHINE) is None and speeds.observed(MACHINE) == ()
    speeds.keep(MACHINE, speed())
    assert speeds.find(MACHINE) == speed() and speeds.find(MACHINE).digest == speed().digest
    assert speeds.find(Machine(device="a processor", threads=2, cores=2, torch="2.13.0")) is None
    first, second = observed([1.0, 2.0])
    for one in (first, second, first):
        speeds.note(MACHINE, one)
    assert speeds.observed(MACHINE) == (first, second)


def test_damaged_files_are_named(tmp_path):
    speeds = Speeds(tmp_path)
    path = speeds.keep(MACHINE, speed())
    path.write_text('{"device": 1}')
    with pytest.raises(IntegrityError, match="not a speed.*calibrate again"):
        speeds.find(MACHINE)
    path.with_suffix(".jsonl").write_text('{"trial": 1}\n')
    with pytest.raises(IntegrityError, match="not an observation"):
        speeds.observed(MACHINE)
