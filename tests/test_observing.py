"""What looking at finals takes, counted here a second time."""

import pytest

from test_plan import SHAPE, a_lock
from test_timing import known
from tunetrial import plan
from tunetrial.core.evidence import Example, TaskData
from tunetrial.core.speed import Range
from tunetrial.core.study import Arm
from tunetrial.plan.observing import decompositions, observing

TOKEN_S = Range(low=0.001, high=0.003, likely=0.002)
TEXT = "x" * 396  # 100 tokens of 4 bytes with the first


def asking(*, texts: int = 10, **asked):
    """A lock whose finals are asked for more, with its texts pinned."""
    lock = a_lock()
    pin = lock.data["mail"]
    counts = pin.counts | ({"text~wiki": texts} if "retention" in asked else {})
    study = lock.study.model_copy(update=asked)
    data = {"mail": pin.model_copy(update={"counts": counts})}
    return lock.model_copy(update={"study": study, "data": data})


def texts(count: int = 10) -> TaskData:
    rows = tuple(Example(f"t{n}", "a", TEXT, "") for n in range(count))
    return TaskData("mail", "classify", ("a", "b"), {"text~wiki": rows})


def taken(lock, arm: Arm, **how) -> Range:
    given = {"data": texts(), "row_tokens": Range(low=20, high=20, likely=20), "token_s": TOKEN_S}
    return observing(lock, "mail", arm, SHAPE, **given | how)


def test_texts_are_read_by_every_tuned_model_and_once_by_the_base():
    lock = asking(retention={"wiki": "wiki.jsonl"})
    found, often = taken(lock, lock.study.arm("lora")), 1 + 1 / lock.study.looks[0]
    assert found.likely == pytest.approx(often * 10 * 100 * 0.002 * 1.3)
    assert found.low == pytest.approx(often * 10 * (1 + 396 / 6) * 0.001 * 0.5)
    assert found.high == pytest.approx(often * 10 * (1 + 396 / 2.5) * 0.003 * 4)


def test_states_are_of_so_many_rows_and_the_beginnings_of_texts():
    """128 of 400 test rows of 20 tokens, ten texts of 100: 3,560 tokens, once and, one final of five, by the base and
    four times more for the floors."""
    lock = asking(retention={"wiki": "wiki.jsonl"}, drift=("states",))
    once = 1 / lock.study.looks[0]
    likely = (1 + once) * 1000 * 0.002 * 1.3 + (1 + 5 * once) * (128 * 20 + 1000) * 0.002 * 1.3
    assert taken(lock, lock.study.arm("full")).likely == pytest.approx(likely)
    cut = taken(lock, lock.study.arm("full"), data=None)  # texts that are not known are as long as is read of one
    assert cut.likely == pytest.approx(likely + 28 * 10 * (1 + once + 1 + 5 * once) * 0.002 * 1.3)


def test_weights_are_decomposed_matrix_by_matrix():
    lock = asking(drift=("weights",))
    full, low = (lock.study.arm(name) for name in ("full", "lora"))
    counted = {"full": 0.0, "lora": 0.0}
    for _ in range(SHAPE.layers):
        for sides in SHAPE.projections.values():
            n, m = sorted(sides)
            counted["lora"] += 28 * m * n * n + 16 * n * n * n
            counted["full"] += 32 * m * n * n + 16 * n * n * n - 4 * n * n * n / 3
    assert decompositions(full, SHAPE) == pytest.approx(counted["full"])
    assert decompositions(low, SHAPE) == pytest.approx(counted["lora"])
    assert taken(lock, full).likely == pytest.approx(counted["full"] / 4e10)
    one = low.model_copy(update={"settings": {**low.settings, "targets": ("q_proj",)}})
    assert 0 < decompositions(one, SHAPE) < counted["lora"] / 3


def test_a_plan_says_what_looking_takes_and_nothing_where_nothing_is_asked():
    plain = plan.preview(a_lock(), SHAPE, **vars(known()))
    asked = plan.preview(asking(drift=("weights",)), SHAPE, **vars(known()))
    assert plain.time.stages.observing_s.high == 0 and "observing" not in str(plain)
    assert asked.seconds.likely == pytest.approx(plain.seconds.likely + asked.time.stages.observing_s.likely)
    assert asked.time.wall_s.likely > plain.time.wall_s.likely and "observing " in str(asked)
