"""Scenario files: the built-in ones, the published matrices, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunetrial.analysis import smaa
from tunetrial.analysis.scoring import Scale, weights
from tunetrial.core.errors import SpecError, TunetrialError
from tunetrial.core.scenario import Scenario
from tunetrial.spec import scenario

USES = ("creative", "developer", "enterprise", "newsletter", "research", "saas", "saas-premium", "startup")
GOOD = "name: ours\ntitle: Ours\ncriteria:\n  quality: {weight: 1}\n"


def test_every_built_in_scenario_is_read_and_stays_what_it_is_called():
    assert scenario.uses() == USES
    for name in scenario.names():
        found = scenario.find(name)
        assert isinstance(found, Scenario) and found.name == name and found.title and found.story
        whole = sum(c.weight for c in (*found.criteria.values(), *found.opinions.values()))
        assert whole == pytest.approx(1.0) or name == "seed-000-measured"


@pytest.mark.parametrize(("name", "lora", "full"), [("seed-000", 9.2, 6.0), ("seed-001", 9.05, 5.0)])
def test_the_published_matrices_give_their_published_totals(name, lora, full):
    import numpy as np

    said = scenario.find(name)
    assert not said.criteria
    for arm, total in (("lora", lora), ("full", full)):
        assert sum(o.weight * o.scores[arm] for o in said.opinions.values()) == pytest.approx(total)
    scales = [Scale(n, o.weight, o.worst, o.best) for n, o in said.opinions.items()]
    value = np.array([[s.value(said.opinions[s.name].scores[a]) for s in scales] for a in ("lora", "full")])
    (flip,) = smaa.weight_flips(value, weights(scales))
    if name == "seed-000":
        assert flip.at == pytest.approx(17 / 21)  # full wins from a performance weight of 81 % on
        any_weights = smaa.flat_weights(np.random.default_rng(0), 200_000, 6)
        share = smaa.first(smaa.scores(np.broadcast_to(value, (200_000, 2, 6)), any_weights))[:, 0].mean()
        assert share == pytest.approx(0.9995, abs=0.0003)
        assert sum(o.weight for o in said.opinions.values() if o.restates == "cost") == pytest.approx(0.70)


FAULTS = [
    ("name: Ours", "s.yaml:1: name: must have 1 to 64 of a-z"),
    ("story: 3", "s.yaml:5: story: must be text, got 3"),
    ("criterion: {}", "s.yaml:5: criterion: unknown key; did you mean 'criteria'?"),
    ("limits: {peak_gib: -1}", "limits.peak_gib: must be > 0, got -1; give the most memory in GiB, such as 24"),
    ("limits: {latency: 1}", "limits.latency: unknown key; did you mean 'latency_ms'?"),
    ("inputs: {tenants: 0}", "inputs.tenants: must be >= 1, got 0"),
    ("inputs: {tenants: 2.5}", "inputs.tenants: must be a whole number, got 2.5"),
    ("inputs: {usd_per_hour: cheap}", "inputs.usd_per_hour: must be a number, got 'cheap'"),
    ("opinions: {fit: {weight: 1}}", "opinions.fit.scores: is missing"),
    ("opinions: {fit: {weight: 1, scores: {full: 11}}}", "must lie from 0 to 10, got 11; mend it"),
    ("opinions: {quality: {weight: 1, scores: {full: 1}}}", "is measured, got an opinion named 'quality'"),
    ("opinions: {fit: {weight: 1, worst: 3, best: 3, scores: {full: 3}}}", "worst and best must differ, got 3 twice"),
]


@pytest.mark.parametrize(("line", "said"), FAULTS)
def test_what_is_wrong_is_named_with_its_line_and_a_remedy(line, said):
    text = GOOD.replace("name: ours\n", "") if line.startswith("name") else GOOD
    text = f"{line}\n{text}" if line.startswith("name") else f"{text}{line}\n"
    with pytest.raises(SpecError) as found:
        scenario.parse(text, "s.yaml")
    assert said in str(found.value)


CRITERIA = [
    ("train_s: {weight: 1}", "criteria.train_s: has no worst and best"),
    ("year_usd: {weight: 1, worst: 1, best: 5}", "criteria.year_usd: less is better here"),
    ("year_usd: {weight: 1, worst: 5, best: 0, log: true}", "year_usd.log: a logarithm needs anchors above 0"),
    ("quality: {weight: 0}", "criteria.quality.weight: must be > 0, got 0"),
    ("speed: {weight: 1}", "criteria.speed: unknown key; "),
]


@pytest.mark.parametrize(("line", "said"), CRITERIA)
def test_criteria_are_checked_as_in_study_files(line, said):
    with pytest.raises(SpecError) as found:
        scenario.parse(f"name: ours\ntitle: Ours\ncriteria:\n  {line}\n", "s.yaml")
    assert said in str(found.value)


def test_nothing_to_weigh_and_no_scenario_are_refused(tmp_path):
    with pytest.raises(SpecError, match="nothing to weigh; give criteria: or opinions:"):
        scenario.parse("name: ours\ntitle: Ours\n")
    with pytest.raises(SpecError, match="not a scenario, got an empty file; begin with name:"):
        scenario.parse("")
    with pytest.raises(SpecError, match="no such scenario or file, got 'sass'; did you mean 'saas'"):
        scenario.find("sass")
    with pytest.raises(SpecError, match="not a file, got nothing there"):
        scenario.find(str(tmp_path / "none.yaml"))
    path = tmp_path / "ours.yaml"
    path.write_text(GOOD)
    assert scenario.find(str(path)).criteria["quality"].weight == 1


@given(st.text(max_size=300))
def test_no_text_at_all_ends_in_anything_but_a_scenario_or_a_line(text):
    try:
        assert isinstance(scenario.parse(text), Scenario)
    except TunetrialError as error:
        assert str(error)
