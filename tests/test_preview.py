"""What a plan says once tokens are counted and the disk is known."""

import random
from dataclasses import replace

import psutil
import pytest

from test_plan import SHAPE, a_lock
from tunetrial import plan
from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.evidence import Evidence, Measurement, TrialRecord
from tunetrial.core.study import Hardware
from tunetrial.core.work import Counted, Phase, Traced
from tunetrial.store import surplus
from tunetrial.trial.machine import free_host_bytes

GIB = 2**30
# The shape of Llama-3.2-1B: 1,235,814,400 weights, embeddings tied.
BILLION = SHAPE.model_copy(
    update={
        "layers": 16,
        "hidden": 2048,
        "heads": 32,
        "kv_heads": 8,
        "intermediate": 8192,
        "vocabulary": 128_256,
        "norms": 4096,
        "outside": 2048,
        "projections": {
            **{name: (2048, 2048) for name in ("q_proj", "o_proj")},
            **{name: (2048, 512) for name in ("k_proj", "v_proj")},
            **{name: (2048, 8192) for name in ("gate_proj", "up_proj")},
            "down_proj": (8192, 2048),
        },
    }
)


def test_counted_tokens_leave_of_the_range_what_depends_on_the_number_of_trials():
    counted = {"mail": [10] * 300 + [60] * 20}
    blind, made = plan.preview(a_lock(), SHAPE), plan.preview(a_lock(), SHAPE, counted=counted)
    tokens = 3 * (300 * 10 + 20 * 60)
    assert made.trained_tokens.low == pytest.approx((made.trials.low - 2) * tokens)
    assert made.trained_tokens.high == pytest.approx((made.trials.high - 2) * tokens)
    assert blind.seconds.low < made.seconds.low < made.seconds.high < blind.seconds.high
    assert all(made.memory_bytes[arm].high < blind.memory_bytes[arm].high for arm in ("full", "lora"))
    longer = plan.preview(a_lock(), SHAPE, counted={"mail": [10] * 319 + [500]})
    assert longer.memory_bytes["full"].high > made.memory_bytes["full"].high
    assert "tokens as counted" in str(made)


def reaching(peak_bytes: int) -> dict[str, dict[str, Counted]]:
    """LoRA's training counted at this peak; an evaluation that reaches higher is none of it."""
    phases = {"step": Phase(peak_bytes=peak_bytes, parts={}), "evaluate": Phase(peak_bytes=9 * peak_bytes, parts={})}
    step = Traced(phases=phases, tokens=640, evaluated=32)
    return {"lora": {"mail": Counted(fullest=step, least=step, step_tokens=640)}}


def test_memory_that_was_counted_takes_the_place_of_what_the_shape_bounds():
    bounded = plan.preview(a_lock(), SHAPE).memory_bytes
    made = plan.preview(a_lock(), SHAPE, traced=reaching(3 * GIB)).memory_bytes
    assert made["full"] == bounded["full"] and bounded["full"].likely is None
    found = made["lora"]
    assert found.likely == 3 * GIB + 139 * 2**20 and found.low < found.likely < found.high
    told = str(plan.preview(a_lock(), SHAPE, traced=reaching(3 * GIB))).splitlines()
    assert any(line.startswith("memory of lora: ") and "counted; likely 3.1" in line for line in told)
    assert any(line.startswith("memory of full: ") and "bounded by the shape" in line for line in told)
    gpu = a_lock(hardware=Hardware(gpu="l4"))
    on_gpu = plan.preview(gpu, SHAPE, traced=reaching(3 * GIB)).memory_bytes["lora"]
    assert on_gpu.likely == 3 * GIB and on_gpu.high == pytest.approx(1.03 * 3 * GIB)


ROOMY = plan.Machine(device="cpu", cores=1, device_bytes=64 * GIB, host_bytes=64 * GIB, disk_bytes=3 * GIB)


def test_plan_says_what_disk_it_takes_and_whether_there_is_room():
    """Full models that may yet be the median of five (three at most), ten adapters, and what one trial writes: its
    artifact and one to three checkpoints of 12 bytes a weight."""
    made = plan.preview(a_lock(), SHAPE, machine=ROOMY)
    full, checkpoint = 2 * SHAPE.backbone_parameters, 12 * SHAPE.backbone_parameters
    lora = made.disk_bytes.high - made.disk_bytes.low - 2 * checkpoint
    assert made.disk_bytes.low == pytest.approx(3 * full + lora + full + checkpoint, rel=1e-3)
    assert 0 < lora / 5 < 0.4 * full
    assert "GiB (estimate), 3 GiB free\n" in str(made) and "too little" not in str(made)
    short = plan.preview(a_lock(), SHAPE, machine=replace(ROOMY, disk_bytes=GIB // 100))
    assert "0.01 GiB free: too little, `run` will refuse" in str(short)
    assert "free" not in str(plan.preview(a_lock(), SHAPE))
    kept = plan.preview(a_lock(keep="all"), SHAPE)
    assert kept.disk_bytes.high - made.disk_bytes.high == pytest.approx(7 * full, rel=1e-3)


def test_a_study_that_cannot_end_for_want_of_disk_is_refused():
    needed = plan.preview(a_lock(), SHAPE).disk_bytes
    with pytest.raises(DoesNotFitError, match=r"^results: the study needs at least 0\.2. GiB of disk at its peak, got"):
        plan.check_disk(needed, free_bytes=int(needed.low) - 2, used_bytes=1, where="results")
    plan.check_disk(needed, free_bytes=int(needed.low) - 2, used_bytes=3, where="results")


def test_workers_go_side_by_side_as_far_as_the_hosts_memory_goes():
    """On a CPU training is in the host's memory; with a GPU the base passes through it."""
    wide = replace(ROOMY, cores=16, device_bytes=640 * GIB, host_bytes=640 * GIB)
    roomy = plan.preview(a_lock(), SHAPE, machine=wide)
    each = roomy.host_bytes["full"]
    assert roomy.workers == 16 and each.low > roomy.memory_bytes["full"].low
    for workers in (1, 2, 5):
        tight = replace(wide, host_bytes=int((workers + 0.5) * each.high))
        made = plan.preview(a_lock(), SHAPE, machine=tight)
        assert made.workers == workers and f"\nside by side: {workers}\n" in str(made)
    none = plan.preview(a_lock(), SHAPE, machine=replace(ROOMY, host_bytes=int(each.low) - 1))
    assert none.workers == 1 and none.refused["full"].startswith("needs at least 0.")
    assert "of the host's memory" in str(none) and "lora" not in none.refused


def test_a_model_of_a_billion_weights_on_colab():
    """16 GiB of a T4 and 12 GB of host memory: LoRA runs, one at a time; full fine-tuning fits neither on the GPU."""
    colab = plan.Machine(device="cuda", cores=2, device_bytes=15 * GIB, host_bytes=int(11e9), disk_bytes=60 * GIB)
    lock = a_lock(hardware=Hardware(gpu="t4")).model_copy(update={"precision": "fp16"})
    made = plan.preview(lock, BILLION, machine=colab)
    assert made.workers == 1 and list(made.refused) == ["full"]
    assert 1 + 2 * 1.1 < made.host_bytes["lora"].low / GIB < 1 + 2 * 1.3
    assert 1 + 4 * 1.1 < made.host_bytes["full"].low / GIB < 1 + 4 * 1.3
    small = plan.preview(lock, BILLION, machine=replace(colab, host_bytes=3 * GIB))
    assert "of the host's memory" in small.refused["lora"]


def test_free_memory_of_the_host_heeds_the_containers_limit(tmp_path):
    (tmp_path / "memory").mkdir()
    free = psutil.virtual_memory().available
    assert free_host_bytes(tmp_path) == pytest.approx(free, rel=0.2)
    for folder, limit, used, line in (
        ("memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
        ("", "max", "current", "inactive_file"),
    ):
        named = tmp_path / folder
        (named / f"memory.{limit}").write_text("3000000\n")
        (named / f"memory.{used}").write_text("1000000\n")
        (named / "memory.stat").write_text(f"cache 7\n{line} 200000\n")
        assert free_host_bytes(tmp_path) == 2_200_000
        (named / f"memory.{limit}").write_text("max\n" if folder == "" else str(2**63 - 4096))
        assert free_host_bytes(tmp_path) == pytest.approx(free, rel=0.2)


@pytest.mark.parametrize("luck", range(20))
def test_a_study_of_a_billion_weights_stays_under_30_gb(luck):
    """A walk over a study of full fine-tuning and LoRA at looks [5, 10], finals in planned order, by a count of all
    weights that lie there: what is kept, the artifact being written, and the checkpoint of the trial in hand."""
    assert BILLION.parameters == 1_235_814_400
    full, lora, checkpoint = 2 * 1_235_814_400, 4 * 11_272_192, 12 * 1_235_814_400
    rng, lock, kept, peak, records = random.Random(luck), a_lock(), {}, 0, []
    scores = {seed: rng.choice([0.5, 0.6, rng.random()]) for seed in range(1, 11)}
    for seed in range(1, 11):
        for arm, size in (("full", full), ("lora", lora)):
            trial = lock.trial(arm, "mail", learning_rate=1e-3, seed=seed, purpose="final")
            in_hand = checkpoint if arm == "full" else 12 * 11_272_192
            kept[trial.id] = arm, seed, size
            peak = max(peak, sum(size for *_, size in kept.values()) + in_hand)
            value = {"validation.accuracy": Measurement(value=scores[seed], unit="share")}
            records.append(TrialRecord(trial=trial, status="ok", measurements=value, artifacts={"model": "f" * 64}))
            for gone in set(surplus(Evidence(lock, tuple(records), {}, {}))) & set(kept):
                del kept[gone]
    assert peak < 30e9
    median = sorted(range(1, 6), key=lambda seed: (scores[seed], seed))[2]
    assert {seed for arm, seed, _ in kept.values() if arm == "full"} == {median}
    assert {seed for arm, seed, _ in kept.values() if arm == "lora"} == set(range(1, 11))
    planned = plan.preview(a_lock(), BILLION).disk_bytes
    assert planned.low < 30e9 and peak <= planned.low + 5 * lora * 1.01


def test_phases_of_a_trial_are_in_the_plan_with_what_comes_after_training():
    counts = reaching(3 * GIB)
    found = plan.preview(a_lock(), SHAPE, traced=counts, counted={"mail": (20, 60)}).phases
    assert list(found) == ["lora"] and {"step", "evaluate", "serve"} <= set(found["lora"])
    assert found["lora"]["step"].likely == 3 * GIB and found["lora"]["evaluate"].likely == 27 * GIB
    longer = plan.preview(a_lock(), SHAPE, traced=counts, counted={"mail": (20, 90)}).phases
    assert longer["lora"]["serve"].likely >= found["lora"]["serve"].likely
