"""What a plan says once tokens are counted and the disk is known."""

import pytest

from test_plan import SHAPE, a_lock
from tunetrial import plan

GIB = 2**30


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


def test_plan_says_what_disk_it_takes_and_whether_there_is_room():
    """All finals' weights, 5 to 10 seeds an arm: 12 M at 2 bytes and an adapter; at most three full checkpoints."""
    made = plan.preview(a_lock(), SHAPE, free_disk_bytes=3 * GIB)
    full, checkpoint = 2 * SHAPE.backbone_parameters, 12 * SHAPE.backbone_parameters
    assert 5 * full < made.disk_bytes.low < 5 * 1.4 * full
    assert made.disk_bytes.high == pytest.approx(2 * made.disk_bytes.low + 3 * checkpoint, rel=1e-3)
    assert "GiB (estimate), 3 GiB free\n" in str(made) and "too little" not in str(made)
    short = plan.preview(a_lock(), SHAPE, free_disk_bytes=GIB // 100)
    assert "0.01 GiB free: too little, trials will fail until there is more" in str(short)
    assert "free" not in str(plan.preview(a_lock(), SHAPE))
