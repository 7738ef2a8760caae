"""A study's own arms on GPUs that are not here, through the command line; the simulator counts the rows' tokens."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tiny
from trial_study import write_study
from tunetrial import Study
from tunetrial.cli import app
from tunetrial.engine import trace as tracing
from tunetrial.engine.place import Place
from tunetrial.models.sizes import read_config
from tunetrial.plan import catalogue
from tunetrial.trial import devices

GIB = 2**30
ARMS = {"arms": ("full", "lora", "small"), "more": "pack: 2"}


def plan(*arguments: object):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


@pytest.fixture(autouse=True)
def no_price(monkeypatch):
    monkeypatch.delenv("TUNETRIAL_USD_PER_HOUR", raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny.make_model(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def path(tmp_path_factory, base) -> Path:
    return write_study(tmp_path_factory.mktemp("sides"), base_model=base, **ARMS)


@pytest.fixture(scope="module")
def printed(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TUNETRIAL_USD_PER_HOUR", raising=False)
        return plan(path, "--gpu", "t4,l4", "--engine", "sim", "--plot", path.parent / "memory.svg")


@pytest.fixture(scope="module")
def found(path):
    return Study.load(path, engine="sim").forecast(["l4"])


def room(monkeypatch, gib: float) -> None:
    """Every GPU has so much."""
    several = catalogue.several
    less = lambda name: (several(name)[0], several(name)[1].model_copy(update={"usable_bytes": int(gib * GIB)}))  # noqa: E731
    monkeypatch.setattr(devices.catalogue, "several", less)


def test_arms_stand_side_by_side_on_each_gpu_with_time_and_price(printed, path):
    assert printed.exit_code == 0, printed.output
    rows = [line.split() for line in printed.stdout.splitlines() if re.match(r"(full|lora|small) +(t4|l4)", line)]
    assert [row[:2] for row in rows] == [[arm, gpu] for gpu in ("t4", "l4") for arm in ("full", "lora", "small")]
    assert all("fits" in row for row in rows) and "the study on l4: " in printed.stdout
    assert "lora on l4: tuning trains 2 together: " in printed.stdout
    assert re.search(r"price: l4: .* USD a GPU-hour \(.*20\d\d-", printed.stdout), "no price without source and date"
    assert max(map(len, printed.stdout.splitlines())) <= 100
    assert "full on t4" in (path.parent / "memory.svg").read_text()
    assert not (path.parent / "study-results").exists(), "nothing of it is the study's own plan"


def test_memory_is_counted_by_the_study_s_rows_in_their_order(found, path, base):
    """As `engine.trace` counts the fullest step for that device."""
    study = Study.load(path, engine="sim")
    with devices.TemporaryDirectory() as folder:
        pinned = devices.pin(study.asked, path.parent, engine="sim", log=Path(folder) / "log", counting=False)
    lock = pinned.lock.model_copy(update={"precision": "bf16"})
    for cell in found.cells:
        counted = tracing.count(
            read_config(Path(base) / "config.json"),
            study.asked.arm(cell.fit.arm),
            lock.controls("mail"),
            pinned.counted["mail"],
            place=Place("cuda", (8, 9)),
            kind="classify",
            outputs=3,
            seed=lock.final_seeds(1)[0],
            members=1 if cell.pack is None else 2,
        )
        assert cell.fit.need.peak_bytes == counted.fullest.training_bytes and cell.precision == "bf16"
        assert cell.phases["evaluate"].likely == counted.fullest.phases["evaluate"].peak_bytes
        if cell.pack is not None:
            assert cell.pack.members == 2 and cell.pack.need.peak_bytes == counted.packed.training_bytes
    assert [cell.pack is None for cell in found.cells] == [True, False, False]


def test_the_whole_is_the_sum_of_its_arms_and_json_has_it(found, path):
    (whole,) = found.wholes
    assert whole.seconds.high == pytest.approx(sum(cell.runs_s.high for cell in found.cells)) and not whole.without
    assert whole.usd.low == pytest.approx(sum(cell.usd.low for cell in found.cells))
    read = json.loads(plan(path, "--gpu", "l4", "--engine", "sim", "--json").stdout)
    assert read["wholes"][0]["usd"]["low"] == pytest.approx(whole.usd.low)
    assert {"load", "prepare", "step", "evaluate", "save", "resume", "serve"} <= set(read["cells"][1]["phases"])


def test_the_price_is_that_of_the_gpu_the_study_names_else_the_environment_s(tmp_path, base, monkeypatch):
    priced = "hardware: {gpu: L4, usd_per_hour: 3600}"
    path = write_study(tmp_path, base_model=base, arms=("lora", "small"), more=priced)
    monkeypatch.setenv("TUNETRIAL_USD_PER_HOUR", "7200")
    l4, _, t4, _ = Study.load(path, engine="sim").forecast(["l4", "t4"]).cells
    assert "3600 USD" in l4.price and "7200 USD" in t4.price


def test_where_nothing_fits_it_says_what_would_and_ends_with_4(path, monkeypatch):
    room(monkeypatch, 0.3)
    made = plan(path, "--gpu", "l4", "--engine", "sim")
    assert made.exit_code == 4 and made.stdout.count("does not fit") == 3
    assert "the study on l4" not in made.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--gpu", "a1000"), 1, "did you mean"),
        (("--gpu", "2xl4"), 1, "a study's trials are on one GPU each, got '2xl4'"),
        (("--gpu", ","), 1, "--gpu: names nothing"),
        (("--method", "lora"), 2, "--method: not with a study file"),
        (("--step", "4x4", "--rows", "3"), 2, "--rows, --step: not with a study file"),
        (("--test", "277:0.1"), 2, "--test: not with a study file"),
    ],
)
def test_bad_input_is_one_line(path, arguments, status, said):
    made = plan(path, "--engine", "sim", *arguments)
    assert made.exit_code == status and said in made.stderr
    assert made.stderr.strip().count("\n") == 0 and "Traceback" not in made.stderr


def test_a_folder_of_results_makes_no_sense_without_a_study(tmp_path):
    made = plan("--model", "embedded", "--folder", tmp_path)
    assert made.exit_code == 2 and "--folder: not with --model" in made.stderr


def test_an_arm_that_is_not_trained_has_time_but_no_memory(tmp_path, base):
    path = write_study(tmp_path, base_model=base, arms=("lora", "small"))
    path.write_text(path.read_text().replace("arms:\n", "arms:\n  plain: {method: tfidf}\n"))
    made = Study.load(path, engine="sim").forecast(["l4"])
    assert [cell.fit.arm for cell in made.cells] == ["lora", "small"]
    assert any(remark.startswith("plain: not trained") for remark in made.remarks)
