"""How long a study's trials take, from counted work and a speed: sums that are done here by hand."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

from test_forecast import TINY
from test_plan import SHAPE, a_lock
from tunetrial import methods, plan
from tunetrial.cli import app
from tunetrial.core.evidence import Evidence, Measurement, TrialRecord
from tunetrial.core.spans import between, span
from tunetrial.core.speed import Curve, Observed, Products, Range, Speed
from tunetrial.core.study import Arm, Budget, Costs, Hardware
from tunetrial.core.work import Counted, Kernel, Phase, Traced
from tunetrial.plan.duration import LIBRARIES_S
from tunetrial.plan.timing import step_seconds
from tunetrial.store.speeds import Speeds
from tunetrial.trial import calibration

RATE = Curve(points=((1.0, 1000.0),))
# One byte takes a millisecond, give or take a fifth.
SPEED = Speed(
    device="this CPU",
    kind="cpu",
    threads=1,
    measured=True,
    date=None,
    products={},
    attention_operations_per_s={},
    bytes_per_s={"copy": RATE},
    fixed_s={},
    launch_s=0.0,
    recorded_launch_s=0.0,
    error={"copy": Range(low=0.8, high=1.2, likely=1.0)},
)
GAUGE = plan.Gauge((SPEED,), "by hand")
SAID = partial(GAUGE.uncorrected, precision="fp32")


def moves(size_bytes: float) -> tuple[Kernel, ...]:
    return (Kernel(kind="copy", dtype="float32", count=1, operations=0, bytes=size_bytes),)


def traced(tokens: int, *, step: float, evaluate: float = 64, members: int = 1) -> Traced:
    phases = {"step": step, "evaluate": evaluate}
    made = {name: Phase(peak_bytes=2**28, parts={}, work=moves(size)) for name, size in phases.items()}
    return Traced(phases=made, tokens=tokens * members, evaluated=32)


def counted(**more) -> Counted:
    """A step takes 100 ms and 1 ms a token; a batch of 32 rows 64 ms."""
    asked = {"fullest": traced(900, step=1000), "least": traced(100, step=200), "step_tokens": 500}
    return Counted(**asked | more)


def known(gauge: plan.Gauge | None = GAUGE, **arms: Counted) -> plan.Known:
    found = arms or {"full": counted(), "lora": counted()}
    return plan.Known(traced={arm: {"mail": one} for arm, one in found.items()}, gauge=gauge)


def test_a_mean_step_lies_between_the_least_and_the_fullest_by_its_tokens():
    found = step_seconds(counted(), SAID, of=1)
    assert (found.low, found.high, found.likely) == pytest.approx((0.48, 0.72, 0.6))
    alike = counted(least=traced(900, step=1000), step_tokens=900)
    assert step_seconds(alike, SAID, of=1).likely == pytest.approx(1.0)


def test_passes_are_recorded_in_half_precision_alone():
    gpu = SPEED.model_copy(update={"kind": "cuda", "launch_s": 5.0, "recorded_launch_s": 0.5, "error": {}})
    gauge = plan.Gauge((gpu,), "", recorded=True)
    assert gauge.uncorrected(moves(1000), precision="fp32").likely == 5.0
    assert gauge.uncorrected(moves(1000), precision="bf16").likely == 1.5


def test_a_member_of_a_pack_has_its_share_and_of_fewer_a_larger_one():
    """Four members' fullest step takes 2.2 s where one alone takes 1: a mean one 0.6 of that, and two of them 1.4 / 3
    of the way from one to four."""
    packed = counted(packed=traced(900, step=2200, members=4), members=4)
    shares = [step_seconds(packed, SAID, of=size).likely for size in (1, 2, 4)]
    assert shares == pytest.approx([0.6, (0.6 + (1.32 - 0.6) / 3) / 2, 1.32 / 4])
    assert step_seconds(counted(), SAID, of=2) is None


def test_a_trial_is_its_steps_its_rows_and_what_it_reads_and_writes():
    """320 rows in steps of 16, three epochs; 120 rows of validation and 400 of test at 2 ms each."""
    one = plan.timed(a_lock(), SHAPE, known())["mail", "lora"]
    assert one.tune.train_s.likely == pytest.approx(60 * 0.6)
    assert one.tune.evaluate_s.likely == pytest.approx(0.24) and one.final.evaluate_s.likely == pytest.approx(1.04)
    assert one.tune.save_s.likely == 0 < one.final.save_s.likely and not one.rough
    full = plan.timed(a_lock(), SHAPE, known())["mail", "full"]
    assert full.tune.prepare_s.likely > one.tune.prepare_s.likely  # it reads the base again


def test_tuning_finals_and_evaluation_add_up_to_the_study():
    """Of each arm 11 trials of the search and 5 finals at least, 27 and 10 at most."""
    made = plan.preview(a_lock(), SHAPE, **vars(known()))
    stages = made.time.stages
    for end in ("low", "high", "likely"):
        parts = [getattr(part, end) for part in (stages.tuning_s, stages.finals_s, stages.evaluation_s)]
        assert getattr(made.seconds, end) == pytest.approx(sum(parts))
    assert stages.evaluation_s.likely == pytest.approx(2 * (11 * 0.24 + 5 * 1.04))
    assert stages.tuning_s.low == pytest.approx(2 * 11 * 60 * 0.48, rel=0.01)
    assert stages.tuning_s.high == pytest.approx(2 * 27 * (60 * 0.72 + 2), rel=0.01)
    assert made.time.step_s["full"]["mail"].likely == pytest.approx(0.6)
    assert "a step of full: 480–720 ms on mail" in str(made) and "\nassumed: by hand; " in str(made)
    assert plan.Plan.model_validate_json(made.model_dump_json()) == made


def test_side_by_side_a_study_ends_sooner_on_a_cpu_and_surely_not_on_a_gpu():
    room = {"device_bytes": 2**40, "host_bytes": 2**40, "disk_bytes": 2**40}
    walls = {}
    for device, cores in (("cpu", 1), ("cpu", 4), ("cuda", 4)):
        machine = plan.Machine(device=device, cores=cores, **room)
        made = plan.preview(a_lock(), SHAPE, machine=machine, **vars(known()))
        walls[device, cores] = made.time.wall_s
    assert walls["cpu", 1].likely > made.seconds.likely + 2 * LIBRARIES_S["cpu"].likely
    assert walls["cpu", 4].likely < 0.35 * walls["cpu", 1].likely
    assert walls["cuda", 4].low < made.seconds.low / 3 and walls["cuda", 4].likely > made.seconds.likely


def test_what_is_not_counted_is_bounded_and_said_so():
    made = plan.preview(a_lock(), SHAPE, **vars(known(full=counted())))
    assert made.time.rough == ("lora",) and made.seconds.likely is None
    assert "time of lora bounded by operations alone" in str(made)
    blind = plan.preview(a_lock(), SHAPE)
    assert blind.time.rough == ("full", "lora") and "a CPU of 1 to 16 cores" in str(blind)
    product = Kernel(kind="product", dtype="float8", shape=(1, 1, 1), count=1, operations=2, bytes=3)
    strange = counted(fullest=Traced(phases={"step": Phase(peak_bytes=1, parts={}, work=(product,))}, tokens=900))
    assert plan.timed(a_lock(), SHAPE, known(full=strange))["mail", "full"].rough  # of float8 no speed is known


def test_an_untuned_base_is_evaluated_as_arms_on_it_are():
    lock, shots = a_lock(), {"method": "none", "settings": {"shots": 3}}
    arms = lock.study.arms
    more = (*arms, Arm(name="untuned", method="none"), Arm(name="shown", **shots), Arm(name="words", method="tfidf"))
    lock = lock.model_copy(update={"study": lock.study.model_copy(update={"arms": more})})
    found = plan.timed(lock, SHAPE, known())
    untuned = found["mail", "untuned"]
    assert untuned.step_s is None and untuned.final.train_s.high == 0
    assert untuned.final.evaluate_s == found["mail", "full"].final.evaluate_s
    assert found["mail", "shown"].final.evaluate_s.likely == pytest.approx(4 * untuned.final.evaluate_s.likely)
    assert found["mail", "words"].final.seconds.high == 0
    made = plan.preview(lock, SHAPE, **vars(known()))
    assert "untuned" not in made.time.step_s and "bounded by operations" not in str(made)


def test_a_gpu_at_hand_bounds_what_was_not_counted():
    products = {"float16": Products(operations_per_s=1e14, halves=(1, 1, 1))}
    gpu = SPEED.model_copy(update={"kind": "cuda", "products": products})
    named = plan.timed(a_lock(), SHAPE, plan.Known())["mail", "full"].tune.evaluate_s
    found = plan.timed(a_lock(), SHAPE, plan.Known(gauge=plan.Gauge((gpu,), "")))["mail", "full"].tune.evaluate_s
    assert found.low == pytest.approx(named.low * 6e11 / 1e13) and found.high == pytest.approx(named.high * 2e10 / 5e11)


def test_a_price_makes_a_bill_by_arm_and_a_budget_is_held_against_it():
    lock = a_lock(hardware=Hardware(usd_per_hour=36.0), budget=Budget(usd=1000))
    made = plan.preview(lock, SHAPE, **vars(known()))
    assert [bill.name for bill in made.account.bills] == ["full", "lora"] and made.account.fits == "yes"
    assert [line.what for line in made.account.bills[0].lines] == ["tuning", "finals", "evaluation"]
    assert made.usd.high == pytest.approx(made.time.wall_s.high / 100) and "hardware.usd_per_hour" in str(made)
    dated = plan.preview(a_lock(hardware=Hardware(gpu="l4")), SHAPE, **vars(known()))
    assert "dated default" in str(dated) and dated.usd is not None
    for nothing in (Hardware(), Hardware(gpu="rtx-3060")):
        assert plan.preview(a_lock(hardware=nothing), SHAPE, **vars(known())).account is None
    assert all(len(line) <= 100 for line in str(made).splitlines() if not line.startswith(("assumed", "host")))


def test_storage_requests_and_engineers_are_billed_beside_the_trials():
    costs = Costs(engineer_hours=6, usd_per_engineer_hour=90, months=12, variants=4, usd_per_gb_month=0.1)
    made = plan.preview(a_lock(costs=costs), SHAPE)
    full, lora, study = made.upkeep.bills
    base = SHAPE.parameters * SHAPE.bytes_per_weight
    sizes = [methods.find(arm).artifact_bytes(SHAPE, 2, SHAPE.bytes_per_weight) for arm in a_lock().study.arms]
    assert full.usd.low == pytest.approx(4 * sizes[0] * 12 * 0.1 / 1e9)
    assert lora.usd.low == pytest.approx((base + 4 * sizes[1]) * 12 * 0.1 / 1e9)
    assert study.usd.low == 540 and made.upkeep.usd.low == pytest.approx(540 + full.usd.low + lora.usd.low)
    assert "beside the trials (estimate):" in str(made) and plan.preview(a_lock(), SHAPE).upkeep is None


def test_what_has_no_price_beside_the_trials_has_no_cost_and_storage_a_dated_one():
    made = plan.preview(a_lock(costs=Costs(engineer_hours=6, months=1, requests_per_month=1e6)), SHAPE)
    assert made.upkeep.usd is None and [bill.unpriced for bill in made.upkeep.bills] == [
        ("requests",),
        ("requests",),
        ("engineers",),
    ]
    assert made.upkeep.bills[0].lines[0].source == "dated default"


def test_a_free_machine_takes_so_many_sessions():
    made = plan.preview(a_lock(hardware=Hardware(gpu="colab")), SHAPE, **vars(known()))
    assert made.time.sessions.startswith("1 of at most 12 h") and "\nsessions: 1 of" in str(made)
    lines = [line for line in str(made).splitlines() if not line.startswith(("assumed", "host"))]
    assert max(map(len, lines)) <= 100
    slow = counted(fullest=traced(900, step=4e6), least=traced(100, step=4e6), step_tokens=500)
    many = plan.preview(a_lock(hardware=Hardware(gpu="colab")), SHAPE, **vars(known(full=slow, lora=slow)))
    first, _, last = many.time.sessions.split()[:3]
    hours = [end / 3600 for end in (many.time.wall_s.low, many.time.wall_s.high)]
    assert (int(first), int(last)) == pytest.approx([hour / 12 for hour in hours], rel=0.02, abs=1)


def finals(lock, *, step_s: float, pack: int = 1) -> tuple[TrialRecord, ...]:
    measured = {"train_s": Measurement(value=60 * step_s, unit="s"), "steps": Measurement(value=60, unit="steps")}
    trials = [lock.trial("lora", "mail", learning_rate=1e-3, seed=seed, purpose="final") for seed in (1, 2, 3)]
    return tuple(TrialRecord(trial=t, status="ok", measurements=measured, resolved={"pack": pack}) for t in trials)


def test_steps_stand_beside_what_was_measured():
    lock = a_lock()
    made = plan.preview(lock, SHAPE, **vars(known()))
    rows = {(r.what, r.arm): r for r in plan.scored(made, Evidence(lock, finals(lock, step_s=0.5), {}, {}))}
    step = rows["a step", "lora"]
    assert step.measured == pytest.approx(0.5) and step.inside and step.error == pytest.approx(0.2)
    assert rows["a step", "full"].measured is None


def test_finished_trials_correct_a_measured_machine_and_no_other(tmp_path, monkeypatch):
    """Steps of 1.2 s where 0.6 were said: after a dozen trials a plan says nearly so."""
    lock, here = a_lock(), calibration._machine("cpu")
    assert list(calibration.predicted(finals(lock, step_s=1.2), known(gauge=None))) == []
    Speeds(tmp_path).keep(here, SPEED)
    pairs = list(calibration.predicted(finals(lock, step_s=1.2), known()))
    assert [said for _, said in pairs] == pytest.approx([0.6] * 3)
    assert list(calibration.predicted(finals(lock, step_s=1.2, pack=4), known())) == []
    assert calibration.learn(tmp_path, "cpu", pairs) == 3
    gauge = calibration.gauge(tmp_path, Hardware(), "cpu")
    assert gauge.speeds == (SPEED,) and len(gauge.observed) == 3 and "by 3 of its trials" in gauge.said
    one = {"speed_digest": SPEED.digest, "precision": "fp32", "method": "lora", "predicted_s": 0.6, "measured_s": 1.2}
    more = plan.Gauge((SPEED,), "", observed=tuple(Observed(trial=f"{n}", **one) for n in range(12)))
    step = plan.timed(lock, SHAPE, known(more))["mail", "lora"].step_s
    assert 1.0 < step.likely < 1.2 and step.low < 1.2 < step.high


def test_a_machine_that_was_not_measured_goes_by_data_sheets(tmp_path, monkeypatch):
    cpu = calibration.gauge(tmp_path, Hardware(), "cpu")
    assert len(cpu.speeds) > 1 and "`tunetrial calibrate`" in cpu.said
    work = (Kernel(kind="product", dtype="float32", shape=(512, 512, 512), count=9, operations=2**28, bytes=2**21),)
    assert (
        cpu.uncorrected(work, precision="fp32").likely is None
        and cpu.uncorrected(work, precision="fp32").low < cpu.uncorrected(work, precision="fp32").high
    )
    halves = tuple(kernel.model_copy(update={"dtype": "bfloat16"}) for kernel in work)
    assert cpu.uncorrected(halves, precision="bf16").high > 0  # some classes have no bf16, and are not the one
    l4 = calibration.gauge(tmp_path, Hardware(gpu="NVIDIA L4"), "cpu")
    assert l4.recorded and l4.said == "NVIDIA L4 by its data sheet"
    t4 = calibration.gauge(tmp_path, Hardware(gpu="colab"), "cpu")  # which has no bf16: fp16 would be taken there
    in_bf16 = tuple(kernel.model_copy(update={"dtype": "bfloat16"}) for kernel in work)
    in_fp16 = tuple(kernel.model_copy(update={"dtype": "float16"}) for kernel in work)
    assert not t4.recorded and t4.uncorrected(in_bf16, precision="bf16") == t4.uncorrected(in_fp16, precision="fp16")
    assert calibration.gauge(tmp_path, Hardware(gpu="abacus"), "cpu") is None
    monkeypatch.setattr(calibration, "driver_name", lambda: "NVIDIA L4")
    assert calibration.gauge(tmp_path, Hardware(), "cuda").said.startswith(
        "NVIDIA L4 by its data sheet; `tunetrial cal"
    )


def test_a_model_is_planned_here_once_the_machine_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNETRIAL_HOME", str(tmp_path))
    asked = ["plan", "--model", TINY, "--method", "lora", "--gpu", "here", "--step", "2x16", "--json"]
    never = CliRunner().invoke(app, asked)
    assert never.exit_code == 1 and never.stderr.count("\n") == 1 and "run `tunetrial calibrate` once" in never.stderr
    kinds = dict.fromkeys(("product", "attention", "elementwise", "copy", "optimiser"), RATE)
    rates = {"products": {"float32": {"operations_per_s": 1e9, "halves": (1, 1, 1)}}, "bytes_per_s": kinds}
    rates |= {"attention_operations_per_s": {"attention": 1e9}, "error": {}}
    speed = Speed.model_validate(SPEED.model_dump() | rates)
    Speeds(tmp_path).keep(calibration._machine("cpu"), speed)
    (cell,) = json.loads(CliRunner().invoke(app, asked).stdout)["cells"]
    assert cell["fit"]["verdict"] == "fits" and cell["precision"] == "fp32" and cell["step_s"]["likely"] > 1
    words = calibration.words(
        speed.model_copy(update={"error": SPEED.error | {"product": SPEED.error["copy"]}}), tmp_path
    )
    assert "0.001 in float32" in words and "a factor of 1.2" in words and words.endswith(".json")


def test_calibrating_a_gpu_that_is_not_here_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tunetrial.trial.calibration.driver_name", lambda: None)
    ran = CliRunner().invoke(app, ["calibrate", "--device", "cuda"])
    assert ran.exit_code == 1 and "there is no GPU here, got cuda; calibrate cpu" in ran.stderr


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (2e-4, "under 1 ms"), (0.0312, "31.2 ms"), (1.5, "1.50 s"), (119, "119 s"), (150, "2 min")]
    + [(7100, "118 min"), (7500, "2 h 05 min"), (90_000, "25 h 00 min"), (864_000, "10.0 days")],
)
def test_times_are_written_in_units_that_people_use(seconds, said):
    assert span(seconds) == said and span(seconds, space="_").replace("_", " ") == said


def test_ranges_of_time_have_one_unit():
    assert between(0.012, 0.04) == "12–40 ms" and between(40, 400) == "0.67–6.7 min" and between(3, 3.001) == "3 s"


def test_a_plan_of_before_is_still_read():
    made = json.loads(plan.preview(a_lock(), SHAPE).model_dump_json())
    old = {name: value for name, value in made.items() if name not in ("time", "account")}
    assert plan.Plan.model_validate(old).time is None and "time:" not in str(plan.Plan.model_validate(old))
