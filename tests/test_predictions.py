"""What the plan said before the first run, frozen, beside what was measured."""

import json

import pytest

from report_fixtures import clear
from trial_study import write_study
from tunetrial import Study, plan, report
from tunetrial.core.errors import IntegrityError
from tunetrial.core.evidence import Scored


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    study = Study.load(write_study(tmp_path_factory.mktemp("predicted")), engine="sim")
    study.plan()
    return study.run()


def planned(study: Study) -> dict:
    return json.loads((study.folder / "plan.json").read_text())


def test_every_estimate_stands_beside_its_measurement(done):
    decision, records = done.decide(), [r for r in done.outcome.evidence.records]
    found = {(p.what, p.arm): p for p in decision.predictions}
    trained = [r for r in records if r.trial.purpose != "probe"]
    assert found["trials", None].measured == len(records)
    assert found["trained tokens", None].measured == sum(r.measurements["tokens"].value for r in trained)
    assert found["time of all trials", None].measured == pytest.approx(sum(sum(r.legs_s) for r in trained))
    for arm in ("full", "lora"):
        peaks = [
            r.measurements["peak_bytes"].value for r in records if (r.trial.purpose, r.trial.arm.name) == ("probe", arm)
        ]
        row = found["peak memory", arm]
        assert (
            row.measured == max(peaks) and (row.low, row.high) == tuple(planned(done)["memory_bytes"][arm].values())[:2]
        )


def test_estimates_are_frozen_by_the_first_record(done):
    before = planned(done)
    made = done.plan()
    assert made.model_dump(mode="json") is not None and planned(done) == before
    done.run()
    assert planned(done) == before


def test_before_the_first_record_the_plan_is_the_last_one(tmp_path):
    study = Study.load(write_study(tmp_path), engine="sim")
    study.plan()
    path = study.folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"why": "another"}))
    study.plan()
    assert planned(study)["why"] != "another"


def test_without_a_plan_nothing_is_said_to_have_been_predicted(done):
    path = done.folder / "plan.json"
    text = path.read_text()
    path.unlink()
    try:
        assert done.decide().predictions == ()
        assert "What the plan said" not in report.markdown(*done._conclude())
    finally:
        path.write_text(text)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"trials": "many"}', "\x00"])
def test_a_damaged_plan_is_told_in_one_line(done, text):
    path = done.folder / "plan.json"
    kept = path.read_text()
    path.write_text(text)
    try:
        with pytest.raises(IntegrityError, match=r"plan\.json: .*; restore it, or remove it") as told:
            done.decide()
        assert "\n" not in str(told.value)
    finally:
        path.write_text(kept)


def test_a_sum_with_a_part_missing_is_no_sum(done):
    evidence = done.outcome.evidence
    bare = [r.model_copy(update={"legs_s": ()}) if n == 0 else r for n, r in enumerate(evidence.records)]
    made = plan.Plan.model_validate(planned(done))
    rows = {p.what: p for p in plan.scored(made, evidence.__class__(evidence.lock, tuple(bare), {}, {}))}
    assert rows["time of all trials"].measured is None and rows["time of all trials"].inside is None
    assert rows["trials"].measured == len(bare)


def test_the_report_shows_range_measurement_error_and_how_many_were_right():
    evidence, decision = clear()
    rows = (
        Scored(
            what="peak memory",
            arm="full",
            unit="bytes",
            low=2**30,
            high=2**31,
            likely=1.5 * 2**30,
            measured=1.2 * 2**30,
        ),
        Scored(what="peak memory", arm="LoRA r16", unit="bytes", low=2**30, high=2**31, measured=2**32),
        Scored(what="time of all trials", unit="s", low=10, high=20, measured=None),
    )
    shown = evidence, decision.model_copy(update={"predictions": rows})
    for text in (report.markdown(*shown), report.html(*shown)):
        assert "1 of 2 measurements lie within what was said of them." in text
        assert "+25.0%" in text and "likely 1.5" in text and "not measured" in text
    assert "✗ no" in report.html(*shown)
    assert (rows[0].inside, rows[1].inside, rows[2].inside) == (True, False, None)
    assert rows[1].error is None and rows[0].error == pytest.approx(0.25)


def test_what_the_plan_said_of_memory_is_pictured_beside_what_probes_took(done):
    """The simulator counts nothing, so a plan is given what was counted."""
    path = done.folder / "plan.json"
    kept = path.read_text()
    held = {"label": "full", "parts": {"base": 10, "moments": 20}, "most_bytes": 40.0, "room_bytes": 100.0}
    path.write_text(json.dumps(json.loads(kept) | {"memory": [held, held | {"label": "untried"}]}))
    try:
        full, untried = done.decide().memory
        (row,) = [p for p in done.decide().predictions if (p.what, p.arm) == ("peak memory", "full")]
        assert full.measured_bytes == row.measured > 0 and untried.measured_bytes is None
        assert full.parts == held["parts"]
    finally:
        path.write_text(kept)
