"""Ratios of times over sessions, by hand and by simulation; which contender is held against which; what is left out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.analysis.latency import ratio_over_sessions, summarise
from tunetrial.core.deployment import Asked, Bench, Contender, Laps, Opened, Session, Swaps, Work
from tunetrial.core.errors import EvidenceError
from tunetrial.report import deployment

ONE, MANY = Work(batch=1, prompt_tokens=40, new_tokens=1), Work(batch=8, prompt_tokens=40, new_tokens=16)
NAMES = (("base", None), ("full", "full"), ("merged", "lora"), ("separate", "lora"), ("mixed", "lora"))
CONTENDERS = [Contender(setup=setup, path=path, arm=arm) for setup, arm in NAMES for path in ("engine", "eager")]


def bench(seconds, *, sessions: int = 3, laps: int = 4, works=(ONE, MANY)) -> Bench:
    """`seconds(contender, work, session)` is what every lap takes."""
    made = []
    for number in range(sessions):
        timed = [
            Laps(contender=c, work=w, adapters=int(c.setup == "separate"), laps_s=(seconds(c, w, number),) * laps)
            for w in reversed(works)
            for c in CONTENDERS
            if c.setup != "mixed" or w.batch > 1
        ]
        opened = [Opened(contender=c, load_s=number + 1.0, weights_bytes=2**20, peak_bytes=None) for c in CONTENDERS]
        swaps = [Swaps(arm="lora", path="engine", where="disk", swaps_s=(0.01 * (number + 1), 5.0, 0.0))]
        facts = {"device": "toy", "dtype": "float32", "threads": 1, "others": 0.3 * (number == 1)}
        of = {"laps": tuple(timed), "opened": tuple(opened), "swaps": tuple(swaps), "gates": (), "facts": facts}
        made.append(Session(number=number, order_digest="", **of))
    asked = Asked(base="toy", base_fingerprint="", precision="fp32", works=works, sessions=sessions, seconds=1)
    return Bench(asked=asked, artifact_bytes={"lora separate": 7}, sessions=tuple(made))


def by_path(contender: Contender, work: Work, session: int) -> float:
    """The engine takes half of eager, a separate adapter 1.2 times as long; sessions differ by much, ratios little."""
    own = {"separate": 1.2, "mixed": 1.5}.get(contender.setup, 1.0)
    wobble = 1 + 0.001 * ((session * 7 + len(contender.name) + len(contender.path)) % 5)
    return 0.01 * (1 + session) * (0.5 if contender.path == "engine" else 1.0) * own * work.new_tokens * wobble


def test_a_ratio_is_that_of_three_sessions_by_hand():
    """Log ratios .1, .2 and .3: mean .2, standard error .1 / sqrt(3), and t of 2 degrees of freedom 4.30265."""
    ratio, low, high, pace = ratio_over_sessions([math.exp(0.1), 3 * math.exp(0.2), 5 * math.exp(0.3)], [1, 3, 5])
    half = 4.3026527297 * 0.1 / math.sqrt(3)
    assert ratio == pytest.approx(math.exp(0.2)) and pace == "CAN'T TELL"
    assert (low, high) == pytest.approx((math.exp(0.2 - half), math.exp(0.2 + half)))


def test_the_sessions_of_the_seed_document_give_its_interval_on_the_log_scale():
    """Overheads of 34.58/26.03, 1.352 and 1.375 in three sessions; the arithmetic interval is [29.5, 40.9] %."""
    ratio, low, high, pace = ratio_over_sessions([34.58 / 26.03, 1.352, 1.375], [1.0, 1.0, 1.0])
    assert (ratio, low, high) == pytest.approx((1.352, 1.296, 1.410), abs=0.002) and pace == "SLOWER"


@pytest.mark.parametrize(
    ("logs", "pace"),
    [
        ((0.01, 0.02, 0.015), "SAME"),  # above 1, and within the margin
        ((-0.01, 0.01, 0.002), "SAME"),
        ((0.06, 0.07, 0.065), "SLOWER"),
        ((-0.06, -0.07, -0.065), "FASTER"),
        ((0.04, 0.05, 0.052), "SLOWER"),  # reaches beyond the margin, and leaves out 1
        ((-0.1, 0.1, 0.05), "CAN'T TELL"),
    ],
)
def test_words_go_by_the_interval_against_one_and_the_margin(logs, pace):
    own = np.exp(logs)
    assert ratio_over_sessions(own, np.ones(3))[3] == pace
    other = {"SLOWER": "FASTER", "FASTER": "SLOWER"}.get(pace, pace)
    assert ratio_over_sessions(np.ones(3), own)[3] == other


def test_one_session_has_a_ratio_without_ends():
    assert ratio_over_sessions([0.3], [0.2]) == (pytest.approx(1.5), None, None, "CAN'T TELL")


@pytest.mark.parametrize("own, other", [([], []), ([1.0], [1.0, 2.0]), ([1.0, 0.0], [1.0, 1.0]), ([1, 2.0], [1, 2.0])])
def test_sessions_that_give_no_ratio_are_refused(own, other):
    with pytest.raises(EvidenceError):
        ratio_over_sessions(own, other)


@given(st.lists(st.tuples(*[st.floats(1e-6, 1e3)] * 2), min_size=2, max_size=8), st.floats(0.1, 10))
def test_a_ratio_does_not_depend_on_units_and_turns_over(pairs, unit):
    own, other = (np.array(side) for side in zip(*pairs, strict=True))
    if np.ptp(np.log(own / other)) < 1e-6:
        return
    ratio, low, high, _ = ratio_over_sessions(own, other)
    assert ratio_over_sessions(unit * own, unit * other)[:3] == pytest.approx((ratio, low, high), rel=1e-6)
    assert ratio_over_sessions(other, own)[:3] == pytest.approx((1 / ratio, 1 / high, 1 / low), rel=1e-6)
    assert low <= ratio <= high


def test_intervals_over_sessions_hold_the_truth_as_often_as_they_say_and_those_over_laps_do_not():
    """Sessions have an offset of their own, laps jitter: of 4,000 studies 95 % to within 1.2 points hold the ratio, and
    an A/A comparison is called SLOWER or FASTER in at most its 5 % and a bit."""
    rng, truth, studies, covered, alarms, naive = np.random.default_rng(5), 1.08, 4000, 0, 0, 0
    for _ in range(studies):
        offset_S = rng.normal(0, 0.02, (2, 5))
        own_SL, other_SL = np.exp(offset_S[:, :, None] + rng.gamma(2, 0.02, (2, 5, 30)))
        own, other = truth * np.median(own_SL, axis=1), np.median(other_SL, axis=1)
        _, low, high, _ = ratio_over_sessions(own, other)
        covered += low <= truth <= high
        alarms += ratio_over_sessions(own / truth, other, margin=1e-9)[3] in ("SLOWER", "FASTER")
        log_SL = np.log(truth * own_SL / other_SL).ravel()
        naive += abs(log_SL.mean() - math.log(truth)) <= 1.98 * log_SL.std() / len(log_SL) ** 0.5
    assert abs(covered / studies - 0.95) < 0.012 and alarms / studies < 0.062
    assert naive / studies < 0.75  # laps taken for replicates: most certain where there is least to know


def test_every_contender_is_held_against_the_merged_model_of_its_path_and_engines_against_eager():
    found = summarise(bench(by_path))
    setups = {(r.contender, r.work): r for r in found.setup_ratios}
    for path in ("eager", "engine"):
        separate = setups[Contender(setup="separate", path=path, arm="lora"), ONE]
        assert separate.ratio == pytest.approx(1.2, rel=0.01) and separate.pace == "SLOWER"
        assert separate.against == Contender(setup="merged", path=path, arm="lora")
        for setup, arm in (("base", None), ("full", "full")):
            assert setups[Contender(setup=setup, path=path, arm=arm), MANY].pace == "SAME"
    assert not any(one.contender.setup == "merged" for one in found.setup_ratios)
    assert {r.contender.path for r in found.path_ratios} == {"engine"}
    assert all(r.ratio == pytest.approx(0.5, rel=0.01) and r.pace == "FASTER" for r in found.path_ratios)
    assert len(found.path_ratios) == 4 + 5  # nothing is mixed at batch 1


def test_sessions_are_the_replicates_however_many_laps_there_are():
    few, many = (summarise(bench(by_path, laps=laps)).setup_ratios for laps in (3, 300))
    assert few == many and few[0].sessions == 3


def test_quantiles_that_few_laps_cannot_show_are_missing():
    shown = {laps: summarise(bench(by_path, sessions=2, laps=laps)).timings[0] for laps in (49, 50, 250)}
    assert shown[49].p95_s is None and shown[49].p99_s is None and shown[49].laps == 98
    assert shown[50].p95_s is not None and shown[50].p99_s is None
    assert shown[250].p99_s is not None


def test_quantiles_and_throughput_are_of_all_laps_together():
    timing = next(timing for timing in summarise(bench(by_path)).timings if timing.work == MANY)
    every = [by_path(timing.contender, MANY, session) for session in range(3) for _ in range(4)]
    assert timing.p50_s == pytest.approx(np.median(every))
    assert timing.per_s == pytest.approx(12 * 8 * 16 / sum(every))


def test_footprints_and_swaps_are_medians_of_sessions_and_missing_is_missing():
    found = summarise(bench(by_path))
    first = found.footprints[0]
    assert (first.load_s, first.peak_bytes, first.artifact_bytes) == (2.0, None, None)
    assert {f.artifact_bytes for f in found.footprints if f.contender.setup == "separate"} == {7}
    assert found.swaps[0].swap_s == pytest.approx(0.02)


def test_sessions_of_other_contenders_are_refused():
    whole = bench(by_path)
    first = whole.sessions[0].model_copy(update={"laps": whole.sessions[0].laps[1:]})
    for sessions in ((), (first, *whole.sessions[1:])):
        with pytest.raises(EvidenceError, match="sessions that timed the same"):
            summarise(whole.model_copy(update={"sessions": sessions}))


def test_the_text_fits_100_columns_says_each_ratio_in_a_sentence_and_marks_what_is_missing():
    found = summarise(bench(by_path))
    told = deployment.text(found)
    tables = [line for line in told.splitlines() if line.startswith(("  ", "Batch", "SAME"))]
    assert tables and all(len(line) <= 100 for line in tables), max(tables, key=len)
    one = next(r for r in found.setup_ratios if r.contender.setup == "separate" and r.contender.path == "engine")
    said = f"takes {one.ratio:.2f} × ({one.low:.2f} to {one.high:.2f}) lora merged at batch 1, prompts of 40 tokens"
    assert f"engine lora separate {said}, first token: SLOWER\n" in told and " – " in told
    assert "Other processes computed meanwhile, on up to 30% of the cores" in told
    assert "nothing can be told from it" in deployment.text(summarise(bench(by_path, sessions=1)))
    assert [t.work for t in found.timings] == sorted((t.work for t in found.timings), key=[ONE, MANY].index)


def test_a_bench_outlives_its_json():
    made = bench(by_path)
    assert Bench.model_validate_json(made.model_dump_json()) == made
