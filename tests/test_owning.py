"""What arms cost to own: a published calculator put right, counted by hand, and read off studies."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.analysis.owning import costs_per_draw, own
from tunetrial.core import money
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.money import Usd
from tunetrial.core.owning import Figure, Taken, Terms
from tunetrial.core.prices import Budget

GB = 10**9
HOUR_S = 3600


def price(usd, unit):
    return money.given(usd, unit, where="test")


def figure(value, unit, basis="measured"):
    return None if value is None else Figure(value=value, unit=unit, basis=basis, of="test")


def taken(arm="full", *, shares_base=False, **given_):
    """An arm of which nothing was measured but what is given."""
    units = {
        "tuning_s": "s",
        "finals_s": "s",
        "evaluation_s": "s",
        "swap_s": "s",
        "run_j": "J",
        "artifact_bytes": "bytes",
        "base_bytes": "bytes",
        "resident_bytes": "bytes",
        "resident_base_bytes": "bytes",
        "alone_per_s": "requests/s",
        "together_per_s": "requests/s",
    }
    cycle = {name: figure(given_.pop(name, None), "s") for name in ("train", "export", "deploy", "test")}
    return Taken(
        arm=arm,
        shares_base=shares_base,
        machine="NVIDIA H200",
        cycle_s=cycle,
        run_s=given_.pop("run_s", {}),
        **{name: figure(given_.get(name), unit) for name, unit in units.items()},
    )


SEED_001 = {
    "full": (
        taken(
            "full", finals_s=168 * HOUR_S, tuning_s=0, evaluation_s=0, artifact_bytes=65 * GB, resident_bytes=26 * GB
        ),
        {"gpu_hour": 8.0, "engineer_hours": 40, "other_usd": 500},
    ),
    "lora": (
        taken(
            "lora",
            shares_base=True,
            finals_s=12 * HOUR_S,
            tuning_s=0,
            evaluation_s=0,
            artifact_bytes=5 * 16_000_000,
            base_bytes=13 * GB,
            resident_bytes=0.5 * GB,
            resident_base_bytes=13 * GB,
        ),
        {"gpu_hour": 2.5, "engineer_hours": 20, "other_usd": 100},
    ),
}


def of_seed_001(arm, **more):
    took, own_terms = SEED_001[arm]
    terms = Terms(
        variants=(1,),
        requests_per_month=0,
        retrainings_per_month=0,
        hours_per_month=24 * 30,
        engineer_hours=own_terms["engineer_hours"],
        other_usd=own_terms["other_usd"],
        gpu_hour=price(own_terms["gpu_hour"], "GPU-hour"),
        gb_hour=price(0.05, "GB-hour"),
        gb_month=price(0.10, "GB-month"),
        engineer_hour=price(150, "engineer-hour"),
        **more,
    )
    return own("all five", [took], terms).of(arm, 1)


def line_of(bill, what):
    return next(each for each in bill.lines if each.what == what)


def test_a_published_calculator_with_its_own_inputs_and_right_units():
    """It prints 75,236 and 20,263 USD: a month's price of storage, paid every hour."""
    full, lora = of_seed_001("full"), of_seed_001("lora")
    assert (round(full.first_year_usd.low), round(lora.first_year_usd.low)) == (19_154, 8_978)
    assert line_of(full.monthly, "storage").usd.low == pytest.approx(6.50)
    all_five = 12 * 24 * 30 * 0.05  # a GB more in memory for a year
    assert round(full.first_year_usd.low + 4 * 26 * all_five) == 64_082
    assert round(lora.first_year_usd.low + 4 * 0.016 * all_five) == 9_005
    assert (full.once_usd, lora.once_usd) == (Usd.of(168 * 8 + 40 * 150 + 500), Usd.of(12 * 2.5 + 20 * 150 + 100))


def measured(arm, *, shares_base, **more):
    """An arm of which everything was measured, in round numbers."""
    took = {
        "tuning_s": 7200,
        "finals_s": 3600,
        "evaluation_s": 1800,
        "train": 600,
        "export": 60,
        "test": 60,
        "artifact_bytes": 10 * GB,
        "resident_bytes": 10 * GB,
        "alone_per_s": 20,
        "together_per_s": 10,
        "run_s": {1: 500.0, 2: 700.0},
    }
    if shares_base:
        took |= {"artifact_bytes": GB, "resident_bytes": GB, "base_bytes": 10 * GB, "resident_base_bytes": 10 * GB}
    return taken(arm, shares_base=shares_base, **(took | more))


def terms(**more):
    said = {
        "variants": (1, 4),
        "requests_per_month": 100_000,
        "retrainings_per_month": 2,
        "hours_per_month": 730,
        "engineer_hours": 10,
        "gpu_hour": price(2, "GPU-hour"),
        "gb_month": price(0.1, "GB-month"),
        "engineer_hour": price(80, "engineer-hour"),
        "room_bytes": 24 * GB,
    }
    return Terms(**(said | more))


ARMS = (measured("full", shares_base=False), measured("lora", shares_base=True))


def test_a_first_year_is_what_counting_by_hand_makes_it():
    found = own("mail", ARMS, terms())
    run_usd = 720 / 3600 * 2
    once = (7200 + 3600 + 1800) / 3600 * 2 + 10 * 80
    one, four = found.of("full", 1), found.of("full", 4)
    assert one.once_usd.low == pytest.approx(once)
    assert one.monthly_usd.low == pytest.approx(10 * 0.1 + 730 * 2 + 2 * run_usd)
    assert four.once_usd.low == pytest.approx(once + 3 * run_usd)
    assert four.monthly_usd.low == pytest.approx(40 * 0.1 + 2 * 730 * 2 + 8 * run_usd)  # 40 GB in machines of 24
    assert (one.machines, four.machines, found.of("lora", 4).machines) == (1, 2, 1)
    lora = found.of("lora", 4)
    assert lora.monthly_usd.low == pytest.approx(14 * 0.1 + 730 * 2 + 8 * run_usd)
    assert lora.first_year_usd.low == pytest.approx(lora.once_usd.low + 12 * lora.monthly_usd.low)
    assert not one.left_out and not lora.left_out


@pytest.mark.parametrize(
    ("shares_base", "each", "variants", "machines"),
    [(False, 13, 12, 12), (False, 12, 12, 6), (True, 1, 4, 1), (True, 1, 10, 3), (True, 4, 3, 3), (True, 0, 50, 1)],
)
def test_no_model_lies_on_two_machines_and_adapters_need_their_base_on_each(shares_base, each, variants, machines):
    """Rooms of 24 GB, a base of 20 GB beside adapters."""
    one = measured("arm", shares_base=shares_base)
    gb = lambda count: one.resident_bytes.model_copy(update={"value": count * GB})  # noqa: E731
    one = one.model_copy(update={"resident_bytes": gb(each), "resident_base_bytes": gb(20) if shares_base else None})
    found = own("mail", [one], terms(variants=(variants,))).of("arm", variants)
    assert found.machines == machines
    tight = own("mail", [one], terms(variants=(variants,), room_bytes=(each + 20 * shares_base) * GB - 1))
    assert tight.of("arm", variants).left_out["serving"] == "one does not fit into the memory of a machine"


@pytest.mark.parametrize(("requests", "machines"), [(0, 1), (20 * 730 * 3600, 1), (20 * 730 * 3600 + 1, 2), (3e8, 6)])
def test_machines_are_as_many_as_the_requests_need(requests, machines):
    found = own("mail", ARMS, terms(requests_per_month=requests, variants=(1,)))
    assert found.of("full", 1).machines == machines == max(1, math.ceil(requests / (20 * 730 * 3600)))


def test_several_variants_answer_as_fast_as_several_were_timed():
    found = own("mail", ARMS, terms(requests_per_month=20 * 730 * 3600))
    assert (found.of("lora", 1).machines, found.of("lora", 4).machines) == (1, 2)


def test_serving_is_paid_by_the_request_where_that_has_a_price():
    found = own("mail", ARMS, terms(request=price(0.001, "request"))).of("full", 4)
    assert line_of(found.monthly, "serving").usd == Usd.of(100) and found.machines is None


def test_what_was_not_measured_declared_or_priced_is_left_out_and_named():
    found = own("mail", [taken("full", tuning_s=3600)], terms(engineer_hours=None, gb_month=None)).of("full", 4)
    assert found.once_usd == found.first_year_usd == Usd.of(2) and found.monthly_usd is None
    assert found.left_out == {
        "finals": "no times of its runs are known",
        "evaluation": "no times of its runs are known",
        "further variants": "the time of one more run was not measured",
        "engineers": "no hours of engineers were declared (costs.engineer_hours)",
        "storage": "its size was not measured",
        "serving": "its requests a second were not measured",
        "retraining": "the time of one more run was not measured",
    }
    unpriced = own("mail", ARMS, terms(gpu_hour=None)).of("lora", 1)
    assert unpriced.left_out["tuning"] == "no price of a GPU-hour is known (hardware.usd_per_hour)"
    assert line_of(unpriced.once, "tuning").low == 2 and line_of(unpriced.once, "tuning").usd is None
    silent = own("mail", ARMS, terms(requests_per_month=None, retrainings_per_month=None)).of("lora", 1)
    assert set(silent.left_out) == {"serving", "retraining"}


def test_hours_of_another_machine_are_estimates_and_said_to_be():
    elsewhere = own("mail", ARMS, terms(on_machine=False))
    assert line_of(elsewhere.of("full", 1).once, "tuning").basis == "estimated"
    assert any("NVIDIA H200" in each for each in elsewhere.assumed)
    here = own("mail", ARMS, terms())
    assert line_of(here.of("full", 1).once, "tuning").basis == "measured"
    assert not any("NVIDIA H200" in each for each in here.assumed)


def test_a_price_of_another_unit_is_refused():
    with pytest.raises(ConfigError, match="price: for a GB-month, got an amount in GPU-hour"):
        own("mail", ARMS, terms(gpu_hour=price(2, "GB-month")))


def test_costs_vary_between_seeds_as_far_as_runs_do():
    found = own("mail", ARMS, terms())
    draws = costs_per_draw(found, variants=4, seeds=(1, 2))
    again = (3 + 12 * 8) * 720 / 3600 * 2
    middle = found.of("lora", 4).first_year_usd.low
    assert draws["lora"] == pytest.approx([middle - again / 6, middle + again / 6])
    assert draws["lora"].mean() == pytest.approx(middle)
    assert costs_per_draw(found, variants=4, seeds=(2, 1))["lora"] == pytest.approx(draws["lora"][::-1])
    still = own("mail", ARMS, terms(retrainings_per_month=0))
    assert np.ptp(costs_per_draw(still, variants=1, seeds=(1, 2))["full"]) == 0


def test_totals_that_leave_out_what_others_have_are_not_drawn():
    bare = measured("bare", shares_base=True, artifact_bytes=None)
    other = measured("other", shares_base=True, run_s={1: 500.0})
    assert set(costs_per_draw(own("mail", [*ARMS, bare, other], terms()), variants=1, seeds=(1, 2))) == {"full", "lora"}
    with pytest.raises(EvidenceError, match="need seeds, and variants among"):
        costs_per_draw(own("mail", ARMS, terms()), variants=7, seeds=(1,))


def test_as_many_more_runs_as_a_month_and_the_budget_have_room_for():
    found = own("mail", ARMS, terms(budget=Budget(usd=4, gpu_hours=1)))
    one = found.iterations[0]
    assert (one.arm, one.seconds, one.usd) == ("full", 720, Usd.of(0.4))
    assert one.a_month == pytest.approx(730 * 5) and one.in_budget == pytest.approx(5)
    by_money = own("mail", ARMS, terms(budget=Budget(usd=0.8))).iterations[0]
    assert by_money.in_budget == pytest.approx(2) and found.iterations[1].arm == "lora"
    assert own("mail", ARMS, terms(gpu_hour=None, budget=Budget(usd=4))).iterations[0].in_budget is None
    nothing = own("mail", [taken("full")], terms()).iterations[0]
    assert (nothing.seconds, nothing.usd, nothing.a_month, nothing.in_budget) == (None, None, None, None)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.floats(0, 1e9),
    again=st.floats(0, 30),
    variants=st.integers(1, 200),
    usd=st.floats(0, 50),
    room=st.one_of(st.none(), st.floats(11 * GB, 200 * GB)),  # in which one of either fits
)
def test_more_of_anything_never_costs_less_and_totals_are_their_lines(requests, again, variants, usd, room):
    said = {"requests_per_month": requests, "retrainings_per_month": again, "room_bytes": room}
    at = lambda **more: own("mail", ARMS, terms(**(said | {"gpu_hour": price(usd, "GPU-hour")} | more)))  # noqa: E731
    found = at(variants=(variants, variants + 1))
    for arm in ("full", "lora"):
        less, more = found.of(arm, variants), found.of(arm, variants + 1)
        lines = sum(line.usd.low for line in less.once.lines) + 12 * sum(line.usd.low for line in less.monthly.lines)
        assert less.first_year_usd.low == pytest.approx(lines) and less.machines <= more.machines
        if not (variants == 1 and requests):  # one variant and several were timed each for itself
            assert less.first_year_usd.low <= more.first_year_usd.low * (1 + 1e-9)
        dearer = at(variants=(variants,), requests_per_month=2 * requests, retrainings_per_month=again + 1)
        assert less.first_year_usd.low <= dearer.of(arm, variants).first_year_usd.low * (1 + 1e-9)
