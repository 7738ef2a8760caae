"""Money: units that cannot be mixed, sums that are never 0 for want of a price, and a published bill put right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.core import money
from tunetrial.core.errors import ConfigError
from tunetrial.core.money import (
    Account,
    Bill,
    EngineerHours,
    GbHours,
    GbMonths,
    GpuHours,
    InputTokens,
    OutputTokens,
    Requests,
    Usd,
)
from tunetrial.plan import catalogue
from tunetrial.plan.estimate import Range

UNITS = (GpuHours, EngineerHours, GbMonths, GbHours, Requests, InputTokens, OutputTokens)
GB = 10**9


def price(usd, unit):
    return catalogue.given(usd, unit, where="test")


def first_year(*, hours, usd_per_hour, engineer_hours, fixed, stored_bytes, memory_bytes):
    """The lines of a bill as the comparison in seed 001 has them: 5 variants trained once, then kept and served."""
    stored = money.kept(stored_bytes, variants=1, months=12, price=price(0.10, "GB-month"))
    in_memory = money.held(memory_bytes, hours=12 * 24 * 30)
    return Bill(
        name="arm",
        lines=(
            money.line("training", GpuHours.of(hours), price(usd_per_hour, "GPU-hour"), basis="given"),
            money.line("people", EngineerHours.of(engineer_hours), price(150, "engineer-hour"), basis="given"),
            money.line("machinery", Usd.of(fixed), None, basis="given"),
            money.line("storage", stored, price(0.10, "GB-month"), basis="given"),
            money.line("serving", in_memory, price(0.05, "GB-hour"), basis="given"),
        ),
    )


def test_a_published_first_year_with_the_right_units():
    """It charged storage by the hour: 75,236 and 20,263 USD, where its own prices make 19,154 and 8,978."""
    full = first_year(
        hours=168, usd_per_hour=8.0, engineer_hours=40, fixed=500, stored_bytes=65 * GB, memory_bytes=26 * GB
    )
    lora = first_year(
        hours=12,
        usd_per_hour=2.5,
        engineer_hours=20,
        fixed=100,
        stored_bytes=13_080_000_000,
        memory_bytes=13_500_000_000,
    )
    assert (round(full.usd.low), round(lora.usd.low)) == (19_154, 8_978)
    storage = next(line for line in full.lines if line.what == "storage")
    assert storage.usd.low / 12 == pytest.approx(6.50)
    wrong = 12 * 24 * 30 * (65 - 65 / 720) * 0.10  # what a price a month, paid every hour, adds
    assert round(full.usd.low + wrong) == 75_236
    whole = Account(bills=(full, lora))
    assert round(whole.usd.low) == round(full.usd.low + lora.usd.low) and whole.usd.low == whole.usd.high


def test_adapters_are_stored_beside_one_base_and_full_copies_are_not():
    """13 GB five times, against 13 GB once and five adapters of 16 MB: the same seed's amounts."""
    full = money.kept(13 * GB, variants=5, months=1, price=None)
    lora = money.kept(16_000_000, variants=5, months=1, shared_bytes=13 * GB, price=None)
    assert (full.low, lora.low) == pytest.approx((65, 13.08))


def test_a_gigabyte_is_as_large_as_its_provider_bills_it():
    s3 = next(each for each in catalogue.storage_prices() if each.provider == "AWS")
    assert money.kept(2**30, variants=3, months=2, price=s3).low == pytest.approx(6)
    line = money.line("storage", money.kept(2**30, variants=3, months=2, price=s3), s3, basis="estimated")
    assert line.usd.low == pytest.approx(6 * 0.023)
    assert (line.source, line.date) == ("dated default", s3.source.date) and "aws.amazon.com" in line.where


@pytest.mark.parametrize("unit", UNITS)
def test_a_price_goes_with_its_own_unit_alone(unit):
    for other in UNITS:
        if other is unit:
            assert money.cost(unit.of(2, 3), price(0.5, other.unit)) == Usd.of(1, 1.5)
        else:
            with pytest.raises(ConfigError, match=f"price: for a {other.unit}, got an amount in {unit.unit}; give"):
                money.cost(unit.of(2), price(0.5, other.unit))


@pytest.mark.parametrize("unit", UNITS)
def test_amounts_of_two_units_do_not_add_up_or_multiply(unit):
    for other in (*UNITS, Usd):
        if other is not unit:
            with pytest.raises(TypeError):
                unit.of(1) + other.of(1)
        with pytest.raises(TypeError):
            unit.of(1) * other.of(1)
    with pytest.raises(TypeError):
        unit.of(1) + 1


@pytest.mark.parametrize("ends", [(-1,), (2, 1), (float("nan"),), (0, float("inf"))])
def test_an_amount_is_not_negative_and_its_ends_are_in_order(ends):
    with pytest.raises(ConfigError, match="GPU-hour: no amount, got"):
        GpuHours.of(*ends)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=5), st.floats(0, 1e3))
def test_a_total_is_the_sum_of_ends(amounts, usd):
    hourly = price(usd, "GPU-hour")
    lines = tuple(
        money.line(str(n), GpuHours.of(low, low + more), hourly, basis="estimated")
        for n, (low, more) in enumerate(amounts)
    )
    whole = Bill(name="arm", lines=lines).usd
    assert whole.low == pytest.approx(usd * sum(low for low, _ in amounts))
    assert whole.high == pytest.approx(usd * sum(low + more for low, more in amounts))


def test_what_runs_is_charged_by_the_hours_of_all_gpus():
    seconds = {"tuning": Range(low=1800, high=7200), "finals": Range(low=3600, high=3600)}
    tuning, finals = money.compute(seconds, price(3, "GPU-hour"), basis="estimated", gpus=2)
    assert (tuning.what, tuning.unit, tuning.usd) == ("tuning", "GPU-hour", Usd.of(3, 12))
    assert finals.usd == Usd.of(6)
    with pytest.raises(ConfigError, match="for a GB-month, got an amount in GPU-hour"):
        money.compute(seconds, price(3, "GB-month"), basis="estimated")


def test_money_without_a_price_is_absent_and_named():
    hours = GpuHours.of(3)
    bill = Bill(name="lora", lines=(money.line("tuning", hours, None, basis="estimated"),))
    assert bill.lines[0].usd is None and bill.usd is None and bill.unpriced == ("tuning",)
    priced = Bill(name="full", lines=(money.line("tuning", hours, price(2, "GPU-hour"), basis="estimated"),))
    whole = Account(bills=(bill, priced), budget=Usd.of(10))
    assert whole.usd is None and whole.fits is None and "a price is missing" in str(whole)
    assert Account(bills=()).usd is None and Bill(name="empty", lines=()).usd is None


@pytest.mark.parametrize(("budget", "fits"), [(30, "yes"), (29, "perhaps"), (20, "perhaps"), (19, "no")])
def test_a_study_against_its_budget(budget, fits):
    line = money.line("finals", GpuHours.of(10, 15), price(2, "GPU-hour"), basis="estimated")
    assert Account(bills=(Bill(name="a", lines=(line,)),), budget=Usd.of(budget)).fits == fits


def test_what_is_priced_may_exceed_the_budget_by_itself():
    lines = (
        money.line("finals", GpuHours.of(10), price(2, "GPU-hour"), basis="measured"),
        money.line("people", EngineerHours.of(1), None, basis="given"),
    )
    assert Account(bills=(Bill(name="a", lines=lines),), budget=Usd.of(19)).fits == "no"


def test_serving_by_requests_charges_prompts_and_completions_apart():
    read, written = money.served(Requests.of(1_000, 2_000), prompt=300, completion=50)
    assert (read, written) == (InputTokens.of(300_000, 600_000), OutputTokens.of(50_000, 100_000))
    usd = money.cost(read, price(0.2e-6, "input token")) + money.cost(written, price(0.6e-6, "output token"))
    assert (usd.low, usd.high) == pytest.approx((0.09, 0.18))
    assert money.always_on(months=2, gpus=3).low == 2 * 365 * 24 / 12 * 3


def test_a_bill_is_a_table_of_100_columns_with_its_sources_below():
    l4 = catalogue.rate(catalogue.device("l4"), catalogue.Hardware())
    lines = (
        money.line("tuning, 5 rates and 3 seeds of a long name", GpuHours.of(1.25, 80.5), l4, basis="estimated"),
        money.line("people", EngineerHours.of(8), price(120, "engineer-hour"), basis="given"),
        money.line("disks", Usd.of(12), None, basis="given"),
    )
    text = str(Account(bills=(Bill(name="lora", lines=lines),), budget=Usd.of(2000)))
    table = [row for row in text.splitlines() if not row.startswith("  price:")]
    assert max(map(len, table)) <= 100
    assert "budget $2,000.00: yes" in text and f"{l4.source.date}" in text and "dated default" in text
