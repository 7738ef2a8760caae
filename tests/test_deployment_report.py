"""The report's section on deployments: there where finals were timed, nowhere else; text stays text."""

import re

import pytest

import report_fixtures
from test_latency import bench, by_path
from tunetrial import report
from tunetrial.analysis.latency import summarise
from tunetrial.core.deployment import Contender
from tunetrial.report import deployment


def deployed(**changed):
    evidence, decision = report_fixtures.clear()[:2]
    return evidence, decision.model_copy(update={"deployed": summarise(bench(by_path, **changed))})


def test_page_and_markdown_have_tables_sentences_and_a_picture():
    evidence, decision = deployed()
    page, text = report.html(evidence, decision), report.markdown(evidence, decision)
    for made in (page, text):
        assert "Deployment" in made and "engine lora separate takes 1.2" in made and "SLOWER" in made
        assert "Other processes computed meanwhile, on up to 30% of the cores" in made
    assert 'href="#deployed"' in page and page.count("<circle cx=") == 8 and 'aria-label="Ratios of times' in page
    rows = [line for line in text.splitlines() if line.startswith("| eager lora")]
    assert len(rows) == 2 + 3 + 3  # first token: nothing mixed; written; what is held


def test_without_a_bench_there_is_nothing_of_it():
    evidence, decision = report_fixtures.clear()[:2]
    assert deployment.section(decision) is None
    assert "deployed" not in report.html(evidence, decision) and "Deployment" not in report.markdown(evidence, decision)
    assert "deployed" not in decision.model_dump(mode="json")


def test_bars_lie_where_their_ratios_are_and_open_ones_are_hollow():
    _, decision = deployed()
    found = deployment.section(decision)
    low, high = found.band
    one = next(at for at, text in found.ticks if text == "1")
    assert low < one < high and (high - one) == pytest.approx(one - low, abs=0.2)  # a logarithmic scale
    for bar in found.bars:
        assert bar.low <= bar.middle <= bar.high and bar.hollow == ("CAN'T TELL" in bar.text)
        assert (bar.middle > high) == ("separate" in bar.name), bar
    _, alone = deployed(sessions=1)
    assert deployment.section(alone).bars == ()  # no interval to draw


def test_arms_of_hostile_names_stay_text():
    evidence, decision = deployed()
    evil = '<script>x</script>"|`[a](b)'
    change = lambda one: one.model_copy(update={"contender": Contender(setup="full", path="eager", arm=evil)})  # noqa: E731
    found = decision.deployed.model_copy(update={"timings": tuple(map(change, decision.deployed.timings))})
    decision = decision.model_copy(update={"deployed": found})
    assert "<script>" not in report.html(evidence, decision)
    rows = [line for line in report.markdown(evidence, decision).splitlines() if "script" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", line)) == 7 and "<script" not in line for line in rows)
