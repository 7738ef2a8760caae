"""What a page is given to weigh again: small, text that stays text, under a policy that names its one script."""

import base64
import hashlib
import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weighed_pages
from tunetrial.analysis import yearly
from tunetrial.core.scenario import Inputs
from tunetrial.report import interactive
from weighed_pages import MANY, RUNS, SURE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return weighed_pages.weighable(tmp_path_factory.mktemp("weighed"))


def test_the_page_has_one_script_that_its_policy_names_and_data_beside_it(made):
    page = made.page()
    code = re.findall(r"<script>(.*?)</script>", page, re.S)
    (text,) = re.findall(r'<script type="application/json" id="weighable">(.*?)</script>', page, re.S)
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert len(code) == 1 and f"script-src 'sha256-{digest}'; " in html.unescape(page) and page.count("<script") == 2
    assert json.loads(text) == interactive.gather(made.sheet) and not set("<>&") & set(text)
    assert '<div id="weigh" hidden>' in page and page == made.page()
    assert not re.search(r"https?:|import |fetch|XMLHttp|innerHTML|eval\(|\.style\b", code[0])


def test_a_page_without_scenarios_has_no_script(made):
    bare = weighed_pages.report.html(made.evidence, made.decision.model_copy(update={"weighed": ()}))
    assert "<script" not in bare and "script-src" not in bare
    kept = weighed_pages.report.html(made.evidence, made.decision)
    assert 'id="scenarios"' in kept and "<script" not in kept


def test_draws_are_those_of_what_is_weighed_and_of_nothing_else(made, tmp_path):
    assert set(interactive.gather(made.sheet)["draws"]) == {"quality", "run_length"}
    alone = weighed_pages.weighable(tmp_path, RUNS, SURE)
    data = interactive.gather(alone.sheet)
    assert set(data["draws"]) == {"quality"} and data["taken"] == [] and data["drawn"] == 4000
    assert len(data["draws"]["quality"]["lora"]) == 4 * -(-4 * 4000 // 3)  # 21 kB an arm


def test_nothing_can_be_weighed_again_where_finals_or_arms_lack(made):
    assert interactive.data(None) is None
    assert interactive.gather({**made.sheet, "draws": None}) is None
    unweighed = [{**one, "standings": {}} for one in made.sheet["weighed"]]
    assert interactive.gather({**made.sheet, "weighed": unweighed}) is None


@given(st.text())
def test_no_text_ends_the_element_that_holds_it(text):
    written = json.dumps({"name": text}).translate(interactive.ESCAPES)
    assert not set("<>&\u2028\u2029") & set(written) and json.loads(written) == {"name": text}


def test_the_length_of_a_run_moves_a_year_by_what_goes_with_it(made):
    """The year by seed is that of the mean run, moved by the length of the seed's run: what the page multiplies."""
    at = yearly.at(made.owned, MANY.inputs)
    year, lengths = yearly.comparable(at), yearly.lengths(at)
    for arm, by_seed in yearly.by_seed(at, MANY.inputs.tenants).items():
        again = {s: (usd - year[arm]) / (lengths[arm][s] - 1) for s, usd in by_seed.items() if lengths[arm][s] != 1}
        assert len(again) >= 3 and max(again.values()) == pytest.approx(min(again.values()))
        assert sum(lengths[arm].values()) / len(lengths[arm]) == pytest.approx(1)


def test_a_volume_at_which_an_arm_has_no_total_is_no_flip_and_no_fault(made):
    """An arm without the time of one more run has a year's total for one tenant, and none for several."""
    taken = [
        one.model_copy(update={"cycle_s": {**one.cycle_s, "train": None}}) if one.arm == "lora" else one
        for one in made.owned.taken
    ]
    owned = made.owned.model_copy(update={"taken": tuple(taken)})
    inputs = Inputs(tenants=1, requests_per_month=1e5, usd_per_hour=1.5, usd_per_gb_month=0.1)
    said = MANY.model_copy(update={"inputs": inputs, "limits": {}})
    found = weighed_pages.weigh(made.board, said, owned=owned)
    assert "lora" in found.standings and not [f for f in found.flips if f.what == "number of tenants"]
