"""Whether an arm fits a device, and the smallest changes that would make it fit, by a count that is a formula here."""

import pytest

from tunetrial import methods
from tunetrial.core.study import Arm
from tunetrial.core.work import Kernel, Phase, Traced
from tunetrial.plan import fit as fitting
from tunetrial.plan.estimate import GIB
from tunetrial.plan.fit import Ask, fit, sharded_fit

BATCH, LONGEST = 16, 512
BASE = {"full": 2, "lora": 2, "qlora": 1}
STATES = {"full": 16, "lora": 1, "qlora": 1}


def arm(method: str, **settings) -> Arm:
    return Arm(name=method, method=method, settings=methods.settle(method, settings))


def counted(asked: Arm, ask: Ask) -> Traced:
    """GiB: a base, states, and an eighth of one for 512 tokens of an example, a fourth of that where recomputed."""
    tokens = min(ask.most_tokens or LONGEST, LONGEST)
    activations = ask.micro_batch * tokens / LONGEST / 8 * (0.25 if ask.recomputes else 1)
    states = STATES[asked.method] * (0.5 if asked.settings["optimizer_bits"] == 8 else 1)
    parts = {"base": BASE[asked.method] * GIB, "moments": int(states * GIB), "activations": int(activations * GIB)}
    work = Kernel(kind="product", dtype="bf16", shape=(1, 1, 1), count=1, operations=2.0 + ask.recomputes, bytes=1.0)
    phases = {
        "load": Phase(peak_bytes=parts["base"], parts={"base": parts["base"]}),
        "step": Phase(peak_bytes=sum(parts.values()), parts=parts, work=(work,)),
    }
    return Traced(phases=phases, tokens=1)


def shared(asked: Arm, traced: Traced, devices: int) -> Traced:
    """States shared out evenly, and half a GiB besides."""
    step = traced.phases["step"]
    parts = {part: size // devices if part in ("base", "moments") else size for part, size in step.parts.items()}
    parts["workspace"] = GIB // 2
    phase = step.model_copy(update={"parts": parts, "peak_bytes": sum(parts.values())})
    return traced.model_copy(update={"phases": {"step": phase}})


def fitted(method: str, room: float, kind: str = "cuda", **settings):
    asked = {"kind": kind, "batch": BATCH, "longest": LONGEST, "count": counted, "share": shared}
    return fit(arm(method, **settings), "gpu", int(room * GIB), **asked)


def test_what_fits_needs_no_change():
    found = fitted("lora", 8)
    assert (found.verdict, found.changes) == ("fits", ())
    assert found.need.phase == "step" and found.need.peak_bytes == 5 * GIB
    assert found.need.bytes.low == pytest.approx(5.4 * GIB) and found.need.bytes.high == pytest.approx(6.4 * GIB)


def test_between_the_ends_of_what_is_needed_it_is_tight():
    assert fitted("lora", 5.39).verdict == "fits in smaller steps"
    assert fitted("lora", 5.41).verdict == "tight"
    assert fitted("lora", 6.41).verdict == "fits"


@pytest.mark.parametrize("examples", [8, 4, 2, 1])
def test_the_largest_micro_batch_that_fits_is_found(examples):
    room = (3 + examples / 8) * 1.1 + 0.9 + 0.01
    found = fitted("lora", room)
    assert found.verdict in ("fits in smaller steps", "tight") and len(found.changes) == 1
    assert found.changes[0].need.ask == Ask(micro_batch=examples)
    assert found.changes[0].what == f"micro-batches of {examples} instead of 16" and found.changes[0].time == 1
    assert found.changes[0].fair.startswith("fair")


def test_layers_are_computed_again_last_and_that_has_its_price():
    found = fitted("lora", 3.04 * 1.1 + 0.9)
    assert found.verdict == "fits in smaller steps" and found.changes[0].need.ask == Ask(micro_batch=1, recomputes=True)
    assert found.changes[0].time == pytest.approx(1.5)


def test_what_does_not_fit_is_told_what_would_and_what_that_does_to_the_comparison():
    found = fitted("full", 13.05)
    assert found.verdict == "does not fit"
    changes = {change.what.partition(",")[0].partition(":")[0]: change for change in found.changes}
    assert list(changes) == [
        "moments in 8 bits",
        "LoRA of rank 16 on all linear layers",
        "QLoRA of rank 16 on all linear layers",
        "2 such GPUs",
    ]
    assert changes["moments in 8 bits"].need.ask == Ask(micro_batch=8)
    assert "another method" in changes["QLoRA of rank 16 on all linear layers"].fair
    assert all(change.need.bytes.high <= found.room_bytes for change in found.changes)
    half = changes["2 such GPUs"].need
    assert half.peak_bytes == (18 * GIB) // 2 + GIB // 4 + GIB // 2


@pytest.mark.parametrize(
    ("devices", "room", "verdict", "asks"),
    [
        (4, 8, "would fit sharded", []),
        (4, 6.6, "would fit sharded", [Ask(micro_batch=1)]),
        (4, 6.2, "tight", []),
        (16, 2.8, "would fit sharded", [Ask(micro_batch=1, recomputes=True)]),
        (16, 1.9, "does not fit", []),
    ],
)
def test_on_several_gpus_each_has_its_share_of_states_and_of_examples(devices, room, verdict, asks):
    own = {"kind": "cuda", "batch": BATCH, "count": counted, "share": shared}
    found = sharded_fit(arm("full"), "gpus", devices, int(room * GIB), **own)
    assert (found.verdict, found.devices) == (verdict, devices)
    assert found.need.ask == Ask(micro_batch=BATCH // devices)
    assert [change.need.ask for change in found.changes] == asks


def test_where_so_many_gpus_are_too_few_more_are_offered():
    own = {"kind": "cuda", "batch": BATCH, "count": counted, "share": shared}
    found = sharded_fit(arm("full"), "gpus", 2, 5 * GIB, **own)
    assert found.verdict == "does not fit" and found.changes[0].what.startswith("8 such GPUs, states sharded, 2 of 16")
    assert found.changes[0].need.bytes.high <= found.room_bytes


def test_one_long_example_is_computed_again_too():
    asked = {"kind": "cuda", "batch": 1, "longest": LONGEST, "count": counted}
    found = fit(arm("lora"), "gpu", int((3.05 * 1.1 + 0.9) * GIB), **asked)
    assert found.verdict == "tight" and found.changes[0].what.startswith("layers computed again")


def test_shorter_rows_are_offered_where_they_are_enough():
    found = fitted("lora", 3.02 * 1.1 + 0.9)
    assert found.verdict == "does not fit"
    cut = next(change for change in found.changes if change.what.startswith("rows cut"))
    assert cut.need.ask == Ask(micro_batch=1, recomputes=True, most_tokens=256) and "another task" in cut.fair


def test_on_a_cpu_no_gpus_are_offered():
    assert not [c for c in fitted("full", 13, kind="cpu").changes if "GPU" in c.what]


def test_nothing_helps_where_not_even_a_base_in_4_bits_fits():
    assert fitted("qlora", 0.5).changes == ()


def test_no_setting_is_counted_more_often_than_it_must(monkeypatch):
    asked = []
    monkeypatch.setattr(
        fitting.Need,
        "of",
        classmethod(lambda cls, traced, ask, kind, of=fitting.Need.of: asked.append(ask) or of(traced, ask, kind)),
    )
    fitted("lora", (3 + 2 / 8) * 1.1 + 0.9 + 0.01)
    assert len(asked) <= 5 and len(set(asked)) == len(asked)


def test_nothing_is_counted_that_weights_alone_rule_out():
    asked = []
    count = lambda what, ask: asked.append((what.method, ask)) or counted(what, ask)  # noqa: E731
    found = fit(arm("full"), "gpu", 10 * GIB, kind="cuda", batch=BATCH, longest=LONGEST, count=count)
    whole = Ask(micro_batch=BATCH)
    assert asked == [("full", whole), ("full", whole), ("lora", whole), ("qlora", whole)]  # of full with 8-bit moments
    assert len(found.changes) == 2
    asked.clear()
    fit(arm("full"), "gpu", 3 * GIB, kind="cuda", batch=BATCH, longest=LONGEST, count=count)
    assert asked == [("full", whole), ("lora", whole), ("qlora", whole)]
