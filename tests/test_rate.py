"""`tunetrial rate`: a finished study's texts before a judge and before people, counted, kept, and in the report."""

import csv
import inspect
import json

import pytest
from typer.testing import CliRunner

import judge_server
import rating_page
from test_rating import shown
from trial_study import load
from tunetrial import cli
from tunetrial.store import StudyFolder, TestLedger
from tunetrial.store.ratings import RatingFolder
from tunetrial.trial import raters

STUDY = """
base_model: embedded
tasks:
  - {name: towns, kind: generate, data: train.jsonl, validation: validation.jsonl, test: test.jsonl,
     input: "{{ text }}", target: town, id: id, metric: exact_match, margin: 0.1}
arms: {full: {method: full}, lora: {method: lora}}
reference: full
epochs: 1
replicates: {looks: [3], folds: none}
tuning: {learning_rate: [3.0e-4, 1.0e-3, 3.0e-3], max_points: 3}
"""
TOWNS = ["Lyon", "Ghent", "Porto", "Turin", "Graz"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rate")
    for split, count in (("train", 20), ("validation", 16), ("test", 24)):
        rows = [{"id": f"{split}{n}", "text": f"{split} {n}?", "town": TOWNS[n % 5]} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "study.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNETRIAL_HOME", str(folder / "home"))
        study = load(folder / "study.yaml", "plain")
        study.run().decide()
        yield study


def rate(study, *options, code=0):
    ran = CliRunner().invoke(cli.app, ["rate", str(study.path), *map(str, options)])
    assert ran.exit_code == code, ran.output
    return ran


def right(body, _):
    """A judge that knows the town: rows are numbered in the order of the towns."""
    request, one, two = shown(body)
    town = TOWNS[int(request.split()[1].rstrip("?")) % 5]
    return json.dumps({"better": 0 if (one == town) == (two == town) else 1 if one == town else 2})


def opened(study):
    lock = StudyFolder(study.folder).read_lock()
    found = TestLedger(study.path.parent / "home").openings(lock.tested("towns"))
    return [one.what for one in found]


def fill(sheet, to, better):
    with sheet.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    with to.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"better": better(row)} for row in rows)
    return rows


def better(row):
    town = TOWNS[int(row["request"].split()[1].rstrip("?")) % 5]
    return {(True, False): "1", (False, True): "2"}.get((row["answer_1"] == town, row["answer_2"] == town), "0")


def test_judge_and_people_rate_the_same_rows_and_stand_in_the_report(done):
    with judge_server.serve(right) as (url, seen):
        asked = ("--judge", url, "--model", "wise", "--rows", 12)
        refused = rate(done, *asked, code=2)
        assert "no terminal to ask on; add --yes" in refused.stderr and not seen
        first = rate(done, *asked, "--yes")
        count = len(seen)
        again = rate(done, *asked, "--yes")
        assert len(seen) == count and again.stdout == first.stdout
    most = int(first.stderr.split(" questions at most")[0].split()[-1])
    assert count <= most <= 12 * 3 * 2  # equal questions are put once
    assert "The judge wise" in first.stdout and "No person rated the same rows" in first.stdout
    assert opened(done).count("towns: rated by wise") == 1
    sheet, filled = done.path.parent / "out" / "towns.csv", done.path.parent / "back" / "towns.csv"
    rate(done, "--sheet", sheet, "--rows", 12)
    filled.parent.mkdir()
    rows = fill(sheet, filled, better)
    assert len(rows) == most and not {"full", "lora"} & set(sheet.read_text().replace('"', ",").split(","))
    said = rate(done, "--read", filled, "--rater", "Ann")
    assert "agree to alpha 1" in said.stdout and "Ann, lora" in said.stdout
    assert opened(done).count("towns: handed out as towns") == 1
    decision = done.decide()
    by = {one.rater: one for one in decision.rated}
    assert by["Ann"].preferred["lora"] == pytest.approx(by["wise"].preferred["lora"])
    assert by["wise"].judge and not by["Ann"].judge and by["wise"].same == (12 * 3 * 2 - most) // 2
    assert decision.concord[0].alpha[0] == 1 and decision.concord[0].rows <= 12
    assert by["wise"].consistent[0] == 1 and (by["wise"].rows, by["wise"].seeds) == (12, 3)
    page = done.report().read_text()
    assert "Raters" in page and "wise (judge)" in page and "agree to alpha 1" in page
    assert "## Raters" in (done.folder / "report.md").read_text()


def test_ratings_of_answers_that_are_gone_are_left_out_aloud(done):
    kept = RatingFolder(done.folder / "ratings")
    old = next(one for one in raters.rounds(done.folder) if one.judge)
    gone = old.model_copy(update={"rater": "old", "trials": {"0" * 16: "x"}})
    kept.keep((gone.task, gone.criterion, gone.rater), gone.model_dump(mode="json"))
    said = rate(done, "--read", done.path.parent / "back" / "towns.csv", "--rater", "Ann")
    assert "left out: 1 of answers that the study no longer has" in said.stderr and "old" not in said.stdout
    next(path for path in kept.path.glob("*.json") if '"old"' in path.read_text()).unlink()


def test_wrong_ways_of_asking_are_told_in_one_line(done, tmp_path):
    assert inspect.signature(cli.rate).parameters["rows"].default == raters.ROWS
    assert "give one of --judge, --sheet and --read" in rate(done, "--sheet", "x", "--read", "y", code=2).stderr
    assert "or none for the page" in rate(done, "--sheet", "x.csv", "--port", 8000, code=2).stderr
    assert "--judge goes with --model" in rate(done, "--judge", "http://localhost", code=2).stderr
    unknown = rate(done, "--read", tmp_path / "other.csv", "--rater", "Ann", code=1)
    assert "no sheet of this name was handed out" in unknown.stderr
    sheet = tmp_path / "twice.csv"
    rate(done, "--sheet", sheet, "--rows", 4)
    assert "handed out already" in rate(done, "--sheet", sheet, "--rows", 4, code=1).stderr
    assert "no pair is filled in" in rate(done, "--read", sheet, "--rater", "Bo", code=1).stderr


def test_rows_that_changed_since_are_refused(done):
    path = done.path.parent / "test.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace("test 0?", "test zero?"))
    refused = rate(done, "--sheet", done.path.parent / "new" / "sheet.csv", code=1)
    path.write_text(kept)
    assert "test rows are not those that were answered; restore the rows" in refused.stderr


def test_altered_ratings_are_refused(done):
    kept = next((done.folder / "ratings").glob("*.json"))
    text = kept.read_text()
    kept.write_text(text.replace('"first"', '"second"', 1))
    assert "expected content with SHA-256" in CliRunner().invoke(cli.app, ["decide", str(done.path)]).stderr
    kept.write_text(text)


def likes_the_town(told):
    """What a person says who knows the town: 0 to 2 of a pair, else 1 to 10."""
    town = TOWNS[int(told["request"].split()[1].rstrip("?")) % 5]
    right = [text == town for text in told["texts"]]
    if len(right) == 1:
        return 9 if right[0] else 2
    return 0 if right[0] == right[1] else 1 if right[0] else 2


def test_what_people_click_on_the_page_outlives_a_kill_and_stands_in_the_report(done):
    home = done.path.parent / "home"
    with rating_page.page(done.path, home, "--rows", 6) as (process, address):
        seat = {"rater": "Cleo", "kind": "pairs"}
        total = len(rating_page.put(address, "begin", **seat)["answered"])
        for number in range(total - 1):
            told = rating_page.put(address, "show", **seat, number=number)
            rating_page.put(address, "answer", **seat, number=number, said=likes_the_town(told))
        process.kill()  # SIGKILL, as soon as the last one was acknowledged
    with rating_page.page(done.path, home, "--rows", 6) as (process, address):
        with pytest.raises(AssertionError, match="is held by process"), rating_page.page(done.path, home):
            pass
        answered = rating_page.put(address, "begin", **seat)["answered"]
        assert answered.count(None) == 1 and len(answered) == total
        told = rating_page.put(address, "show", **seat, number=total - 1)
        rating_page.put(address, "answer", **seat, number=total - 1, said=likes_the_town(told))
        seat["kind"] = "points"
        for number in range(len(rating_page.put(address, "begin", **seat)["answered"])):
            told = rating_page.put(address, "show", **seat, number=number)
            rating_page.put(address, "answer", **seat, number=number, said=likes_the_town(told))
        printed = rating_page.stop(process)
    assert "Cleo, lora" in printed and "Rated 1 to 10 by Cleo on 6 rows" in printed
    assert opened(done).count("towns: shown to Cleo") == 1
    decision = done.decide()
    [cleo] = [one for one in decision.rated if one.rater == "Cleo"]
    assert (cleo.rows, cleo.seeds, cleo.blank, cleo.consistent[0]) == (6, 3, 0, 1)
    assert decision.graded[0].raters == ("Cleo",)
    page = done.report().read_text()
    assert "Cleo" in page and "Rated 1 to 10 by Cleo" in page
    assert "Rated 1 to 10 by Cleo" in (done.folder / "report.md").read_text()
    refused = rate(done, "--read", done.path.parent / "back" / "towns.csv", "--rater", "Cleo", code=1)
    assert "has answered on the page" in refused.stderr


def test_what_people_prefer_is_a_criterion_where_the_study_says_so(done, tmp_path):
    plain = done.decide()
    assert all("preference" not in own for own in plain.costs.values())
    text = done.path.read_text() + "criteria: {preference: {weight: 1}, quality: {weight: 0.01}}\n"
    path = done.path.with_name("weighed.yaml")
    path.write_text(text)
    weighed = json.loads(CliRunner().invoke(cli.app, ["decide", str(path), "--folder", done.folder, "--json"]).stdout)
    decision = weighed["decision"]
    shares = {arm: own["preference"]["value"] for arm, own in decision["costs"].items()}
    people = [one for one in plain.rated if not one.judge]
    assert shares["full"] == 0.5 and {one.rater for one in people} == {"Ann", "Cleo"}
    low, high = sorted(one.preferred["lora"][0] for one in people)
    assert low - 1e-9 <= shares["lora"] <= high + 1e-9
    assert decision["because"][-1] and any("preference" in line for line in decision["because"])
    done.report()
