"""Break-even volumes against bills written out month by month, and how the report says them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import report_fixtures
from test_latency import bench, by_path
from tunetrial import report
from tunetrial.analysis.breakeven import volumes
from tunetrial.analysis.latency import summarise
from tunetrial.core.deployment import BreakEven, Contender
from tunetrial.core.prices import Costs
from tunetrial.report import shipping
from tunetrial.trial import conclusion

BYTES = {"base": 1000, "lora separate": 10, "lora merged": 1000, "full": 1000}
USD_PER_BYTE, USD_PER_S = 1e-5, 1e-3
PRICES = ("1 USD an hour (hardware.usd_per_hour)", "0.02 USD a GB-month (somebody, 2026-01-01)")


def found(*, variants=20, requests=None, seconds=by_path, sessions=3, artifact_bytes=BYTES, **prices):
    timed = bench(seconds, sessions=sessions).model_copy(update={"artifact_bytes": artifact_bytes})
    given = {"usd_per_byte_month": USD_PER_BYTE, "usd_per_s": USD_PER_S, "prices": PRICES} | prices
    return volumes(timed, variants=variants, requests=requests, **given)


def pair(made, own: str, other: str, batch: int = 1) -> BreakEven:
    return next(p for p in made.pairs if (p.own.name, p.against.name, p.work.batch) == (own, other, batch))


def bill(setup: str, variants: int, requests: float, request_usd: float) -> float:
    """USD a month of so many variants, each asked so often."""
    shared = BYTES["base"] if setup == "lora separate" else 0
    return USD_PER_BYTE * (shared + variants * BYTES[setup]) + variants * requests * request_usd


MERGED_USD = 0.02 * 0.5 * 1.001 * USD_PER_S  # the second of three sessions, the engine's path, its wobble


def test_at_the_ends_both_bills_are_one_and_beyond_them_they_change_places():
    one = pair(found(), "lora separate", "lora merged")
    assert one.own.path == "engine"  # where merged models answer soonest
    assert one.saved_usd == pytest.approx((bill("lora merged", 20, 0, 0) - bill("lora separate", 20, 0, 0)) / 20)
    assert one.extra_usd == pytest.approx(0.2 * MERGED_USD, rel=0.05)
    for end, extra in ((one.low, one.extra_high), (one.high, one.extra_low)):
        bills = [bill("lora separate", 20, end, MERGED_USD + extra), bill("lora merged", 20, end, MERGED_USD)]
        assert bills[0] == pytest.approx(bills[1])
        for times, less in ((0.9, True), (1.1, False)):
            own = bill("lora separate", 20, times * end, MERGED_USD + extra)
            assert (own < bill("lora merged", 20, times * end, MERGED_USD)) == less
    assert one.first == one.own and 0 < one.low <= one.high


@given(st.floats(0, 5000), st.integers(1, 50))
def test_from_so_many_variants_on_the_adapter_costs_less(requests, variants):
    one = pair(found(requests=requests), "lora separate", "lora merged")
    if one.variants_low is None:
        assert one.extra_low * requests >= USD_PER_BYTE * (1000 - 10)
        return
    assume(abs(variants - one.variants_low) > 1e-6)
    separate = bill("lora separate", variants, requests, MERGED_USD + one.extra_low)
    assert (separate < bill("lora merged", variants, requests, MERGED_USD)) == (variants > one.variants_low)


def test_one_variant_alone_saves_nothing_by_an_adapter():
    one = pair(found(variants=1), "lora separate", "lora merged")
    assert one.saved_usd == pytest.approx(-10 * USD_PER_BYTE) and one.extra_low > 0
    assert one.first == one.against and one.low is None and one.high is None


def test_merged_and_full_of_one_size_differ_by_time_alone_or_cannot_be_told_apart():
    one = pair(found(), "lora merged", "full")
    assert one.saved_usd == 0 and one.variants_low is None and one.low is None
    slow = found(seconds=lambda c, w, s: by_path(c, w, s) * (1.3 if c.setup == "full" else 1))
    assert pair(slow, "lora merged", "full").first == Contender(setup="merged", path="engine", arm="lora")


def test_where_the_interval_holds_1_it_is_told_how_far_it_is_sure():
    by = {"separate": 0.1, "full": 0.01}
    shaky = found(seconds=lambda c, w, s: 0.01 * (1 + (s - 0.5) * by.get(c.setup, 0)))
    one = pair(shaky, "lora separate", "lora merged")
    assert one.extra_low < 0 < one.extra_high and one.first == one.own
    assert one.low == pytest.approx(one.saved_usd / one.extra_high) and one.high is None
    assert pair(shaky, "lora merged", "full").first is None


def test_what_is_missing_is_named_and_nothing_reckoned():
    for changed, said in (
        ({"usd_per_s": None}, "hardware.usd_per_hour"),
        ({"usd_per_byte_month": None}, "costs.usd_per_gb_month"),
        ({"sessions": 1}, "2 or more sessions"),
    ):
        made = found(**changed)
        assert made.pairs == () and len(made.missing) == 1 and said in made.missing[0]
    assert found(artifact_bytes={"lora separate": 7}).pairs == ()  # bytes that are not known are not 0


def test_the_report_has_prices_with_their_source_and_a_row_for_each_pair():
    evidence, decision = report_fixtures.clear()[:2]
    timed = bench(by_path).model_copy(update={"artifact_bytes": BYTES})
    deployed = summarise(timed).model_copy(update={"volumes": found(requests=100)})
    decision = decision.model_copy(update={"deployed": deployed})
    page, text = report.html(evidence, decision), report.markdown(evidence, decision)
    for made in (page, text.replace("\\", "")):
        assert "Break-even" in made and "0.02 USD a GB-month (somebody, 2026-01-01)" in made
        assert "separate costs less up to" in made
        assert "Variants: 20 (costs.variants); requests: 100 a month each (costs.requests_per_month)." in made
    rows = [line for line in text.splitlines() if line.startswith("| lora") and "against" in line]
    assert len(rows) == 6 and all(line.count("|") == 7 for line in rows)
    bare = decision.model_copy(update={"deployed": summarise(timed)})
    assert shipping.volumes(bare) is None and "Break-even" not in report.html(evidence, bare)


def test_requests_of_all_variants_together_are_shared_among_them(monkeypatch):
    """As in the bill of `costs`, which counts the same field of the study file."""
    evidence = report_fixtures.clear()[0]
    study = evidence.lock.study.model_copy(update={"costs": Costs(variants=20, requests_per_month=100_000)})
    evidence = replace(evidence, lock=evidence.lock.model_copy(update={"study": study}))
    timed = bench(by_path).model_copy(update={"trials": {"lora": (evidence.records[0].trial.id,)}})
    asked = {}
    monkeypatch.setattr(conclusion.breakeven, "volumes", lambda timed, **said: asked.update(said))
    conclusion._deployed(SimpleNamespace(bench=lambda: timed), evidence)
    assert (asked["variants"], asked["requests"]) == (20, 5_000)
