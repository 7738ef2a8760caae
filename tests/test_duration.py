"""How long trials, packs, workers and sessions take: sums that are done here by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import make_trial
from tunetrial import models
from tunetrial.core.errors import DoesNotFitError
from tunetrial.core.speed import Range, exactly
from tunetrial.plan.duration import decoding, duration, in_packs, pack_sizes, sessions, side_by_side, start_up, total
from tunetrial.plan.packs import packs

NONE = exactly(0)


def test_a_trial_is_prepared_trained_evaluated_and_saved():
    one = duration(
        Range(low=1, high=2), steps=100, batch_s=exactly(3), batches=5, prepare_s=exactly(7), save_s=exactly(4)
    )
    assert one.seconds == Range(low=7 + 100 + 15 + 4, high=7 + 200 + 15 + 4)
    assert total([one, one]).seconds == Range(low=252, high=452)
    assert total([]).seconds == NONE


def test_checkpoints_cost_what_saving_does_and_of_tuning_nothing():
    of = {"steps": 100, "batch_s": NONE, "batches": 0, "prepare_s": NONE, "checkpoint_every_s": 60}
    assert duration(exactly(1), save_s=exactly(5), **of).train_s == exactly(100 + 5)
    assert duration(exactly(1), save_s=NONE, **of).seconds == exactly(100)


@given(st.integers(1, 40), st.integers(1, 16))
def test_packs_have_the_sizes_that_packs_are_given(trials, most):
    formed = packs([make_trial(seed=seed) for seed in range(trials)], most=most)
    assert sorted(map(len, formed)) == sorted(pack_sizes(trials, most))


def test_packs_go_one_after_the_other():
    assert pack_sizes(0, 4) == ()
    assert in_packs(10, 4, lambda size: exactly(10 + size)) == exactly(3 * 10 + 10)


def test_a_worker_starts_no_faster_than_its_base_is_read():
    assert start_up("cpu", 0).low > 1
    assert start_up("cuda", 15e9).high > 60


def test_workers_side_by_side_are_bound_by_load_and_by_the_longest():
    each = [exactly(4), exactly(4), exactly(10)]
    assert side_by_side(each, 1) == exactly(18)
    assert side_by_side(each, 2) == Range(low=10, high=14, likely=10)
    assert side_by_side([], 2) == NONE


@given(st.floats(1, 1e6), st.floats(10, 1e5), st.floats(0, 9))
def test_sessions_have_room_for_the_study_and_one_less_has_not(total_s, limit_s, resume_s):
    count = sessions(total_s, limit_s, resume_s=resume_s)
    room = lambda n: n * limit_s - (n - 1) * resume_s  # noqa: E731
    assert room(count) >= total_s * (1 - 1e-9)
    assert count == 1 or room(count - 1) < total_s * (1 + 1e-9)


def test_a_session_that_ends_before_it_resumed_is_refused():
    with pytest.raises(DoesNotFitError, match="session: ends before"):
        sessions(100, 10, resume_s=10)


def test_decoding_multiplies_every_weight_once_a_token_and_row():
    shape = models.shape(models.EMBEDDED)
    work = decoding(shape, rows=3, prompt_tokens=10, new_tokens=4, dtype="bfloat16", bytes_per_number=2)
    weights = shape.layers * sum(a * b for a, b in shape.projections.values()) + shape.vocabulary * shape.hidden
    of_products = sum(kernel.count * kernel.operations for kernel in work if kernel.kind == "product")
    assert of_products == 2 * weights * 3 * 4
    (cache,) = [kernel for kernel in work if kernel.kind == "attention"]
    assert cache.count * cache.bytes == 4 * shape.layers * 2 * 2 * 3 * 12 * shape.kv_heads * shape.head_dim
