"""What arms cost, read off a study that ran, through the Python API, the command line and the report."""

import json

import pytest

import report_fixtures
from test_latency import bench, by_path
from test_owning import ARMS, terms
from trial_study import write_study
from tunetrial import Study, report
from tunetrial.analysis.latency import summarise
from tunetrial.analysis.owning import own
from tunetrial.analysis.taken import take
from tunetrial.cli import main
from tunetrial.core.errors import ConfigError, EvidenceError
from tunetrial.core.prices import Costs
from tunetrial.report import owning as shown
from tunetrial.trial.spending import earlier_s

MORE = """
hardware: {usd_per_hour: 3.0}
costs: {engineer_hours: 6, usd_per_engineer_hour: 80, variants: 9, requests_per_month: 100000, retrainings_per_month: 2}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        path = write_study(folder)
        yield Study.load(path, engine="sim").run()


@pytest.fixture(scope="module")
def declared(done):
    """The same study, whose file says afterwards how what it found is used."""
    done.path.write_text(done.path.read_text() + MORE)
    return Study.load(done.path, engine="sim")


def evidence_of(study):
    return study.outcome.evidence


def test_what_was_taken_is_counted_from_the_records(done):
    evidence = evidence_of(done)
    full, lora = take(evidence, whole={"full"})
    finals = evidence.of(purpose="final", arm="lora")
    search = evidence.of(purpose="tune", arm="lora")
    evaluated = sum(r.measurements["evaluate_s"].value for r in (*finals, *search))
    legs = sum(sum(r.legs_s) for r in (*finals, *search))
    assert lora.evaluation_s.value == pytest.approx(evaluated)
    assert lora.tuning_s.value + lora.finals_s.value + lora.evaluation_s.value == pytest.approx(legs)
    (probe,) = evidence.of(purpose="probe", arm="lora")
    said = {name: found.value for name, found in probe.measurements.items()}
    assert lora.cycle_s["train"].value == pytest.approx(said["load_s"] + 30 * said["step_s"])  # 60 rows, 2 epochs of 4
    assert lora.cycle_s["test"].value == pytest.approx((40 + 50) / said["evaluate_examples_per_s"])
    assert lora.cycle_s["export"].value == said["save_s"] and lora.cycle_s["deploy"] is None
    assert lora.alone_per_s.value == lora.together_per_s.value == said["evaluate_examples_per_s"]
    assert set(lora.run_s) == {r.trial.seed for r in finals}
    assert lora.shares_base and lora.base_bytes.basis == "estimated" and full.base_bytes is None
    halved = take(evidence, whole={"full"}, side_by_side=2)[1]
    assert halved.tuning_s.value == pytest.approx(lora.tuning_s.value / 2)
    with pytest.raises(EvidenceError, match="runs side by side: must be 1 or more, got 0"):
        take(evidence, whole=(), side_by_side=0)


def test_a_run_that_diverged_was_paid_for_and_one_without_times_leaves_no_sum(done):
    evidence = evidence_of(done)
    full = take(evidence, whole=())[0]
    failed = evidence.of(purpose="final", arm="full")[0]
    gone = failed.model_copy(update={"status": "diverged", "measurements": {}})
    untimed = failed.model_copy(update={"legs_s": ()})
    swap = lambda new: [new if r is failed else r for r in evidence.records]  # noqa: E731
    spent = take(evidence.__class__(evidence.lock, tuple(swap(gone)), {}, {}), whole=())[0]
    taken = sum(failed.legs_s)
    assert spent.finals_s.value + spent.evaluation_s.value == pytest.approx(
        full.finals_s.value + full.evaluation_s.value
    )
    assert taken > 0 and failed.trial.seed not in spent.run_s
    assert take(evidence.__class__(evidence.lock, tuple(swap(untimed)), {}, {}), whole=())[0].finals_s is None


def test_what_was_timed_as_deployed_stands_before_the_probe():
    evidence = report_fixtures.clear()[0]
    deployed = summarise(bench(by_path))
    arm = next(t.contender.arm for t in deployed.timings if t.contender.setup == "merged")
    study = evidence.lock.study
    named = tuple(a.model_copy(update={"name": arm}) if a.method == "lora" else a for a in study.arms)
    lock = evidence.lock.model_copy(update={"study": study.model_copy(update={"arms": named})})
    found = take(evidence.__class__(lock, (), {}, {}), whole={"full"}, deployed=deployed)
    one = next(each for each in found if each.arm == arm)
    timings = [t for t in deployed.timings if t.contender.setup == "merged" and t.contender.arm == one.arm]
    longest = max(t.work.new_tokens for t in timings)
    best = max(t.per_s / t.work.new_tokens for t in timings if t.work.new_tokens == longest)
    assert one.alone_per_s.value == pytest.approx(best) and one.alone_per_s.of.startswith("bench: ")
    assert one.cycle_s["deploy"].basis == "measured" and one.swap_s.value <= one.cycle_s["deploy"].value
    assert "mixed" in one.together_per_s.of


def test_a_study_says_what_its_arms_cost_where_it_says_how_they_are_used(declared):
    found = declared.costs()
    assert found.terms.variants == (1, 4, 9) and found.terms.requests_per_month == 100_000
    records = declared._conclude()[0].records
    at_once = max(1.0, sum(sum(r.legs_s) for r in records) / sum(earlier_s(declared.folder)))
    own_s = sum(sum(r.legs_s) for r in records if r.trial.arm.name == "full" and r.trial.purpose != "probe")
    full = found.of("full", 9)
    further = next(line for line in full.once.lines if line.what == "further variants")
    assert full.once_usd.low == pytest.approx(own_s / at_once / 3600 * 3.0 + further.usd.low + 480)
    assert set(full.left_out) == set() and full.machines == 1
    assert "Cost to own" in report.markdown(*declared._conclude()) and declared.decide().owned == found


def test_volumes_and_prices_asked_for_stand_before_the_files(declared):
    asked = declared.costs(requests_per_month=1e9, variants=2, usd_per_engineer_hour=100, gpu="l4")
    assert asked.terms.variants == (1, 2, 4) and asked.terms.gpu_hour.kind == "dated default"
    assert asked.of("full", 2).machines > 1 and asked.terms.room_bytes > 0 and not asked.terms.on_machine
    with pytest.raises(ConfigError, match="gpu: not known, got 'no'"):
        declared.costs(gpu="no")
    with pytest.raises(ConfigError, match="price: none is known for an hour, got rtx-3060"):
        declared.costs(gpu="rtx-3060")


def test_the_verb_prints_at_most_so_many_columns_and_json(declared, monkeypatch, capsys):
    for columns in (60, 100, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(monkeypatch, ["costs", str(declared.path), "--requests", "100000"]) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= max(80, min(columns, 100)), columns
        assert "In the first year with 9 variants" in out and "assumed: " in out
    assert run(monkeypatch, ["costs", str(declared.path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {each["arm"] for each in said["owned"]} == {"full", "lora"} and said["task"] == "mail"
    assert run(monkeypatch, ["costs", str(declared.path), "--gpu", "nothing"]) == 1
    assert "tunetrial: gpu: not known, got 'nothing'" in capsys.readouterr().err
    assert run(monkeypatch, ["costs", str(declared.path), "--variants", "0"]) == 2


def run(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["tunetrial", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def reported(found):
    evidence, decision = report_fixtures.clear()[:2]
    return evidence, decision.model_copy(update={"owned": found})


def test_the_report_has_a_table_and_a_plain_sentence_and_hostile_names_stay_text():
    evil = '<script>x</script>"|`[a](b)'
    arms = [ARMS[0], ARMS[1].model_copy(update={"arm": evil})]
    evidence, decision = reported(own("mail", arms, terms()))
    page, text = report.html(evidence, decision), report.markdown(evidence, decision)
    assert "One more run" in page and "One more run" in text
    assert 'href="#owned"' in page and "<script>" not in page and "costs $" in page and "assumed: " in page
    rows = [line for line in text.splitlines() if "script" in line and line.startswith("|")]
    assert rows and all("<script" not in row for row in rows)


def test_a_study_that_says_nothing_of_use_has_no_section(done):
    evidence, decision = report_fixtures.clear()[:2]
    assert "Cost to own" not in report.html(evidence, decision) and "owned" not in decision.model_dump(mode="json")


def test_the_sentence_says_what_the_totals_show_and_no_more():
    assert shown.answer(own("mail", ARMS, terms())).startswith("In the first year with 4 variants, lora costs $")
    bare = ARMS[0].model_copy(update={"artifact_bytes": None})
    assert "do not compare" in shown.answer(own("mail", [bare, ARMS[1]], terms()))
    nothing = terms(gpu_hour=None, gb_month=None, engineer_hours=None)
    assert shown.answer(own("mail", ARMS, nothing)).startswith("Nothing of the first year with 4 variants has both")
    alike = shown.answer(own("mail", [ARMS[0], ARMS[0].model_copy(update={"arm": "twin"})], terms()))
    assert "as much as any other" in alike


def test_a_study_whose_file_says_nothing_keeps_its_digest():
    assert Costs().model_dump(exclude_none=True) == {"variants": 1}
    assert set(Costs().model_dump(mode="json")) == {
        "engineer_hours",
        "usd_per_engineer_hour",
        "months",
        "variants",
        "usd_per_gb_month",
        "requests_per_month",
        "usd_per_request",
    }
