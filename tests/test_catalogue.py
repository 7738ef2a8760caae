"""Devices and prices: names however written, figures that agree with each other, a source for every one."""

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunetrial.core.errors import ConfigError
from tunetrial.core.study import Hardware
from tunetrial.plan import catalogue, estimate
from tunetrial.plan.catalogue import GIB
from tunetrial.trial.machine import short_name

CUDA = [each for each in catalogue.devices().values() if each.kind == "cuda"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("A100-80", "a100-80"),
        ("nvidia a100 80gb", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("l4", "l4"),
        ("rtx 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 3060", "rtx-3060"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("Tesla P100-PCIE-16GB", "p100"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("Intel(R) Iris(R) Xe Graphics", "iris-xe"),
    ],
)
def test_device_is_found_however_its_name_is_written(written, name):
    assert catalogue.device(written).name == name == short_name(written)


def test_every_name_stands_for_one_device():
    """No two rows share a way of writing, and a card's larger brother is another card."""
    rows = catalogue._file("devices")["devices"]
    ways = [
        way for name, row in rows.items() for way in {catalogue._plain(w) for w in (name, row["title"], *row["also"])}
    ]
    assert len(ways) == len(set(ways))
    assert len({catalogue.device(name).name for name in ("a10", "a10g", "a100-40", "a100", "l4", "l40s")}) == 6


def test_an_unknown_device_is_one_line_with_the_nearest_names():
    with pytest.raises(ConfigError) as raised:
        catalogue.device("a1000")
    assert str(raised.value).startswith("gpu: not known, got 'a1000'; did you mean a100-80")
    with pytest.raises(ConfigError, match="got 'abacus'; known are t4, v100"):
        catalogue.device("abacus")
    assert catalogue.find("abacus") is None and short_name("NVIDIA GH200") == "NVIDIA GH200"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_a_device_or_a_line_of_error(text):
    try:
        assert catalogue.device(text).name in catalogue.devices()
    except ConfigError as error:
        assert "\n" not in str(error)


def test_every_figure_has_a_source_with_a_day():
    fields = {
        "memory_bytes",
        "usable_bytes",
        "bandwidth_bytes_per_s",
        "link_bytes_per_s",
        "power_w",
        "compute_capability",
    }
    dtypes = {"fp32", "tf32", "fp16", "bf16", "int8"}
    for each in catalogue.devices().values():
        assert each.sources.keys() == fields | dtypes and each.operations_per_s.keys() == dtypes
        for source in each.sources.values():
            assert date.fromisoformat(source.date) and source.text
            assert source.confirmed or source.text.startswith("from memory")


def test_golden_figures():
    """As in the makers' data sheets, dense: written here a second time, by hand."""
    t4, a100, h200 = (catalogue.device(name) for name in ("t4", "a100-80", "h200"))
    assert t4.operations_per_s == {"fp32": 8.1e12, "tf32": None, "fp16": 65e12, "bf16": None, "int8": 130e12}
    assert (t4.compute_capability, t4.power_w, t4.bandwidth_bytes_per_s) == ("7.5", 70, 320e9)
    assert a100.operations_per_s["bf16"] == 312e12 and a100.bandwidth_bytes_per_s == 2039e9
    assert round(a100.usable_bytes / GIB, 2) == 79.14 and round(h200.usable_bytes / GIB, 2) == 139.8
    assert [catalogue.device(name).operations_per_s["bf16"] for name in ("v100", "p100")] == [None, None]


def test_links_are_those_of_their_standards():
    """Lanes, transfers a second, 128 of 130 bits, a byte of 8; 12 or 18 NVLinks of 25 GB/s one way, or 18 of 50."""
    for name, transfers in (("t4", 8e9), ("l4", 16e9), ("rtx-5090", 32e9)):
        assert catalogue.device(name).link_bytes_per_s == pytest.approx(16 * transfers * 128 / 130 / 8, rel=1e-3)
    rates = [catalogue.device(name).link_bytes_per_s for name in ("a100-40", "h100", "h200", "b200")]
    assert rates == [12 * 25e9, 18 * 25e9, 18 * 25e9, 18 * 50e9]
    for each in catalogue.devices().values():
        assert (each.link_bytes_per_s is not None) == (each.kind == "cuda")


def test_rates_of_tensor_cores_by_an_independent_count():
    """Multiprocessors, 4 tensor cores each, multiply-adds of two operations a clock, GHz."""
    for name, dtype, cores, each, clock in (
        ("rtx-3060", "fp16", 28, 64, 1.777),
        ("rtx-3060", "int8", 28, 256, 1.777),
        ("rtx-3060", "tf32", 28, 32, 1.777),
        ("rtx-3090", "tf32", 82, 32, 1.695),
        ("rtx-5090", "tf32", 170, 32, 2.407),
        ("a6000", "tf32", 84, 64, 1.8),
        ("rtx-6000-ada", "tf32", 142, 64, 2.505),
    ):
        found = catalogue.device(name).operations_per_s[dtype]
        assert found == pytest.approx(cores * 4 * each * 2 * clock * 1e9, rel=5e-3), (name, dtype)


@pytest.mark.parametrize("written", ["4xa100-80", "4 x A100-80", "4×nvidia a100 80gb"])
def test_several_devices_are_written_with_their_number(written):
    count, found = catalogue.several(written)
    assert (count, found.name) == (4, "a100-80")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0xl4", "not a number of devices"),
        ("5000xl4", "not a number of devices"),
        ("2xcolab", "not several of these"),
        ("2xcpu-laptop", "not several of these"),
        ("4xa1000", "did you mean"),
        ("xl4", "did you mean"),
    ],
)
def test_what_is_no_number_of_devices_is_told(written, said):
    with pytest.raises(ConfigError, match=said):
        catalogue.several(written)


def test_figures_of_gpus_agree_with_each_other():
    for each in CUDA:
        rates = each.operations_per_s
        assert 0.89 < each.usable_bytes / each.memory_bytes <= 1, each.name
        assert rates["bf16"] in (None, rates["fp16"])
        if rates["int8"]:  # twice as many a cycle as in fp16; on GeForce, where fp32 sums halve the rate, four times
            assert round(rates["int8"] / rates["fp16"], 1) in (2.0, 4.0), each.name
        newer = each.compute_capability is None or float(each.compute_capability) >= 8
        assert (rates["bf16"] is not None) == (rates["tf32"] is not None) == newer, each.name
    # Two units of tensor cores at one clock: the rate goes with the fp32 rate within a family.
    ratios = [catalogue.device(n).operations_per_s for n in ("a40", "a6000", "a10", "rtx-6000-ada", "l4", "l40s")]
    assert all(rate["bf16"] / rate["fp32"] == pytest.approx(4, rel=0.02) for rate in ratios)


def test_processors_by_an_independent_count():
    """Cores, clock, units, lanes and two operations each; channels of 8 bytes."""
    for name, fp32, bandwidth in (
        ("cpu-laptop", 4 * 3.0e9 * 2 * 8 * 2, 2 * 8 * 2400e6),
        ("cpu-desktop", 8 * 4.0e9 * 2 * 8 * 2, 2 * 8 * 3200e6),
        ("cpu-server", 16 * 2.5e9 * 2 * 16 * 2, 6 * 8 * 2933.33e6),
        ("cpu-cloud", 2 * 2.0e9 * 2 * 16 * 2, 8 * 8 * 4800e6 * 2 / 48),
    ):
        found = catalogue.device(name)
        assert found.operations_per_s["fp32"] == pytest.approx(fp32)
        assert found.bandwidth_bytes_per_s == pytest.approx(bandwidth, rel=1e-3)
        assert found.usable_bytes is None


def test_a_free_tier_is_its_device_with_limits_that_cost_sessions_not_money():
    colab, kaggle = catalogue.device("Colab"), catalogue.device("kaggle")
    assert colab.name == kaggle.name == "t4" and catalogue.device("t4").tier is None
    assert (colab.tier.session_h, colab.tier.week_h, kaggle.tier.week_h, kaggle.tier.count) == (12, None, 30, 2)
    assert (colab.tier.sessions(12), colab.tier.sessions(12.1), colab.tier.weeks(100)) == (1, 2, None)
    assert kaggle.tier.weeks(31) == 2
    assert catalogue.rate(colab, Hardware()).usd == 0 and "Google Colab" in str(catalogue.rate(colab, Hardware()))


def test_prices_name_provider_day_and_source():
    for each in catalogue.devices().values():
        found = catalogue.prices(each)
        assert [price.usd for price in found] == sorted(price.usd for price in found)
        for price in found:
            assert 0.1 < price.usd < 15 and price.unit == "GPU-hour" and price.kind == "dated default"
            assert date.fromisoformat(price.source.date) and price.source.address.startswith("https://")
            assert price.provider in str(price) and price.source.date in str(price)
            assert price.source.confirmed or "from memory" in str(price)
    eighth = next(price for price in catalogue.prices(catalogue.device("h100")) if price.provider == "AWS")
    assert eighth.usd == 55.04 / 8
    assert {"AWS", "GCP", "Azure", "Lambda", "RunPod", "Modal", "Vast"} <= {
        price.provider for each in CUDA for price in catalogue.prices(each)
    }


def test_the_users_price_wins_over_any_other():
    assert catalogue.rate(catalogue.device("l4"), Hardware(usd_per_hour=0.31)).usd == 0.31
    assert catalogue.rate(catalogue.device("colab"), Hardware(usd_per_hour=0.0)).kind == "given"
    known = [price.usd for price in catalogue.prices(catalogue.device("h100"))]
    assert catalogue.rate(catalogue.device("h100"), Hardware()).usd == sorted(known)[len(known) // 2]
    with pytest.raises(ConfigError, match="got cpu-laptop; give hardware.usd_per_hour"):
        catalogue.rate(catalogue.device("cpu-laptop"), Hardware())


def test_a_price_from_memory_counts_only_where_there_is_no_other():
    assert catalogue.rate(catalogue.device("l4"), Hardware()).source.confirmed
    assert not catalogue.rate(catalogue.device("p100"), Hardware()).source.confirmed


def test_storage_is_priced_by_the_month():
    found = catalogue.storage_prices()
    assert {price.provider: price.usd for price in found} == {"GCP": 0.020, "AWS": 0.023, "Hugging Face": 0.025}
    assert all(price.unit == "GB-month" and price.gb_bytes in (10**9, 2**30) for price in found)


def test_a_price_is_no_negative_number():
    for usd in (-1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="hourly: not a price"):
            catalogue.given(usd, "GPU-hour", where="hourly")


def test_estimates_take_their_peak_from_the_catalogue():
    reached = estimate.operations_per_s("A100-80", "bf16")
    assert (reached.low, reached.high) == pytest.approx((0.05 * 312e12, 0.5 * 312e12))
    assert estimate.operations_per_s("t4", "fp16").high == pytest.approx(0.5 * 65e12)
    assert estimate.operations_per_s("cpu-laptop", "fp32") == estimate.operations_per_s(None, "fp32")
    assert estimate.operations_per_s("abacus", "bf16") is None
